"""The gVisor wall: what `plan` makes is golden, and a real guest has a kernel, a process table and a network stack of its own (M4, M10, M14, M21, M24, M25)."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.core.errors import CannotEnforce, WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Limits, Mount, Overlay, Root
from stockade.walls import door, gvisor, late, limits
from walls.boxes import ENVIRONMENT, HOME, PYTHON_MOUNTS, SMALL, Inside, inside, require, unconfined, until
from walls.test_plan import WANTED

HOST = gvisor.Host(
    bwrap="/usr/bin/bwrap",
    runsc="/usr/bin/runsc",
    digest="5" * 64,
    platform="systrap",
    cover_sys_net=True,
    links=(("usr/bin", "/bin"), ("/lib64", "/lib64")),  # one merged, one a directory of its own
    etc="/cache/etc/v1",
    step="/lib/step",
)


def test_the_whole_argument_vector() -> None:
    plan = gvisor.plan(WANTED, HOST, stage="/state/stage")
    found = plan.warm
    assert found.arguments == (
        *("--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"),
        *("--cap-add", "ALL", "--as-pid-1", "--die-with-parent", "--clearenv", "--hostname", "stockade", "--proc", "/proc"),
        *("--tmpfs", "/proc/sys/net", "--ro-bind-data", "=1", "/proc/meminfo", "--dev", "/dev", "--tmpfs", "/tmp"),
        *("--perms", "0700", "--tmpfs", "/state", "--ro-bind", "/usr/bin/runsc", "/runsc", "--ro-bind-data", "=0", "/bundle/config.json"),
        *("--perms", "0755", "--tmpfs", "/sandbox", "--ro-bind", "/usr", "/sandbox/usr", "--symlink", "usr/bin", "/sandbox/bin"),
        *("--ro-bind", "/lib64", "/sandbox/lib64", "--ro-bind", "/cache/etc/v1", "/sandbox/etc"),
        *("--perms", "0755", "--dir", "/sandbox/run", "--ro-bind", "/lib/step", "/sandbox/run/stockade-init"),
        *("--dir", "/sandbox/proc", "--dir", "/sandbox/dev", "--dir", "/sandbox/sys", "--dir", "/sandbox/tmp", "--dir", "/sandbox/var/tmp"),
        *("--dir", "/sandbox/home/ada", "--dir", "/sandbox/run/stockade-late", "--perms", "0755", "--tmpfs", "/late"),
        *("--remount-ro", "/sandbox", "--remount-ro", "/", "--chdir", "/"),
    )
    assert found.command == (
        *(
            "/runsc",
            "--root=/state",
            "--platform=systrap",
            "--network=sandbox",
            "--ignore-cgroups",
            "--overlay2=none",
            "--net-disconnect-ok",
        ),
        *("run", "-bundle", "/bundle"),
    )
    assert (found.paths, found.overlays, found.stages, found.held) == ((), (), (), ())
    assert found.rlimits == ((4, 0), (6, 2 * 100 + 128))
    assert (found.network, found.bwrap, found.data[1]) == ("door", "/usr/bin/bwrap", f"MemTotal: {1 << 20} kB\n")
    assert found.digest == HOST.digest  # so that no guest of another runsc is taken for one of this
    assert plan.late == late.Late(
        (
            ("rw:@1", "/work/project"),
            ("rw:/state/stage/0", "/work/project/.git"),
            ("ro:@0", "/work/project/data"),
            ("ro:@2", "/etc/ssl/certs/ca-certificates.crt"),
        ),
        ("/data/sets", "/srv/project", "/cache/ca.pem"),
        WANTED.overlays,
        ("/state/stage/0",),
    )


def test_what_is_mounted_late_makes_no_difference_before() -> None:
    """So that a guest can stand ready before anybody knows who will have it."""
    assert gvisor.plan(WANTED, HOST, stage="/s").warm == gvisor.plan(replace(WANTED, mounts=(), overlays=(), held=()), HOST).warm


def test_the_whole_configuration() -> None:
    def tmpfs(path: str, mode: str) -> dict[str, object]:
        return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", f"mode={mode}", "size=4096"]}

    limit = {"RLIMIT_CORE": 0, "RLIMIT_CPU": 60, "RLIMIT_FSIZE": 1 << 20, "RLIMIT_DATA": 1 << 30, "RLIMIT_NPROC": 100, "RLIMIT_NOFILE": 512}
    assert json.loads(gvisor.plan(WANTED, HOST, stage="/state/stage").warm.data[0]) == {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/run/stockade-init", "inside", "0", "0", "-1", "guest", "3", "/run/stockade-late"],
            "env": [],
            "cwd": "/",
            "capabilities": {key: [*gvisor.CAPABILITIES, "CAP_SYS_ADMIN"] for key in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
            "rlimits": [{"type": name, "hard": value, "soft": value} for name, value in limit.items()],
        },
        "root": {"path": "/sandbox", "readonly": True},
        "hostname": "stockade",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            *(tmpfs("/tmp", "1777"), tmpfs("/var/tmp", "1777"), tmpfs("/dev/shm", "1777"), tmpfs("/home/ada", "0700")),
            {"destination": "/run/stockade-late", "type": "bind", "source": "/late", "options": ["rbind", "nosuid", "nodev", "rw"]},
        ],
        "linux": {
            "namespaces": [
                *({"type": name} for name in ("pid", "mount", "ipc", "uts")),
                {"type": "network", "path": "/proc/self/ns/net"},
            ]
        },
    }


def test_a_guest_goes_on_from_a_checkpoint_where_another_would_start() -> None:
    plan, restoring = gvisor.plan(WANTED, HOST, stage="/stage"), gvisor.plan(replace(WANTED, image="/kept"), HOST, stage="/stage")
    anew, on = plan.warm, restoring.warm
    at = on.arguments.index("/image")
    assert on.arguments[at - 2 : at] == ("--ro-bind-fd", f"@{len(anew.paths)}") and on.paths == (*anew.paths, "/kept")
    assert (*on.arguments[: at - 2], *on.arguments[at + 1 :]) == anew.arguments
    run = anew.command.index("run")
    assert on.command == (*anew.command[:run], "restore", "-image-path=/image", *anew.command[run + 1 :])
    assert replace(on, arguments=anew.arguments, paths=anew.paths, command=anew.command, restores=False) == anew
    assert replace(restoring, warm=anew) == plan and gvisor.shape(restoring) == gvisor.shape(plan)


def test_what_a_checkpoint_fits() -> None:
    def shape(wanted: Confinement, stage: str = "/stage") -> str:
        return gvisor.shape(gvisor.plan(wanted, HOST, stage=stage))

    first = WANTED.mounts[0]
    other = (
        replace(WANTED, limits=replace(WANTED.limits, processes=7)),
        replace(WANTED, limits=replace(WANTED.limits, scratch=8192)),
        replace(WANTED, mounts=WANTED.mounts[1:]),
        replace(WANTED, mounts=(replace(first, target="/elsewhere"), *WANTED.mounts[1:])),
        replace(WANTED, mounts=(replace(first, mode="rw"), *WANTED.mounts[1:])),
        replace(WANTED, overlays=()),
        replace(WANTED, held=("ro:/work/project/more",)),
        replace(WANTED, network="none"),
        replace(WANTED, sockets=("/run/agent",)),
        replace(WANTED, home="/home/other"),
    )
    assert first.mode == "ro" and len({shape(each) for each in (WANTED, *other)}) == len(other) + 1
    elsewhere = replace(WANTED, mounts=tuple(replace(mount, source="/other") for mount in WANTED.mounts), environment=(("A", "b"),))
    assert shape(elsewhere, "/another/stage") == shape(WANTED)


def test_another_root_is_shown_through_an_overlay_and_written_to_in_a_layer_of_its_own() -> None:
    tree = Overlay("/cache/images/roots/ab/tree", "/state/root/upper", "/state/root/work", "/state/root/shown")
    image = Root(image=f"registry.example.com/a@sha256:{'ab' * 32}", writable="memory", size=1 << 20)

    def planned(**changes: object) -> gvisor.Plan:
        return gvisor.plan(replace(WANTED, **changes), HOST, stage="/state/stage")

    usual, found = planned().warm, planned(root=image, tree=tree)
    at, end = usual.arguments.index("/sandbox") - 3, usual.arguments.index("/late") - 3
    layer = ("--size", "1048576", "--perms", "0700", "--tmpfs", "/layer")
    shown = ("--ro-bind", "/state/root/shown", "/sandbox", "--ro-bind", "/lib/step", "/sandbox/run/stockade-init")
    assert found.warm == replace(
        usual,
        arguments=(*usual.arguments[:at], *layer, *shown, *usual.arguments[end:]),
        command=tuple("--overlay2=root:dir=/layer" if word == "--overlay2=none" else word for word in usual.command),
        data=(json.dumps({**json.loads(usual.data[0]), "root": {"path": "/sandbox", "readonly": False}}), *usual.data[1:]),
        overlays=(tree,),
        stages=("/state/root/shown",),
    )
    assert found.late == planned().late
    disk = planned(root=replace(image, writable="disk"), tree=tree, layer="/state/layer").warm
    assert disk.arguments == (*usual.arguments[:at], "--bind-fd", "@0", "/layer", *shown, *usual.arguments[end:])
    assert (disk.paths, disk.command, disk.data) == (("/state/layer",), found.warm.command, found.warm.data)
    still = planned(root=replace(image, writable="none", size=0), tree=tree).warm
    assert (still.command, still.data) == (usual.command, usual.data) and "/layer" not in still.arguments
    own = planned(root=Root(writable="memory", size=1 << 20)).warm
    assert own.arguments == (*usual.arguments[:at], *layer, *usual.arguments[at:])


def test_a_guest_with_a_root_of_its_own_is_never_one_that_goes_on() -> None:
    for root in (Root(image="registry.example.com/a@sha256:" + "ab" * 32), Root(writable="memory")):
        with pytest.raises(CannotEnforce) as caught:
            gvisor.plan(replace(WANTED, image="/kept", root=root), HOST, stage="/state/stage")
        assert caught.value.code == "checkpoint.root"


def test_a_root_that_was_not_prepared_is_never_another_one() -> None:
    for root in (Root(image="registry.example.com/a@sha256:" + "ab" * 32), Root(path="/srv/root"), Root(writable="disk")):
        with pytest.raises(CannotEnforce) as caught:
            gvisor.plan(replace(WANTED, root=root), HOST, stage="/state/stage")
        assert caught.value.code == "root.unprepared"


def test_what_is_left_out_where_it_is_not_needed() -> None:
    bare = gvisor.plan(Confinement(limits=Limits(memory=0, processes=0)), replace(HOST, cover_sys_net=False)).warm
    assert "/proc/sys/net" not in bare.arguments and "/proc/meminfo" not in bare.arguments and len(bare.data) == 1
    assert ("--unshare-user", "--uid", "0", "--gid", "0", "--unshare-net") == bare.arguments[4:10] and "--network=none" in bare.command
    assert bare.rlimits == ((4, 0),)
    assert "--host-uds=open" not in bare.command
    assert "--host-uds=open" in gvisor.plan(Confinement(sockets=("/run/agent",)), HOST).warm.command
    assert "/dev/kvm" in gvisor.plan(Confinement(), replace(HOST, platform="kvm")).warm.arguments


@given(st.sampled_from(["ro", "rw"]), st.sampled_from(["/a", "/a/b", "/mnt/data", "/home/user/work"]))
def test_a_mount_is_never_more_writable_than_was_said(mode: str, target: str) -> None:
    found = gvisor.plan(Confinement(mounts=(Mount("/source", target, mode),)), HOST)  # type: ignore[arg-type]
    assert found.late.binds == ((f"{mode}:@0", target),)


def test_what_cannot_be_enforced_is_refused() -> None:
    for wanted in (Confinement(mounts=(Mount("/a", "/b", "rw-no-delete"),)), Confinement(network="host")):  # type: ignore[arg-type]
        with pytest.raises(CannotEnforce):
            gvisor.plan(wanted, HOST)
    many = Confinement(held=tuple(f"ro:/work/{number}" for number in range(401)))
    with pytest.raises(CannotEnforce, match="400 paths, and 401") as caught:
        gvisor.plan(many, HOST)
    assert caught.value.code == "gvisor.mounts" and gvisor.plan(replace(many, held=many.held[1:]), HOST)
    with pytest.raises(CannotEnforce, match="belongs to the wall"):
        gvisor.plan(Confinement(mounts=(Mount("/a", "/usr", "ro"),)), HOST)


def tree(pid: int) -> list[int]:
    """The processes below one of the host's."""
    try:
        found = [
            int(word) for task in os.listdir(f"/proc/{pid}/task") for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return []
    return [*found, *(below for child in found for below in tree(child))]


# ---- real guests ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared").resolve()
    (path / "old").write_text("as before")
    return path


@pytest.fixture(scope="module")
def box(shared: Path) -> Iterator[Inside]:
    require(gvisor)
    with inside(Mount(str(shared), "/work", "rw"), Mount(str(shared), "/look", "ro"), network="door", wall=gvisor) as made:
        yield made


@pytest.mark.wall
def test_the_kernel_and_the_processes_are_the_guests_own(box: Inside) -> None:
    assert "gVisor" in box.sh("dmesg").text and os.uname().release not in box.sh("uname -a; cat /proc/version").text
    assert os.uname().release in unconfined("uname", "-a").text  # the control: any other sandbox shows the host's
    pids = box.sh("echo /proc/[0-9]*").text.split()
    assert len(pids) < 5 and "/proc/1" in pids
    assert box.sh("head -1 /proc/meminfo").text.split()[1] == str(SMALL.memory >> 10)


@pytest.mark.wall
def test_the_guests_root_can_do_what_root_does_but_to_the_guest(box: Inside, shared: Path) -> None:
    done = box.sh(
        "id -u; echo 'n:x:7:7::/:/bin/sh' > /tmp/passwd; chown 7 /tmp/passwd && stat -c %u /tmp/passwd; mknod /tmp/null c 1 3 && echo made"
    )
    assert done.text.split() == ["0", "7", "made"]
    for change in ("echo x > /usr/x", "echo x > /etc/passwd", "echo x > /x", "echo x > /look/old", "rm /look/old", "chmod 777 /look/old"):
        assert box.sh(change).code != 0, change
    assert box.sh("echo new > /work/new && cat /work/old").text == "as before"
    assert (shared / "new").read_text() == "new\n" and (shared / "new").stat().st_uid == os.getuid()
    assert (shared / "old").read_text() == "as before"


@pytest.mark.wall
def test_as_many_paths_as_are_let_through_do_start(tmp_path: Path) -> None:
    require(gvisor)
    names = [str(number) for number in range(gvisor.MOST_BINDS - 1)]
    for name in names:
        (tmp_path / name).mkdir()
    held = tuple(f"ro:/work/{name}" for name in names)
    wanted = Confinement(mounts=(*PYTHON_MOUNTS, Mount(str(tmp_path), "/work", "rw")), held=held, network="door", limits=SMALL)
    with inside(network="door", wall=gvisor, change=lambda _: gvisor.plan(wanted, gvisor.look(HOME))) as made:
        assert made.sh("mv /work/7 /work/seven").code != 0 and made.sh("touch /work/7/x").code != 0
        assert made.sh("touch /work/x").code == 0


@pytest.mark.wall
def test_nothing_of_the_hosts_is_left_open_in_the_guests_first_process(box: Inside) -> None:
    listed = box.sh("for fd in /proc/1/fd/*; do readlink $fd; done").text.split("\n")
    assert len([name for name in listed if name.startswith("host:")]) == 1  # the socket on which it is asked for commands
    assert listed.count("/dev/null") == 3


@pytest.mark.wall
def test_there_are_no_user_namespaces_in_the_guest(box: Inside) -> None:
    assert box.sh("unshare --user true").code != 0 and box.sh("unshare --map-root-user --mount true").code != 0
    assert box.sh("(sleep 0 &); true").code == 0  # processes there are
    clone3 = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall(435, None, 0)\nprint(ctypes.get_errno())"
    assert box.python(clone3).text == "38"
    assert unconfined("unshare", "--user", "true").code == 0


@pytest.mark.wall
def test_what_is_written_elsewhere_is_gone_with_the_guest() -> None:
    require(gvisor)
    with inside(wall=gvisor) as first:
        assert first.sh(f"echo marker > /tmp/marker; echo marker > {HOME}/marker; cat /tmp/marker").text == "marker"
    with inside(wall=gvisor) as second:
        assert second.sh(f"ls /tmp {HOME}").text.split() == ["/home/user:", "/tmp:"]


CONNECT = "import socket,sys\ntry: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3); print('ok')\nexcept OSError as error: print(type(error).__name__)"


@pytest.mark.wall
@pytest.mark.parametrize("address", [door.WIRE, "93.184.216.34", "10.0.0.1", "169.254.169.254"])
def test_every_address_leads_to_the_door(box: Inside, address: str) -> None:
    assert box.door is not None
    assert box.python(CONNECT, address, str(door.HTTP)).text == "ok"
    with socket.socket(fileno=os.dup(box.door.listeners[door.HTTP])) as listener:
        listener.settimeout(3)
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockname()[0] == f"::ffff:{address}"
    assert box.python(CONNECT, address, "4444").text == "ConnectionRefusedError"


@pytest.mark.wall
def test_nothing_of_the_host_answers(box: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        assert box.python(CONNECT, "127.0.0.1", str(server.getsockname()[1])).text == "ConnectionRefusedError"
        assert box.python(CONNECT, "::1", str(other.getsockname()[1])).text == "ConnectionRefusedError"
        assert unconfined("/bin/bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]} && echo ok").text == "ok"
    raw = "import socket\nfor family, kind in ((2, 3), (10, 3), (17, 3), (40, 1), (38, 5)):\n  try: socket.socket(family, kind, 1); print('ok')\n  except OSError: pass"
    assert box.python(raw).text == ""
    assert "eth0" in box.sh("cat /proc/net/dev").text  # the one wire


@pytest.mark.wall
def test_a_socket_in_a_mount_answers_only_where_that_was_asked_for(tmp_path: Path) -> None:
    require(gvisor)
    talk = "import socket\ns = socket.socket(socket.AF_UNIX)\ntry: s.connect('/mnt/s'); print('ok')\nexcept OSError as error: print(type(error).__name__)"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/s")
        server.listen()
        with inside(Mount(str(tmp_path), "/mnt", "rw"), wall=gvisor) as closed:
            assert closed.python(talk).text == "ConnectionRefusedError"
        wanted = Confinement(mounts=(*PYTHON_MOUNTS, Mount(str(tmp_path), "/mnt", "rw")), sockets=("/mnt/s",), limits=SMALL)
        with inside(wall=gvisor, change=lambda _: gvisor.plan(wanted, gvisor.look(HOME))) as opened:
            assert opened.python(talk).text == "ok"


@pytest.mark.wall
def test_a_terminal_of_the_guests_own(box: Inside) -> None:
    child = box.box.spawn(["/bin/bash", "--norc"], env={**ENVIRONMENT, "PS1": "> "}, cwd="/tmp", tty=True)
    outer, inner = pty.openpty()
    try:
        assert child.terminal >= 0
        import fcntl
        import termios

        fcntl.ioctl(inner, termios.TIOCSWINSZ, b"\x21\x00\x63\x00\x00\x00\x00\x00")
        box.box.resize(child, inner)
        os.write(child.terminal, b"stty size; tty; test -t 0 && echo it''is; exit 5\n")
        said = b""
        assert box.box.wait(child) == 5
        while piece := os.read(child.terminal, 4096):
            said += piece
        assert b"33 99" in said and b"/dev/pts/" in said and b"itis" in said
    finally:
        for fd in (child.terminal, outer, inner):
            os.close(fd)


@pytest.mark.wall
def test_limits_are_held(tmp_path: Path) -> None:
    require(gvisor)
    few = Limits(processes=40, memory=256 << 20, file_size=1 << 20, open_files=64, scratch=8 << 20)
    group = limits.join(f"stockade-test-{os.getpid()}", few, own_kernel=True)
    try:
        with inside(Mount(str(tmp_path), "/work", "rw"), limits=few, wall=gvisor, cgroups=group.descriptors) as made:
            assert "forked" in made.sh("for i in $(seq 20); do sleep 3 & done; echo forked").text
            assert made.sh("for i in $(seq 80); do sleep 1 & done; echo forked").code != 0
            time.sleep(3.5)
            assert made.sh("head -c 2000000 /dev/zero > /work/large").code != 0 and (tmp_path / "large").stat().st_size <= 1 << 20
            assert made.sh("head -c 900000 /dev/zero > /work/small").code == 0
            for _ in range(12):  # each as large as a file may be
                made.sh("head -c 1000000 /dev/zero > $(mktemp /tmp/XXXXXX)")
            assert made.sh("head -c 1000000 /dev/zero > /tmp/last").code != 0
            assert made.python("import os; f = [os.open('/dev/null', 0) for _ in range(70)]").code != 0
            assert made.python("import os; f = [os.open('/dev/null', 0) for _ in range(40)]").code == 0
            if "memory" in group.held:
                with pytest.raises(WallFailed):
                    made.python("x = bytearray(600 << 20)")
                assert group.killed()
    finally:
        group.close()


@pytest.mark.wall
def test_its_end_is_made_from_outside() -> None:
    """Whatever root does to our init, nothing is left of the guest when the box is closed."""
    require(gvisor)
    with inside(wall=gvisor) as made:
        assert made.sh("echo up").text == "up"
        before = {made.box.pid, *tree(made.box.pid)}
        assert len(before) > 1
        made.start("/bin/sh", "-c", "trap '' TERM HUP INT; sleep 300 & kill -STOP 1; sleep 300")
        time.sleep(0.3)
        began = time.monotonic()
        made.box.close()
        assert time.monotonic() - began < 60
        assert until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before))


@pytest.mark.wall
@pytest.mark.parametrize("victim", ["runsc", "bubblewrap", "runsc-sandbox", "runsc-gofer"])
def test_a_part_that_is_killed_ends_all_of_it(victim: str) -> None:
    require(gvisor)
    with inside(wall=gvisor) as made:
        assert made.sh("echo up").text == "up"
        outer = made.box.pid
        first = limits.init_of(outer)
        parts = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode() for pid in (first, *tree(first))}
        named = {name: pid for pid, name in parts.items()}
        os.kill({"runsc": first, "bubblewrap": outer}.get(victim) or named[victim], signal.SIGKILL)
        with pytest.raises(WallFailed):
            while True:
                made.box.step()
        made.box.close()
        assert until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in parts))
