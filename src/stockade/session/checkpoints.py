"""What a session was at one moment, as files of its user's: the guest's memory and what its kernel knows, and beside it what a session that goes on from
there has to know. It holds every secret that was read inside.

INVARIANT: a session that goes on from a checkpoint is narrowed by whatever had narrowed the one that was saved: grants that were taken back, and that something
secret had come in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil

from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.frozen import frozen, replace
from stockade.walls.states import FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import BufferedReader
    from typing import Any

    from stockade.session import Session

NAME = "checkpoint.json"
_LONGEST = 1 << 20  # bytes of the description
_HINT = "A checkpoint is a directory that only you can use, as session.checkpoint() has made it."


@frozen
class Checkpoint:
    """`path` is a directory, `digest` SHA-256 in hexadecimal digits of all of it, `session` whose state it is, `size` in bytes."""

    path: str
    digest: str
    session: str
    size: int

    def discard(self) -> None:
        """Remove it. May be called twice. Raises OSError for what cannot be removed."""
        if os.path.lexists(self.path):
            shutil.rmtree(self.path)


@frozen
class Origin:
    """Where a session goes on: `checkpoint`, the `shape` that the sandbox must have (walls/gvisor.py), the SHA-256 of the `runsc` that has written it and that alone
    may read it, and what has narrowed the session: `revoked` grants as they were written, whether it was to sign nothing any more (`unsigned`), and whether
    something secret had come in (`tainted`).
    """

    checkpoint: Checkpoint
    shape: str
    runsc: str
    revoked: tuple[dict[str, Any], ...]
    unsigned: bool
    tainted: bool


def describe(directory: str, session: str, **facts: object) -> Checkpoint:
    """Write the description of the image in `directory`: `facts` are those of an Origin. Takes as long as to read all of it. Raises OSError."""
    size, files = 0, {}
    for name in FILES:
        with open(f"{directory}/{name}", "rb") as file:
            files[name], length = _measured(file)
            size += length
    text = json.dumps({"version": 1, "session": session, "files": files, **facts}).encode()
    with open(os.open(f"{directory}/{NAME}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(text)
    return Checkpoint(directory, hashlib.sha256(text).hexdigest(), session, size)


def load(wanted: Checkpoint | str) -> Origin:
    """Read a checkpoint, or the one at a path, and look whether it is whole. Takes as long as to read all of it.

    Raises StockadeError: `checkpoint.missing`, `checkpoint.unsafe` when somebody else could have written it, `checkpoint.broken` when it is not what was
    written, or not the one that is meant.
    """
    path = os.path.abspath(wanted if isinstance(wanted, str) else wanted.path)
    try:
        _private(path, 0o040000)
        with _opened(f"{path}/{NAME}") as file:
            text = file.read(_LONGEST)
        known = json.loads(text)
        digest = hashlib.sha256(text).hexdigest()
        if not isinstance(known, dict) or known.get("version") != 1 or sorted(known["files"]) != sorted(FILES):
            raise ValueError("its description is of another kind")
        if not isinstance(wanted, str) and wanted.digest != digest:
            raise ValueError("it is not the one that was made")
        size = 0
        for name in FILES:
            with _opened(f"{path}/{name}") as file:
                found, length = _measured(file)
            if found != known["files"][name]:
                raise ValueError(f"{name} was changed")
            size += length
        origin = Checkpoint(path, digest, str(known["session"]), size)
        narrowed = known["unsigned"] is not False, known["tainted"] is not False
        return Origin(origin, str(known["shape"]), str(known["runsc"]), tuple(known["revoked"]), *narrowed)
    except OSError as error:
        raise StockadeError(f"cannot read the checkpoint {path}: {error.strerror}", code="checkpoint.missing", hint=_HINT) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StockadeError(f"the checkpoint {path} cannot be used: {error}", code="checkpoint.broken", hint=_HINT) from error


def narrow(session: Session, origin: Origin) -> Origin:
    """Narrow a session as the one was that it goes on from, and have that on record, before anything of it moves. What moves from the first moment on may open
    a secret mount before that is watched, so it counts as opened. Raises CannotEnforce (`checkpoint.differs`), StockadeError (`ledger.*`).
    """
    from stockade.walls import gvisor

    plan = session.plan
    assert isinstance(plan, gvisor.Plan)  # no other wall's plan takes an image
    if plan.warm.digest != origin.runsc:
        raise another(plan.warm.digest, origin.runsc)
    if gvisor.shape(plan) != origin.shape:
        raise differs()
    made, tainted = origin.checkpoint, origin.tainted or any(mount.secret for mount in session.confinement.mounts)
    session.record("session.restore", digest=made.digest, parent=made.session, tainted=tainted, revoked=len(origin.revoked))
    if session.signer is not None and origin.unsigned:
        session.signer.revoke()
    return replace(origin, tainted=tainted)


def another(here: str, wanted: str) -> CannotEnforce:
    """The error for a runsc that has not made the checkpoint."""
    return CannotEnforce(
        f"the checkpoint was made by another runsc (SHA-256 {wanted[:16]}..., the one here is {here[:16]}...), and no other can be trusted to read it",
        code="checkpoint.differs",
        hint="Nothing was started. Install that runsc again, or start anew: a checkpoint does not outlive an update of runsc.",
    )


def differs() -> CannotEnforce:
    """The error for a policy that a checkpoint does not fit."""
    return CannotEnforce(
        "the checkpoint was made under another policy: mounts, limits or their places differ, and what runs in it would go by the old ones",
        code="checkpoint.differs",
        hint="Restore it in the same folder and with the same workspace, mounts and limits; grants may differ.",
    )


def _private(path: str, kind: int) -> None:
    """Raises StockadeError (`checkpoint.unsafe`) unless it is ours alone, OSError when it is not there."""
    found = os.stat(path, follow_symlinks=False)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or found.st_mode & 0o170000 != kind:
        raise StockadeError(f"{path} is not yours alone", code="checkpoint.unsafe", hint=_HINT)


def _opened(path: str) -> BufferedReader:
    """A file that is ours alone. Raises as `_private`."""
    _private(path, 0o100000)
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def _measured(file: BufferedReader) -> tuple[str, int]:
    """Its SHA-256 and its size; reads all of it."""
    return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
