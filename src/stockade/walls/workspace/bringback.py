"""Brings what was committed inside back into the host's repository, as data: objects that pass fsck, and refs moved by compare-and-swap.

Never comes back: config, hooks, attributes, pointers, reflogs, rebase scripts. The sandbox's own git is only asked for lists and a pack, in a
confined run; every byte of its answer is checked. Sources: git-index-pack(1), git-update-ref(1), git-rev-list(1).
"""

from __future__ import annotations

import hashlib
import marshal
import os
import re

from stockade.walls.git import stamp
from stockade.walls.workspace import gitconfig, listing, nested
from stockade.walls.workspace.beneath import Directory
from stockade.walls.workspace.hostgit import GitFailed, HostGit, capture, is_oid, mistaken
from stockade.walls.workspace.report import shown
from stockade.walls.workspace.touched import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stockade.walls.workspace.hostgit import Confined

    Facts = dict[str, Any]

CHANGED_AT_MOST = 1000  # refs of one session
PACK_AT_MOST = 2 << 30  # bytes of one session's new objects, packed
HAVES = 500  # host commits named to the sandbox's git, so that it packs only what is new
IN_PROGRESS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply", "BISECT_LOG", "sequencer")
_EXPECTED = frozenset(
    "index HEAD ORIG_HEAD COMMIT_EDITMSG MERGE_MSG objects refs packed-refs info worktrees branches reftable gc.log AUTO_MERGE".split()
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}\Z")

_PACK = r"""
cd "$1" || exit 3
shift
for want in "$@"; do
  case $want in
    ^*) git cat-file -e "${want#^}" 2>/dev/null && echo "$want" ;;
    *) echo "$want" ;;
  esac
done | git -c core.fsmonitor=false -c pack.threads=1 pack-objects --revs --thin --stdout --delta-base-offset -q
"""


def decide(base: str, current: str, new: str, *, known: bool, forward: bool) -> str:
    """What to do with one branch: "same", "create", "update", "forward" or "aside".

    `base` is its value before the run ("" = absent; only meaningful if `known`), `current` the host's now, `new` the sandbox's; `forward` says
    whether `new` contains `current`.
    """
    if new == current or (known and new == base):
        return "same"
    if not current:
        return "create" if not known or not base else "aside"  # deleted on the host meanwhile
    if forward:
        return "forward"
    return "update" if known and current == base else "aside"


def remember(facts: Facts, *, late: bool = False) -> None:
    """Note the host's refs, index and submodules before they can change; called by the scan right behind the start.

    `late`: when the run is over and commits are going to wait, for a run too short to have a scan. Refs may have moved by then, so that none counts as known; and an
    index counts only if it is still the one of the start.
    """
    repo = facts["git"]
    path = os.path.join(repo["session"], "before")
    if late and os.path.exists(path):
        return
    found: dict[str, Any] = {}
    for rel in repo["heads"]:
        host = HostGit(
            os.path.join(repo["common"], rel) if rel else repo["common"], "" if rel else repo["admin"], "/" if rel else facts["top"]
        )
        if late and list(stamp(f"{host.gitdir}/index")) != list(repo["heads"][rel][2]):
            continue
        try:
            refs, staged = {} if late else host.refs(), host.run("ls-files", "--stage", "-z")
        except (GitFailed, OSError):
            continue
        links = [os.fsdecode(row.partition(b"\t")[2]) for row in staged.split(b"\0") if row.startswith(b"160000 ")]
        found[rel] = {"refs": refs, "index": hashlib.sha256(staged).hexdigest(), "gitlinks": links}
    with open(f"{path}.new", "wb") as file:
        marshal.dump(found, file)
    os.replace(f"{path}.new", path)


def bring_back_all(facts: Facts, confined: Confined) -> list[dict[str, Any]]:
    """Import what was committed in submodules of the workspace, then in its own repository; one event each."""
    repo, top, target = facts["git"], facts["top"], facts["target"]
    events = []
    for rel, prepared in repo["prepared"].items():
        if not rel or not set(names(f"{repo['upper']}/{rel}")) - set(prepared):
            continue
        common = f"{repo['common']}/{rel}"
        worktree = dict(gitconfig.entries_of_file(f"{common}/config")).get("core.worktree") or ""
        place = os.path.normpath(os.path.join(common, worktree))
        if not place.startswith(f"{top}/") or os.path.realpath(place) != place:
            continue  # named among the leftovers of the workspace's own repository
        inside = {
            "common": common,
            "admin": "",
            "inside": f"{repo['inside']}/{rel}",
            "upper": f"{repo['upper']}/{rel}",
            "prepared": {"": prepared},
        }
        below = {**facts, "top": place, "target": target + place[len(top) :], "common": common, "git": {**repo, **inside, "rel": rel}}
        events.append(bring_back(below, confined))
    return [*events, bring_back(facts, confined)]


def bring_back(facts: Facts, confined: Confined) -> dict[str, Any]:
    """Import what the session committed; returns the event `git.import`. Call it when every process of the sandbox is dead.

    Never raises for what the sandbox did: `error` in the event then says what stayed in the session's directory.
    """
    event: dict[str, Any] = {"kind": "git.import", "repository": facts["git"]["common"], "refs": [], "notes": [], "held": []}
    try:
        _Import(facts, confined, event).run()
    except (GitFailed, OSError, ValueError) as error:
        event["error"] = shown(str(error))
        event["notes"].append(f"what was not brought back is kept in {facts['git']['upper']}")
    return event


class _Import:
    kinds: dict[str, str]

    def __init__(self, facts: Facts, confined: Confined, event: dict[str, Any]) -> None:
        self.facts, self.repo, self.confined, self.event = facts, facts["git"], confined, event
        self.host = HostGit(self.repo["common"], self.repo["admin"], facts["top"])
        rel = self.repo.get("rel", "")
        self.head_before, self.tip_before, self.index_before = self.repo["heads"][rel]
        self.before = nested.load(os.path.join(self.repo["session"], "before")).get(rel, {})
        self.tag = f"stockade {facts['name']}"
        self.aside_root = f"refs/stockade/{facts['name']}"

    def note(self, text: str) -> None:
        self.event["notes"].append(text)

    def run(self) -> None:
        found = self.ask()
        current = self.host.refs()
        self.leftovers(found)
        changed = sum(current.get(ref) != oid for ref, oid in found.refs.items())
        if changed > CHANGED_AT_MOST:
            raise GitFailed(f"{changed} refs were changed, more than {CHANGED_AT_MOST}")
        self.fetch(found, current)
        self.kinds = self.host.kinds(set(found.refs.values()))
        held = nested.gitlinks(self.facts, self._links(found.tree))  # INVARIANT: before any ref or index of the host names them
        self.event["held"] = held
        busy = self.busy()
        taken = self.checked_out_elsewhere()
        for ref, oid in sorted(found.refs.items()):
            self.move(ref, oid, current, busy, taken)
        for ref in sorted(set(self.before.get("refs", {})) & set(current) - set(found.refs)):
            if ref.startswith(("refs/heads/", "refs/tags/")):
                self.row(ref, "kept", "deleted inside; delete it yourself if you agree")
        if busy:
            self.note(f"{busy}: HEAD and index of the host stay as they were")
        else:
            self.head(found)
        self.worktrees(found)

    def ask(self) -> listing.Listing:
        path = os.path.join(self.repo["session"], "found")
        status = capture(self.confined, ["/bin/sh", "-c", listing.SCRIPT, "sh", self.facts["target"]], path, listing.AT_MOST, 120.0)
        if status:
            raise GitFailed(f"the sandbox's git could not list its refs (status {status})")
        with open(path, "rb") as file:
            return listing.parse(file.read())

    def fetch(self, found: listing.Listing, current: dict[str, str]) -> None:
        wanted = {
            oid
            for ref, oid in found.refs.items()
            if ref.startswith(("refs/heads/", "refs/tags/", "refs/stash")) and current.get(ref) != oid
        }
        wanted |= {oid for oid in (found.head, found.tree) if is_oid(oid)}
        missing = sorted(wanted - set(self.host.kinds(wanted)))
        if not missing:
            return
        haves = [
            self.host.text("rev-parse", "-q", "--verify", "HEAD"),
            self.host.text("rev-parse", "-q", "--verify", "HEAD^{tree}"),
            *current.values(),
        ]
        argv = [
            "/bin/sh",
            "-c",
            _PACK,
            "sh",
            self.facts["target"],
            *missing,
            *(f"^{oid}" for oid in dict.fromkeys(haves[:HAVES]) if is_oid(oid)),
        ]
        path = os.path.join(self.repo["session"], "pack")
        status = capture(self.confined, argv, path, PACK_AT_MOST, 600.0)
        if status:
            why = f"more than {PACK_AT_MOST >> 20} MiB" if status == -1 else f"status {status}"
            raise GitFailed(f"the sandbox's git could not pack its commits ({why})")
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # --strict: fsck of every object, and every object that one names must be there; a partial clone lacks some and may
        partial = bool(self.host.text("config", "--get-regexp", r"^(extensions\.partialclone|remote\..*\.promisor)$"))
        try:
            self.host.run(
                "index-pack",
                "--stdin",
                "--fix-thin",
                "--fsck-objects" if partial else "--strict",
                f"--max-input-size={PACK_AT_MOST}",
                source=source,
            )
        finally:
            os.close(source)
            os.unlink(path)
        tips = "".join(f"{oid}\n" for oid in missing).encode()
        promised = ["--exclude-promisor-objects"] if partial else []
        self.host.run("rev-list", "--objects", "--quiet", *promised, "--stdin", "--not", "--all", data=tips)
        if set(missing) - set(self.host.kinds(missing)):
            raise GitFailed("the sandbox's git left out objects that it names")

    def _links(self, tree: str) -> list[str]:
        rows = self.host.run("ls-tree", "-r", "-z", tree).split(b"\0") if tree else []
        inside = [os.fsdecode(row.partition(b"\t")[2]) for row in rows if row.startswith(b"160000 ")]
        return sorted({*inside, *self.before.get("gitlinks", ())})

    def move(self, ref: str, oid: str, current: dict[str, str], busy: str, taken: set[str]) -> None:
        old = current.get(ref, "")
        if ref.startswith("refs/stockade/") or oid == old:
            return
        if ref == "refs/stash":
            return self.aside(ref, oid, "a stash of the session: git stash apply " + f"{self.aside_root}/stash")
        if not old and ref.startswith(("refs/heads/", "refs/tags/")) and (other := mistaken(ref, current)):
            return self.aside(ref, oid, f"git would take it for {other}")
        if ref.startswith("refs/tags/"):
            return self.put(ref, oid, "", "created") if not old else self.aside(ref, oid, "a tag that the host has with another value")
        if not ref.startswith("refs/heads/"):
            if self.before and self.before["refs"].get(ref) != oid:
                self.row(ref, "left", "only branches and tags come back")
            return None
        if self.kinds.get(oid) != "commit":
            return self.row(ref, "refused", "does not name a commit")
        if ref in taken:
            return self.aside(ref, oid, "the branch is checked out in another working tree")
        if busy and ref == self.host.text("symbolic-ref", "-q", "HEAD"):
            return self.aside(ref, oid, busy)
        known = bool(self.before)
        base = self.before.get("refs", {}).get(ref, "")
        if self.tip_before and self.head_before == f"ref: {ref}":  # noted at the start itself, not just behind it
            known, base = True, self.tip_before
        what = decide(base, old, oid, known=known, forward=bool(old) and self.host.ancestor(old, oid))
        if what == "aside":
            return self.aside(
                ref, oid, "the host's branch moved meanwhile" if known else "not a fast-forward, and the value before is not known"
            )
        if what != "same":
            return self.put(ref, oid, old, {"create": "created", "update": "updated", "forward": "forwarded"}[what])
        return None

    def put(self, ref: str, oid: str, old: str, result: str) -> None:
        try:
            self.host.run("update-ref", "-m", self.tag, "--create-reflog", ref, oid, old or "0" * len(oid))
            self.row(ref, result, "", old, oid)
        except GitFailed as error:
            self.row(ref, "refused", str(error), old, oid)

    def aside(self, ref: str, oid: str, why: str) -> None:
        place = f"{self.aside_root}/{ref.removeprefix('refs/')}"
        try:
            self.host.run("update-ref", place, oid)
            self.row(ref, "kept aside", why, "", oid, place)
        except GitFailed as error:
            self.row(ref, "refused", str(error), "", oid)

    def row(self, ref: str, result: str, why: str, old: str = "", new: str = "", place: str = "") -> None:
        if len(self.event["refs"]) < 500:
            self.event["refs"].append({"ref": shown(ref), "result": result, "why": shown(why), "old": old, "new": new, "place": place})

    def head(self, found: listing.Listing) -> None:
        before = self.head_before
        with open(f"{self.host.gitdir}/HEAD", encoding="utf-8", errors="surrogateescape") as file:
            now = file.read(4096).strip()
        wanted = f"ref: {found.head}" if found.head.startswith("refs/") else found.head
        if wanted != now:
            if not wanted:
                return self.note("the sandbox's HEAD names nothing: the host's stays")
            if now != before:
                return self.note(f"HEAD moved on both sides: the host's stays; the files are those of {shown(found.head)}")
            if wanted.startswith("ref: "):
                if self.host.text("rev-parse", "-q", "--verify", found.head) != found.refs.get(found.head, "-"):
                    return self.note(
                        f"the files are those of {shown(found.head)} inside, which the host has with another value: HEAD stays"
                    )
                self.host.run("symbolic-ref", "-m", self.tag, "HEAD", found.head)
            elif self.host.kinds([found.head]).get(found.head) == "commit":
                self.host.run("update-ref", "--no-deref", "-m", self.tag, "HEAD", found.head)
            else:
                return self.note("the sandbox's HEAD is no commit: the host's stays")
            self.event["head"] = shown(found.head)
        inside = found.refs.get(found.head, "") if found.head.startswith("refs/") else found.head
        if self.host.text("rev-parse", "-q", "--verify", "HEAD") == inside:
            self.index(found.tree)
        return None

    def index(self, tree: str) -> None:
        """Make the host's index what the sandbox's is (as a tree: no flags, no extensions), unless the host's changed meanwhile."""
        if not tree:
            return self.note("the sandbox's index has unmerged entries: the host's stays")
        if self.host.succeeds("diff-index", "--cached", "--quiet", tree):
            return None
        if list(stamp(f"{self.host.gitdir}/index")) != list(self.index_before):
            if hashlib.sha256(self.host.run("ls-files", "--stage", "-z")).hexdigest() != self.before.get("index"):
                return self.note("something was staged on the host meanwhile: its index stays; `git reset` makes it follow HEAD")
        self.host.run("read-tree", "-i", "-m", tree)
        self.event["staged"] = tree
        return None

    def busy(self) -> str:
        upper = os.path.join(self.repo["upper"], self.repo["admin"])
        for name in IN_PROGRESS:
            if os.path.lexists(f"{self.host.gitdir}/{name}"):
                return f"{name} says that the host is in the middle of an operation"
            if _real(f"{upper}/{name}"):
                return f"{name} says that the sandbox stopped in the middle of an operation"
        return ""

    def checked_out_elsewhere(self) -> set[str]:
        # the first one listed is the main working tree; for a submodule git shows its git directory in that place
        blocks = self.host.text("worktree", "list", "--porcelain").split("\n\n")
        ours = 0 if not self.repo["admin"] else -1
        found = set()
        for number, block in enumerate(blocks):
            lines = dict(line.partition(" ")[::2] for line in block.splitlines())
            if number != ours and lines.get("worktree") != self.facts["top"] and "branch" in lines:
                found.add(lines["branch"])
        return found

    def worktrees(self, found: listing.Listing) -> None:
        """Give a worktree that was added inside the workspace its directory in the host's repository, made by us from checked values."""
        target, top, taken = self.facts["target"], self.facts["top"], self.checked_out_elsewhere()
        for path, ref in found.worktrees:
            rel = path[len(target) + 1 :]
            if not path.startswith(f"{target}/") or not rel.isprintable() or not ref.startswith("refs/heads/") or ref in taken:
                continue
            with Directory.top(top) as root:
                try:
                    with root.walk_to(rel) as here:
                        text = os.fsdecode(here.read(".git", 4096) or b"").rstrip("\n")
                except OSError:
                    continue
            common, name = self.repo["common"], os.path.basename(text)
            if text != f"gitdir: {self.repo['inside']}/worktrees/{name}" or not _NAME.match(name) or self.repo["inside"] != common:
                continue
            admin = f"{common}/worktrees/{name}"
            if os.path.lexists(admin) or self.host.text("rev-parse", "-q", "--verify", ref) != found.refs.get(ref):
                continue
            os.makedirs(admin, 0o755)
            for file, content in (("commondir", "../.."), ("gitdir", f"{top}/{rel}/.git"), ("HEAD", f"ref: {ref}")):
                with open(f"{admin}/{file}", "x", encoding="utf-8", errors="surrogateescape") as out:
                    out.write(content + "\n")
            links = self._links(self.host.text("rev-parse", f"{ref}^{{tree}}"))
            self.event["held"] += nested.gitlinks(self.facts, [f"{rel}/{link}" for link in links])
            HostGit(common, f"worktrees/{name}", f"{top}/{rel}").run("read-tree", ref)
            self.note(f"working tree {shown(rel)} registered")

    def leftovers(self, found: listing.Listing) -> None:
        upper = self.repo["upper"]
        prepared = self.repo["prepared"]
        left = sorted(
            name for name in os.listdir(upper) if name not in _EXPECTED.union(prepared[""], IN_PROGRESS) and _real(f"{upper}/{name}")
        )
        if "rel" not in self.repo and list(stamp(f"{upper}/config")) != list(self.repo["config"]):
            left.append("config")
        left += [f"info/{name}" for name in names(f"{upper}/info") if _real(f"{upper}/info/{name}")]
        if left:
            self.note("written inside and not brought back: " + ", ".join(shown(name) for name in left[:30]))
        if found.refused:
            self.note("not ref names: " + ", ".join(found.refused))


def _real(path: str) -> bool:
    """Whether `path` in an upper layer is something (and not a whiteout: a character device 0/0)."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return not (found.st_mode & 0o170000 == 0o020000 and found.st_rdev == 0)
