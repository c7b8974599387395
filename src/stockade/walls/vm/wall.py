"""The vm wall: a machine of the guest's own under QEMU, which stands in bubblewrap's view and namespaces, with a wire to the door and one folder of files.

`plan` is a pure function; `open_box` carries it out: the machine goes on from a snapshot in which it was nobody's (snapshot.py), is told what it is to be, and gets its
mounts as a guest of gVisor's does (walls/late.py), below the one folder that QEMU serves for them. So modes, overlays over `.git`, held paths and links are the host
kernel's business, and hold whatever the guest's kernel does. A root that is an image of a registry or a folder is served as another folder, which nobody can write to.
Beside QEMU and in the guest the two ends of native/tunnel.c carry commands and their streams.
"""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.core.values import Enforced
from stockade.walls import door, late, launching, native, root, seccomp, streams, system, view
from stockade.walls.guest import GuestBox
from stockade.walls.vm import around, find, image, machine, snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.values import Confinement, Overlay
    from stockade.walls.door import Door

NAME = "vm"
ADDRESS = door.WIRE
OWN_KERNEL = True
LENDS = True
REPORTS = False  # whether its kernel says, beyond the guest's reach, what happens in it
WIRE = "tap"
USER = 0
KERNEL = 160 << 20  # bytes of a machine that its kernel and our init have for themselves, and for each page of it a 64th
OVERHEAD = 512 << 20  # bytes that a machine takes besides what its processes may: its kernel's, and QEMU's own, of which 70 MiB were seen
USUAL = 4 << 30  # bytes, where the policy has no limit
MOST_PROCESSORS = 4
FILES = ("resolv.conf", "hosts", "hostname", "passwd", "group", "nsswitch.conf")  # of our /etc (walls/system.py), in place of the image's


@frozen
class Host:
    """What `plan` has to know about this machine. Gathered by `look`."""

    outer: around.Host
    qemu: find.Found
    image: image.Image
    init: str  # SHA-256 of our program
    etc: tuple[tuple[str, str], ...]  # path in the guest, and text
    processors: int


@frozen
class Plan:
    """Everything `open_box` will do, as plain data."""

    origin: snapshot.Origin
    image: image.Image
    outer: around.Host
    greeting: tuple[str, ...]
    tree: Overlay | None
    late: late.Late
    network: str
    enforced: tuple[Enforced, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        return self.late.stages


def make_door(ports: tuple[int, ...]) -> Door:
    """A door as this wall's guests need it. Raises WallFailed."""
    return door.make(ports, WIRE)


def look(home: str) -> Host:
    """Find QEMU and an image. Raises CannotEnforce (`bubblewrap.missing`, `vm.missing`, `vm.old`, `vm.image`, `vm.machine`), Tampered."""
    etc = system.etc(home, guest=ADDRESS)
    texts = []
    for name in FILES:
        with open(f"{etc}/{name}", encoding="utf-8") as file:
            texts.append((f"/etc/{name}", file.read()))
    processors = min(len(os.sched_getaffinity(0)), MOST_PROCESSORS)
    return Host(around.look(), find.find(), image.find(), _init(), tuple(texts), processors)


def _init() -> str:
    """The SHA-256 of our program."""
    import hashlib

    with open(native.STEP, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan(wanted: Confinement, host: Host, *, stage: str = "") -> Plan:
    """The machine for `wanted` on `host`; does no I/O. `stage` is an existing directory in which overlays are put together.

    Raises CannotEnforce for what cannot be held, and for a mount that would hide or expose what must not be.
    """
    if wanted.network not in ("none", "door"):
        raise CannotEnforce(f"there is no network {wanted.network!r}", code="network.kind", hint='It is "none" or "door".')
    if wanted.image:
        from stockade.walls import states

        raise states.unable(NAME)
    root.refuse_disk(wanted.root, NAME)
    root.check_prepared(wanted)
    if len(wanted.sockets) > 1 or {*wanted.sockets} & {mount.target for mount in wanted.mounts}:
        raise CannotEnforce(
            "a socket of the host's cannot be reached from a virtual machine by its path",
            code="vm.sockets",
            hint="Use another wall.",
        )
    room = wanted.limits.memory or USUAL
    mounted = late.plan(wanted, stage)
    kind = machine.Machine(host.qemu.path, host.qemu.accelerator, (room + room // 64 + KERNEL) >> 20 << 20, host.processors)
    return Plan(
        origin=snapshot.Origin(kind, host.qemu.seen, host.init, host.image.digest),
        image=host.image,
        outer=host.outer,
        tree=wanted.tree,
        greeting=machine.greeting(wanted, () if wanted.tree else host.etc, rlimits(wanted), room),
        late=mounted,
        network=wanted.network,
        enforced=enforced(wanted, host),
    )


def rlimits(wanted: Confinement) -> tuple[tuple[int, int], ...]:
    """Per-process limits of setrlimit(2) that the guest's kernel holds; how many processes there are is a matter of its cgroup, since root has no RLIMIT_NPROC."""
    limits = wanted.limits
    found = ((0, limits.cpu_time), (1, limits.file_size), (2, limits.memory), (7, limits.open_files))
    return ((4, 0), *((resource, value) for resource, value in found if value))


def enforced(wanted: Confinement, host: Host) -> tuple[Enforced, ...]:
    """The receipt's lines for what this wall holds by itself."""
    how = "KVM" if host.qemu.accelerator == "kvm" else "TCG: translated, since no machine runs with KVM here"
    lines = [
        Enforced(
            "kernel",
            "Linux of the guest's own (QEMU)",
            f"{how}; image {host.image.digest[:12]}; in bubblewrap's namespaces, without capabilities",
        ),
        Enforced("processes", "the guest's own process table", "ends with its supervisor"),
        Enforced(
            "privileges", "root of the guest alone", "outside: one user id of a user namespace, and nothing of the host in view but mounts"
        ),
        Enforced(
            "system calls",
            "answered by the guest's kernel",
            "of the host's kernel only what our seccomp filters allow QEMU, and QEMU's own",
        ),
        Enforced(
            "files",
            "9p by QEMU over bubblewrap's view",
            f"{len(wanted.mounts)} mounts, {len(wanted.overlays)} overlays, private home and /tmp",
        ),
        Enforced("environment", "explicit list", ", ".join(name for name, _ in wanted.environment)),
        Enforced("descriptors", "none of the host's: bytes over a console port"),
        Enforced("network", {"none": "none", "door": "door: a tap to the gate's listeners, no route beyond"}[wanted.network]),
    ]
    if wanted.limits.memory:
        lines.append(
            Enforced("limit memory", "cgroup memory of the guest's kernel, and the size of the machine", str(wanted.limits.memory))
        )
    if wanted.limits.processes:
        lines.append(Enforced("limit processes", "cgroup pids of the guest's kernel", str(wanted.limits.processes)))
    if wanted.tree is not None:
        name = wanted.root.image or wanted.root.path
        lines.append(Enforced("root", "read-only 9p from a read-only bind, below what is ours", name))
    if wanted.root.writable == "memory":
        lines.append(
            Enforced(
                "root layer", "overlay in a tmpfs of the guest's; gone at the end", f"{wanted.root.size} bytes" if wanted.root.size else ""
            )
        )
    return (*lines, *view.enforced(wanted))


class Machine(GuestBox):
    """A virtual machine; it keeps its snapshot and its image from being removed."""

    held: tuple[int, ...] = ()

    def said(self) -> str:
        """As any box, without QEMU's warnings: one is that a machine without a network has none."""
        return "\n".join(line for line in super().said().splitlines() if ": warning: " not in line)

    def lend(self, fd: int) -> None:
        """As walls/contract.py has it."""
        try:
            native.request(
                self._sock, "A", 0, fds=(fd, fd)
            )  # the first goes to no one: a message's first descriptor is what belongs to its text
        except OSError:
            self.dead = True

    def close(self) -> int:
        """As any box."""
        status = super().close()
        streams.close([*self.held])
        self.held = ()
        return status


def waits(plan: Plan) -> str:
    """What `open_box` will do first that takes long, as a sentence, or ""."""
    return (
        "" if snapshot.there(plan.origin) else "booting a machine of this size once, to start others from it in no time: some seconds ..."
    )


def open_box(plan: Plan, door: Door | None = None, cgroups: Sequence[int] = ()) -> Machine:
    """Start the machine of `plan` and return without waiting for it, except where its snapshot has to be made first; the first `step()` tells whether it stands.

    `door` must be one of `make_door`, and be given exactly when the plan's network is "door"; `cgroups` are descriptors of cgroup.procs files to join.
    Raises CannotEnforce when a path cannot be opened as planned or no machine boots here, WallFailed when the helper cannot be started.
    """
    if (plan.network == "door") != (door is not None):
        raise CannotEnforce("the plan's network and the door do not match", code="wall.network", hint="This is a bug in stockade.")
    opened = late.pin(plan.late)
    held: list[int] = []
    mine, theirs = native.credentials_pair()
    greeting = -1
    box = None
    try:
        held.append(image.hold(plan.image))
        place, lock = snapshot.hold(plan.origin, plan.image)
        held.append(lock)
        greeting = native.words(plan.greeting)
        wire = [door.tap] if door is not None else []
        qemu = machine.arguments(plan.origin.machine, saving=False, wired=bool(wire))

        def inner(step: int, _control: int, _holding: int) -> list[str]:
            return [f"/proc/self/fd/{step}", "machine", str(theirs), str(greeting), *map(str, wire), "--", *qemu]

        shown = around.around(plan.outer, plan.origin.machine.accelerator, plan.image, place, tree=plan.tree)
        started = launching.start(shown, None, cgroups, seccomp.filters, inner, (theirs, greeting, *wire), standard=True)
        box = Machine(*started, mine, around.SPARE)
        box.held = tuple(held)
        box.bind_opened(plan.late, opened)
        return box
    except BaseException:
        if box is not None:
            box.close()
        else:
            streams.close([mine, *held])
        raise
    finally:
        streams.close([theirs, *opened, *([greeting] if greeting >= 0 else [])])
