"""Sessions with another root, in gVisor's guests and in virtual machines: what is seen and may be written, how much, and that nothing of it reaches the host, the cache, or
another session (M19, M21, M25, M26).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from session.supervised import Place, adopting, command, offspring
from session.test_lifecycle import error_of
from stockade.core.errors import CannotEnforce
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Environment, Limits, Mount, Policy, Root, Workspace
from stockade.policy.compile import compile_policy
from stockade.session import root as rooted
from stockade.session.pool import Pool
from stockade.walls import gvisor, late, pulling, registry, system
from stockade.walls import root as wall_root
from stockade.walls.vm import wall as vm
from walls.boxes import SMALL, Inside, compiled, own_places, require, until
from walls.depot import Depot, busybox, depot, entry, image, layer
from walls.test_gvisor import tree as tree_of

pytestmark = pytest.mark.wall
GUEST = Policy(wall="gvisor")
MACHINE = Policy(wall="vm", limits=Limits(memory=256 << 20))  # one snapshot serves all
WALLS = {"gvisor": GUEST, "vm": MACHINE}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Depot]:
    require(gvisor)
    with depot(tmp_path_factory.mktemp("depot")) as found:
        yield found


@pytest.fixture(params=WALLS)
def base(request: pytest.FixtureRequest, there: Depot) -> Policy:
    """Each wall whose guests have a kernel of their own."""
    require(gvisor if request.param == "gvisor" else vm)
    return WALLS[request.param]


@pytest.fixture(scope="module")
def busy(there: Depot) -> str:
    """An image with a shell and nothing else."""
    variables = [
        "PATH=/tools:/bin",
        "GREETING=hello there",
        "HOME=/nowhere",
        "https_proxy=http://evil.example.com",
        "STOCKADE_SESSION=mine",
        "broken",
    ]
    true = entry("usr/bin/true", b"#!/bin/sh\necho ran > /ran\n")  # for whoever would run a program of an image by himself
    tools = layer(entry("tools", kind=b"5"), entry("tools/greet", b"#!/bin/sh\necho $GREETING\n"), true)
    return pulled(
        there,
        "busy",
        image(busybox(), tools, config={"Env": variables, "User": "user", "WorkingDir": "/tools", "Entrypoint": ["/bin/false"]}),
    )


def pulled(there: Depot, name: str, made: object) -> str:
    reference = there.put(name, made)  # type: ignore[arg-type]
    with own_places():
        pulling.pull(registry.reference(reference))
    return reference


def tree(reference: str) -> Path:
    from stockade.walls import images

    with own_places():
        return Path(images.root_of(reference.rpartition("@")[2]), "tree")


def snapshot(folder: Path) -> dict[str, object]:
    """Everything that could change in a tree, but for times of access."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = (
            hashlib.sha256(path.read_bytes()).hexdigest()
            if stat.S_ISREG(status.st_mode)
            else os.readlink(path)
            if path.is_symlink()
            else ""
        )
        found[str(path)] = (status.st_mode, status.st_uid, status.st_ino, status.st_nlink, status.st_mtime_ns, content)
    return found


def guest(reference: str, base: Policy = GUEST, *, writable: str = "memory", size: int = 64 << 20, **more: object) -> Policy:
    return replace(base, root=Root(image=reference, writable=writable, size=0 if writable == "none" else size), **more)


def test_a_guest_sees_the_image_and_what_is_ours(place: Place, busy: str, base: Policy) -> None:
    before = snapshot(tree(busy))
    script = """id -u; pwd; greet; cat /etc/hostname; cat /etc/resolv.conf; hostname; echo $HOME $STOCKADE_SESSION $https_proxy $SHELL
ls -a /; test -s $SSL_CERT_FILE || echo none; echo new > /bin/new; cat /bin/new; echo out > file; exit 42"""
    done = place.run("sh", "-c", script, policy=guest(busy, base))
    lines = done.stdout.decode().split("\n")
    assert done.returncode == 42, done.stderr
    assert (
        lines[:4] == ["0", str(place.work), "hello there", system.HOSTNAME]
        and lines[4] == f"nameserver {gvisor.ADDRESS}"
        and lines[6] == system.HOSTNAME
    )
    assert (
        f" http://{gvisor.ADDRESS}:3128 {rooted.SHELL}" in lines[7]
        and "evil" not in lines[7]
        and " mine " not in lines[7]
        and "/nowhere" not in lines[7]
    )
    assert "tools" in lines and "srv" not in lines and lines[-2] == "new" and (place.work / "file").read_text() == "out\n"
    assert place.run("/usr/bin/env", policy=guest(busy, base)).returncode == 127
    again = place.run("sh", "-c", "ls /bin/new", policy=guest(busy, base))
    assert again.returncode != 0 and snapshot(tree(busy)) == before
    [first, *_] = [event for event in place.ledger() if event["kind"] == "session.start"]
    assert first["root"] == {"image": busy, "path": "", "writable": "memory", "size": 64 << 20}
    how = "read-only, below an overlay of ours" if base is GUEST else "read-only 9p from a read-only bind, below what is ours"
    assert ["root", how] in first["enforced"]  # type: ignore[operator]


def test_what_the_policy_sets_comes_before_the_image(place: Place, busy: str) -> None:
    own = Environment((), (("GREETING", "mine"), ("PATH", "/bin"), ("SHELL", "/bin/own")))
    done = place.run("sh", "-c", "echo $GREETING $PATH $SHELL", policy=guest(busy, environment=own))
    assert done.stdout == b"mine /bin /bin/own\n"


def test_one_static_program_is_enough(place: Place, there: Depot, base: Policy) -> None:
    program = compiled(
        '#include <stdio.h>\n#include <unistd.h>\nint main(void) { FILE *f = fopen("/made", "w"); return !f || fputs("x", f) < 0 || fclose(f) || puts("alone") < 0; }',
        "-static",
    )
    alone = pulled(there, "alone", image(layer(entry("program", Path(program).read_bytes()))))
    assert place.run("/program", policy=guest(alone, base)).stdout == b"alone\n"
    assert place.run("/program", policy=guest(alone, base, writable="none")).returncode == 1
    assert place.run("/bin/sh", policy=guest(alone, base)).returncode == 127


@pytest.mark.parametrize("kind", ["image", "path", "usr"])
def test_one_root_of_many_guests_is_nobodys_to_change(place: Place, busy: str, base: Policy, kind: str) -> None:
    """Two at once, with root inside, on each kind: neither sees the other, and below nothing changes."""
    below, victim, policy = tree(busy), "/bin/ls", guest(busy, base)
    if kind == "path":
        below = place.root / "copy"
        subprocess.run(["cp", "-a", tree(busy), below], check=True)
        policy = replace(base, root=Root(path=str(below), writable="disk" if base is GUEST else "memory", size=64 << 20))
    elif kind == "usr":
        victim, policy = "/usr/bin/env", replace(base, root=Root(writable="memory", size=64 << 20))
    before = snapshot(below)
    change = f"rm {victim} && echo changed > {victim} && mkdir /etc/deep && echo marker > /etc/deep/marker && echo up"
    first = place.start("/bin/sh", "-c", f"{change}; until test -e go; do sleep 0.1; done; cat {victim} /etc/deep/marker", policy=policy)
    assert first.stdout and first.stdout.readline() == b"up\n"
    other = place.run(
        "/bin/sh", "-c", f"test -e /etc/deep && echo seen; test $(stat -L -c %s {victim}) -gt 1000 && echo whole; touch go", policy=policy
    )
    assert other.stdout == b"whole\n", other
    out, err = first.communicate(timeout=30)
    assert out == b"changed\nmarker\n", err
    assert snapshot(below) == before


def test_without_a_layer_the_root_is_read_only(place: Place, busy: str, base: Policy) -> None:
    done = place.run(
        "sh",
        "-c",
        "for f in /x /bin/x /etc/x /etc/hosts; do (echo x > $f) 2>/dev/null && echo wrote $f; done; rm /bin/sh && echo gone; echo x > /tmp/x && echo but here",
        policy=guest(busy, base, writable="none"),
    )
    assert done.stdout == b"but here\n"


def test_what_is_below_is_read_only_by_the_mount_and_not_by_trust_in_gvisor(busy: str, tmp_path: Path) -> None:
    """The guest's kernel is told that it may write to the root, without a layer of its own: bubblewrap's mount refuses, and below nothing changes."""
    before = snapshot(tree(busy))
    with Opened(busy, tmp_path) as box:
        assert (
            box.run("/bin/sh", "-c", "(echo x > /bin/x) 2>&1; (echo x > /etc/hosts) 2>&1; rm /bin/sh 2>&1; echo done").text.count(
                "Read-only"
            )
            == 3
        )
    assert snapshot(tree(busy)) == before


def opened(reference: str, directory: Path) -> Opened:
    return Opened(reference, directory)


class Opened:
    """A guest whose kernel is told that its root is writable, and has no layer."""

    def __init__(self, reference: str, directory: Path) -> None:
        self._reference, self._directory = reference, str(directory.resolve())

    def __enter__(self) -> Inside:
        with own_places():
            wanted = Confinement(network="door", limits=SMALL, root=Root(image=self._reference))
            etc = system.etc(wanted.home, guest=gvisor.ADDRESS)
            wanted = wall_root.prepare(
                wanted, str(tree(self._reference)), etc, self._directory, folders=(late.GUEST,), files=(gvisor.INIT,)
            )
            plan = gvisor.plan(wanted, gvisor.look(wanted.home), stage=f"{self._directory}/stage")
            settings = json.loads(plan.warm.data[0])
            settings["root"]["readonly"] = False
            plan = replace(plan, warm=replace(plan.warm, data=(json.dumps(settings), *plan.warm.data[1:])))
            for stage in (f"{self._directory}/stage", *plan.stages):
                os.mkdir(stage)
            self._door = gvisor.make_door((80,))
            self._box = gvisor.open_box(plan, self._door)
        return Inside(self._box, plan, self._door)

    def __exit__(self, *_: object) -> None:
        self._box.close()
        self._door.close()


HOSTILE = ("etc", "run", "work", "home", "tmp", "var", "proc", "dev", "sys")


def test_links_of_an_image_lead_nowhere_when_places_are_made(place: Place, there: Depot, base: Policy) -> None:
    """Every place of ours, and the way to the workspace and to a mount, is a link to the host in the image."""
    outside = place.root / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("as before")
    data = place.root / "data"
    data.mkdir()
    (data / "file").write_text("data")
    tops = {*HOSTILE, str(place.work).split("/")[1], "mnt"}
    up = "../" * 30
    links = [
        entry(name, kind=b"2", link=f"{up if number % 2 else '/'}{str(outside).lstrip('/')}") for number, name in enumerate(sorted(tops))
    ]
    reference = pulled(there, "links", image(busybox(), layer(*(entry(f".wh.{name}") for name in ("etc",))), layer(*links)))
    policy = guest(reference, base, mounts=(Mount(str(data), "/mnt/deep/data", "ro"),))
    done = place.run(
        "/bin/sh", "-c", "cat /mnt/deep/data/file /etc/hosts; echo x > file; echo x > /etc/new; echo x > /run/new; pwd", policy=policy
    )
    assert done.returncode == 0 and done.stdout.startswith(b"data127.0.0.1") and done.stdout.endswith(f"{place.work}\n".encode()), (
        done.stderr
    )
    assert (place.work / "file").read_text() == "x\n"
    assert [path.name for path in outside.iterdir()] == ["hosts"] and (outside / "hosts").read_text() == "as before"
    assert all(path.is_symlink() for path in (tree(reference) / name for name in tops))


SHADOWS = (
    "init",
    "stockade-init",
    "run/stockade-init",
    "run/box/new/init",
    "sbin/init",
    "usr/bin/true",
    "usr/bin/env",
    "lib/systemd/systemd",
)


def test_nothing_of_an_image_runs_by_itself(place: Place, there: Depot, base: Policy, tmp_path: Path) -> None:
    """Programs at every place where a kernel, an init or a wall might look for one: each leaves a mark where it ran."""
    marking = b"#!/bin/sh\necho $0 >> /ran\n"
    reference = pulled(there, "shadows", image(busybox(), layer(*(entry(name, marking) for name in SHADOWS))))
    before = snapshot(tree(reference))
    loose = tmp_path / "loose"
    subprocess.run(["cp", "-a", tree(reference), loose], check=True)
    for name in SHADOWS:
        subprocess.run(["unshare", "--user", "--map-root-user", "/usr/sbin/chroot", loose, f"/{name}"], check=True)
    assert (loose / "ran").read_text().split() == [f"/{name}" for name in SHADOWS]

    done = place.run("sh", "-c", "test -e /ran && cat /ran; echo none but; /init; cat /ran", policy=guest(reference, base))
    assert done.stdout == b"none but\n/init\n", done
    assert snapshot(tree(reference)) == before


def test_links_of_a_root_lead_to_the_root(place: Place, busy: str, base: Policy) -> None:
    """A folder for a root, since umoci would resolve such links, or leave them out, when it unpacks an image."""
    outside, root = place.root / "outside", place.root / "copy"
    outside.mkdir()
    (outside / "secret").write_text("secret\n")
    subprocess.run(["cp", "-a", tree(busy), root], check=True)
    up = "../" * 40
    for name, target in {"a": outside / "secret", "b": f"{up}{outside}/secret", "c": outside, "here": "/bin/../here2"}.items():
        (root / name).symlink_to(target)
    (root / "here2").write_text("mine\n")
    (root / "run").mkdir()
    (root / "run/stockade").symlink_to("/etc")  # where a machine's socket for signing is made before anything is confined
    odd = "new\nline \x01\udcff" + "x" * 200
    (root / odd).write_text("odd\n")
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert {(root / name).read_text() for name in ("a", "b", "c/secret")} == {"secret\n"}  # natively they lead out

    script = f"cat /a /b /c/secret; cat /here; cat /new*; stat -c %s /sparse; mkdir -p {outside} && echo inner > {outside}/secret; cat /a /c/secret; test -L /run/stockade || echo ours"
    done = place.run("sh", "-c", script, policy=replace(base, root=Root(path=str(root), writable="memory", size=64 << 20)))
    assert (
        done.stdout == f"mine\nodd\n{1 << 40}\ninner\ninner\n{'' if base is GUEST else 'ours' + chr(10)}".encode()
        and done.stderr.count(b"No such file") == 3
    ), done
    assert (outside / "secret").read_text() == "secret\n"


# ---- limits -------------------------------------------------------------------------------------------------------------------------

FILL = (
    "i=0; while dd if=/dev/zero of=/fill$i bs=1M count=8 2>/dev/null; do i=$((i+1)); test $i -lt 100 || exit 9; done; echo full $i; "
    "echo x > /more || echo no; rm /fill0; echo x > /more && cat /more"
)


def test_in_memory_no_byte_more_than_its_size_is_written(place: Place, busy: str, base: Policy) -> None:
    done = place.run("sh", "-c", FILL, policy=guest(busy, base))
    assert done.stdout.decode().split("\n")[:3] == ["full 8", "no", "x"], done


def test_on_disk_more_than_its_size_is_a_typed_end(place: Place, busy: str) -> None:
    size = 64 << 20
    with adopting():
        run = place.start(
            "sh",
            "-c",
            "echo up; i=0; while dd if=/dev/zero of=/fill$i bs=1M count=4 2>/dev/null; do i=$((i+1)); sleep 0.1; done; sleep 60",
            policy=guest(busy, writable="disk", size=size),
        )
        assert run.stdout and run.stdout.readline() == b"up\n"
        most = 0
        while run.poll() is None:
            most = max([most, *(blocks(pid) for pid in tree_of(run.pid))])
            time.sleep(0.01)
        _, err = run.communicate(timeout=20)
        assert run.returncode == 137 and b"more than 64 MiB written to the root" in err
        assert until(lambda: not [line for line in offspring().values() if "docker-registry" not in line], 20)
    assert size // 2 < most < size + (1 << 30), most
    assert [event["reason"] for event in place.ledger() if event["kind"] == "limit"] == ["more than 64 MiB written to the root"]
    within = place.run(
        "sh",
        "-c",
        "dd if=/dev/zero of=/fill bs=1M count=40 2>/dev/null; sleep 1; ls -la /fill",
        policy=guest(busy, writable="disk", size=size),
    )
    assert within.returncode == 0 and b"41943040" in within.stdout


def blocks(pid: int) -> int:
    """Bytes of a layer on disk, as the process that has it shows them; 0 for any other."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if "filestore" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                return os.stat(f"/proc/{pid}/fd/{fd}").st_blocks * 512
    except OSError:
        pass
    return 0


def test_a_layer_that_cannot_be_watched_ends_the_session(place: Place, busy: str) -> None:
    blind = "from stockade.walls import root\nroot._store = lambda pid: ''"
    done = place.run("sh", "-c", "sleep 30", policy=guest(busy, writable="disk"), before=blind)
    assert done.returncode == 137 and b"cannot be watched any more" in done.stderr
    assert place.run("sh", "-c", "sleep 2; echo fine", policy=guest(busy, writable="disk")).stdout == b"fine\n"


def test_a_layer_on_disk_is_gone_after_kill_9(place: Place, busy: str) -> None:
    with adopting():
        run = place.start(
            "sh", "-c", "dd if=/dev/zero of=/fill bs=1M count=30 2>/dev/null; echo up; sleep 60", policy=guest(busy, writable="disk")
        )
        assert run.stdout and run.stdout.readline() == b"up\n"
        held = [pid for pid in offspring() if blocks(pid)]
        assert held and blocks(held[0]) >= 30 << 20
        run.kill()
        run.communicate()
        assert until(lambda: not [line for line in offspring().values() if "docker-registry" not in line], 20), offspring()
    assert place.run("sh", "-c", "test ! -e /fill", policy=guest(busy)).returncode == 0
    assert until(lambda: os.listdir(place.sessions) == [])


# ---- refusals -----------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_stops_the_start(place: Place, busy: str, there: Depot, base: Policy) -> None:
    missing = f"{there.address}/never@sha256:{'0f' * 32}"
    for policy, code in (
        (guest(missing, base), "image.missing"),
        *([(guest(busy, base, writable="disk"), "root.wall")] if base is MACHINE else []),
        (replace(guest(busy), wall="bubblewrap"), "root.wall"),
        (replace(GUEST, wall="bubblewrap", root=Root(writable="memory")), "root.wall"),
        (replace(base, root=Root(path=str(place.root / "nowhere"))), "path.missing"),
        (guest(busy, base, mounts=(Mount(str(place.work), "/bin/tools", "ro"),)), "mount.target"),
    ):
        done = place.run("/bin/sh", "-c", "echo ran", policy=policy)
        assert done.returncode == 125 and done.stdout == b"" and error_of(done)["error"] == code, (code, done.stderr)
    assert f"stockade image pull {missing}" in error_of(place.run("true", policy=guest(missing, base)))["hint"]
    (place.root / "home").rmdir()
    (place.root / "home").symlink_to("/")
    done = place.run("true", policy=replace(base, root=Root(path=str(place.root / "home"))))
    assert done.returncode == 125 and error_of(done)["error"] == "policy.forbidden-path"  # judged anew, as it is now


def test_what_is_mounted_in_a_folder_is_not_served_with_it(place: Place, busy: str) -> None:
    """A chroot in which somebody has mounted what is elsewhere, as `mount --bind` does: a machine would see it (gVisor's overlay does not)."""
    require(vm)
    root, inner = place.root / "copy", "a b\\ü"
    subprocess.run(["cp", "-a", tree(busy), root], check=True)
    (root / inner).mkdir()
    (place.root / "elsewhere").mkdir()
    (place.root / "elsewhere/secret").write_text("secret\n")
    policy = replace(MACHINE, root=Root(path=str(root), writable="none"))
    mounting = 'mount --bind "$1" "$2" && cat "$2/secret" >&2 && shift 2 && exec "$@"'
    look = command(policy, ["sh", "-c", "cat /a*/secret || echo none"])
    words = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        mounting,
        "sh",
        str(place.root / "elsewhere"),
        str(root / inner),
        *look,
    ]
    done = subprocess.run(words, cwd=place.work, env=place.env, capture_output=True)
    assert done.stderr.startswith(b"secret\n")  # where it is mounted it is there
    assert done.stdout == b"" and error_of(done)["error"] == "root.mounts" and str(root / inner) in error_of(done)["message"], done
    assert place.run(*look[-3:], policy=policy).stdout == b"none\n"


def test_commits_come_back_where_the_image_has_no_git(place: Place, busy: str, base: Policy) -> None:
    git = ["git", "-C", str(place.work), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    (place.work / "file").write_text("one\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    done = place.run("sh", "-c", "echo two > file; echo x > .git/config; cat .git/HEAD", policy=guest(busy, base))
    assert done.returncode == 0 and done.stdout.startswith(b"ref:"), done.stderr
    assert "x" not in (place.work / ".git/config").read_text().split()
    usr = replace(base, root=Root(writable="memory", size=64 << 20), workspace=Workspace(str(place.work)))
    commit = "git -c user.name=a -c user.email=a@example.com commit -qam two"
    assert place.run("/bin/sh", "-c", commit, policy=usr).returncode == 0
    assert subprocess.run([*git, "log", "--format=%s"], capture_output=True, text=True, check=True).stdout == "two\none\n"


def test_an_images_variables_say_nothing_to_the_git_that_looks_at_the_end(place: Place, there: Depot, base: Policy) -> None:
    """It is the host's, in a sandbox of the session's. (Its variables reach commands: that is the twin.)"""
    trace = place.work / "trace"
    subprocess.run(["git", "init", "-q", str(place.work)], check=True)
    subprocess.run(
        ["git", "-C", str(place.work), "status"], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "GIT_TRACE": str(trace)}
    )
    assert "status" in trace.read_text()
    trace.unlink()
    reference = pulled(there, "tracing", image(busybox(), config={"Env": [f"GIT_TRACE={trace}", "PATH=/bin"]}))
    done = place.run("sh", "-c", "echo $GIT_TRACE; mkdir -p .git/refs/heads; echo x > .git/refs/heads/new", policy=guest(reference, base))
    assert done.stdout == f"{trace}\n".encode(), done.stderr
    assert not trace.exists(), trace.read_text()


def test_the_policys_lines_do_it_too(place: Place, busy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    (place.work / "policy.toml").write_text(f'version = 1\nwall = "gvisor"\n[root]\nimage = "{busy}"\nsize = "5 MiB"\n')
    policy = compile_policy(str(place.work), policy_file="policy.toml", managed=str(place.root / "none")).policy
    assert policy.root.size == 5 << 20
    assert place.run("greet", policy=policy).stdout == b"hello there\n"


def test_memory_is_one_limit_for_commands_and_layer(place: Place, busy: str) -> None:
    few = Limits(memory=256 << 20, scratch=1 << 20)
    done = place.run(
        "sh",
        "-c",
        "dd if=/dev/zero of=/fill bs=1M count=1000 2>/dev/null; sleep 5; echo there",
        policy=guest(busy, size=2 << 30, limits=few),
    )
    [start] = [event for event in place.ledger() if event["kind"] == "session.start"]
    if ["limit memory", "cgroup memory"] in start["enforced"]:  # type: ignore[operator]
        assert done.returncode != 0 and b"there" not in done.stdout and b"memory" in done.stderr
    else:
        assert done.stdout == b"there\n"  # the watchdog counts what processes hold, and this is bounded by its size


def test_a_pool_keeps_guests_ready_with_the_policys_root(place: Place, busy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    other = place.root / "other"
    other.mkdir()

    async def both() -> None:
        async with Pool(guest(busy, writable="disk"), size=1) as pool:
            for folder in (place.work, other):
                await pool.filled()
                async with pool.session(cwd=str(folder)) as session:
                    done = await session.exec(["sh", "-c", "greet; pwd; ls /marker /ran; echo x > /marker; echo y > file"])
                    assert done.stdout == f"hello there\n{folder}\n".encode() and (folder / "file").read_text() == "y\n", done
                    with pytest.raises(CannotEnforce) as caught:
                        await session.checkpoint()
                    assert caught.value.code == "checkpoint.root" and (await session.exec(["cat", "/marker"])).stdout == b"x\n"
            assert (pool.hits, pool.misses) == (2, 0)
            async with pool.session(GUEST, cwd=str(place.work)) as plain:  # another root: never one of these
                assert (await plain.exec(["/bin/sh", "-c", "test -e /usr/bin/env"])).exit_code == 0
            assert (pool.hits, pool.misses) == (2, 1)

    asyncio.run(both())
    assert until(lambda: os.listdir(place.sessions) == [])


def test_a_signal_still_ends_it(place: Place, busy: str) -> None:
    run = place.start("sh", "-c", "echo up; sleep 60", policy=guest(busy))
    assert run.stdout and run.stdout.readline() == b"up\n"
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=20)
    assert run.returncode == 143
