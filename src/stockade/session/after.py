"""What remains to be done when a run is over, without the user waiting for it: look at the workspace again, report, sign the ledger, clean up.

Two processes of lowest priority, both plain `python -m` programs of ours on the host:

- the *scan* (one a session, started when a command lives longer than a moment) takes a baseline while the command works, and compares at its end;
- the *sweeper* (at most one a user) takes the directories of sessions that are over, also of killed ones, compares those that had no scan of their own,
  removes them, and signs the ledger.

Whose turn it is says flock(2) on the session's directory: the session holds it, its scan inherits it, and the sweeper takes only what nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from stockade.core import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

PAUSE = 0.2  # seconds in which further sessions may end and share one sweep
REVIEW = "workspace.review"  # the event that says what waits for a person
IMAGES = "images"  # below a session's directory: checkpoints that nobody wanted to keep
MOMENT = 0.25  # seconds that a command lives before its session gets a scan of its own
_SPAWN = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]


_started: set[int] = set()  # processes of ours that may have ended: a program that opens many sessions must not collect zombies


def _spawn(arguments: list[str], descriptors: dict[int, int]) -> int:
    for pid in [*_started]:
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:  # somebody else waited for it
            ended = True
        if ended:
            _started.discard(pid)
    actions: list[Any] = [*_SPAWN, *((os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in descriptors.items())]
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-m", "stockade.session.after", *arguments],
        dict(os.environ),
        file_actions=actions,
        setsid=True,
    )
    return pid


def scan(directory: str, lock: int) -> tuple[int, int]:
    """Start the scan of a session; (its pid, a descriptor whose closing tells it that the sandbox is dead). INVARIANT: nobody else collects it until it is left `alone`."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        return _spawn(["scan", directory], {0: reading, 3: lock}), writing
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)


def alone(pid: int) -> None:
    """A scan goes on without its session."""
    _started.add(pid)


def waited(pid: int, seconds: float) -> bool:
    """Whether a scan has ended within so many seconds; otherwise it is left alone."""
    import select

    process = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(seconds * 1000):
            alone(pid)
            return False
        os.waitpid(pid, 0)
        return True
    finally:
        os.close(process)


def sweep() -> None:
    """Start the sweeper unless one is about to look. Costs under a millisecond and never fails the caller: whoever ends next tries again."""
    try:
        lock = os.open(places.state("sweeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _started.add(_spawn(["sweep"], {3: lock}))
    except OSError:
        pass
    finally:
        os.close(lock)


def report_of(directory: str) -> dict[str, Any] | None:
    """The report that a finished scan left in its session's directory."""
    return load(f"{directory}/reported")


def left_by(events: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """What the events of a session's end say that must be kept, in sentences; () = nothing."""
    found: list[str] = []
    for event in events:
        if event.get("error"):
            found.append(f"commits that could not be brought back to {event['repository']}: {event['error']}")
        if event.get("failed"):
            found.append(f"{len(event['failed'])} files that could not be merged, in {event['layer']}")
        if event.get("kept_in") and os.listdir(event["kept_in"]):
            found.append(f"first versions of changed files, in {event['kept_in']}")
        if event["kind"] == REVIEW:
            found.append(f"{event['said']}: stockade changes show {event['session']} (then apply or discard)")
    return tuple(found)


def keep(directory: str, why: Iterable[str]) -> None:
    """Leave this session's directory alone, and say in it why: it holds work that could not be brought back."""
    with open(f"{directory}/keep", "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(f"{line}\n" for line in why)


def release(directory: str) -> None:
    """Take back `keep`, if it was said."""
    try:
        os.unlink(f"{directory}/keep")
    except FileNotFoundError:
        pass


def reasons(directory: str) -> tuple[str, ...]:
    """Why a session's directory is kept; () = it is not."""
    try:
        with open(f"{directory}/keep", encoding="utf-8", errors="replace") as file:
            return tuple(file.read().splitlines()) or ("for a reason that could not be written down",)
    except OSError:
        return ()


def pausing(directory: str, paused: bool) -> None:
    """Say in a session's directory whether it stands still, for whoever lists sessions. That is shown and nothing else, so an error of the disk is no reason."""
    try:
        if paused:
            os.close(os.open(f"{directory}/paused", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        else:
            os.unlink(f"{directory}/paused")
    except OSError:
        pass


def discard(directory: str) -> None:
    """Remove a session's directory. What cannot be removed is left for the sweeper."""
    from stockade.walls.workspace import cleanup

    try:
        cleanup.discard(directory)
    except OSError:
        pass


def _sweeper(lock: int) -> None:
    """Until there is nothing left: a session that ends while we work finds the lock taken, so look again after letting it go."""
    from stockade.record.ledger import Ledger

    while True:
        time.sleep(PAUSE)
        by_workspace: dict[str, list[str]] = {}
        for path in _over():
            facts = load(f"{path}/facts")
            by_workspace.setdefault(facts["top"] if facts else "", []).append(path)
        for paths in by_workspace.values():
            try:
                _take(paths)
            except (
                Exception
            ) as error:  # what one workspace holds must not keep others from being looked at, nor the ledger from being signed
                _set_apart(paths, error)
        Ledger(places.state("ledger")).checkpoint()
        fcntl.flock(lock, fcntl.LOCK_UN)
        while not _over():
            if not _being_made():
                return
            time.sleep(1)  # a session killed in the middle of making its directory leaves one that nobody else would look at
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # another sweeper has it


def _over() -> list[str]:
    """Directories of sessions that nobody holds, without those that are kept or that we already failed to remove."""
    parent = places.state("sessions")
    try:
        names = sorted(os.listdir(parent))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        path = f"{parent}/{name}"
        if os.path.exists(f"{path}/keep") or (name.startswith(".") and _young(path)):
            continue
        fd = hold(path)
        if fd >= 0:
            os.close(fd)
            found.append(path)
    return found


def _being_made() -> bool:
    """Whether there is a directory that a session may be just making."""
    parent = places.state("sessions")
    try:
        return any(name.startswith(".") and _young(f"{parent}/{name}") for name in os.listdir(parent))
    except FileNotFoundError:
        return False


def _young(path: str) -> bool:
    """Whether a session may be just making this directory: it has another name until its lock is taken."""
    try:
        return time.time() - os.stat(path).st_mtime < 10
    except OSError:
        return True


def hold(path: str) -> int:
    """Take the lock of a session's directory; -1 if somebody has it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd


def _take(paths: list[str]) -> None:
    """Finish sessions of one workspace: report what nobody reported, keep what could not be brought back, remove the rest.

    Many short commands in a large workspace share one look, from the start of the first on.
    """
    from stockade.record.ledger import Ledger
    from stockade.walls.workspace import UNTOUCHED
    from stockade.walls.workspace import scan as scanner
    from stockade.walls.workspace.report import parts

    held = {path: fd for path in paths if (fd := hold(path)) >= 0}
    try:
        sessions = {path: facts for path in held if (facts := load(f"{path}/facts")) and facts.get("started")}
        new = [facts for path, facts in sessions.items() if facts["mode"] not in UNTOUCHED and not os.path.exists(f"{path}/reported")]
        ledger = Ledger(places.state("ledger"))
        if written := sorted(new, key=lambda facts: facts["started"]):
            report = scanner.compare(written[0], scanner.Baseline())
            names = [facts["name"] for facts in written]
            for part in parts({"kind": report.pop("kind"), "session": names[0], **({"sessions": names} if names[1:] else {}), **report}):
                ledger.append(part)
        for path in held:
            discard(f"{path}/{IMAGES}")
            # INVARIANT: whatever was reported, work is removed only when the session itself has brought it back.
            if path in sessions and not os.path.exists(f"{path}/finished") and _unfinished(sessions[path]):
                ledger.append(
                    {"kind": "workspace.kept", "session": sessions[path]["name"], "kept_in": path, "reason": "the supervisor was killed"}
                )
                waits = sessions[path]["mode"] == "review"
                told = f"changes that wait: stockade changes show {sessions[path]['name']}" if waits else "work that was not brought back"
                keep(path, [f"{told}: the supervisor was killed"])
                continue
            discard(path)
            if os.path.exists(path):
                keep(path, ["something that cannot be removed"])
    finally:
        for fd in held.values():
            os.close(fd)


def _set_apart(paths: Iterable[str], error: Exception) -> None:
    """Keep what cannot be finished, and say so; nobody tries again by himself."""
    from stockade.record.ledger import Ledger

    for path in paths:
        if os.path.exists(path):
            reason = f"could not be finished ({type(error).__name__}: {error!a})"
            Ledger(places.state("ledger")).append(
                {"kind": "workspace.kept", "session": os.path.basename(path), "kept_in": path, "reason": reason}
            )
            keep(path, [f"work that {reason}"])


def _unfinished(facts: dict[str, Any]) -> bool:
    """Whether a killed session left commits or files in its private layers."""
    from stockade.walls.workspace import touched

    layer = facts["layer"]
    return bool(
        (layer and os.listdir(f"{layer}/upper"))
        or any(each["git"] and touched.repository(each["git"]) for each in (*facts["nested"], facts))
    )


def load(path: str) -> dict[str, Any] | None:
    import marshal

    try:
        with open(path, "rb") as file:
            data = marshal.load(file)  # noqa: S302 - written by us, in a directory of ours
    except (OSError, ValueError, EOFError, TypeError):
        return None
    return data if isinstance(data, dict) else None


def _scanner(directory: str) -> None:
    import marshal
    import select

    from stockade.record.ledger import Ledger
    from stockade.walls.workspace import scan as scanner
    from stockade.walls.workspace.report import parts

    ledger = Ledger(places.state("ledger"))
    facts = load(f"{directory}/facts")
    if facts is None:
        return

    def emit(event: dict[str, Any]) -> None:
        for part in parts({**event, "session": facts["name"]}):
            ledger.append(part)
        if event["kind"] == "workspace.report":
            with open(f"{directory}/reported.new", "wb") as file:
                marshal.dump(event, file)
            os.rename(f"{directory}/reported.new", f"{directory}/reported")

    def ended() -> bool:
        return bool(select.select([0], [], [], 0)[0])

    def wait_for_end() -> None:
        select.select([0], [], [])

    scanner.run(facts, wait_for_end, ended, emit)


def main(argv: list[str]) -> int:
    """`scan DIRECTORY` (descriptor 3 is its lock) or `sweep` (descriptor 3 is the sweeper's)."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # also where whoever has started us comes before others (sched(7))
    os.nice(19)
    if argv[:1] == ["scan"]:
        _scanner(argv[1])
        os.close(3)
        sweep()
    else:
        _sweeper(3)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
