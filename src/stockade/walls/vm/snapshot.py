"""A machine that was booted once and saved before it was anybody's; sessions go on from there (walls/vm/machine.py says how).

    KEY/                       SHA-256 of everything it was made from; whoever uses it holds a shared lock on it
        memory, state          the guest's memory (sparse), and what else QEMU has saved
        initrd                 the image's, with our init
        orders                 what QEMU is told when it goes on
    .new-*                     half made

INVARIANT: a directory has its key for a name only once it is whole, and is used only while it looks as it did then, which is remembered in another place. A session sees
it read-only: what it writes to its memory is in no file.
"""

from __future__ import annotations

import fcntl
import os

from stockade.core import places
from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.core.frozen import frozen, plain
from stockade.walls import launching, native, seccomp
from stockade.walls.guest import GuestBox
from stockade.walls.vm import around, image, machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from stockade.walls.vm.machine import Machine

FORMAT = 1
PATIENCE = 180.0  # seconds that a boot may take on a busy machine without KVM; an idle one needs three
DOCTOR = "`stockade doctor --wall vm` tries each part."


@frozen
class Origin:
    """What a snapshot is made from. `qemu` is what the program looks like (find.py), `init` the SHA-256 of our program, `image` the digest of the image."""

    machine: Machine
    qemu: str
    init: str
    image: str

    @property
    def key(self) -> str:
        """The name of its directory."""
        import hashlib
        import json

        parts = [FORMAT, plain(self), machine.arguments(self.machine, saving=True), machine.arguments(self.machine, saving=False)]
        if self.machine.accelerator != "tcg":
            parts.append(_processor())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _processor() -> str:
    """What kind of processor this is: a machine that has seen one goes on only on such."""
    with open("/proc/cpuinfo") as file:
        lines = file.read().split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "stepping", "flags", "microcode")))


def hold(origin: Origin, found: image.Image) -> tuple[str, int]:
    """The directory of the snapshot, and a descriptor that keeps it from being removed; made if there is none, which takes some seconds.

    Raises CannotEnforce (`vm.boot`), WallFailed, StockadeError (`place.unsafe`, `place.unwritable`).
    """
    top = places.private(places.cache("vm-snapshots"))
    path, entry = f"{top}/{origin.key}", f"{places.private(places.state('vm'))}/snapshot-{origin.key}"
    for _ in range(2):
        held = _held(path)
        if held >= 0:
            if image.remembered(entry) == _look(path):
                return path, held
            os.close(held)
        lock = os.open(f"{top}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: who comes second finds it made
            if image.remembered(entry) != _look(path):
                _make(top, path, origin, found)
                image.remember(entry, _look(path))
        finally:
            os.close(lock)
    raise WallFailed(
        f"the machine's snapshot in {path} was changed or removed as it was made",
        code="vm.snapshot",
        hint="Find out by whom, and try again.",
    )


def there(origin: Origin) -> bool:
    """Whether it has been made."""
    return os.path.isdir(f"{places.cache('vm-snapshots')}/{origin.key}")


def _look(path: str) -> str:
    """What stat(2) tells of all that a snapshot is, so that nobody who can write to the cache alone changes one unseen; "-" if it is not there."""
    lines = [path]
    try:
        for name in sorted(os.listdir(path)):
            one = os.stat(f"{path}/{name}", follow_symlinks=False)
            lines.append(f"{name} {one.st_mode} {one.st_dev} {one.st_ino} {one.st_size} {one.st_mtime_ns} {one.st_ctime_ns}")
    except OSError:
        return "-"
    return "\n".join(lines) + "\n"


def _held(path: str) -> int:
    """A shared lock on it, -1 if there is none (any more)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        if os.stat(path, follow_symlinks=False).st_ino == os.fstat(fd).st_ino:
            return fd
    except FileNotFoundError:
        pass
    os.close(fd)
    return -1


def _make(top: str, path: str, origin: Origin, found: image.Image) -> None:
    import shutil

    _sweep(top)
    new = f"{top}/.new-{os.urandom(6).hex()}"
    os.mkdir(new, 0o700)
    held = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_SH)
    try:
        with open(f"{new}/initrd", "wb") as file, open(found.initrd, "rb") as first:
            shutil.copyfileobj(first, file)
            file.write(_archive())
        with open(f"{new}/orders", "wb") as file:
            file.write(machine.orders())
        with open(f"{new}/{machine.MEMORY}", "wb") as file:
            file.truncate(origin.machine.memory)
        _boot(new, origin, found)
        for name in os.listdir(new):
            os.chmod(f"{new}/{name}", 0o400)
        if os.path.lexists(path):  # not as it was made
            os.rename(path, f"{top}/.new-{os.urandom(6).hex()}")
        os.rename(new, path)
    except OSError as error:
        raise StockadeError(
            f"the machine's snapshot cannot be made in {top}: {error.strerror or error}",
            code="vm.snapshot",
            hint="Free some space there; nothing was run.",
        ) from error
    finally:
        os.close(held)
        shutil.rmtree(new, ignore_errors=True)


def _sweep(top: str) -> None:
    """Remove what nobody uses: half made ones of processes that were killed, and those made from what is not here any more, by and by."""
    import shutil

    entries = sorted((entry for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)), key=lambda entry: entry.stat().st_mtime)
    for entry in entries[: -MOST_KEPT or None] if len(entries) > MOST_KEPT else [one for one in entries if one.name.startswith(".new-")]:
        fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


MOST_KEPT = 6  # snapshots, used or not, before the oldest that nobody uses are removed


def _archive() -> bytes:
    """Our init as the guest's kernel unpacks it behind the image's own archive."""
    from stockade.walls.vm import initrd

    with open(native.STEP, "rb") as file:
        return initrd.archive([initrd.Member("stockade-init", 0o100755, file.read())])


def _boot(directory: str, origin: Origin, found: image.Image) -> None:
    """Boot the machine, in the sandbox in which it goes on later, until it says that it is ready, and save it. Raises CannotEnforce (`vm.boot`), WallFailed."""
    import socket

    stream, theirs = socket.socketpair()
    orders, heard = socket.socketpair()
    fds = theirs.fileno(), heard.fileno()
    box = None
    try:
        plan = around.around(around.look(), origin.machine.accelerator, found, directory, saving=True)
        command = [*machine.arguments(origin.machine, saving=True, fds=fds)]
        box = GuestBox(*launching.start(plan, None, (), seccomp.filters, lambda *_: command, fds), -1, "")
        theirs.close()
        heard.close()
        _greeted(box, stream)
        _save(box, orders)
    finally:
        if box is not None:
            box.close()
        for sock in (stream, theirs, orders, heard):
            sock.close()


def _greeted(box: GuestBox, stream: socket.socket) -> None:
    """Wait for the guest's first words (native/machine.c)."""
    from struct import unpack

    stream.settimeout(PATIENCE)
    got = b""
    try:
        while len(got) < 8 + native.NOTE_SIZE:
            piece = stream.recv(8 + native.NOTE_SIZE - len(got))
            if not piece:
                break
            got += piece
    except TimeoutError:
        raise _no_boot(f"it did not start within {PATIENCE:g} s", box) from None
    if len(got) < 8 + native.NOTE_SIZE:
        raise _no_boot("it ended at its start", box)
    kind, _, number, text = unpack("=IIi52s", got[8:])
    if chr(kind & 0x7F) != "R":
        words = text.split(b"\0", 1)[0].decode("ascii", "replace")
        raise _no_boot(f"{words if words.isprintable() else 'it'}: {os.strerror(number & 0xFFF)}", box)


def _no_boot(why: str, box: GuestBox) -> CannotEnforce:
    words = box.said().rpartition("\n")[2]
    return CannotEnforce(
        f"the virtual machine does not boot here: {why}{f' (QEMU: {words})' if words else ''}",
        code="vm.boot",
        hint=f"Nothing was run. {DOCTOR}",
    )


def _save(box: GuestBox, orders: socket.socket) -> None:
    """Tell QEMU (QMP) to write down what is not in the memory's file."""
    import json

    file = orders.makefile("rwb", buffering=0)
    orders.settimeout(PATIENCE)

    def ask(command: str, **arguments: Any) -> dict[str, Any]:
        file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            line = file.readline(1 << 16)
            try:
                answer = json.loads(line)
            except ValueError:
                raise _no_boot("its state cannot be saved", box) from None
            if "return" in answer:
                return answer["return"] or {}
            if "error" in answer:
                raise _no_boot(f"its state cannot be saved: {answer['error'].get('desc', '')}", box)

    ask("qmp_capabilities")
    ask("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
    ask("migrate", uri=f"file:{machine.SNAPSHOT}/{machine.STATE}")
    status = ""
    while status != "completed":
        status = ask("query-migrate").get("status", "")
        if status in ("failed", "cancelled", ""):
            raise _no_boot(f"its state cannot be saved: {status or 'no answer'}", box)
    ask("quit")
