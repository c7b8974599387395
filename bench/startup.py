"""How long does it take to start a command in a sandbox? Compares stockade with a bare interpreter, bare bubblewrap and two peers.

    python bench/startup.py [--rounds N] [--json] [--workspace empty|big|both]

All contenders take turns in every round, in an order drawn anew, so that a busy moment of the machine hits all of them. Printed are the
median of each and two ratios taken inside this run; absolute times depend on the machine and no test looks at them. The big workspace
(30,000 files, 40 git repositories) is made in a temporary directory. Peers come from `scripts/peers`; one that is absent is left out.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES, REPOSITORIES = 30_000, 40
IN_PROCESS = Path(__file__).with_name("in_process.py")


@dataclass(frozen=True)
class Contender:
    """Something that starts `true`. `measure` runs it once in a folder and returns seconds."""

    name: str
    measure: Callable[[str], float]


class Failed(Exception):
    """A contender did not run the command; the message holds the last line it printed."""


def command(name: str, *argv: str, env: dict[str, str] | None = None) -> Contender:
    """A contender that is a program: the time from its start until it has ended with status 0."""

    def measure(folder: str) -> float:
        with tempfile.TemporaryFile() as errors:
            began = time.perf_counter()
            process = subprocess.Popen(argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
            # Not wait(timeout): that one looks, sleeps twice as long, and looks again, so it rounds up to 15, 31, 63 ms.
            ended = select.poll()
            descriptor = os.pidfd_open(process.pid)
            ended.register(descriptor, select.POLLIN)
            in_time = ended.poll(60_000)
            took = time.perf_counter() - began
            os.close(descriptor)
            if not in_time:
                process.kill()
            status = process.wait()
            if status:
                errors.seek(0)
                last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
                raise Failed(f"status {status}: {last[0]}")
        return took

    return Contender(name, measure)


@contextmanager
def in_process(python: str, env: dict[str, str]) -> Iterator[Contender]:
    """Opening a box and running `true` in it from a program that already has stockade loaded: a helper does it and prints its own time."""
    with subprocess.Popen([python, str(IN_PROCESS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as helper:
        assert helper.stdin and helper.stdout
        into, out = helper.stdin, helper.stdout

        def measure(folder: str) -> float:
            try:
                print(folder, file=into, flush=True)
                return float(out.readline())
            except (OSError, ValueError) as error:
                raise Failed("the helper ended; run bench/in_process.py by hand to see why") from error

        try:
            yield Contender("stockade, in process", measure)
        finally:
            into.close()


def peers() -> Iterator[Contender]:
    """srt and Codex, from .tools/peers, $STOCKADE_PEERS or PATH. Codex's own program, without the script of Node.js around it."""
    place = Path(os.environ.get("STOCKADE_PEERS") or ROOT / ".tools/peers") / "node_modules"
    srt = next((str(path) for path in [place / ".bin/srt"] if path.exists()), shutil.which("srt"))
    if srt:
        yield command("srt", srt, "true")
    codex = next((str(path) for path in sorted(place.glob("@openai/codex*/vendor/*/*/codex"))), shutil.which("codex"))
    if codex:
        yield command("codex sandbox", codex, "sandbox", "--", "true")


def make_big(folder: Path) -> None:
    """30,000 small files in 40 repositories, each with one commit."""
    each = FILES // REPOSITORIES
    model = folder / "r00"
    for number in range(each):
        path = model / f"d{number % 25:02}" / f"f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")
    git = ["git", "-c", "init.defaultBranch=main", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0"]
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *step], cwd=model, check=True, stdout=subprocess.DEVNULL)
    for number in range(1, REPOSITORIES):
        shutil.copytree(model, folder / f"r{number:02}")


def settle(home: str) -> None:
    """Wait until what stockade does behind the end of a run is done, so that it is not measured as part of somebody else's start."""
    lock = Path(home) / ".local/state/stockade/sweeper.lock"
    if lock.exists():
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def median_ms(times: list[float]) -> float:
    return round(statistics.median(times) * 1000, 1)


def run(
    contenders: list[Contender], folders: dict[str, str], rounds: int, settle: Callable[[], None]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Medians in milliseconds by contender and workspace, and why a contender was left out."""
    times: dict[str, dict[str, list[float]]] = {one.name: {name: [] for name in folders} for one in contenders}
    left_out: dict[str, str] = {}
    for number in range(rounds + 1):  # the first round only warms caches
        turns = [(one, name) for one in contenders for name in folders]
        random.shuffle(turns)
        for one, name in turns:
            if one.name in left_out:
                continue
            settle()
            try:
                took = one.measure(folders[name])
            except (Failed, OSError) as error:
                left_out[one.name] = str(error)
                continue
            if number:
                times[one.name][name].append(took)
    return {
        name: {folder: median_ms(found) for folder, found in row.items()} for name, row in times.items() if name not in left_out
    }, left_out


def table(medians: dict[str, dict[str, float]], left_out: dict[str, str], rounds: int) -> str:
    """The result for people: medians, how they compare with bare bubblewrap and srt, and what a big workspace costs."""
    names = list(next(iter(medians.values()), {}))
    bare, srt = medians.get("bubblewrap, bare", {}), medians.get("srt", {})
    head = ["", *(f"{name}, ms" for name in names), "x bubblewrap", "x srt", *(["big / empty"] if len(names) == 2 else [])]
    rows = [head]
    for contender, row in medians.items():
        first = row[names[0]]
        cells = [f"{row[name]:.1f}" for name in names]
        cells += [f"{first / against[names[0]]:.2f}" if against else "-" for against in (bare, srt)]
        cells += [f"{row['big'] / row['empty']:.2f}"] if len(names) == 2 else []
        rows.append([contender, *cells])
    width = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width[0]) if not column else cell.rjust(width[column]) for column, cell in enumerate(row)) for row in rows
    ]
    lines += [f"left out: {name} ({why})" for name, why in left_out.items()]
    return "\n".join([*lines, f"medians of {rounds} rounds, contenders taking turns"])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--json", action="store_true")
    options.add_argument("--workspace", choices=("empty", "big", "both"), default="both")
    given = options.parse_args()

    python = sys.executable
    script = next((str(path) for path in [Path(python).with_name("stockade")] if path.exists()), shutil.which("stockade"))
    with tempfile.TemporaryDirectory(prefix="stockade-bench-", ignore_cleanup_errors=True) as scratch:
        # A home of its own: the ledger and caches of the bench are not the user's. Bytecode is written, as in an installed program.
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE" and not key.startswith("XDG_")}
        env["HOME"] = f"{scratch}/home"
        os.mkdir(env["HOME"])
        folders = {"empty": f"{scratch}/empty", "big": f"{scratch}/big"}
        folders = {name: path for name, path in folders.items() if given.workspace in (name, "both")}
        for name, path in folders.items():
            os.mkdir(path)
            if name == "big":
                make_big(Path(path))
        bwrap = "bwrap --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp --unshare-all --die-with-parent true".split()
        contenders = [command("python -I -c pass", python, "-I", "-c", "pass", env=env), command("bubblewrap, bare", *bwrap, env=env)]
        if script:
            contenders.append(command("stockade run", script, "run", "--", "true", env=env))
        with in_process(python, env) as inside:
            medians, left_out = run([*contenders, inside, *peers()], folders, given.rounds, lambda: settle(env["HOME"]))
    if given.json:
        print(json.dumps({"rounds": given.rounds, "median_ms": medians, "left_out": left_out}, indent=2))
    else:
        print(table(medians, left_out, given.rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
