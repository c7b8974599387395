"""Whether a project's own files count: what was trusted is kept outside the project, and compared at each start. HOT up to the first folder that is trusted.

INVARIANT: of a folder that was never trusted nothing is opened or looked for here; of one that is, bytes are compared, and what is read as a policy is our own
copy of what was trusted. What a project brings is first read by a process of ours in a box of its own, from which only core/brought.py is accepted.
"""

from __future__ import annotations

import os

from stockade.core import brought, places
from stockade.core.errors import StockadeError, Tampered
from stockade.core.frozen import frozen
from stockade.policy.files import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.brought import Entry
    from stockade.core.values import Policy

POLICY = "stockade.toml"  # looked for in the folder that stockade is started in, by exactly this name, and in no other
_MAGIC = b"stockade-trust 1\n"
_LONGEST = brought.MOST + brought.MOST_ENTRIES * (brought.LONGEST_NAME + 32) + 8192
_DIGEST = 64
_SECONDS = 20.0  # that the reader may take
_HOME = "/home/reader"


@frozen
class Trusted:
    """What a person trusted: the folder's resolved path, when (Unix seconds), and what it brought then (core/brought.py)."""

    path: str
    when: float
    body: bytes

    @property
    def entries(self) -> tuple[Entry, ...]:
        return brought.decode(self.body)


def policy(cwd: str, *, policy_file: str | None = None, overrides: tuple[tuple[str, str], ...] = (), project: bool = True) -> Policy:
    """The policy of a start in `cwd`, with the layer of a trusted project unless `project` is false.

    Raises PolicyError, and StockadeError `trust.changed`, which is on record then.
    """
    from stockade.policy.cached import load

    return load(cwd, policy_file=policy_file, overrides=overrides, project=layer(cwd, policy_file, recorded=True) if project else None)


def layer(cwd: str, policy_file: str | None = None, *, recorded: bool = False) -> tuple[str, bytes] | None:
    """Name and content of the policy of the project in `cwd`; None if the folder is not trusted, or brings none, or `policy_file` names the same file.

    Raises StockadeError `trust.changed` if anything that the project brings differs from what was trusted, Tampered if the record of it is not ours.
    """
    path = os.path.realpath(cwd)
    found = kept(path)
    if found is None:
        return None
    from stockade.walls.workspace.brought import collect

    try:
        now = collect(path)
    except OSError as error:
        raise StockadeError(
            f"{path} is trusted, and cannot be looked at: {error.strerror}", code="trust.unreadable", hint="Look at its permissions."
        ) from error
    if now != found.body:
        raise _changed(found, now, recorded)
    name = f"{path}/{POLICY}"
    if policy_file is not None:
        from stockade.policy.paths import expand

        if os.path.realpath(expand(policy_file, cwd)) == name:
            return None
    return next(((name, entry.content) for entry in found.entries if entry.name == POLICY and entry.kind in "fx"), None)


def _changed(found: Trusted, now: bytes, recorded: bool) -> StockadeError:
    from stockade.checks.trust import changes

    names = [f"{one.name} ({one.how})" for one in changes(found.entries, brought.decode(now))]
    if recorded:
        record("changed", found.path, now, files=names[:50])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return StockadeError(
        f"{found.path} is not what you trusted: {', '.join(names[:5])}{more}",
        code="trust.changed",
        hint="See what changed, and trust it anew or not: stockade trust. Without anything of the project's own: stockade run --no-project",
    )


def kept(path: str) -> Trusted | None:
    """What was trusted in the folder at the resolved `path`, None if nothing is. Raises Tampered if the record is not one that we wrote."""
    return _load(_place(path))


def listing() -> list[Trusted]:
    """Everything that is trusted, by path. Nothing of the folders is looked at. Raises Tampered."""
    folder = places.state("trust")
    try:
        names = sorted(name for name in os.listdir(folder) if len(name) == _DIGEST)
    except FileNotFoundError:
        return []
    found = [one for name in names if (one := _load(f"{folder}/{name}")) is not None]
    return sorted(found, key=lambda one: one.path)


def look(path: str) -> bytes:
    """What the project at the resolved `path` brings, read by a confined process.

    Raises StockadeError: `trust.reader` when that fails or says what no reader of ours would, and what the wall raises. The box holds our code and the
    project, read-only; it has no network, and is dead when this returns.
    """
    import sys

    from stockade.core.values import Confinement, Limits, Mount
    from stockade.session.confined import confined
    from stockade.session.own_gate import code
    from stockade.walls import bubblewrap
    from stockade.walls.workspace.brought import listed

    inside = "/project"
    limits = Limits(processes=0, memory=1 << 30, file_size=_LONGEST, open_files=256, scratch=16 << 20)
    environment = (("PATH", "/usr/bin:/bin"), ("HOME", _HOME), ("LANG", "C.UTF-8"))
    wanted = Confinement(mounts=(*code(), Mount(path, inside)), limits=limits, environment=environment, home=_HOME)
    plan = bubblewrap.plan(wanted, bubblewrap.look(wanted.home))
    said = os.memfd_create("brought", os.MFD_CLOEXEC)
    try:
        argv = [sys.executable, "-I", "-m", "stockade.walls.workspace.brought", inside]
        status = confined(bubblewrap, plan, None, wanted, argv, said, _SECONDS)
        with open(said, "rb", closefd=False) as file:
            file.seek(0)
            body = file.read(_LONGEST)
    finally:
        os.close(said)
    hint = "Nothing of it was believed, and nothing is trusted."
    if status:
        why = f"took longer than {_SECONDS:g} seconds" if status == 137 else f"ended with status {status}"
        raise StockadeError(f"what {path} brings could not be read: the reader {why}", code="trust.reader", hint=hint)
    try:
        strange = [entry.name for entry in brought.decode(body) if not listed(entry.name)]
    except ValueError as error:
        raise StockadeError(f"what {path} brings could not be read: {error}", code="trust.reader", hint=hint) from error
    if strange:
        raise StockadeError(f"the reader of {path} named {strange[0][:100]}, which is not on the list", code="trust.reader", hint=hint)
    return body


def grant(path: str, body: bytes, how: str) -> Trusted:
    """Trust the folder at the resolved `path` as long as it brings exactly `body`. `how`: "person" or "digest".

    Raises StockadeError: `trust.refused` if something in it cannot be vouched for, `ledger.*`, `place.*`. What cannot be recorded is not trusted.
    """
    from stockade.checks.trust import objections

    entries = brought.decode(body)
    if bad := objections(entries):
        raise refused(path, body, bad)
    import time

    made = Trusted(path, time.time(), body)
    place = _place(path)
    places.private(places.state())
    places.private(os.path.dirname(place))
    record("granted", path, body, by=how, files=[entry.name for entry in entries][:50])
    text = f"{made.when!r}\n".encode() + os.fsencode(path) + b"\0" + body
    temporary = f"{place}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(_MAGIC + digest(text).encode() + text)
    os.replace(temporary, place)
    return made


def refused(path: str, body: bytes, bad: tuple[tuple[str, str], ...]) -> StockadeError:
    """The error for a folder that cannot be trusted, because of these (name, why); it is on record. Raises StockadeError `ledger.*`."""
    record("refused", path, body, by="rule", files=[name for name, _ in bad][:50])
    return StockadeError(
        f"{path} cannot be trusted: {'; '.join(f'{name} is {why}' for name, why in bad[:5])}",
        code="trust.refused",
        hint="Replace it by a plain file, or remove it. For one run you can name the project's policy yourself: stockade run --policy stockade.toml",
    )


def revoke(path: str) -> bool:
    """Trust the folder at `path` no longer; False if it was not trusted. Raises StockadeError `ledger.*`: then nothing changed."""
    place = _place(path)
    if not os.path.lexists(place):
        return False
    record("revoked", path, b"")
    os.unlink(place)
    return True


def record(outcome: str, path: str, body: bytes, **facts: object) -> None:
    """Write to the ledger what became of somebody's trust in a folder: granted, revoked, refused, changed. Raises StockadeError `ledger.*`."""
    from stockade.record.ledger import Ledger

    ledger = Ledger(places.state("ledger"))
    try:
        ledger.append({"kind": "trust", "session": "", "outcome": outcome, "path": path, "digest": digest(body) if body else "", **facts})
    finally:
        ledger.close()


def _place(path: str) -> str:
    return places.state(f"trust/{digest(os.fsencode(path))}")


def _load(place: str) -> Trusted | None:
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _tampered(place) from error
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        data = file.read(_LONGEST)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise _tampered(place)
    places.private(os.path.dirname(place))  # nobody else could have put it there
    head = len(_MAGIC)
    text = data[head + _DIGEST :]
    when, _, rest = text.partition(b"\n")
    named, _, body = rest.partition(b"\0")
    if data[:head] != _MAGIC or digest(text).encode() != data[head : head + _DIGEST] or _place(os.fsdecode(named)) != place:
        raise _tampered(place)
    return Trusted(os.fsdecode(named), float(when), body)


def _tampered(place: str) -> Tampered:
    return Tampered(
        f"{place} is not a record of trust that stockade wrote",
        code="trust.tampered",
        hint=f"Nothing was run. Look at it, remove it (rm {place}), and trust the folder again: stockade trust",
    )
