"""The sandbox around QEMU: bubblewrap's namespaces and view, without a network, a capability or a file of anybody's but the machine's own.

`around` is a pure function. The session's mounts come later (walls/late.py), below the one folder that QEMU serves to its guest.
"""

from __future__ import annotations

from stockade.core.frozen import frozen
from stockade.walls import bubblewrap, system, view
from stockade.walls.vm import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Overlay
    from stockade.walls.vm.image import Image

SPARE = "/spare"  # where places for mounts are made that only the guest needs


@frozen
class Host:
    """What has to be known of this machine."""

    bwrap: str
    links: tuple[tuple[str, str], ...]


@frozen
class Around:
    """How QEMU's sandbox is started; the fields are described in launching.py."""

    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    rlimits: tuple[tuple[int, int], ...]
    bwrap: str
    data: tuple[str, ...] = ()
    network: str = "none"
    overlays: tuple[Overlay, ...] = ()
    stages: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


def look() -> Host:
    """Raises CannotEnforce (`bubblewrap.missing`)."""
    return Host(bubblewrap.program(), system.links())


def around(host: Host, accelerator: str, image: Image, snapshot: str, *, saving: bool = False, tree: Overlay | None = None) -> Around:
    """The sandbox of a machine that is saved to the directory `snapshot`, or goes on from there: only the first can write to it. `tree` is a root in place of the
    image's: its two layers are shown, read-only."""
    arguments = [
        "--unshare-user",
        "--uid",
        "0",
        "--gid",
        "0",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
        "--unshare-net",
        "--unshare-cgroup-try",
    ]
    arguments += ["--cap-drop", "ALL", "--as-pid-1", "--die-with-parent", "--clearenv", "--hostname", system.HOSTNAME]
    arguments += [*view.base(host.links)[0], "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--proc", "/proc", "--dev", "/dev", *(["--dev-bind", "/dev/kvm", "/dev/kvm"] if accelerator == "kvm" else [])]
    shown = [(image.kernel, f"{machine.IMAGE}/kernel"), (image.root, f"{machine.IMAGE}/root.erofs"), (snapshot, machine.SNAPSHOT)]
    for index, (source, target) in enumerate(shown):
        arguments += ["--bind-fd" if saving and source == snapshot else "--ro-bind-fd", f"@{index}", target]
    # Small: what QEMU itself may write is what is mounted below the first.
    for place in (machine.LATE, machine.TREE, SPARE):
        arguments += ["--size", "16777216", "--perms", "0755", "--tmpfs", place]
    for source, name in ((tree.upper, machine.OURS), (tree.lower, machine.THEIRS)) if tree is not None else ():
        arguments += ["--ro-bind-fd", f"@{len(shown)}", f"{machine.TREE}/{name}"]
        shown.append((source, name))
    arguments += ["--remount-ro", "/", "--chdir", "/"]
    return Around(tuple(arguments), tuple(source for source, _ in shown), ((4, 0),), host.bwrap)  # RLIMIT_CORE
