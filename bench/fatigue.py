"""How often a person is asked, with a question for everything and under stockade, while a scripted developer does the same work.

    python bench/fatigue.py [--json]
    python bench/fatigue.py --approver 0.93 [--runs N] [--lures N] [--seed N] [--json]

The first runs the fifty steps of developer.py twice: unconfined with a question before every write, command and connection, and in a sandbox under a policy
such as one would write for it, where the questions are those in the ledger. It ends with 1 unless both did the same work, nothing unwanted was done, and at
least 84% fewer questions were asked. All that it connects to is a server of its own on loopback.

The second has an approver who says yes to so many bad requests, whatever they are: attacks of the drill that use the network, really run, and made-up requests
that must be refused (checks/lures.py). It shows what gets through where that answer is all there is, and what gets through a policy that never granted it,
and ends with 1 if that is anything.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.developer import IDENTITY, PACKAGES, STANDARDS, STATISTICS, STEPS, TRACKER

from stockade.core.frozen import plain
from stockade.core.values import ALLOW, DENY
from stockade.record.measures import Share, share

if TYPE_CHECKING:
    from stockade.core.values import Grant

BAR = 0.84  # the published figure of one operating-system sandbox
DEVELOPER = Path(__file__).with_name("developer.py").read_text()
PYTHON = "/usr/bin/python3"  # one that is inside, too
FILES = {
    "README.md": "# Units\n\nConverts units.\n",
    "units.py": '"""Conversions."""\n',
    "test_units.py": "import unittest\n\nimport units\n\n\nclass Conversions(unittest.TestCase):\n    def test_it_says_what_it_is(self):\n        self.assertTrue(units.__doc__)\n",
}
GRANTED = (f'host = "{PACKAGES}"\npaths = ["/simple/**", "/files/**"]\n',)
ASKED = (f'host = "{STANDARDS}"\npaths = ["/*"]\n', f'host = "{TRACKER}"\nmethods = ["POST"]\npaths = ["/issues/7/comments"]\n')


class Site(http.server.ThreadingHTTPServer):
    """Every host there is, on one port of loopback. `requests` are (method, host, path), as they came."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        super().__init__(("127.0.0.1", 0), _Page)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a gate that ends cuts its connections

    def take(self) -> list[tuple[str, str, str]]:
        found, self.requests = self.requests, []
        return found


class _Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.command, self.headers.get("host", "").partition(":")[0], self.path))
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Desk:
    """A folder with the project, and a home of nobody's beside it."""

    def __init__(self, root: Path) -> None:
        self.root, self.work, self.home = root, root / "work", root / "home"
        self.work.mkdir(parents=True)
        self.home.mkdir()
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        places = {"XDG_CONFIG_HOME": f"{root}/config", "XDG_STATE_HOME": f"{root}/state", "XDG_CACHE_HOME": cache}
        self.env = {**keep, "HOME": str(self.home), **places, **IDENTITY}
        for name, text in FILES.items():
            (self.work / name).write_text(text)
        for line in ("init -q -b main", "add -A", "commit -q -m Begin"):
            self.git(*line.split())

    def git(self, *words: str) -> str:
        return subprocess.run(["git", *words], cwd=self.work, env=self.env, check=True, capture_output=True, text=True).stdout

    def result(self) -> dict[str, Any]:
        """What there is in the end: commits (by their ids, which hold trees, texts and times), files, and what was left in the home."""
        files = {
            str(path.relative_to(self.work)): path.read_text()
            for path in self.work.rglob("*")
            if path.is_file() and ".git" not in path.parts
        }
        commits = self.git("rev-list", "main").split()
        return {"commits": commits, "branches": self.git("branch").split(), "files": files, "home": sorted(os.listdir(self.home))}


def everything_asked(desk: Desk, port: int) -> tuple[int, list[bool]]:
    """The work unconfined, with a person who reads each question: (how many there were, which steps worked)."""
    argv = [PYTHON, "-c", DEVELOPER, str(port), "--ask"]
    asked = 0
    with subprocess.Popen(argv, cwd=desk.work, env=desk.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as developer:
        assert developer.stdin and developer.stdout
        for line in developer.stdout:
            said = json.loads(line)
            if isinstance(said, dict):
                return asked, said["worked"]
            asked += 1
            developer.stdin.write("no\n" if said[0].startswith("unwanted") else "yes\n")
            developer.stdin.flush()
    raise SystemExit("the developer has ended early")


def policy(port: int) -> str:
    """Packages are granted; what one would want to see each time is asked about."""
    every = [*((text, "allow") for text in GRANTED), *((text, "ask") for text in ASKED)]
    return "version = 1\n" + "".join(
        f'\n[[egress]]\n{text}scheme = "http"\nport = {port}\nprivate = true\neffect = "{effect}"\n' for text, effect in every
    )


def stockade(desk: Desk, *words: str) -> str:
    """What the command prints; ends all of this if it fails."""
    argv = [sys.executable, "-P", "-m", "stockade", *words]
    ran = subprocess.run(argv, cwd=desk.work, env=desk.env, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"stockade {' '.join(words)[:100]}: {ran.returncode}: {ran.stderr}")
    return ran.stdout


def few_asked(desk: Desk, port: int) -> tuple[dict[str, Any], list[bool]]:
    """The work in a sandbox, with a person who says yes to what is part of it: (what the ledger says was asked, which steps worked)."""
    path = desk.root / "policy.toml"
    path.write_text(policy(port))
    words = ("run", "--wall", "bubblewrap", "--policy", str(path), "--", PYTHON, "-c", DEVELOPER, str(port))
    over = threading.Event()
    person = threading.Thread(target=answer, args=(desk, over))
    person.start()
    try:
        said = stockade(desk, *words)
    finally:
        over.set()
        person.join()
    until_swept(desk)
    return json.loads(stockade(desk, "approvals", "stats", "--json")), json.loads(said)["worked"]


def answer(desk: Desk, over: threading.Event) -> None:
    """A person at `stockade approvals`, until it is over."""
    while not over.wait(0.1):
        for session in json.loads(stockade(desk, "approvals", "list", "--json")):
            for asked in session["asks"]:
                wanted = any(f"http://{host}:" in asked["what"] for host in (STANDARDS, TRACKER))
                stockade(desk, "approvals", "allow" if wanted else "deny", session["session"], str(asked["number"]))


def until_swept(desk: Desk) -> None:
    """Until what goes on behind a run has ended: its report, and the directories' removal."""
    sessions, end = Path(desk.env["XDG_STATE_HOME"]) / "stockade/sessions", time.monotonic() + 30
    while sessions.exists() and any(sessions.iterdir()) and time.monotonic() < end:
        time.sleep(0.1)


def replay() -> dict[str, Any]:
    """Both ways of the same work, compared."""
    site = Site()
    with closing(site.socket), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        port = site.server_port
        loose, held = Desk(Path(place) / "everything"), Desk(Path(place) / "stockade")
        asked, worked = everything_asked(loose, port)
        first = site.take()
        found, worked_inside = few_asked(held, port)
        second = site.take()
        wanted = [not step[0].startswith("unwanted") for step in STEPS]
        results = loose.result(), held.result()
    missing = [STEPS[at] for at, need in enumerate(wanted) if need and not (worked[at] and worked_inside[at])]
    unwanted = [one for one in (*first, *second) if one[1] == STATISTICS] + [name for result in results for name in result["home"]]
    cut = 1 - found["prompts"] / asked
    same = results[0] == results[1] and first == second and not missing
    return {
        "steps": len(STEPS),
        "everything": asked,
        "stockade": found["prompts"],
        "cut": cut,
        "same_work": same,
        "missing": missing,
        "unwanted": unwanted,
        "baseline_by_the_ledger": found["baseline"],
        "ok": same and not unwanted and cut >= BAR,
    }


def bad_attacks(runs: int) -> dict[str, int]:
    """Attacks of the drill by the network that succeed where nothing holds them, really run: how many, and how many of them got out of stockade."""
    from stockade.drills import agents, runner
    from stockade.drills.yard import Yard

    chosen = [item for item in runner.SCENARIOS if item.layer == "egress rule"]
    agent = agents.find("scripted")
    tried = got_out = 0
    with Yard(keep=agent.keep) as yard:
        for _, run in runner.play(runner.Drill(yard, agent), chosen, runs):
            if run.control:
                tried += 1
                got_out += not run.contained
    return {"tried": tried, "got_out": got_out, "attacks": len(chosen)}


def bad_requests(count: int, chance: Random) -> dict[str, int]:
    """Made-up requests that must be refused, under the policy of the replay: how many, and how many of them it lets out or would ask about."""
    from stockade.checks.grants import HttpRequest, decide
    from stockade.checks.lures import lure

    held = tuple(_grants())
    verdicts = []
    for _ in range(count):
        made = lure(held, [("POST", "/issues/7/comments")], chance)
        request = HttpRequest(
            made.method, made.host, made.path, "https" if made.scheme == "https" else "http", made.port, length=made.length
        )
        verdicts.append(decide(request, held).effect)
    return {"tried": count, "got_out": verdicts.count(ALLOW), "asked": sum(effect not in (ALLOW, DENY) for effect in verdicts)}


def _grants() -> list[Grant]:
    """Grants like those that people write: the lures resemble them."""
    from stockade.core.values import ASK, Grant

    return [
        Grant("api.example.com", paths=("/v1/messages",), methods=("POST",)),
        Grant("packages.example.org", paths=("/simple/**",)),
        Grant("tracker.example.net", paths=("/issues/*/comments",), methods=("POST",), effect=ASK),
    ]


def approver(rate: float, runs: int, lures: int, seed: int) -> dict[str, Any]:
    """What somebody who says yes to the share `rate` of bad requests lets through, where that is all that stands before them, and through a policy."""
    chance = Random(seed)  # repeatable on purpose: nothing is kept safe by it
    found: dict[str, Any] = {}
    for name, seen in (("attacks", bad_attacks(runs)), ("requests", bad_requests(lures, chance))):
        through = share(sum(chance.random() < rate for _ in range(seen["tried"])), seen["tried"])
        found[name] = {**seen, "approvals_alone": plain(through)}
    ok = all(seen["tried"] and not seen["got_out"] and not seen.get("asked") for seen in found.values())
    return {"rate": rate, "seed": seed, **found, "ok": ok}


def main() -> int:
    """Run one of the two, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--approver", type=float, metavar="RATE", help="the share of bad requests to which a simulated person says yes")
    parser.add_argument("--runs", type=int, default=2, help="at most so many variants of each attack of the drill")
    parser.add_argument("--lures", type=int, default=1000, help="how many requests are made up")
    parser.add_argument("--seed", type=int, default=5, help="of the simulated person and of the made-up requests")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = replay() if options.approver is None else approver(options.approver, options.runs, options.lures, options.seed)
    if options.json:
        print(json.dumps(found, indent=2))
    elif options.approver is None:
        _print_replay(found)
    else:
        _print_approver(found)
    return 0 if found["ok"] else 1


def _print_replay(found: dict[str, Any]) -> None:
    print(f"{found['steps']} steps of a coding task, done twice")
    print(f"  {found['everything']:4} questions with one for every write, command and connection")
    print(f"  {found['stockade']:4} questions under stockade (bubblewrap wall, by the ledger)")
    print(f"  {found['cut']:4.0%} fewer; the bar is {BAR:.0%}")
    print("The same work was done: files, commits, branches, requests." if found["same_work"] else "NOT the same work was done.")
    for step in found["missing"]:
        print(f"  did not work: {' '.join(step)[:100]}")
    print("Nothing unwanted was done." if not found["unwanted"] else f"UNWANTED: {found['unwanted']}")
    known = found["baseline_by_the_ledger"]
    parts = ", ".join(f"{one['least']} {name}" for name, one in known.items() if name != "cut")
    print(f"The ledger alone knows of at least {parts}.")


def _print_approver(found: dict[str, Any]) -> None:
    print(f"Somebody who says yes to {found['rate']:.0%} of bad requests (seed {found['seed']}), and what gets through:")
    print(f"  {'':44}{'tried':>6}  {'approvals alone':24}policy")
    for name, about in (("attacks", "attacks of the drill by the network, run"), ("requests", "made-up requests that must be refused")):
        seen = found[name]
        alone = Share(**seen["approvals_alone"])
        through = f"{alone.part} ({alone.low:.0%} to {alone.high:.0%})"
        print(
            f"  {about:44}{seen['tried']:6}  {through:24}{seen['got_out']}{', asks about ' + str(seen['asked']) if seen.get('asked') else ''}"
        )
    print("What the policy never grants is not asked about, so no answer lets it out." if found["ok"] else "NOT HELD.")


if __name__ == "__main__":
    sys.exit(main())
