"""Runs the host's git on the host's own repository with hooks, monitors and helpers out of the way, and takes bounded data from the sandbox's git."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import threading

from stockade.walls.workspace import gitconfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    # (argv, descriptor for its standard output, seconds it may take) -> exit status. Runs in the view of the session, without network;
    # everything it started is dead when it returns.
    Confined = Callable[[Sequence[str], int, float], int]

QUIET = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false")
MEMORY = 3 << 30  # bytes of private memory that a host git may use while it reads what the sandbox made
SECONDS = 600.0

_ABBREVIATED = re.compile(r"[0-9a-f]{4,64}\Z")
_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


class GitFailed(Exception):
    """A git command on the host said no; the text is its last line of complaint."""


class HostGit:
    """The host's git for one repository, addressed explicitly: nothing is discovered from the working tree."""

    def __init__(self, common: str, admin: str, worktree: str) -> None:
        self.common, self.worktree = common, worktree
        self.gitdir = f"{common}/{admin}" if admin else common
        self.environment = {
            **gitconfig.ENVIRONMENT,
            "GIT_DIR": self.gitdir,
            "GIT_WORK_TREE": worktree,
            "GIT_COMMITTER_NAME": "stockade",
            "GIT_COMMITTER_EMAIL": "stockade@localhost",
        }

    def run(self, *args: str, data: bytes = b"", source: int | None = None) -> bytes:
        """Standard output of `git *args`. Raises GitFailed on any other exit status than 0 or after `SECONDS`."""
        argv = ["git"]
        for setting in QUIET:
            argv += ["-c", setting]
        process = subprocess.Popen(
            [*argv, *args],
            stdin=subprocess.PIPE if source is None else source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            cwd=self.worktree,
        )
        try:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
        except ProcessLookupError:
            pass
        try:
            output, complaint = process.communicate(data if source is None else None, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise GitFailed(f"git {args[0]} took longer than {SECONDS:.0f} s") from error
        if process.returncode:
            lines = complaint.decode("utf-8", "replace").strip().splitlines()
            raise GitFailed(lines[-1] if lines else f"git {args[0]} ended with status {process.returncode}")
        return output

    def succeeds(self, *args: str) -> bool:
        """Whether `git *args` exits with status 0."""
        try:
            self.run(*args)
        except GitFailed:
            return False
        return True

    def text(self, *args: str) -> str:
        """Standard output of `git *args`, stripped; "" if it fails."""
        try:
            return os.fsdecode(self.run(*args)).strip()
        except GitFailed:
            return ""

    def refs(self) -> dict[str, str]:
        """All refs of the host and their object ids."""
        lines = os.fsdecode(self.run("for-each-ref", "--format=%(objectname) %(refname)")).splitlines()
        return {ref: oid for oid, _, ref in (line.partition(" ") for line in lines)}

    def kinds(self, oids: Iterable[str]) -> dict[str, str]:
        """The object types ("commit", ...) of those `oids` that the host has."""
        asked = "".join(f"{oid}\n" for oid in oids)
        if not asked:
            return {}
        lines = self.run("cat-file", "--batch-check=%(objectname) %(objecttype)", data=asked.encode()).decode().splitlines()
        return {oid: kind for oid, _, kind in (line.partition(" ") for line in lines) if kind != "missing"}

    def ancestor(self, old: str, new: str) -> bool:
        """Whether `new` contains `old`."""
        return self.succeeds("merge-base", "--is-ancestor", old, new)


def capture(confined: Confined, argv: Sequence[str], path: str, limit: int, seconds: float) -> int:
    """Run `argv` inside and keep at most `limit` bytes of its output in the file `path`. Returns its exit status, or -1 if it wrote more."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    over = False
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def drain() -> None:
        nonlocal over
        left = limit
        try:
            while data := os.read(reading, 1 << 20):
                if len(data) > left:
                    over = True
                    return
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
                left -= len(data)
        except OSError:
            over = True  # no space left: as good as too much
        finally:
            os.close(reading)  # a writer that goes on gets SIGPIPE

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        status = confined(argv, writing, seconds)
    finally:
        os.close(writing)
        thread.join(30)
        os.close(file)
    return -1 if over or thread.is_alive() else status


def mistaken(ref: str, known: Iterable[str]) -> str:
    """What of the repository's own git would take a new branch or tag of this name for, or it for that: a short name is looked up among tags, then branches, then those of
    remotes, and before it is taken for the beginning of an object id (gitrevisions(7)). "" = nothing."""
    name = ref.split("/", 2)[2]
    others = {f"refs/remotes/{name}", f"refs/tags/{name}", f"refs/heads/{name}"} - {ref}
    if _ABBREVIATED.match(name):
        return "an object id"
    return next(iter(sorted(others & {*known})), "")


def is_oid(text: str) -> bool:
    """Whether `text` is a full object id in lower case (SHA-1 or SHA-256)."""
    return bool(_OID.match(text))


def is_ref(name: str) -> bool:
    """Whether `name` is a full ref name as git-check-ref-format(1) wants it, and harmless as an argument and on a terminal."""
    parts = name.split("/")
    if name == "refs/stash":
        return True
    if len(parts) < 3 or parts[0] != "refs" or not name.isprintable() or len(name.encode("utf-8", "surrogateescape")) > 200:
        return False
    if any(not part or part.startswith((".", "-")) or part.endswith((".lock", ".")) for part in parts) or parts[2] == "HEAD":
        return False
    return ".." not in name and "@{" not in name and not any(char in " ~^:?*[\\" for char in name)
