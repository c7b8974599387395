"""What the sandbox's git says it has: asked in a confined run, parsed from any bytes, checked for form."""

from __future__ import annotations

from stockade.core.frozen import frozen
from stockade.walls.workspace.hostgit import is_oid, is_ref
from stockade.walls.workspace.report import shown

AT_MOST, REFS_AT_MOST = 16 << 20, 50_000  # bytes, lines

# Run with the workspace as its argument.
SCRIPT = r"""
cd "$1" || exit 3
g() { GIT_OPTIONAL_LOCKS=0 git -c core.fsmonitor=false -c core.hooksPath=/dev/null "$@"; }
g for-each-ref --format='ref %(objectname) %(refname)' || exit 4
echo "head $(g symbolic-ref -q HEAD || g rev-parse --verify -q HEAD)"
echo "tree $(g write-tree 2>/dev/null)"
g worktree list --porcelain | while IFS= read -r line; do echo "at $line"; done
"""


@frozen
class Listing:
    """What the sandbox's git says it has; checked for form only."""

    refs: dict[str, str]
    head: str = ""  # a ref name or an object id
    tree: str = ""  # of the index, "" = it has unmerged entries
    worktrees: tuple[tuple[str, str], ...] = ()  # (path inside, ref or object id)
    refused: tuple[str, ...] = ()  # names that are no ref names


def parse(data: bytes) -> Listing:
    """Read the answer of `SCRIPT`. Anything of another form is ignored or listed as refused. Never raises on any bytes."""
    refs: dict[str, str] = {}
    refused: list[str] = []
    head = tree = path = ""
    worktrees: list[tuple[str, str]] = []
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        word, _, rest = line.partition(" ")
        if word == "ref" and len(refs) < REFS_AT_MOST:
            oid, _, name = rest.partition(" ")
            if is_oid(oid) and is_ref(name):
                refs[name] = oid
            elif len(refused) < 20:
                refused.append(shown(name))
        elif word == "head":
            head = rest if is_oid(rest) or (is_ref(rest) and rest.startswith("refs/heads/")) else ""
        elif word == "tree":
            tree = rest if is_oid(rest) else ""
        elif word == "at":
            what, _, value = rest.partition(" ")
            if what == "worktree":
                path = value
            elif what == "branch" and path and is_ref(value):
                worktrees.append((path, value))
            elif what == "detached":
                path = ""
    return Listing(refs, head, tree, tuple(worktrees[:200]), tuple(refused))
