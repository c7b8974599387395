"""The virtual machine itself: QEMU's arguments, and what its guest is told. Pure functions.

A q35 machine (microvm does not boot Debian's kernel, which takes no virtio-mmio devices from its command line) with a console port, a disk that cannot be written to, a
network card and two folders, of which one cannot be written to, all by virtio; nothing else: no display, USB, sound, floppy, timers of old, serial port, monitor. The devices are the same for every
session, since a machine goes on only where the same one was saved. QEMU: https://www.qemu.org/docs/master/system/invocation.html
"""

from __future__ import annotations

from stockade.core.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from stockade.core.values import Confinement

# Where QEMU finds things in its own sandbox.
IMAGE, SNAPSHOT, LATE, TREE = "/image", "/snapshot", "/late", "/tree"
MEMORY, STATE, ORDERS = "memory", "state", "orders"  # files of a snapshot
STREAM, TAP = 3, 4  # descriptors: the console port's other end, the wire (native/machine.c)
PORT = "stockade"  # the name of the console port; native/machine.c looks for it
TAG = "stockade"  # of the folder; of that with another root than the image's it is TAG-root (native/machine.c)
OURS, THEIRS = "ours", "theirs"  # in the latter
GUEST_LATE = "/run/stockade-late"  # where the guest mounts it
TRANSLATIONS = 64  # MiB for translated code (TCG)
# 9p (Linux' Documentation/filesystems/9p.rst): every look goes to the host, which may change files meanwhile; pages that are mapped are kept.
MOUNT = "trans=virtio,version=9p2000.L,msize=524288,cache=mmap,access=any"
ROOT_MOUNT = MOUNT.replace("mmap", "loose")  # nobody changes it meanwhile, so what was seen once is not asked for again
KERNEL = "quiet loglevel=0 panic=-1 reboot=t tsc=reliable no_timer_check mitigations=off random.trust_cpu=on"


@frozen
class Machine:
    """What a snapshot depends on besides the image: how QEMU runs the guest, and its size."""

    qemu: str  # path
    accelerator: str  # "kvm" or "tcg"
    memory: int  # bytes
    processors: int


def arguments(machine: Machine, *, saving: bool, wired: bool = False, fds: tuple[int, int] = (STREAM, TAP)) -> tuple[str, ...]:
    """QEMU's whole argument vector: for a machine that boots and is saved, or for one that goes on from there. `fds` are the console port's other end, and the wire's
    if it is `wired`, or that of the socket on which a machine that is saved takes orders."""
    options = "share=on" if saving else "share=off,readonly=on,rom=off"  # what a session writes to its memory is its own (QEMU 8.2)
    words = [machine.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-msg", "guest-name=off"]
    words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += ["-machine", "q35,memory-backend=ram,hpet=off,vmport=off,smbus=off,sata=off,i8042=off,usb=off,graphics=off"]
    words += ["-accel", f"tcg,tb-size={TRANSLATIONS}" if machine.accelerator == "tcg" else machine.accelerator]
    words += ["-cpu", "max" if machine.accelerator == "tcg" else "host", "-smp", str(machine.processors), "-m", f"{machine.memory >> 20}M"]
    words += ["-object", f"memory-backend-file,id=ram,size={machine.memory >> 20}M,mem-path={SNAPSHOT}/{MEMORY},{options}"]
    words += ["-kernel", f"{IMAGE}/kernel", "-initrd", f"{SNAPSHOT}/initrd", "-append", KERNEL]
    words += ["-blockdev", f"driver=file,node-name=root,filename={IMAGE}/root.erofs,read-only=on,cache.no-flush=on"]
    words += ["-device", "virtio-blk-pci,drive=root"]
    words += ["-chardev", f"socket,id=port,fd={fds[0]}", "-device", "virtio-serial-pci,max_ports=2"]
    words += ["-device", f"virtserialport,chardev=port,name={PORT}"]
    words += [
        "-netdev",
        f"tap,id=wire,fd={fds[1]}" if wired else "hubport,id=wire,hubid=0",
        "-device",
        "virtio-net-pci,netdev=wire,romfile=",
    ]
    words += ["-fsdev", f"local,id=files,path={LATE},security_model=none,multidevs=remap"]
    words += ["-device", f"virtio-9p-pci,fsdev=files,mount_tag={TAG}"]
    words += ["-fsdev", f"local,id=tree,path={TREE},security_model=none,multidevs=remap,readonly=on"]
    words += ["-device", f"virtio-9p-pci,fsdev=tree,mount_tag={TAG}-root"]
    if saving:
        return (*words, "-chardev", f"socket,id=orders,fd={fds[1]}", "-mon", "chardev=orders,mode=control")
    # What it is told to do is a file, so that nobody can tell it anything else.
    words += ["-chardev", f"file,id=orders,path=/dev/null,input-path={SNAPSHOT}/{ORDERS}", "-mon", "chardev=orders,mode=control"]
    return (*words, "-incoming", "defer")


def orders() -> bytes:
    """The commands (QMP) by which a machine goes on from where it was saved: its memory is in place already."""
    import json

    capabilities = [{"capability": "x-ignore-shared", "state": True}]
    commands: tuple[dict[str, object], ...] = (
        {"execute": "qmp_capabilities"},
        {"execute": "migrate-set-capabilities", "arguments": {"capabilities": capabilities}},
        {"execute": "migrate-incoming", "arguments": {"uri": f"file:{SNAPSHOT}/{STATE}"}},
    )
    return b"".join(json.dumps(command).encode() + b"\n" for command in commands)


def greeting(wanted: Confinement, files: Iterable[tuple[str, str]], rlimits: Iterable[tuple[int, int]], room: int) -> tuple[str, ...]:
    """What the guest is to be, as native/machine.c reads it. `files` are written to its root before anything else; `room` is how much memory its processes
    may use together (bytes)."""
    limits = wanted.limits
    words = [f"home={wanted.home}", f"late={GUEST_LATE}", f"mounts={MOUNT}", f"network={int(wanted.network == 'door')}", f"memory={room}"]
    words += [f"root={'ro' if wanted.root.writable == 'none' else 'rw'}"]
    words += [f"lent={path}" for path in wanted.sockets]
    words += [f"tree={ROOT_MOUNT}"] if wanted.tree is not None else []
    words += [f"layer={wanted.root.size}"] if wanted.root.writable != "none" and wanted.root.size else []
    words += [f"scratch={limits.scratch}"] if limits.scratch else []
    words += [f"processes={limits.processes}"] if limits.processes else []
    words += [f"rlimit={resource}:{value}" for resource, value in rlimits]
    return (*words, *(f"file={path}={text}" for path, text in files))
