"""How much of the engine's memory may hold bodies that have to be read, for each session and in all; and how many requests may be under way.

The engine keeps such a body from the brain's answer to the first question (config.py, READ) until the request is over. So whoever sends many of them waits,
or is refused, and others are not harmed. Bodies that stream through take no room. A seat is the same for any request that is under way, whose room is one.
"""

from __future__ import annotations

from stockade.gateway.envoy import Json, typed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

MAX_HEAP = 2 << 30  # bytes of the engine's memory
TOTAL = MAX_HEAP // 2  # bytes
MOST = 128 << 20  # bytes for one session
SEATS = 8192  # requests of all sessions; each may keep a connection to a server, and the engine has a bound for these (origins.py)
MOST_SEATS = 1024  # of one session
MOST_WAITING = 32  # requests of one session
PATIENCE = 10.0  # seconds that a request waits for room; the engine waits twice as long for an answer


class Full(Exception):
    """There was no room in time."""


class Rooms:
    """A session may take `most` of `total`, and never more than is free afterwards: so whoever takes a lot always leaves as much to the others."""

    def __init__(self, total: int = TOTAL, most: int = MOST) -> None:
        self._free, self._most = total, most
        self._used: dict[str, int] = {}  # bytes by session
        self._rooms: dict[str, tuple[str, int]] = {}  # whose each is and how large, by its name
        self._waiting: list[tuple[str, int, asyncio.Future[str]]] = []
        self._last = 0

    async def take(self, session: str, size: int) -> str:
        """Room for so many bytes; its name, which is given back once. Whoever of a session came first gets it first. Raises Full."""
        waiting = sum(other == session for other, _, _ in self._waiting)
        if not waiting and self._fits(session, size):
            return self._reserve(session, size)
        if waiting >= MOST_WAITING:
            raise Full
        return await self._wait(session, size)

    def give_back(self, name: str) -> None:
        """The request is over. May be called twice, and for what is no room's name."""
        if name in self._rooms:
            session, size = self._rooms.pop(name)
            self._free += size
            self._used[session] -= size
            if not self._used[session]:
                del self._used[session]
            self._admit()

    def _fits(self, session: str, size: int) -> bool:
        return self._used.get(session, 0) + size <= min(self._most, self._free - size)

    def _reserve(self, session: str, size: int) -> str:
        self._last += 1
        name = str(self._last)
        self._rooms[name] = session, size
        self._used[session] = self._used.get(session, 0) + size
        self._free -= size
        return name

    async def _wait(self, session: str, size: int) -> str:
        import asyncio

        name: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = session, size, name
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(name)
        except BaseException as error:
            if name.done():  # it came too late
                self.give_back(name.result())
            else:
                self._waiting.remove(waiting)
            if isinstance(error, TimeoutError):
                raise Full from None
            raise

    def _admit(self) -> None:
        """Let in those who fit, in the order in which they came; of a session that is full nobody passes who waits in front."""
        full: set[str] = set()
        for waiting in [*self._waiting]:
            session, size, name = waiting
            if session not in full and self._fits(session, size):
                self._waiting.remove(waiting)
                name.set_result(self._reserve(session, size))
            else:
                full.add(session)


def ended(answers: str, key: str, what: str) -> Json:
    """The engine's log: a line on standard output at the end of each request that had a room (or whatever it is called), whose name stands under `key` in the
    metadata that the brain's `answers` become."""
    had = {"filter": answers, "path": [{"key": key}], "value": {"present_match": True}}
    line = {what: f"%DYNAMIC_METADATA({answers}:{key})%"}
    log = typed("envoy.access_loggers.stdout", "extensions.access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": line})
    return {**log, "filter": {"metadata_filter": {"matcher": had, "match_if_key_not_found": False}}}


def overload() -> Json:
    """Before memory runs out the streams that hold most of it are reset, so that whoever fills it harms himself first; near its end nothing new is taken."""
    heap = "envoy.resource_monitors.fixed_heap"
    monitor = typed(heap, "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=MAX_HEAP)

    def at(threshold: float) -> list[Json]:
        return [{"name": heap, "threshold": {"value": threshold}}]

    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [monitor],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": at(0.7)},
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": heap, "scaled": {"scaling_threshold": 0.7, "saturation_threshold": 0.9}}],
            },
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": at(0.95)},
        ],
    }
