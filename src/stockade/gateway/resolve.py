"""Where a granted name really is, and whether the gate may connect there. Checked after resolving; the connection goes to exactly the address returned."""

from __future__ import annotations

import ipaddress
import time
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from typing import Any

    Lookup = Callable[[str, int], Coroutine[Any, Any, list[str]]]
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CACHED = 30.0  # seconds
_PATIENCE = 5.0  # seconds for an answer
AT_ONCE = 4  # lookups of one session; each keeps a thread for as long as its answer takes
THREADS = 64  # of all sessions
_networks = ipaddress.ip_network
# Refused whatever a grant says: addresses that mean "this link" or "whoever runs this machine", and notations that hide another address.
_NEVER = {
    "link-local": (_networks("169.254.0.0/16"), _networks("fe80::/10"), _networks("fec0::/10")),
    "a metadata service": (
        _networks("fd00:ec2::/64"),
        _networks("100.100.100.200/32"),
        _networks("fd20:ce::254/128"),
        _networks("168.63.129.16/32"),  # Azure's, which looks like any other address
        _networks("192.0.0.192/32"),
    ),
    "unspecified": (_networks("0.0.0.0/8"), _networks("::/128")),
    "an IPv4 address in IPv6 dress": (
        _networks("::ffff:0:0/96"),
        _networks("::/96"),
        _networks("64:ff9b::/96"),
        _networks("64:ff9b:1::/48"),
    ),
    "6to4 or Teredo": (_networks("2002::/16"), _networks("2001::/32"), _networks("192.88.99.0/24")),
    "the gate's own synthetic range": (_networks("198.18.0.0/15"),),
}
_SHARED = _networks("100.64.0.0/10")


class Unreachable(Exception):
    """The name has no address that the gate may use. `rule` is a closed code; the text is a sentence for people."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


@lru_cache(1024)
def objection(text: str, private: bool) -> str:
    """Why the gate may not connect to this address, "" if it may. `private`: the grant vouches for private and loopback addresses."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "not an address"
    if address != ipaddress.IPv6Address("::1"):
        for what, networks in _NEVER.items():
            if any(address.version == network.version and address in network for network in networks):
                return what
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return "multicast or broadcast"
    if private:
        return ""
    if address.is_loopback:
        return "loopback"
    if address in _SHARED if address.version == 4 else False:
        return "carrier-grade NAT"
    return "" if address.is_global else "private or reserved"


async def system_lookup(host: str, port: int) -> list[str]:
    """getaddrinfo(3) in a thread, in its order of preference. Raises OSError."""
    import asyncio
    import socket

    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(entry[4][0]) for entry in found]


class Resolver:
    """Remembers answers for half a minute. Of several addresses it uses the first that passes. One for each session.

    Not "all must pass": the gate connects only to what it checked, so a forbidden sibling is never dialled, and on DNS64 networks every name has one.
    """

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._cache: dict[str, tuple[float, list[str]]] = {}
        self._asking: set[asyncio.Task[list[str]]] = set()

    async def address(self, host: str, port: int, private: bool) -> str:
        """`ip:port` (`[ip]:port`) to connect to. Raises Unreachable."""
        objections = []
        for found in await self._addresses(host, port):
            reason = objection(found, private)
            if not reason:
                return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"
            objections.append(reason)
        hint = "" if private else "; if that is meant, the grant needs private = true"
        raise Unreachable("address-not-public", f"{host} resolves only to addresses that are {' or '.join(sorted(set(objections)))}{hint}")

    async def _addresses(self, host: str, port: int) -> list[str]:
        if host == "localhost" or host.endswith(".localhost"):
            return ["127.0.0.1"]  # RFC 6761, section 6.3: never asked of a resolver
        known = self._cache.get(host)
        if known and known[0] > time.monotonic():
            return known[1]
        try:
            found = await self._asked(host, port)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise Unreachable("name-not-resolved", f"{host} could not be resolved ({type(error).__name__})") from error
        if len(self._cache) > 1024:
            self._cache.clear()
        self._cache[host] = (time.monotonic() + _CACHED, found)
        return found

    async def _asked(self, host: str, port: int) -> list[str]:
        """The answer, in time. INVARIANT: a lookup that nobody waits for any more counts until it is over, since its thread can be given to nobody else."""
        import asyncio

        async with asyncio.timeout(_PATIENCE):
            while len(self._asking) >= AT_ONCE:
                await asyncio.wait(self._asking, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._lookup(host, port))
            self._asking.add(task)
            task.add_done_callback(self._over)
            return await asyncio.shield(task)

    def _over(self, task: asyncio.Task[list[str]]) -> None:
        self._asking.discard(task)
        task.cancelled() or task.exception()  # seen, whether somebody waits or not
