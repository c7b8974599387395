"""The receipt of one run: what was asked for, what is enforced by which mechanism, where the ledger says so, and how it ended.

A receipt is a JSON-ready mapping; `ReceiptFile` writes it where the user wants it. `started` and `ended` cost nothing to import.
"""

from __future__ import annotations

import os

from stockade.core.errors import StockadeError
from stockade.core.frozen import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from stockade.core.values import Confinement, Enforced
    from stockade.record.ledger import Receipt

VERSION = 1


def started(
    *, session: str, asked: Confinement, enforced: tuple[Enforced, ...], versions: dict[str, str], start: Receipt
) -> dict[str, Any]:
    """The receipt of a run that is about to start. `versions` names programs and kernel; `start` is the ledger's receipt of the start event.

    Of the environment only the names are listed: a value may be a secret, and a receipt is handed around.
    """
    wanted = plain(asked)
    wanted["environment"] = [name for name, _ in asked.environment]
    return {
        "receipt": VERSION,
        "session": session,
        "asked": wanted,
        "enforced": plain(enforced),
        "versions": dict(versions),
        "ledger": {"start": {"index": start.index, "digest": start.digest}},
    }


def ended(
    receipt: dict[str, Any],
    *,
    end: Receipt | None,
    exit_status: int,
    limits: tuple[str, ...] = (),
    decisions: dict[str, int] | None = None,
    engine: str = "",
) -> dict[str, Any]:
    """`receipt` with how the run ended: the exit status as a shell shows it, the limits that were hit, and how many decisions of each effect.

    `engine` is what carried the requests, "" if nothing connected. `end` is the ledger's receipt of the exit event, None if it could not be written.
    """
    ledger = dict(receipt["ledger"])
    if end is not None:
        ledger["end"] = {"index": end.index, "digest": end.digest}
    how = {"exit_status": exit_status, "limits_hit": list(limits), "decisions": dict(decisions or {}), "engine": engine}
    return {**receipt, "ledger": ledger, **how}


class ReceiptFile:
    """A receipt on disk, 0600, replaced as a whole on every write.

    The directory is opened once, before the sandbox starts: the path may lie in the workspace, where what runs inside can swap directories for
    symlinks. The file itself is replaced by rename(2), which never follows one.
    """

    def __init__(self, path: str) -> None:
        """Raises StockadeError (`receipt.unwritable`) if the directory is not there or `path` is a directory."""
        self.path = path
        directory, self.name = os.path.split(os.path.abspath(path))
        self._directory = -1
        try:
            if os.path.isdir(path):
                raise IsADirectoryError(21, "it is a directory")
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, receipt: dict[str, Any]) -> None:
        """Write `receipt` and wait for the disk. Raises StockadeError (`receipt.unwritable`); an earlier receipt is then still whole."""
        import json

        data = json.dumps(_clean(receipt), indent=2).encode("ascii") + b"\n"
        temporary = f".{self.name[:200]}.{os.getpid()}.{os.urandom(6).hex()}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=self._directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                os.rename(temporary, self.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            except OSError:
                os.unlink(temporary, dir_fd=self._directory)
                raise
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let go of the directory."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unwritable(self, error: OSError) -> StockadeError:
        return StockadeError(
            f"cannot write the receipt {self.path}: {error.strerror}",
            code="receipt.unwritable",
            hint="Name a file in a directory that exists and that you can write to.",
        )


def _clean(value: object) -> object:
    """Strings without lone surrogates, which are no Unicode and which strict JSON readers refuse (RFC 7493, section 2.1)."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
