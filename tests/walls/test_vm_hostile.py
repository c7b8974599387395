"""A guest that is the attacker's from its first process on: root with every capability in its kernel, no program of ours in it (M1, M4, M10, M19, M21)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.core.errors import WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Mount, Overlay, Root
from stockade.walls.vm import initrd, snapshot, wall
from walls.boxes import HOME, SMALL, own_places, require, until

pytestmark = pytest.mark.wall
FEW = replace(SMALL, memory=256 << 20)

# In place of our init: it says what has to be said to be let go on and to be given its mounts, then does what it likes.
INIT = r"""#!/usr/bin/python3 -IS
import ctypes, errno, json, os, socket, struct, subprocess, time
libc = ctypes.CDLL(None, use_errno=True)
def port():
    while True:
        for name in os.listdir("/sys/class/virtio-ports"):
            if open(f"/sys/class/virtio-ports/{name}/name").read().strip() == "stockade":
                return os.open(f"/dev/{name}", os.O_RDWR)
        time.sleep(0.01)
stream = port()
def take(size):
    data = b""
    while len(data) < size: data += os.read(stream, size - len(data))
    return data
def frame():
    kind, channel, size = struct.unpack("=HHI", take(8))
    return kind, channel, take(size)
def say(kind, body, channel=0): os.write(stream, struct.pack("=HHI", kind, channel, len(body)) + body)
ready = struct.pack("=IIi52s", ord("R"), 0, 0, b"")
say(2, ready)
hello = frame()[2].split(b"\0")
say(2, ready)
frame()
found = {}
def attempt(name, what):
    try: found[name] = repr(what())
    except OSError as error: found[name] = "OSError " + errno.errorcode.get(error.errno, "?")
    except Exception as error: found[name] = type(error).__name__
def mount(source, target, kind, options=b""):
    os.makedirs(target, exist_ok=True)
    if libc.mount(source, target.encode(), kind, 0, options): raise OSError(ctypes.get_errno(), "mount")
while True:  # until the mounts are made: a message for the second socket
    kind, _, body = frame()
    if kind == 3 and struct.unpack_from("=iH", body)[1] == 1: break
mount(b"tmpfs", "/run/x", b"tmpfs")
mount(b"stockade", "/run/x/host", b"9p", b"trans=virtio,version=9p2000.L,msize=524288,cache=none,access=any")
host = "/run/x/host"
work, ro = host + "/work/rw", host + "/work/ro"
found["capabilities"] = open("/proc/self/status").read().split("CapEff:")[1].split()[0]
attempt("top", lambda: sorted(os.listdir(host)))
attempt("above", lambda: sorted(os.listdir(work + "/../../..")) == sorted(os.listdir("/run/x")))
attempt("read-only", lambda: open(ro + "/file", "w").write("evil"))
attempt("read-only unlink", lambda: os.unlink(ro + "/file"))
attempt("read-only chmod", lambda: os.chmod(ro + "/file", 0o777))
attempt("move a mount", lambda: os.rename(ro, host + "/work/z"))
attempt("device", lambda: os.mknod(work + "/device", 0o60666, os.makedev(254, 0)))
attempt("set-user-ID", lambda: (open(work + "/suid", "w").write("x"), os.chmod(work + "/suid", 0o4755)))
attempt("owner", lambda: (open(work + "/owned", "w").write("x"), os.chown(work + "/owned", 12345, 12345)))
attempt("link outside", lambda: os.symlink("/etc/shadow", work + "/shadow"))
attempt("new at the top", lambda: open(host + "/evil", "w").write("x"))
mount(b"stockade-root", "/run/x/root", b"9p", b"trans=virtio,version=9p2000.L,msize=524288,cache=none,access=any")
theirs = "/run/x/root/theirs"
attempt("root", lambda: (sorted(os.listdir("/run/x/root")), open(theirs + "/file").read()))
attempt("root above", lambda: sorted(os.listdir(theirs + "/../..")) == sorted(os.listdir("/run/x")))
attempt("root write", lambda: open(theirs + "/file", "w").write("evil"))
attempt("root unlink", lambda: os.unlink(theirs + "/file"))
attempt("root chmod", lambda: os.chmod(theirs + "/file", 0o777))
attempt("root attribute", lambda: os.setxattr(theirs + "/file", "user.evil", b"x"))
attempt("root new", lambda: os.mkdir("/run/x/root/evil"))
attempt("root ours", lambda: open("/run/x/root/ours/etc", "w").write("evil"))
attempt("disk", lambda: os.pwrite(os.open("/dev/vda", os.O_RDWR), b"evil" * 1024, 0))
def tcp(address, number):
    with socket.create_connection((address, number), 3) as made: return made.recv(100)
number = int(open(work + "/port").read())
for script in ("ip link set eth0 up", "ip addr flush dev eth0", "ip addr add 192.0.0.2/29 dev eth0", "ip route add default via 192.0.0.1", "ip addr add 10.0.2.15/24 dev eth0"):
    subprocess.run(script.split(), stderr=subprocess.DEVNULL)
for address in ("192.0.0.1", "127.0.0.1", "10.0.2.2", "203.0.113.7", open(work + "/address").read()):
    attempt("tcp " + address, lambda: tcp(address, number))
def frames():
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(("eth0", 0))
    for _ in range(2000):
        raw.send(os.urandom(6) + os.urandom(6) + os.urandom(2) + os.urandom(200))
    for kind in (0x0800, 0x86dd, 0x0806, 0x8100):
        for _ in range(200): raw.send(b"\xff" * 6 + os.urandom(6) + kind.to_bytes(2, "big") + os.urandom(100))
    return "sent"
attempt("frames", frames)
attempt("door still there", lambda: tcp("192.0.0.1", 443))
with open(work + "/found", "w") as file: json.dump(found, file)
os.sync()
os.rename(work + "/found", work + "/done")
# And now to the machine itself: every port of devices, every byte of their memory, nonsense on the stream.
for _ in range(200): say(1 + os.urandom(1)[0] % 12, os.urandom(30), os.urandom(1)[0])
ports = os.open("/dev/port", os.O_RDWR)
for at in range(0x60, 0x10000):
    try: os.pwrite(ports, os.urandom(1), at)
    except OSError: pass
while True: time.sleep(1)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path, str]]:
    """What the attacker found, the host's folders, and how the box ended."""
    require(wall)
    place = tmp_path_factory.mktemp("hostile").resolve()
    for name in ("rw", "ro", "theirs", "ours"):
        (place / name).mkdir()
        (place / name / "file").write_text(name)
    with socket.create_server(("0.0.0.0", 0)) as server, pytest.MonkeyPatch.context() as patch:
        server.settimeout(0.1)
        (place / "rw/port").write_text(str(server.getsockname()[1]))
        (place / "rw/address").write_text(socket.gethostbyname(socket.gethostname()))
        patch.setattr(snapshot, "_archive", lambda: initrd.archive([initrd.Member("stockade-init", 0o100755, INIT.encode())]))
        made = wall.make_door((3128, 443))
        mounts = (Mount(str(place / "rw"), "/work/rw", "rw"), Mount(str(place / "ro"), "/work/ro", "ro"))
        with own_places():
            host = replace(wall.look(HOME), init="an attacker's")
            root, tree = Root(path=str(place / "theirs")), Overlay(str(place / "theirs"), str(place / "ours"), "", "")
            plan = wall.plan(Confinement(mounts=mounts, network="door", limits=FEW, home=HOME, root=root, tree=tree), host)
            box = wall.open_box(plan, made)
        try:
            assert until((place / "rw/done").exists, 120), box.said()
            with pytest.raises(TimeoutError):
                server.accept()
            ended = "it goes on"
            try:
                for _ in range(200):
                    box.step(0x40)
            except BlockingIOError:
                until(lambda: box._orphaned(), 20)  # how it ends is up to the attacker; that it can is enough
            except WallFailed as error:
                ended = str(error)
        finally:
            box.close()
            made.close()
    yield json.loads((place / "rw/done").read_text()), place, ended


def test_it_is_root_with_everything(seen: tuple[dict[str, Any], Path, str]) -> None:
    assert int(seen[0]["capabilities"], 16) & (1 << 21 | 1 << 12 | 1 << 13 | 1 << 16 | 1 << 17)


def test_it_sees_the_mounts_and_nothing_else_of_the_host(seen: tuple[dict[str, Any], Path, str]) -> None:
    found, place, _ = seen
    assert found["top"] == "['work']" and found["above"] == "True"
    assert sorted(path.name for path in (place / "ro").iterdir()) == ["file"] and (place / "ro/file").read_text() == "ro"
    assert {found[name] for name in ("read-only", "read-only unlink", "read-only chmod")} == {"OSError EROFS"}
    assert found["move a mount"].startswith("OSError")


def test_a_root_that_others_have_too_is_not_its_to_change(seen: tuple[dict[str, Any], Path, str]) -> None:
    """By QEMU, which is told so, and by the mounts around it."""
    found, place, _ = seen
    assert found["root"] == "(['ours', 'theirs'], 'theirs')" and found["root above"] == "True"
    refused = {name: said for name, said in found.items() if name.startswith("root ") and name != "root above"}
    assert len(refused) == 6 and set(refused.values()) == {"OSError EROFS"}, refused
    assert [(place / name / "file").read_text() for name in ("theirs", "ours")] == ["theirs", "ours"]
    assert len([*(place / "theirs").iterdir(), *(place / "ours").iterdir()]) == 2


def test_what_it_writes_is_harmless(seen: tuple[dict[str, Any], Path, str]) -> None:
    found, place, _ = seen
    assert found["device"].startswith("OSError") and not (place / "rw/device").exists()
    assert not [path for path in (place / "rw").iterdir() if not path.is_symlink() and path.stat().st_mode & 0o6000]
    assert {path.lstat().st_uid for path in (place / "rw").iterdir()} == {os.getuid()}
    assert os.readlink(place / "rw/shadow") == "/etc/shadow"  # a link is text; nobody of ours has followed it
    assert found["disk"].startswith("OSError")


def test_it_reaches_the_door_and_nothing_else(seen: tuple[dict[str, Any], Path, str]) -> None:
    found = seen[0]
    reached = {name: said for name, said in found.items() if name.startswith("tcp ") and not said.startswith(("OSError", "TimeoutError"))}
    assert reached == {} and found["frames"] == "'sent'"


def test_the_image_and_the_next_machine_are_as_they_were(seen: tuple[dict[str, Any], Path, str]) -> None:
    with own_places():
        plan = wall.plan(Confinement(limits=FEW, home=HOME), wall.look(HOME))  # checks the image
        box = wall.open_box(plan)
        try:
            while not box.ready:
                box.step()
            assert box.wait(box.spawn(["true"], env={"PATH": "/usr/bin:/bin"})) == 0
        finally:
            box.close()
