"""What the stockade.toml of a project may say, once its user trusts the folder: it can narrow, and it can let requests out to hosts that nobody above it has
a rule for. It shows nothing of the machine, takes nothing from the user's environment, names no secret, and loosens nothing that a layer above has decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.errors import PolicyError
from stockade.core.frozen import replace
from stockade.core.values import ASK, DENY, Limits
from stockade.policy.caps import Caps, covers, shown
from stockade.policy.model import MODES, keys_of
from stockade.policy.paths import within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.core.values import Grant
    from stockade.policy.read import Document

LAYER = "project"
# Which words may stand in a project, and nothing else: those that cannot be wider than any other layer's, or that are compared below.
_ONLY = {"wall": ("gvisor", "vm"), "oversight": ("none",), "gate": ("own",)}
_STRENGTH = {"bubblewrap": 0, "auto": 0, "gvisor": 1, "vm": 2}
_NARROW = {"git": ("private", "ro"), "scan": ("behind", "before")}  # from the wider to the narrower
_NEVER = {
    "mount": "shows something of your machine",
    "environment": "sets the sandbox's environment",
    "credential": "names a secret of yours",
    "signing": "has something signed as yours",
    "approvals": "says how you are asked",
    "reviewer": "says who answers in your place",
}
_HINT = "A project can only narrow, and grant hosts that no layer above has rules for. If you want this, write it into your own policy."


def judge(documents: Sequence[Document], cwd: str, workspace: str) -> list[PolicyError]:
    """What the project's document says that a project may not say, and that it says it about another folder (`cwd` is the project, both are resolved)."""
    found = [error for index, one in enumerate(documents) if one.layer == LAYER for error in _judge(one, documents[:index], cwd)]
    if not within(workspace, cwd):
        hint = "Start in the folder that is to be worked in, or leave the project out: --no-project"
        message = f"the workspace is {workspace}, and this project has no say about that"
        found += [one.error(message, code="policy.project", hint=hint) for one in documents if one.layer == LAYER]
    return found


def _judge(one: Document, above: Sequence[Document], cwd: str) -> Iterator[PolicyError]:
    tables = one.tables
    for name, what in _NEVER.items():
        if getattr(tables, name):
            yield _error(one, f"a project's policy {what}", name)
    for name, words in _ONLY.items():
        value = getattr(tables, name)
        if value is not None and value not in words:
            yield _error(one, f'{name} = "{value}" is not for a project to choose', name)
    wall = next((two.tables.wall for two in reversed(above) if two.tables.wall is not None), "auto")
    if tables.wall is not None and _STRENGTH[tables.wall] < _STRENGTH[wall]:
        yield _error(one, f'the wall "{tables.wall}" is weaker than "{wall}"', "wall")
    root = tables.root
    if root is not None:
        for name in ("path", "writable", "size"):
            if getattr(root, name) is not None:
                yield _error(one, f"root.{name} is not for a project to choose", "root", name)
        for two in above:
            if two.tables.root is not None:
                yield _error(one, f"a root is chosen by {two.origin('root').file}:{two.origin('root').line}", "root")
    for index, table in enumerate(tables.file):
        if table.effect == ASK:
            hint = 'A project can hold its files (effect = "deny"). If you want to be asked, write it into your own policy.'
            yield one.error("a project's policy has you asked about its files", "file", index, code="policy.project", hint=hint)
    yield from _workspace(one, above)
    limits = _limits(above, cwd)
    for name in keys_of("limits"):
        value, most = getattr(tables.limits, name, None), getattr(limits, name)
        if value is not None and most and (value == 0 or value > most):
            yield _error(one, f"{name} = {shown(name, value)} is wider than {shown(name, most)}", "limits", name)


def _limits(above: Sequence[Document], cwd: str) -> Limits:
    """The limits that hold without the project."""
    pairs = [(name, getattr(two.tables.limits, name, None)) for two in above for name in keys_of("limits")]
    written = {name: value for name, value in pairs if value is not None}
    return Caps(above, cwd).narrow_limits(replace(Limits(), **written), set(written))


def _workspace(one: Document, above: Sequence[Document]) -> Iterator[PolicyError]:
    table = one.tables.workspace
    if table is None:
        return
    if table.path is not None:
        yield _error(one, "a project does not choose the workspace", "workspace", "path")
    for name, order in (("mode", MODES[::-1]), *_NARROW.items()):
        value = getattr(table, name)
        decided = next((found for two in reversed(above) if (found := getattr(two.tables.workspace, name, None)) is not None), order[0])
        if value is not None and order.index(value) < order.index(decided):
            yield _error(one, f'{name} = "{value}" is wider than "{decided}"', "workspace", name)


def judge_grants(documents: Sequence[Document], grants: Sequence[Grant]) -> list[PolicyError]:
    """What the project's rules let out that a project may not let out."""
    project = next((one for one in documents if one.layer == LAYER), None)
    if project is None:
        return []
    names = {one.name for one in documents if one.layer in ("agent", "managed", "user")}
    above = [grant for grant in grants if grant.origin.file in names and grant.effect != DENY]
    found = []
    for grant in grants:
        if grant.origin.file != project.name or grant.effect == DENY:
            continue
        what = ""
        if grant.credential:
            what = f"this rule sends your credential {grant.credential} to {grant.host}"
        elif grant.host == "*":
            what = "this rule asks about hosts that nobody has named"
        elif grant.private:
            what = "this rule reaches private addresses"
        elif grant.after_secret:
            what = "this rule still holds after something secret has come in"
        elif other := next((two for two in above if _meet(grant.host, two.host) and replace(grant, origin=two.origin) != two), None):
            what = f"{other.origin.file}:{other.origin.line} has rules for {other.host}, and a project cannot add to those"
        if what:
            at = grant.origin
            found.append(PolicyError(what, code="policy.project", file=at.file, line=at.line, key=at.key, hint=_HINT))
    return found


def _meet(one: str, two: str) -> bool:
    """Whether two patterns of hosts have a name in common."""
    return covers(one, two) or covers(two, one)


def _error(one: Document, message: str, *key: str) -> PolicyError:
    return one.error(message, *key, code="policy.project", hint=_HINT)
