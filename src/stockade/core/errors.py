"""Errors say what happened, why, and what to do next. Every one carries a closed code that programs can match on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Verdict

# Exit statuses of `stockade run` (as env(1) and the shells use them; see docs/cli.md).
EXIT_FAILED = 125  # stockade itself refused or failed: the command was not run, or was ended by us
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL = 128  # plus the number of the signal that ended the command


class StockadeError(Exception):
    """Base of every error we raise on purpose.

    `code` is a stable dotted name (`policy.unknown-key`), `hint` is what to do next, in one or more plain sentences.
    """

    exit_status = EXIT_FAILED

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.code, self.hint = message, code, hint

    def plain(self) -> dict[str, object]:
        """The error as a JSON-ready mapping, for `--json`."""
        return {"error": self.code, "message": self.message, "hint": self.hint}


class Denied(StockadeError):
    """A check said no. `verdict` says by which rule."""

    def __init__(self, message: str, *, verdict: Verdict, code: str = "denied", hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.verdict = verdict


class Undecided(StockadeError):
    """Nobody could decide (approver unreachable, deadline passed). Treated as no."""


class CannotEnforce(StockadeError):
    """A wall cannot make a wanted rule true on this machine, so nothing is started."""


class WallFailed(StockadeError):
    """A wall that should have worked did not: the command was not run, or its sandbox broke and was ended."""


class Tampered(StockadeError):
    """A record or cache is not what we wrote."""


class PolicyError(StockadeError):
    """A policy file is wrong. `file`, `line` (1-based, 0 = unknown) and `key` (dotted) say where."""

    def __init__(self, message: str, *, code: str, hint: str = "", file: str = "", line: int = 0, key: str = "") -> None:
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(where + message, code=code, hint=hint)
        self.file, self.line, self.key = file, line, key

    def plain(self) -> dict[str, object]:
        return {**super().plain(), "file": self.file, "line": self.line, "key": self.key}
