"""M16, by strace: from the start to the end of a run in a folder that nobody trusts, what is opened, executed and connected to of it. Outside the sandbox that is:

- folders, for their names and nothing else (hard links and repositories are looked for), and descriptors that cannot be read from (O_PATH): what is mounted
  is pinned so, the workspace and the files that are made read-only inside;
- of git directories the files of GIT_READS, as data: HEAD, what it names, and config, since what the sandbox sees in place of it is made from that. git
  itself reads the config there: bytes on its standard input, in `/`, without includes;
- `.git` files, which say where a git directory is.

And *behind* a command that lives longer than a moment, so that what it changed can be reported and its commits brought back:

- files that somebody's host would execute (names.py) are kept as bytes, opened without following a link or waiting;
- the folders of protected files are watched for new names (inotify), following no link;
- the host's git lists the refs and the index of the workspace's own repository, with hooks and monitors off; it reads the config there, and what that includes.

Nothing else, and no program or socket of it. What the *sandbox* does in the workspace is its command's business, and confined.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import unavailable
from session.hostile import REPOSITORIES, Hostile, a_policy_of_its_own, entering_the_folder, settings_of_claude, settings_of_git
from stockade.walls.workspace import names
from walls.boxes import require, scratch

pytestmark = pytest.mark.wall
CALLS = "open,openat,openat2,creat,execve,execveat,connect,sendto,sendmsg,open_by_handle_at,name_to_handle_at,uselib,inotify_add_watch,fanotify_mark"
# What is read of a git directory before a sandbox may see it (walls/git.py).
GIT_READS = re.compile(r"(?:^|/)(HEAD|config|config\.worktree|packed-refs|commondir|gitdir|objects/info/alternates|refs/heads/main)$")
STOCKADE = shutil.which("stockade", path=os.path.dirname(sys.executable)) or "stockade"


@dataclass(frozen=True)
class Access:
    """One system call that names something of the project `top`; `rel` is its path there. `who`: "" in front, "scan" or "git" behind the command."""

    call: str
    top: Path
    rel: str
    text: str
    who: str

    @property
    def reads(self) -> bool:
        """Whether content could be read by it: neither O_PATH nor a folder's names."""
        return self.call != "open" or ("O_PATH" not in self.text and "O_DIRECTORY" not in self.text)

    @property
    def names_only(self) -> bool:
        """Whether it waits for new names in a folder, and for nothing else."""
        return self.call == "inotify_add_watch" and "IN_MOVED_TO|IN_CREATE|IN_ONLYDIR|IN_DONT_FOLLOW)" in self.text

    @property
    def of_git(self) -> bool:
        """Whether it is a file of GIT_READS in a git directory, or a `.git` file."""
        found = GIT_READS.search(self.rel)
        return os.path.basename(self.rel) == ".git" or found is not None and (self.top / self.rel[: found.start()] / "HEAD").exists()

    @property
    def as_data(self) -> bool:
        """Whether it is opened for reading, following no link and waiting for nobody."""
        return self.call == "open" and all(flag in self.text for flag in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK"))

    @property
    def due(self) -> bool:
        """Whether it is one of those above."""
        if self.names_only:
            return True
        if not self.reads or self.as_data and (self.of_git or self.who == "scan" and names.judge(self.rel) is not None):
            return True
        return self.who == "git" and self.call == "open" and "O_RDONLY" in self.text


LINE = re.compile(r"(\w+)\((.*)")
FD = r"(?:AT_FDCWD|\d+)(?:<([^>]*)>)?"
FIRST = re.compile(rf"(?:{FD}, )?\"((?:[^\"\\]|\\.)*)\"")
RESULT = re.compile(r"= \d+<([^>]*)>")
SUN = re.compile(r"sun_path=@?\"((?:[^\"\\]|\\.)*)\"")


def accesses(folder: Path, top: Path) -> Iterator[Access]:
    """Every access to `top` in the traces (`strace -ff -y`, one file for each process) in `folder`."""
    for trace in folder.iterdir():
        text = trace.read_text(errors="replace")
        who = (
            "scan"
            if '"stockade.session.after", "scan"' in text
            else "git"
            if '"core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"' in text
            else ""
        )
        for line in text.splitlines():
            found = LINE.match(line)
            if not found or found[1] not in CALLS.split(","):
                continue
            call = "open" if found[1] in ("open", "openat", "openat2", "creat") else "exec" if found[1].startswith("exec") else found[1]
            paths = [RESULT.search(line)[1]] if call == "open" and RESULT.search(line) else []  # type: ignore[index]  # just found
            if socket := SUN.search(line):
                paths.append(os.path.join(top, socket[1]))
            if call in ("open", "exec", "inotify_add_watch", "name_to_handle_at") and (first := FIRST.match(found[2])):
                at = first[1] if first[1] is not None else str(top)  # execve names no folder: relative would be the project's
                paths.append(os.path.normpath(os.path.join(at, first[2])))
            for path in dict.fromkeys(paths):
                if path == str(top) or path.startswith(f"{top}/"):
                    yield Access(call, top, os.path.relpath(path, top), line, who)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    require()
    if not shutil.which("strace"):
        unavailable("strace", "it is not installed")
    (tmp_path / "secret").write_text("secret")
    it = Hostile(tmp_path.resolve())
    yield it
    it.close()


def traced(it: Hostile, *command: str, cwd: Path | None = None) -> tuple[list[Access], subprocess.CompletedProcess[bytes]]:
    """Run `command` under strace in the project, with a home of its own, and say what of the project was touched."""
    root = it.top.parent
    trace = root / "trace"
    shutil.rmtree(trace, ignore_errors=True)
    trace.mkdir()
    environment = {
        "PATH": os.environ["PATH"], "HOME": f"{root}/home", "XDG_CACHE_HOME": f"{scratch()}/xdg_cache_home", "PIP_INDEX_URL": "https://index.test/simple",
    }  # fmt: skip
    own = root / "home/.config/stockade"
    own.mkdir(parents=True, exist_ok=True, mode=0o700)
    (own / "policy.toml").write_text('version = 1\n[[egress]]\npreset = "pypi"\n')
    strace = ["strace", "-ff", "-qq", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(trace / "of")]
    done = subprocess.run(
        [*strace, *command], cwd=cwd or it.top, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=100
    )
    return list(accesses(trace, it.top)), done


def undue(found: list[Access]) -> list[str]:
    """Accesses that are none of those above."""
    return [access.text[:300] for access in found if not access.due]


def test_the_measure_sees_a_reader_a_program_and_a_connection(hostile: Hostile) -> None:
    """Control: what a careless tool does on entering a folder is found, each part of it."""
    hostile.write(".envrc", "{mark}\n", 0o755)
    hostile.write("stockade.toml", "version = 1\n")
    hostile.listen("agent")
    script = "cat stockade.toml; sh ./.envrc; exec python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('agent')\""
    found, done = traced(hostile, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    bad = "\n".join(undue(found))
    assert all(word in bad for word in ("stockade.toml", ".envrc", "evil.sh", "connect(")) and hostile.touched()
    found, done = traced(hostile, "sh", "-c", f"cd / && {hostile.top}/evil.sh && cat {hostile.top}/.envrc")
    assert len({text.partition("(")[0] for text in undue(found)}) == 2, found


@pytest.mark.parametrize("make", REPOSITORIES, ids=lambda make: make.__name__)
def test_before_trust_nothing_of_a_hostile_repository_is_opened_executed_or_connected_to(
    hostile: Hostile, make: Callable[[Hostile], None]
) -> None:
    make(hostile)
    found, done = traced(hostile, STOCKADE, "run", "--", "true")
    assert done.returncode in (0, 125), done.stderr
    if done.returncode:  # a layout that cannot be protected: nothing was run
        assert b"stockade: " in done.stderr and b"bug" not in done.stderr, done.stderr
    assert found or done.returncode, "the workspace is pinned at least: else this measures nothing"
    assert undue(found) == [] and not hostile.touched()


@pytest.mark.parametrize("make", [*REPOSITORIES[2::5], *REPOSITORIES[-4:]], ids=lambda make: make.__name__)
def test_what_it_brings_is_read_in_a_box_only(hostile: Hostile, make: Callable[[Hostile], None]) -> None:
    """`stockade trust --show`: outside the box the folder is pinned, and nothing else is opened; inside it is /project. Nothing of it acts either."""
    make(hostile)
    found, done = traced(hostile, STOCKADE, "trust", "--show", "--json")
    assert done.returncode == 1, done.stderr
    assert {(access.call, access.rel) for access in found} == {("open", ".")} and not any(access.reads for access in found)
    assert not hostile.touched()


def test_a_longer_run_reads_what_its_report_compares_and_nothing_acts(hostile: Hostile) -> None:
    """After a moment the files that somebody's host would execute are kept as bytes, so that the report can show a diff (B5)."""
    for make in (entering_the_folder, settings_of_claude, a_policy_of_its_own, settings_of_git):
        make(hostile)
    found, done = traced(hostile, STOCKADE, "run", "--", "sleep", "1.5")
    assert done.returncode == 0, done.stderr
    assert undue(found) == [] and not hostile.touched()
    assert {".envrc", ".claude/settings.json"} <= {access.rel for access in found if access.who == "scan"}, "else the scan did not look"
    assert ".git/config" in {access.rel for access in found if access.who == "git"}, "else git did not"
