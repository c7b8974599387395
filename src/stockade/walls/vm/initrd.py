"""What a machine starts from: the kernel and its modules out of Debian's package, and the archive (initramfs) that mounts the root. Reads packages; starts nothing.

The archive is cpio "newc" (cpio(5); the kernel's Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: the kernel takes it as it is, and another one may follow it.
The same members give the same bytes.
"""

from __future__ import annotations

import lzma
import re
import stat
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

# What a machine has: discs, the console that the wall talks through, files over 9p, a network, the root and what lies over it.
MODULES = (
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "9pnet_virtio", "9p", "crc32c_generic", "erofs", "overlay", "vmgenid",
)  # fmt: skip
OPTIONAL = ("crc32c_generic", "vmgenid")  # part of other modules, or of the kernel itself, in some versions
BLOCK = 512  # the archive's size is a multiple of it
_ALIGNED = 4
_XZ = b"\xfd7zXZ\0"

INIT = """\
#!/bin/busybox sh
# The machine's first process: loads what the root needs, mounts it read-only, and becomes the wall's own program, which comes in an archive behind this one.
b=/bin/busybox
end() { $b echo "stockade: $1"; $b poweroff -f; }
$b mount -t devtmpfs dev /dev && $b mount -t proc proc /proc && $b mount -t sysfs sys /sys || end 'cannot mount /dev, /proc and /sys'
while read -r module; do $b insmod "/modules/$module" || end "cannot load $module"; done </modules/order
n=0
until [ -b /dev/vda ]; do n=$((n + 1)); [ $n -le 1000 ] || end 'there is no /dev/vda'; $b usleep 10000; done
$b mount -t erofs -o ro /dev/vda /root || end 'cannot mount the root'
[ -x /stockade-init ] || end 'there is no /stockade-init: only the vm wall starts this image'
$b mount -t tmpfs -o mode=755 run /root/run && $b cp /stockade-init /root/run/stockade-init || end 'cannot keep /stockade-init'
for name in dev proc sys; do $b mount -o move /$name /root/$name || end "cannot move /$name"; done
exec $b switch_root /root /run/stockade-init guest
"""


# ---- the archive ------------------------------------------------------------------------------------------------------------------


@frozen
class Member:
    """A file of an archive: its name without a slash in front, its mode (st_mode), its content; a device's numbers."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(members: Iterable[Member]) -> bytes:
    """An archive that holds these members in this order, all of root's and without a time."""
    made = bytearray()
    for inode, one in enumerate([*members, Member("TRAILER!!!", 0)], 1):
        name = one.name.encode() + b"\0"
        fields = (inode, one.mode, 0, 0, 1, 0, len(one.data), 0, 0, *one.device, len(name), 0)
        made += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        made += bytes(-len(made) % _ALIGNED) + one.data
        made += bytes(-len(made) % _ALIGNED)
    return bytes(made) + bytes(-len(made) % BLOCK)


def initrd(busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """The archive that a machine starts from; `modules` in the order in which they are loaded."""
    folders = [Member(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "proc", "root", "sys")]
    order = "".join(f"{name}.ko\n" for name in modules).encode()
    return archive(
        [
            *folders,
            Member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            Member("bin/busybox", stat.S_IFREG | 0o755, busybox),
            Member("init", stat.S_IFREG | 0o755, INIT.encode()),
            Member("modules/order", stat.S_IFREG | 0o644, order),
            *(Member(f"modules/{name}.ko", stat.S_IFREG | 0o644, data) for name, data in modules.items()),
        ]
    )


# ---- the kernel -------------------------------------------------------------------------------------------------------------------


@frozen
class Kernel:
    """A kernel's version (uname -r), itself as QEMU starts it, and its modules in the order in which they are loaded."""

    version: str
    image: bytes
    modules: tuple[tuple[str, bytes], ...]


def kernel(package: tarfile.TarFile, wanted: Iterable[str] = MODULES) -> Kernel:
    """What is needed of a kernel's package, of which `package` is the tree. Raises StockadeError `vm.kernel`."""
    members = {re.sub(r"^(?:\./)?(?:usr/)?", "", one.name): one for one in package if one.isreg()}
    versions = [name.removeprefix("boot/vmlinuz-") for name in members if name.startswith("boot/vmlinuz-")]
    if len(versions) != 1:
        raise _wrong("it holds no kernel, or several")
    (version,) = versions

    def content(name: str) -> bytes:
        file = package.extractfile(members[name]) if name in members else None
        if file is None:
            raise _wrong(f"it holds no {name}")
        return file.read()

    places = {found[1].replace("-", "_"): name for name in members if (found := re.search(r"/([^/]+)\.ko(?:\.xz)?$", name))}
    builtin = content(f"lib/modules/{version}/modules.builtin").decode()

    def module(name: str) -> bytes | None:
        data = content(places[name]) if name in places else None
        return lzma.decompress(data) if data is not None and places[name].endswith(".xz") else data

    inside = {line.rpartition("/")[2].removesuffix(".ko").replace("-", "_") for line in builtin.splitlines()}
    return Kernel(version, unpacked(content(f"boot/vmlinuz-{version}")), tuple(in_order(wanted, module, inside)))


def in_order(wanted: Iterable[str], module: Callable[[str], bytes | None], builtin: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The modules `wanted` and all that they need, each behind what it needs itself (".modinfo", depends=). Raises StockadeError `vm.kernel`."""
    seen: set[str] = set()

    def add(name: str, path: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        if name in seen or name in builtin:
            return
        if name in path:
            raise _wrong(f"its modules {', '.join(path)} need each other")
        data = module(name)
        if data is None:
            if name in OPTIONAL:
                return
            raise _wrong(f"it has no module {name}")
        found = re.search(rb"\0depends=([\w,-]*)\0", data)
        if found is None:
            raise _wrong(f"its module {name} does not say what it needs")
        for needed in filter(None, found[1].decode().split(",")):
            yield from add(needed.replace("-", "_"), (*path, name))
        seen.add(name)
        yield name, data

    for name in wanted:
        yield from add(name, ())


def unpacked(vmlinuz: bytes) -> bytes:
    """The ELF file in a kernel that is compressed with xz: started through PVH, it saves the guest the unpacking. One that is compressed otherwise stays as it is.

    Where it lies is in the setup header (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length). Raises StockadeError `vm.kernel`.
    """
    if vmlinuz[0x202:0x206] != b"HdrS":
        raise _wrong("its kernel is no bzImage")
    start = ((vmlinuz[0x1F1] or 4) + 1) * 512 + int.from_bytes(vmlinuz[0x248:0x24C], "little")
    payload = vmlinuz[start : start + int.from_bytes(vmlinuz[0x24C:0x250], "little")]
    if not payload.startswith(_XZ):
        return vmlinuz
    try:
        stream = lzma.LZMADecompressor()  # four bytes follow what it reads: the size
        image = stream.decompress(payload)
    except lzma.LZMAError as error:
        raise _wrong(f"its kernel cannot be unpacked: {error}") from error
    if not stream.eof or not image.startswith(b"\x7fELF"):
        raise _wrong("its kernel is no whole ELF file")
    return image


def _wrong(what: str) -> StockadeError:
    return StockadeError(
        f"the kernel's package is not what is known here: {what}", code="vm.kernel", hint="Debian 12 and 13 have one that is: --suite."
    )
