"""What holds when nobody wrote a policy. On the path of every start: imports nothing heavy."""

from __future__ import annotations

from stockade.core.values import Environment, Origin, Policy, Workspace
from stockade.policy import paths

_LOCALE = (
    "ALL",
    "COLLATE",
    "CTYPE",
    "MESSAGES",
    "MONETARY",
    "NUMERIC",
    "TIME",
    "ADDRESS",
    "IDENTIFICATION",
    "MEASUREMENT",
    "NAME",
    "PAPER",
    "TELEPHONE",
)
LOCALE_NAMES = tuple(f"LC_{name}" for name in _LOCALE)  # locale(7)
# How a terminal and a language look; never secrets. PATH and HOME are the wall's, not the caller's.
PASS_NAMES = ("TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", *LOCALE_NAMES, "TZ")


def builtin(cwd: str) -> Policy:
    """The policy without any file: work in `cwd`, see no home, reach nothing. Raises PolicyError if `cwd` cannot be a workspace."""
    import os

    real = os.path.realpath(cwd)
    origin = Origin(key="workspace.path")
    paths.judge(real, what="workspace", mode="rw", origin=origin, named=cwd)
    return Policy(workspace=Workspace(path=real, origin=origin), environment=Environment(PASS_NAMES))
