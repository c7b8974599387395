"""The suite that every wall must pass, shipped so that whoever makes a wall, or doubts one, can run it: `stockade doctor --conformance WALL`.

An attack is made three ways: by the native control, where it must succeed, in the sandbox, where it must fail, and as a harmless twin, which must work. The
tests of this project hold deliberately leaky walls against it: for each check there is one that fails it (tests/walls/test_leaks.py).
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.walls.conformance import cleanup, execs, files, isolation, lifecycle, limiting, mounting, network, receipt
from stockade.walls.conformance.checks import CHECKS
from stockade.walls.conformance.lab import PATIENCE, Ended, Failed, Lab, Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stockade.walls.conformance.checks import Check
    from stockade.walls.contract import Wall

type Status = Literal["pass", "fail", "skip"]

# The modules are imported for the checks that they enter; in this order the checks are made.
GROUPS = {
    "lifecycle": lifecycle, "exec": execs, "files": files, "mounts": mounting, "limits": limiting, "network": network, "isolation": isolation,
    "receipt": receipt, "cleanup": cleanup,
}  # fmt: skip
OURS = {"bubblewrap": "bubblewrap", "gvisor": "gvisor", "vm": "vm.wall"}  # and the module of each
PARTS = ("NAME", "ADDRESS", "OWN_KERNEL", "OVERHEAD", "USER", "look", "plan", "make_door", "open_box")


@frozen
class Outcome:
    """What became of one check. `reason` is "" for one that passed; `declared`: the check itself says that it may be skipped for this reason.

    `seconds` is how long it took.
    """

    check: str
    group: str
    status: Status
    reason: str
    seconds: float
    declared: bool = False

    @property
    def ok(self) -> bool:
        """Whether it speaks for the wall: a skip does only with a reason that the check declares."""
        return self.status == "pass" or (self.status == "skip" and self.declared)


def find(name: str) -> Wall:
    """The wall called `name`: one of ours, or "package.module" or "package.module:attribute", which is imported.

    Raises StockadeError: `conformance.unknown` when there is none, `conformance.import` when it cannot be imported, `conformance.contract` when it
    lacks a part of the contract.
    """
    place = f"stockade.walls.{OURS[name]}" if name in OURS else name
    module, _, attribute = place.partition(":")
    hint = f"It is one of {', '.join(OURS)}, or a module as `import` takes it: package.module. Its directory must be in PYTHONPATH."
    if not all(part.isidentifier() for part in module.split(".")) or name in ("", ":"):
        raise StockadeError(f"{name!r} is not the name of a wall", code="conformance.unknown", hint=hint)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise StockadeError(f"there is no wall {name!r}", code="conformance.unknown", hint=hint) from error
        raise _broken(name, error) from error
    except Exception as error:  # whatever the module does
        raise _broken(name, error) from error
    wall = getattr(found, attribute, None) if attribute else found
    lacking = [part for part in PARTS if not hasattr(wall, part)]
    if lacking:
        where = "docs/walls.md and stockade/walls/contract.py say what a wall has."
        raise StockadeError(f"{name} is no wall: it lacks {', '.join(lacking)}", code="conformance.contract", hint=where)
    return wall  # type: ignore[return-value]  # whether it keeps the contract is what the checks are for


def _broken(name: str, error: Exception) -> StockadeError:
    return StockadeError(
        f"the wall {name!r} cannot be imported: {type(error).__name__}: {error}",
        code="conformance.import",
        hint=f"Try: python -c 'import {name}'",
    )


def chosen(only: Sequence[str]) -> list[Check]:
    """The checks that are called so, or are of a group that is; all of them for an empty `only`. Raises StockadeError (`conformance.check`)."""
    strange = [name for name in only if name not in CHECKS and name not in GROUPS]
    if strange:
        hint = f"A check is called group.name; the groups are {', '.join(GROUPS)}."
        raise StockadeError(f"there is no check {', '.join(strange)}", code="conformance.check", hint=hint)
    every = [check for group in GROUPS for check in CHECKS.values() if check.group == group]
    return [check for check in every if not only or check.id in only or check.group in only]


def run(
    wall: Wall, *, only: Sequence[str] = (), progress: Callable[[Check], None] | None = None, patience: float = PATIENCE
) -> Iterator[Outcome]:
    """Check `wall`; each outcome as soon as it is known. `only` are ids or groups, `progress` is told of each check before it begins.

    `patience` is how many seconds one command may take. Not to be used while another thread starts processes: some checks adopt orphans. A wall whose
    `wait` or `close` never returns stops the run there. Raises StockadeError for an unknown name in `only`, CannotEnforce when the wall says that it
    cannot work on this machine.
    """
    wanted = chosen(only)
    try:
        lab = Lab(wall, patience)
    except StockadeError:
        raise
    except Exception as error:  # whatever somebody's wall raises
        what = f"looking at this machine failed: {type(error).__name__}: {error}"
        raise StockadeError(what, code="conformance.look", hint="`look` of a wall raises CannotEnforce for what is missing.") from error
    try:
        for check in wanted:
            if progress is not None:
                progress(check)
            began = time.monotonic()
            status, reason = _outcome(check, lab)
            yield Outcome(check.id, check.group, status, reason, time.monotonic() - began, status == "skip" and reason in check.skips)
    finally:
        lab.close()


def _outcome(check: Check, lab: Lab) -> tuple[Status, str]:
    try:
        check.run(lab)
    except Skipped as skipped:
        return "skip", str(skipped)
    except Failed as failed:
        lab.renew()  # nobody knows what it has left in the box that checks share
        return "fail", str(failed)
    except Ended as ended:
        lab.renew()
        return "fail", f"the watchdog ended the sandbox: {ended}"
    except StockadeError as error:
        lab.renew()
        return "fail", f"{type(error).__name__} ({error.code}): {error.message}"
    except Exception as error:  # a wall may raise anything; that is a failure of its, and must not hide the checks that follow
        lab.renew()
        return "fail", f"{type(error).__name__}: {error}"
    return "pass", ""
