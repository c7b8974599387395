"""What a guest with a kernel of its own is given after its start: mounts, overlays and held paths, for a sandbox that may stand ready before anybody wants it.

Mounts that our program makes below `BELOW` of bubblewrap's view appear in runsc's mount namespaces by propagation (mount_namespaces(7)); the guest's init then
binds each to its place, so that the guest's own kernel knows of it and lets nobody rename it away, hides where they came from, and gives up the
right to mount. Only then does it serve commands (native/late.c, native/inside.c).
"""

from __future__ import annotations

import os

from stockade.core.frozen import frozen
from stockade.walls import launching, native, streams, view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Confinement, Overlay

BELOW = "/late"  # in bubblewrap's view
GUEST = "/run/stockade-late"  # where the guest's init finds it


@frozen
class Late:
    """`binds` are pairs, parents before their children: "MODE:SOURCE" with mode "ro" or "rw", and the path inside. SOURCE is "@N" for `paths[N]`, the path of a
    stage, where one of `overlays` is mounted before, or "" for a path that is there by then and is held as it is."""

    binds: tuple[tuple[str, str], ...] = ()
    paths: tuple[str, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    stages: tuple[str, ...] = ()


def plan(wanted: Confinement, stage: str) -> Late:
    """The mounts, overlays and held paths of `wanted`. Raises CannotEnforce for a mount that would hide or expose what must not be."""
    stages = tuple(f"{stage}/{index}" for index in range(len(wanted.overlays)))
    binds = [(f"rw:{place}", overlay.target) for place, overlay in zip(stages, wanted.overlays, strict=True)]
    for index, mount in enumerate(wanted.mounts):
        view.check_mount(mount)
        binds.append((f"{mount.mode}:@{index}", mount.target))
    binds += [(held[:3], held[3:]) for held in wanted.held]
    binds.sort(key=lambda bind: view.depth(bind[1]))
    return Late(tuple(binds), tuple(mount.source for mount in wanted.mounts), wanted.overlays, stages)


def pin(late: Late) -> list[int]:
    """Descriptors of its paths, then of each overlay's three layers, as they were judged. Raises CannotEnforce when one cannot be opened so."""
    opened: list[int] = []
    try:
        for path in (*late.paths, *(layer for one in late.overlays for layer in launching.layers_of(one))):
            opened.append(launching.pinned(path))
    except BaseException:
        streams.close(opened)
        raise
    return opened


def bind(late: Late, opened: list[int], sock: int, root: str, stderr: int) -> int:
    """Start what mounts them in the sandbox at the other end of `sock`; gives its process number, and what it says goes to `stderr`.

    `opened` as of `pin`, and stays the caller's. `root` is the guest's root in bubblewrap's view. If anything fails the sandbox ends, and says what.
    Raises WallFailed when the helper cannot be started.
    """
    numbered = dict(zip((f"@{index}" for index in range(len(late.paths))), map(str, opened), strict=False))
    words = [part for mode, target in late.binds for part in (mode[:3] + numbered.get(mode[3:], mode[3:]), target)]
    blob = native.words(words)
    try:
        layers = opened[len(late.paths) :]
        overlays = [launching.overlay_option(layers[3 * index : 3 * index + 3], stage) for index, stage in enumerate(late.stages)]
        return native.spawn(["bind", str(sock), str(blob), BELOW, root, *overlays], [*opened, blob, sock], stderr)
    finally:
        os.close(blob)
