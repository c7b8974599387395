"""The receipt says what is held and how; what cannot be held is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import replace
from stockade.core.values import Limits, Mount
from stockade.walls import limits
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import NO_DOOR, SMALL, expect, explained, refused

if TYPE_CHECKING:
    from stockade.walls.conformance.lab import Lab

RULES = ("processes", "files", "network", "environment", "descriptors")


@check("receipt.rules", "the plan has a line for each rule, with the mechanism that holds it")
def rules(lab: Lab) -> None:
    lines = {line.rule: line for line in lab.plan(lab.wanted()).enforced}
    missing = [rule for rule in RULES if rule not in lines]
    expect(not missing, f"no line for {', '.join(missing)}")
    silent = [rule for rule, line in lines.items() if not line.mechanism]
    expect(not silent, f"no mechanism for {', '.join(silent)}")


@check("receipt.mounts", "each mount has a line that says its mode")
def mounts(lab: Lab) -> None:
    folder = lab.folder()
    wanted = (Mount(folder, "/mnt/data", "ro"), Mount(folder, "/mnt/w", "rw"))
    lines = {line.rule: line for line in lab.plan(lab.wanted(*wanted)).enforced}
    for mount in wanted:
        line = lines.get(f"mount {mount.target}")
        expect(line is not None and line.mechanism and line.detail == mount.mode, f"no line for {mount.target} that says {mount.mode}")


@check("receipt.network", "the plan's network is the one that was asked for, and the receipt says so", NO_DOOR)
def network(lab: Lab) -> None:
    lab.door().close()
    said = {}
    for kind in ("none", "door"):
        plan = lab.plan(lab.wanted(network=kind))
        expect(plan.network == kind, f"the plan's network is {plan.network!r} instead of {kind!r}")
        said[kind] = next((line.mechanism for line in plan.enforced if line.rule == "network"), "")
    expect(said["none"] != said["door"] and "door" in said["door"], f"the receipt does not tell them apart: {said}")


@check("receipt.limits", "wall and session together have a line for each limit that is asked for, and none that says another value")
def limit_lines(lab: Lab) -> None:
    wanted = Limits(
        processes=101, memory=102 << 20, cpu_time=103, file_size=104, open_files=105, output=106, wall_time=107, scratch=108 << 20
    )
    everything = (*lab.plan(lab.wanted(limits=wanted)).enforced, *limits.enforced(wanted, set(), lab.wall.OWN_KERNEL))
    for name in limits_of(wanted):
        value = str(getattr(wanted, name))
        lines = [line for line in everything if line.rule == f"limit {name.replace('_', ' ')}"]
        expect(lines, f"no line for the limit of {name}")
        expect(all(line.mechanism and line.detail == value for line in lines), f"a line for the limit of {name} does not say {value}")
    none = lab.plan(lab.wanted(limits=Limits(**dict.fromkeys(limits_of(wanted), 0)))).enforced
    claimed = [line.rule for line in none if line.rule.startswith("limit ")]
    expect(not claimed, f"claimed, though not asked for: {', '.join(claimed)}")


def limits_of(wanted: Limits) -> tuple[str, ...]:
    """The names of all limits."""
    return tuple(vars(wanted))


@check("receipt.refusals", "what cannot be held is refused with a code and a hint")
def refusals(lab: Lab) -> None:
    folder = lab.folder()
    network: Any = "internet"
    mode: Any = "append"
    cases = {
        "network 'internet'": lab.wanted(network=network),
        "mode 'append'": lab.wanted(Mount(folder, "/mnt/w", mode)),
        "mode 'rw-no-delete' of a plain mount": lab.wanted(Mount(folder, "/mnt/w", "rw-no-delete")),
    }
    for what, wanted in cases.items():
        explained(what, refused(what, (CannotEnforce,), lab.plan, wanted))
    lab.plan(replace(lab.wanted(), limits=SMALL))  # the twin
