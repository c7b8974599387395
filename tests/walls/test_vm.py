"""The vm wall: what `plan` makes is golden; a real machine holds whatever the root of its guest does (M1, M2, M10, M20, M21, M24, M25)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockade.core.errors import CannotEnforce, WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Limits, Mount, Overlay, Root
from stockade.walls import late, native
from stockade.walls.vm import around, find, image, machine, snapshot, wall
from walls.boxes import HOME, SMALL, Inside, inside, own_places, require, until
from walls.test_plan import WANTED

FEW = replace(SMALL, memory=256 << 20)  # one size, so that one snapshot serves them all
PLACE = image.Place("/cache/vm", 1000, "/state/keys/vm.vkey", "/cache/vm")
IMAGE = image.Image(PLACE, "ab" * 32, image.Manifest(1, "bookworm", "amd64", "6.1", 0, "r", (), (), ()))
HOST = wall.Host(
    outer=around.Host("/usr/bin/bwrap", (("usr/bin", "/bin"), ("/lib64", "/lib64"))),
    qemu=find.Found("/usr/bin/qemu-system-x86_64", "seen", "tcg"),
    image=IMAGE,
    init="cd" * 32,
    etc=(("/etc/hostname", "stockade\n"),),
    processors=2,
)


TREE = Overlay("/cache/images/roots/ab/tree", "/state/s/root/upper", "/state/s/root/work", "/state/s/root/shown")


def test_the_whole_argument_vector_of_the_machine() -> None:
    kind = machine.Machine("/usr/bin/qemu-system-x86_64", "tcg", 512 << 20, 2)
    same = (
        *("/usr/bin/qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-msg", "guest-name=off"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "q35,memory-backend=ram,hpet=off,vmport=off,smbus=off,sata=off,i8042=off,usb=off,graphics=off"),
        *("-accel", "tcg,tb-size=64", "-cpu", "max", "-smp", "2", "-m", "512M", "-object"),
    )
    devices = (
        *("-kernel", "/image/kernel", "-initrd", "/snapshot/initrd", "-append", machine.KERNEL),
        *("-blockdev", "driver=file,node-name=root,filename=/image/root.erofs,read-only=on,cache.no-flush=on"),
        *("-device", "virtio-blk-pci,drive=root", "-chardev", "socket,id=port,fd=3", "-device", "virtio-serial-pci,max_ports=2"),
        *("-device", "virtserialport,chardev=port,name=stockade"),
    )
    files = (
        *("-device", "virtio-net-pci,netdev=wire,romfile="),
        *("-fsdev", "local,id=files,path=/late,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=files,mount_tag=stockade"),
        *("-fsdev", "local,id=tree,path=/tree,security_model=none,multidevs=remap,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=tree,mount_tag=stockade-root"),
    )
    memory = "memory-backend-file,id=ram,size=512M,mem-path=/snapshot/memory"
    assert machine.arguments(kind, saving=True) == (
        *same, f"{memory},share=on", *devices, "-netdev", "hubport,id=wire,hubid=0", *files,
        *("-chardev", "socket,id=orders,fd=4", "-mon", "chardev=orders,mode=control"),
    )  # fmt: skip
    assert machine.arguments(kind, saving=False, wired=True) == (
        *same, f"{memory},share=off,readonly=on,rom=off", *devices, "-netdev", "tap,id=wire,fd=4", *files,
        *("-chardev", "file,id=orders,path=/dev/null,input-path=/snapshot/orders", "-mon", "chardev=orders,mode=control", "-incoming", "defer"),
    )  # fmt: skip


def test_the_whole_sandbox_around_it() -> None:
    found = around.around(HOST.outer, "tcg", IMAGE, "/cache/snapshots/k")
    assert found.arguments == (
        *(
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
        ),
        *("--cap-drop", "ALL", "--as-pid-1", "--die-with-parent", "--clearenv", "--hostname", "stockade"),
        *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--ro-bind", "/lib64", "/lib64"),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"),
        *("--ro-bind-fd", "@0", "/image/kernel", "--ro-bind-fd", "@1", "/image/root.erofs", "--ro-bind-fd", "@2", "/snapshot"),
        *("--size", "16777216", "--perms", "0755", "--tmpfs", "/late", "--size", "16777216", "--perms", "0755", "--tmpfs", "/tree"),
        *("--size", "16777216", "--perms", "0755", "--tmpfs", "/spare"),
        *("--remount-ro", "/", "--chdir", "/"),
    )
    assert found.paths == (IMAGE.kernel, IMAGE.root, "/cache/snapshots/k") and found.network == "none" and not found.held
    saving = around.around(HOST.outer, "tcg", IMAGE, "/cache/snapshots/k", saving=True)
    at = saving.arguments.index("/snapshot")
    assert saving.arguments[at - 2] == "--bind-fd" and found.arguments[at - 2] == "--ro-bind-fd"
    rooted = around.around(HOST.outer, "tcg", IMAGE, "/cache/snapshots/k", tree=TREE)
    layers = ("--ro-bind-fd", "@3", "/tree/ours", "--ro-bind-fd", "@4", "/tree/theirs")
    assert rooted.arguments == (*found.arguments[:-4], *layers, *found.arguments[-4:])
    assert rooted.paths == (*found.paths, TREE.upper, TREE.lower)


def test_what_the_guest_is_told() -> None:
    plan = wall.plan(replace(WANTED, sockets=()), HOST, stage="/state/stage")
    assert plan.greeting == (
        *(
            "home=/home/ada",
            "late=/run/stockade-late",
            f"mounts={machine.MOUNT}",
            "network=1",
            f"memory={1 << 30}",
            "root=ro",
            "scratch=4096",
        ),
        *("processes=100", "rlimit=4:0", "rlimit=0:60", f"rlimit=1:{1 << 20}", f"rlimit=2:{1 << 30}", "rlimit=7:512"),
        "file=/etc/hostname=stockade\n",
    )
    assert plan.late == late.plan(WANTED, "/state/stage") and plan.network == "door" and plan.stages == ("/state/stage/0",)
    assert plan.origin.machine == machine.Machine("/usr/bin/qemu-system-x86_64", "tcg", ((1 << 30) + (1 << 24) + (160 << 20)), 2)


def test_another_root_changes_what_the_guest_is_told_and_not_its_snapshot() -> None:
    usual = wall.plan(replace(WANTED, sockets=()), HOST, stage="/s")
    chosen = Root(image="registry.example.com/a@sha256:" + "ab" * 32, writable="memory", size=4096)
    plan = wall.plan(replace(WANTED, sockets=(), root=chosen, tree=TREE), HOST, stage="/s")
    assert plan.origin == usual.origin and plan.tree == TREE and usual.tree is None
    told = [word for word in plan.greeting if word not in usual.greeting]
    assert told == ["root=rw", "tree=trans=virtio,version=9p2000.L,msize=524288,cache=loose,access=any", "layer=4096"]
    assert not [word for word in plan.greeting if word.startswith("file=")]  # they are in the layer of ours
    assert {line.rule: line.detail for line in plan.enforced}["root"] == chosen.image


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"network": "host"}, "network.kind"),
        ({"image": "/kept"}, "checkpoint.wall"),
        ({"root": Root(path="/srv/root")}, "root.unprepared"),
        ({"root": Root(image="registry.example.com/a@sha256:" + "ab" * 32)}, "root.unprepared"),
        ({"root": Root(writable="disk")}, "root.wall"),
        ({"sockets": ("/mnt/socket",), "mounts": (Mount("/srv/socket", "/mnt/socket", "rw"),)}, "vm.sockets"),
        ({"sockets": ("/run/stockade/agent", "/run/stockade/another")}, "vm.sockets"),
        ({"mounts": (Mount("/etc", "/proc", "ro"),)}, "mount.target"),
    ],
)
def test_what_cannot_be_held_is_refused(changes: dict[str, object], code: str) -> None:
    with pytest.raises(CannotEnforce) as caught:
        wall.plan(replace(WANTED, **{"sockets": (), **changes}), HOST, stage="/state/stage")
    assert caught.value.code == code and caught.value.hint


def test_a_socket_that_is_nobodys_is_made_in_the_guest() -> None:
    with_one = wall.plan(replace(WANTED, sockets=("/run/stockade/agent",)), HOST, stage="/s")
    without = wall.plan(replace(WANTED, sockets=()), HOST, stage="/s")
    assert {*with_one.greeting} - {*without.greeting} == {"lent=/run/stockade/agent"} and with_one.origin == without.origin


def test_a_snapshot_is_of_everything_that_it_was_made_from() -> None:
    plan = wall.plan(replace(WANTED, sockets=()), HOST, stage="/s")
    base = plan.origin
    others = [
        replace(base, qemu="another"),
        replace(base, init="another"),
        replace(base, image="another"),
        *(replace(base, machine=replace(base.machine, **change)) for change in ({"memory": 1 << 30}, {"processors": 1}, {"qemu": "/q"})),
    ]
    assert len({one.key for one in (base, *others)}) == len(others) + 1
    elsewhere = wall.plan(Confinement(limits=WANTED.limits), HOST)
    assert elsewhere.origin == base  # whoever it is for


def test_orders_load_the_state_and_nothing_else() -> None:
    commands = [json.loads(line) for line in machine.orders().splitlines()]
    assert [one["execute"] for one in commands] == ["qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"]
    assert commands[2]["arguments"] == {"uri": "file:/snapshot/state"}


# ---- a real machine ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("work").resolve()
    for name in ("rw", "ro"):
        (place / name).mkdir()
        (place / name / "file").write_text(name)
    return place


@pytest.fixture(scope="module")
def box(work: Path) -> Iterator[Inside]:
    require(wall)
    mounts = (Mount(str(work / "rw"), "/work/rw", "rw"), Mount(str(work / "ro"), "/work/ro", "ro"))
    with inside(*mounts, network="door", wall=wall, limits=FEW) as made:
        yield made


def other(box: Inside, wanted: Inside) -> str:
    return wanted.sh("cat /proc/sys/kernel/random/uuid; head -c 8 /dev/urandom | od -An -tx1").text


@pytest.mark.wall
def test_a_kernel_a_process_table_and_a_root_of_its_own(box: Inside) -> None:
    assert box.sh("uname -r").text != os.uname().release
    assert box.sh("cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l").text.split()[1] in ("3", "4", "5")
    assert box.sh("id -u; echo $HOME; stat -c %a $HOME").text.split() == ["0", HOME, "700"]
    assert box.sh("touch /x; touch /usr/x; touch /run/x").code
    assert b"debian" in box.sh("cat /etc/os-release").out


@pytest.mark.wall
def test_only_what_is_mounted_is_there_and_modes_hold(box: Inside, work: Path) -> None:
    assert box.sh("ls /work; cat /work/rw/file /work/ro/file").text == "ro\nrw\nrwro"
    done = box.sh(
        "echo new > /work/rw/new && cat /work/rw/new; echo x > /work/ro/file; rm /work/ro/file; mv /work/ro /work/z; ls -A /mnt /srv /run/stockade-late"
    )
    assert done.text.startswith("new") and (work / "rw/new").read_text() == "new\n" and (work / "ro/file").read_text() == "ro"
    assert not box.sh("test -e /work/z").code == 0
    (work / "rw/from-outside").write_text("seen")
    assert box.sh("cat /work/rw/from-outside").text == "seen"
    (work / "rw/from-outside").write_text("changed outside")
    assert box.sh("cat /work/rw/from-outside").text == "changed outside"


@pytest.mark.wall
def test_links_of_a_mount_lead_nowhere_outside(box: Inside, work: Path) -> None:
    secret = work / "secret"
    secret.write_text("out of reach")
    os.symlink(str(secret), work / "rw/link")
    os.symlink("../secret", work / "rw/relative")
    for name in ("link", "relative"):
        done = box.sh(f"cat /work/rw/{name}")
        assert done.code and b"out of reach" not in done.out
    assert box.sh(f"ln -s {secret} /work/rw/made; cat /work/rw/made").code


VECTORS = {
    "load a module": 'insmod /lib/modules/x.ko || python3 -c \'import ctypes,sys; r=ctypes.CDLL(None).syscall(175, b"x", 1, b""); sys.exit(0 if r == 0 else 1)\'',
    "mount a file system": 'mkdir /tmp/m && mount -t tmpfs none /tmp/m 2>/dev/null || python3 -c \'import ctypes,sys; sys.exit(ctypes.CDLL(None).mount(b"none", b"/tmp/m", b"tmpfs", 0, None) != 0)\'',
    "serve the host's folder once more": 'python3 -c \'import ctypes,sys; sys.exit(ctypes.CDLL(None).mount(b"stockade", b"/tmp", b"9p", 0, b"trans=virtio") != 0)\'',
    "write to the disk": "mknod /tmp/vda b 254 0 && dd if=/dev/zero of=/tmp/vda bs=512 count=1 conv=notrunc",
    "raw memory": "mknod /tmp/mem c 1 1 && dd if=/tmp/mem of=/dev/null bs=1 count=1",
    "ports of devices": "mknod /tmp/port c 1 4 && dd if=/tmp/port of=/dev/null bs=1 count=1",
    "raw sockets": "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
    "another route": "ip route add 10.0.0.0/8 via 192.0.0.1",
    "vsock": "python3 -c 'import socket; s=socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.settimeout(2); s.connect((2, 22))'",
    "the kernel's settings": "echo 1 > /proc/sys/kernel/sysrq",
    "a new kernel": "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(246, 0, 0, 0, 0, 0) != 0)'",
    "the right to mount back": "python3 -c 'import ctypes,sys; c=ctypes.CDLL(None); sys.exit(c.prctl(24, 21, 0, 0, 0) != 0 or c.prctl(23, 21, 0, 0, 0) != 1)'",
    "user namespaces": "unshare -U true",
}


@pytest.mark.wall
@pytest.mark.parametrize("what", VECTORS)
def test_what_root_may_not_do_in_the_guest(box: Inside, what: str) -> None:
    assert box.sh(VECTORS[what]).code != 0
    assert box.sh("echo alive").text == "alive"


@pytest.mark.wall
def test_nothing_answers_but_the_door(box: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in ("127.0.0.1", "192.0.0.1", "10.0.2.2", "169.254.169.254"):
            assert box.sh(f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}'").code
    assert box.sh("timeout 3 bash -c 'exec 3<>/dev/tcp/192.0.0.1/443'").code == 0  # the twin: a listener of the door
    assert box.sh("timeout 3 bash -c 'exec 3<>/dev/tcp/203.0.113.9/443'").code == 0


@pytest.mark.wall
def test_streams_are_whole_whatever_passes(box: Inside) -> None:
    done = box.run("/bin/sh", "-c", "tee /dev/stderr | sha256sum", stdin=(data := os.urandom(3_000_000)))
    import hashlib

    assert done.err == data and done.text.split()[0] == hashlib.sha256(data).hexdigest()


@pytest.mark.wall
def test_two_machines_of_one_snapshot_share_neither_randomness_nor_time(work: Path) -> None:
    require(wall)
    found = []
    for _ in range(2):
        with inside(wall=wall, limits=FEW) as made:
            found.append(
                made.sh(
                    "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; python3 -c 'import random,os; print(random.random(), os.urandom(8))'"
                ).text
            )
            assert abs(float(made.sh("date +%s.%N").text) - time.time()) < 5
    assert len({line for text in found for line in text.splitlines()}) == 6


@pytest.mark.wall
def test_what_is_left_of_a_machine_is_nothing(work: Path) -> None:
    require(wall)
    with inside(Mount(str(work / "rw"), "/work", "rw"), wall=wall, limits=FEW) as made:
        made.sh("echo marker > /tmp/marker; echo marker > $HOME/marker; echo marker > /dev/shm/marker")
        with own_places():
            place = snapshot.hold(made.plan.origin, made.plan.image)
        os.close(place[1])
        before = [(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(place[0])]
    with inside(Mount(str(work / "rw"), "/work", "rw"), wall=wall, limits=FEW) as made:
        assert made.sh("ls -A /tmp $HOME /dev/shm | grep marker").code
    assert [(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(place[0])] == before  # nobody writes to a snapshot


@pytest.mark.wall
def test_a_secret_of_the_host_is_in_no_memory_of_the_guest(work: Path) -> None:
    """From outside: all of the guest's memory, and everything else of QEMU's process (M2)."""
    require(wall)
    canary = f"canary-{os.urandom(12).hex()}"
    planted = f"planted-{os.urandom(12).hex()}"
    os.environ["STOCKADE_TEST_SECRET"] = canary
    (work / "hidden").write_text(canary)
    try:
        with inside(Mount(str(work / "rw"), "/work", "rw"), network="door", wall=wall, limits=FEW) as made:
            made.sh(f"echo {planted} > /tmp/planted; env; cat /work/file")
            assert not dump_has(made.box.pid, canary)
            assert dump_has(made.box.pid, planted)  # the control: what the guest knows is found
    finally:
        del os.environ["STOCKADE_TEST_SECRET"]


def dump_has(bwrap: int, text: str) -> bool:
    """Whether `text` is in the memory of any process below a bubblewrap."""
    code = (
        "import os,sys\n"
        "needle=bytes.fromhex(sys.argv[2])\n"
        "todo=[int(sys.argv[1])]; found=False\n"
        "while todo:\n"
        "    pid=todo.pop()\n"
        "    for task in os.listdir(f'/proc/{pid}/task'):\n"
        "        todo += map(int, open(f'/proc/{pid}/task/{task}/children').read().split())\n"
        "    with open(f'/proc/{pid}/maps') as maps, open(f'/proc/{pid}/mem','rb',0) as memory:\n"
        "        for line in maps:\n"
        "            span, mode, *_ = line.split()\n"
        "            start, end = (int(one,16) for one in span.split('-'))\n"
        "            if mode[0] != 'r' or start >= 1 << 63: continue\n"
        "            rest=b''\n"
        "            for at in range(start, end, 1 << 22):\n"
        "                try: piece=os.pread(memory.fileno(), min(1 << 22, end-at), at)\n"
        "                except OSError: break\n"
        "                if needle in rest+piece: found=True\n"
        "                rest=piece[-64:]\n"
        "print(found)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(bwrap), text.encode().hex()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.wall
@pytest.mark.parametrize("part", ["qemu", "ours", "bwrap"])
def test_a_part_that_is_killed_ends_the_machine(part: str) -> None:
    require(wall)
    with inside(wall=wall, limits=FEW) as made:
        assert made.sh("echo up").text == "up"
        below = processes(made.box.pid)
        qemu = next(pid for pid, name in below.items() if name.startswith("qemu"))
        victim = {"bwrap": made.box.pid, "qemu": qemu, "ours": int(Path(f"/proc/{qemu}/stat").read_text().rpartition(") ")[2].split()[1])}[
            part
        ]
        os.kill(victim, 9)
        with pytest.raises(WallFailed):
            for _ in range(1000):
                made.sh("sleep 0.05")
        made.box.close()
        assert until(lambda: not [pid for pid in below if os.path.exists(f"/proc/{pid}")])


def processes(bwrap: int) -> dict[int, str]:
    found, todo = {}, [bwrap]
    while todo:
        pid = todo.pop()
        for task in os.listdir(f"/proc/{pid}/task"):
            todo += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


@pytest.mark.wall
def test_qemu_is_nobody_in_a_sandbox_of_its_own(box: Inside) -> None:
    assert box.run("true").code == 0  # it stands
    pid = next(pid for pid, name in processes(box.box.pid).items() if name.startswith("qemu"))
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["CapEff"].strip("0") == status["CapPrm"].strip("0") == status["CapBnd"].strip("0") == "" and status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    for name in ("net", "mnt", "pid", "ipc", "user", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    places = {line.split(" ")[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    known = ("/dev", "/proc", "/usr", "/late", "/tree", "/spare", "/image", "/snapshot", "/etc/ld.so.cache", "/lib", "/bin", "/sbin")
    assert all(place == "/" or place.startswith(known) for place in places), places
    assert not [line for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:] if not line.strip().startswith("lo:")]


@pytest.mark.wall
def test_a_machine_that_does_not_boot_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(wall)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    host = wall.look(HOME)
    plan = wall.plan(Confinement(limits=FEW, home=HOME), host)
    spoilt = replace(plan, origin=replace(plan.origin, machine=replace(plan.origin.machine, accelerator="none")))
    with pytest.raises(CannotEnforce) as caught:
        wall.open_box(spoilt)
    assert caught.value.code == "vm.boot" and "QEMU" in str(caught.value) and "doctor" in caught.value.hint
    assert [name for name in os.listdir(tmp_path / "stockade/vm-snapshots") if name != "lock"] == []


@pytest.mark.wall
def test_the_memory_limit_is_what_processes_get_and_the_machine_goes_on() -> None:
    require(wall)
    with inside(wall=wall, limits=FEW) as made:
        assert made.sh("head -c 400M /dev/zero | tail -c 400M | wc -c").text == "0"
        assert made.sh("head -c 20M /dev/zero | tail -c 20M | wc -c").text == "20971520"


@pytest.mark.wall
def test_a_snapshot_that_was_half_made_is_swept_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(wall)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    top = tmp_path / "stockade/vm-snapshots"
    (top / ".new-abc").mkdir(parents=True)
    for place in (tmp_path / "stockade", top):
        place.chmod(0o700)
    (top / ".new-abc/memory").write_bytes(b"half")
    with inside_here() as made:
        assert made.sh("echo up").text == "up"
    assert sorted(os.listdir(top)) == sorted([made.plan.origin.key, "lock"])


@pytest.mark.wall
@pytest.mark.parametrize("name", ["memory", "initrd", "orders"])
def test_a_snapshot_that_somebody_changed_is_made_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the cache alone, and knows how to set times, has nothing of theirs started."""
    require(wall)
    with own_places():
        plan = wall.plan(Confinement(limits=FEW, home=HOME), wall.look(HOME))
        place, held = snapshot.hold(plan.origin, plan.image)
        os.close(held)
        file = Path(place) / name
        before, times = file.read_bytes()[:100], file.stat()
        file.chmod(0o600)
        with file.open("r+b") as changing:
            changing.write(b"evil")
        file.chmod(0o400)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        again, held = snapshot.hold(plan.origin, plan.image)
        os.close(held)
        assert again == place and file.read_bytes()[:100] == before and not before.startswith(b"evil")


def inside_here() -> object:
    from contextlib import contextmanager

    @contextmanager
    def opened() -> Iterator[Inside]:
        plan = wall.plan(Confinement(limits=FEW, home=HOME), wall.look(HOME))
        made = wall.open_box(plan)
        try:
            yield Inside(made, plan, None)
        finally:
            made.close()

    return opened()


def test_the_greeting_has_room_for_what_policies_say() -> None:
    """It is one frame of at most a mebibyte (native/machine.c)."""
    plan = wall.plan(Confinement(limits=Limits(), home="/home/" + "x" * 3000), HOST)
    assert sum(len(os.fsencode(word)) + 1 for word in plan.greeting) < 1 << 20 and native.MAX_FDS == 64
