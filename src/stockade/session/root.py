"""From a policy's root to a sandbox's: an image is looked up and held for as long as the sandbox lasts, its variables become defaults, the tree is prepared."""

from __future__ import annotations

import os

from stockade.core.frozen import frozen, replace
from stockade.core.values import Root
from stockade.policy.paths import judge
from stockade.session import confine
from stockade.walls import door, gvisor, late, root, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stockade.core.values import Confinement, Overlay

SHELL = "/bin/sh"  # what an image has, if it has any


@frozen
class Rooted:
    """A root that is prepared: its parts (core/values.py, `Confinement`), and what an image says about variables."""

    tree: Overlay | None
    layer: str
    environment: Mapping[str, str]


def made(wanted: Confinement, wall: str, directory: str, closing: Callable[[Callable[[], object]], None]) -> Rooted:
    """Prepare the root of `wanted` on `wall`, and the places of its mounts, in the session's `directory`. What has to be let go at the end is handed to `closing`.

    Raises CannotEnforce (`image.missing`, `mount.target`), PolicyError, StockadeError (`path.missing`), Tampered.
    """
    chosen, tree, environment = wanted.root, "", {}
    if chosen.image:
        from stockade.walls import images

        held = images.hold(chosen.image)
        closing(held.close)
        tree, environment = held.tree, held.environment
    elif chosen.path:
        tree = confine.resolve(chosen.path, "/", "root")
        judge(tree, what="root", mode="ro", origin=chosen.origin)
    folders, files = [late.GUEST], [gvisor.INIT]
    if wall != gvisor.NAME:
        folders, files = [late.GUEST, os.path.dirname(confine.AGENT)], []  # the latter is where the guest itself makes a socket
        root.refuse_disk(chosen, wall)
        if tree:
            root.refuse_mounts(tree, chosen.origin)
    etc = system.etc(wanted.home, guest=door.WIRE)
    found = root.prepare(wanted, tree, etc, directory, folders=tuple(folders), files=tuple(files))
    return Rooted(found.tree, found.layer, environment)


def shown(wanted: Confinement, found: Rooted, written: Mapping[str, str]) -> Confinement:
    """`wanted` with that root, and an image's variables below what is set for the sandbox (`written` by the policy); only its PATH stands above the one that we make
    up."""
    wanted = replace(wanted, tree=found.tree, layer=found.layer)
    if found.tree is None:
        return wanted
    values = {name: value for name, value in found.environment.items() if not name.startswith("STOCKADE_")} | dict(wanted.environment)
    for name, value in (("PATH", found.environment.get("PATH", "")), ("SHELL", SHELL)):
        if value and name not in written:
            values[name] = value
    return replace(wanted, environment=tuple(values.items()))


def without(wanted: Confinement, variables: tuple[tuple[str, str], ...]) -> Confinement:
    """The same for a program of the host's: its own root, and the `variables` as they were before an image had a say: LD_PRELOAD is no default for our git."""
    environment = {**dict(variables), "PATH": confine.PATH}
    return replace(wanted, root=Root(), tree=None, layer="", environment=tuple(environment.items()))
