"""A stand-in for the wall: the view of a workspace made with unshare and mount alone, for root and for an ordinary user."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import unavailable
from stockade.core.values import Mount, Overlay, Workspace
from stockade.walls import workspace
from stockade.walls.workspace import View, nested, scan

IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.test",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.test",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "HOME": "/nonexistent",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LC_ALL": "C",
}


def git(where: Path | str, *args: str, check: bool = True) -> str:
    """The host's git, as a person's shell prompt would run it: nothing switched off."""
    done = subprocess.run(["git", *args], cwd=where, env=IDENTITY, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise AssertionError(f"git {' '.join(args)}: {done.stderr}")
    return done.stdout


def repository(path: Path, files: dict[str, str] | None = None) -> Path:
    """A real repository with one commit on `main`."""
    path.mkdir(parents=True)
    git(path, "init", "-q", "-b", "main")
    for name, text in (files or {"a.txt": "one\n"}).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    git(path, "add", "-A")
    git(path, "commit", "-q", "-m", "first")
    return path


def overlay_works(scratch: Path) -> None:
    """Skip (or fail, where it must work) unless a rootless overlay can be mounted here."""
    for name in ("l", "u", "w", "t"):
        (scratch / name).mkdir(parents=True)
    mount = f"mount -t overlay overlay -o userxattr,lowerdir={scratch}/l,upperdir={scratch}/u,workdir={scratch}/w {scratch}/t"
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, text=True)
    if done.returncode:
        unavailable("overlay", done.stderr.strip())


class Session:
    """One run on a workspace: `inside(script)`, then `end()`; both may happen several times."""

    def __init__(self, top: Path, state: Path, name: str = "s1", policy: Workspace | None = None, *, remember: bool = True) -> None:
        self.top, self.directory = top, state / name
        self.directory.mkdir(parents=True)
        self.view: View = workspace.prepare(policy or Workspace(), str(top), str(top), str(self.directory), name)
        time.sleep(0.03)  # what the test itself has just made is not of the run
        self.view.started(time.time())
        self.before = scan.Baseline()
        if remember:
            self.look()

    def look(self) -> None:
        """What the background scan does while the command runs."""
        import marshal

        from stockade.walls.workspace import bringback

        for each in (*self.view.facts["nested"], self.view.facts):
            if each["git"]:
                bringback.remember(each)
        started = self.view.facts["started"] - nested.SLACK
        self.before = scan.baseline(str(self.top), frozenset(self.view.facts["skip"]), started=started)
        (self.directory / "baseline").write_bytes(marshal.dumps(self.before.plain()))
        assert nested.load(str(self.directory / "baseline"))["complete"]

    def script(self, command: Sequence[str]) -> str:
        steps = ["set -e"]
        places: list[Mount | Overlay] = [*self.view.overlays, *self.view.mounts]
        for item in sorted(places, key=lambda place: place.target.count("/")):
            target = shlex.quote(item.target)
            if isinstance(item, Overlay):
                options = f"userxattr,lowerdir={item.lower},upperdir={item.upper},workdir={item.work}"
                steps.append(f"mount -t overlay overlay -o {shlex.quote(options)} {target}")
            else:
                steps.append(f"mount --rbind {shlex.quote(item.source)} {target}")
                if item.mode == "ro":
                    steps.append(f"mount -o remount,bind,ro {target}")
        for held in self.view.held:
            mode, _, path = held.partition(":")
            place = shlex.quote(path)
            steps.append(f"mount --rbind {place} {place}")
            if mode == "ro":
                steps.append(f"mount -o remount,bind,ro {place}")
        steps.append(f"cd {shlex.quote(str(self.top))}")
        steps.append("exec " + shlex.join(command))
        return "\n".join(steps)

    def run(self, command: Sequence[str], stdout: int | None = None, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        argv = ["unshare", "-Urm", "sh", "-c", self.script(command)]
        return subprocess.run(argv, env=IDENTITY, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=seconds)

    def inside(self, script: str, *, check: bool = True) -> str:
        done = self.run(["sh", "-ec", script])
        if check and done.returncode:
            raise AssertionError(f"inside: {done.stderr}\n{done.stdout}")
        return done.stdout + (done.stderr if not check else "")

    def confined(self, argv: Sequence[str], stdout_fd: int, seconds: float) -> int:
        return self.run(argv, stdout_fd, seconds).returncode

    def end(self) -> dict[str, dict[str, Any]]:
        """Finish; events by kind."""
        return {event["kind"]: event for event in self.view.finish(self.confined)}

    def report(self) -> dict[str, Any]:
        """What the background scan does after the end."""
        return scan.compare(self.view.facts, self.before)


def refs(event: dict[str, Any]) -> dict[str, str]:
    return {row["ref"]: row["result"] for row in event["refs"]}
