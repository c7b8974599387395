"""Every way of reading a secret mount is noticed; what has not been opened is not. And what cannot be watched for certain stops the start."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockade.core.errors import CannotEnforce
from stockade.core.values import Mount, Overlay
from stockade.walls import watch
from walls.boxes import Inside, inside, require, unconfined


def rung(watched: watch.Watch) -> bool:
    """What the doorman asks."""
    poll = select.poll()
    for fd in watched.descriptors:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder with a secret in each of its files; `elsewhere` beside it holds another name of one of them, and a link into it."""
    folder, elsewhere = tmp_path / "secret", tmp_path / "elsewhere"
    (folder / "sub/deep").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("key", "sub/deep/key", "linked"):
        (folder / name).write_text("THE-SECRET\n")
    (folder / "program").write_text("#!/bin/sh\necho THE-SECRET\n")
    (folder / "program").chmod(0o755)
    shutil.copy(shutil.which("echo", path="/usr/bin:/bin") or "/bin/echo", folder / "speak")
    os.link(folder / "linked", elsewhere / "innocent")
    (elsewhere / "link").symlink_to("/secret/key")
    return folder


@pytest.fixture
def sandbox(secret: Path) -> Iterator[Inside]:
    require()
    with inside(
        Mount(str(secret), "/secret", secret=True),
        Mount(str(secret), "/writable", "rw", secret=True),
        Mount(str(secret / "key"), "/file", secret=True),
        Mount(str(secret.parent / "elsewhere"), "/elsewhere", "rw"),
        network="door",
    ) as box:
        yield box


def mounts(secret: Path) -> list[Mount]:
    return [Mount(str(secret), "/secret", secret=True)]


PYTHON = "import os, mmap, sys\n"
WAYS = {
    "a file": "cat /secret/key",
    "a file far below": "cat /secret/sub/deep/key",
    "its own mount": "cat /file",
    "a writable view": "cat /writable/key",
    "a symbolic link to it": "cat /elsewhere/link",
    "another name of it outside": "cat /elsewhere/innocent",
    "by way of procfs": "cat /proc/self/root/secret/key",
    "from the folder itself": "cd /secret/sub/deep && cat key",
    "execution": "/secret/program",
    "a listing": "ls /secret/sub && echo THE-SECRET",
    "a new name of it": "ln /writable/key /writable/sub/new && cat /writable/sub/new",
    "moved before it is read": "mv /writable/key /writable/sub/moved && cat /writable/sub/moved",
    "its folder moved": "mv /writable/sub /writable/other && cat /writable/other/deep/key",
    "swapped with a new folder": "mkdir /writable/new && mv /writable/key /writable/new/ && cat /writable/new/key",
}
PYTHON_WAYS = {
    "mapped into memory": "f = os.open('/secret/key', 0); print(mmap.mmap(f, 0, prot=mmap.PROT_READ)[:].decode())",
    "opened for nothing, then for real": "f = os.open('/secret/key', os.O_PATH); print(open(f'/proc/self/fd/{f}').read())",
    "from a folder opened for nothing": "f = os.open('/secret', os.O_PATH); print(open(os.open('sub/deep/key', 0, dir_fd=f)).read())",
    "executed by a descriptor that was opened for nothing": "os.execve(os.open('/secret/speak', os.O_PATH), ['speak', 'THE-SECRET'], {})",
    "a library": "import ctypes\ntry: ctypes.CDLL('/secret/key')\nexcept OSError: print('THE-SECRET')",
    "written over": "f = os.open('/writable/key', os.O_WRONLY); print('THE-SECRET')",
    "copied by the kernel": "m = os.memfd_create('x'); os.sendfile(m, os.open('/secret/key', 0), 0, 11); print(os.pread(m, 11, 0).decode())",
}


@pytest.mark.wall
@pytest.mark.parametrize("way", [*WAYS, *PYTHON_WAYS])
def test_it_is_noticed_before_the_reader_knows(sandbox: Inside, secret: Path, way: str) -> None:
    watched = watch.Watch(mounts(secret))
    try:
        assert sandbox.sh("cat /usr/bin/true > /tmp/x; echo > /elsewhere/note; stat /secret/key; ls -d /secret; cd /secret").code == 0
        assert not rung(watched)
        done = sandbox.sh(WAYS[way]) if way in WAYS else sandbox.python(PYTHON + PYTHON_WAYS[way])
        assert "THE-SECRET" in done.text, done
        assert rung(watched)
        assert watched.seen() == "/secret"
        assert rung(watched)  # for ever, also when the queue is empty again
    finally:
        watched.close()


@pytest.mark.wall
def test_without_a_watch_of_its_own_another_name_goes_unseen(sandbox: Inside, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a folder's watch alone does not see it."""
    monkeypatch.setattr(watch.Watch, "_entry", lambda *_: None)
    watched = watch.Watch(mounts(secret))
    try:
        assert "THE-SECRET" in sandbox.sh("cat /elsewhere/innocent").text
        assert not rung(watched)
    finally:
        watched.close()


@pytest.mark.wall
def test_nothing_of_it_can_be_given_a_name_outside(sandbox: Inside, secret: Path) -> None:
    attack = "ln /writable/key /elsewhere/stolen || ln /secret/key /elsewhere/stolen || mount --bind /writable /elsewhere || exit 9"
    assert sandbox.sh(attack).code == 9
    assert unconfined("ln", str(secret / "key"), str(secret.parent / "elsewhere/stolen")).code == 0


@pytest.mark.wall
def test_what_tells_names_and_sizes_only_is_not_noticed(sandbox: Inside, secret: Path) -> None:
    """docs/limits.md says so."""
    (secret / "pointer").symlink_to("what-a-link-says")
    watched = watch.Watch(mounts(secret))
    try:
        assert "what-a-link-says" in sandbox.sh("stat /secret/key; test -r /secret/key; readlink /secret/pointer").text
        assert not rung(watched)
    finally:
        watched.close()


def test_looking_itself_is_no_opening_and_what_the_host_does_is(secret: Path) -> None:
    for number in range(300):
        (secret / f"more/{number % 7}/{number}").mkdir(parents=True)
    watched = watch.Watch(mounts(secret))
    assert not rung(watched) and "watches" in watched.enforced[0].detail
    (secret / "more/3/3").rmdir()
    assert rung(watched)
    watched.close()
    watched.close()


@pytest.mark.parametrize("act", ["mkdir {0}/new", "mv {1} {0}/sub/", "mv {0}/sub {1}", "touch {0}/new", "mv {0}/key {1}"])
def test_what_appears_or_leaves_counts(secret: Path, tmp_path: Path, act: str) -> None:
    (tmp_path / "other").mkdir()
    watched = watch.Watch(mounts(secret))
    assert not rung(watched)
    subprocess.run(act.format(secret, tmp_path / "other"), shell=True, check=True)
    assert rung(watched)
    watched.close()


def test_each_mount_is_named(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    watched = watch.Watch([*mounts(secret), Mount(str(tmp_path / "more"), "/more", secret=True), Mount(str(tmp_path), "/plain")])
    os.listdir(tmp_path / "more")
    assert rung(watched) and watched.seen() == "/more"
    watched.close()


def test_a_queue_that_ran_over_counts(secret: Path) -> None:
    watched = watch.Watch(mounts(secret))
    for number in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) + 10):
        os.close(os.open(secret / ("key" if number % 2 else "linked"), os.O_RDONLY))
    assert rung(watched) and watched.seen() == "/secret"
    watched.close()


LIMITED = """
import sys
from stockade.core.errors import CannotEnforce
from stockade.core.values import Mount
from stockade.walls import watch
try:
    watch.Watch([Mount(sys.argv[1], "/secret", secret=True)])
except CannotEnforce as error:
    print(error.code, "|", error.hint)
else:
    print("watched")
"""


@pytest.mark.wall
@pytest.mark.parametrize(
    ("limit", "said"), [("max_inotify_instances", "max_user_instances"), ("max_inotify_watches", "max_user_watches"), ("", "")]
)
def test_a_limit_of_the_kernel_stops_the_start_and_says_which(secret: Path, limit: str, said: str) -> None:
    """In a user namespace of its own, whose limits everybody may lower (namespaces(7), /proc/sys/user)."""
    require()
    lower = f"echo {'0' if 'instances' in limit else '2'} > /proc/sys/user/{limit} && " if limit else ""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", f'{lower}exec "$@"', "sh", sys.executable, "-c", LIMITED, str(secret)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout.startswith("secret.watch | ") and said in done.stdout) if limit else done.stdout == "watched\n", done


def test_too_much_stops_the_start(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(watch, "MOST", 3)
    with pytest.raises(CannotEnforce, match="too many folders") as caught:
        watch.Watch(mounts(secret))
    assert caught.value.code == "secret.too-much"
    monkeypatch.setattr(watch, "DEEPEST", 1)
    monkeypatch.setattr(watch, "MOST", 99)
    with pytest.raises(CannotEnforce, match="too deep"):
        watch.Watch(mounts(secret))
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_file_system_that_others_change_stops_the_start() -> None:
    """procfs stands for them: files appear in it that inotify does not tell of."""
    with pytest.raises(CannotEnforce, match="is on proc") as caught:
        watch.Watch([Mount(f"/proc/{os.getpid()}", "/secret", secret=True)])
    assert caught.value.code == "secret.unseen"


def test_a_folder_that_changes_all_the_time_stops_the_start(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(100))
    walk = watch.Watch._walk

    def busy(self: watch.Watch, mount: Mount, pin: int, path: str, device: int, depth: int) -> None:
        walk(self, mount, pin, path, device, depth)
        if depth == 2 and next(numbers) < most:
            (secret / f"new{next(numbers)}").mkdir()

    monkeypatch.setattr(watch.Watch, "_walk", busy)
    most = 1
    watch.Watch(mounts(secret)).close()  # once is looked at again
    most = 99
    with pytest.raises(CannotEnforce) as caught:
        watch.Watch(mounts(secret))
    assert caught.value.code == "secret.changing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_cannot_be_watched(secret: Path) -> None:
    (secret / "sub").chmod(0o311)
    with pytest.raises(CannotEnforce) as caught:
        watch.Watch(mounts(secret))
    (secret / "sub").chmod(0o755)
    assert caught.value.code == "secret.watch" and "readable" in caught.value.hint


TOP = "/home/user/project"


@pytest.mark.parametrize(
    ("one", "others", "overlays", "code"),
    [
        # Elsewhere, and exactly on top of what a wider mount shows of it.
        (("/data/crm", "/crm"), [("/data/other", "/other")], [], ""),
        (("/data/crm", "/data/crm"), [("/data", "/data")], [], ""),
        (("/data/crm", "/d/crm"), [("/data", "/d")], [("/data", "/d")], ""),
        # A second view of it, or of a part, is watched too.
        (("/data/crm", "/crm"), [("/data/crm", "/again"), ("/data/crm/part", "/part")], [], ""),
        # A wider view from which it could be moved or linked to where nobody watches.
        (("/data/crm", "/crm"), [("/data", "/data")], [], "secret.overlap"),
        (("/data/crm", "/data/crm"), [("/data", "/data"), ("/data", "/again")], [], "secret.overlap"),
        # Overlays read files by themselves.
        (("/data/crm", "/crm"), [], [("/data/crm/repository/.git", "/r")], "secret.overlap"),
        (("/data/crm", "/crm"), [], [("/data/crm", "/again")], "secret.overlap"),
        (("/data/crm", "/crm"), [], [("/data", "/data")], "secret.overlap"),
        # The workspace.
        (("/home/user", "/crm"), [], [], "secret.workspace"),
        ((TOP, TOP), [(TOP, TOP)], [], "secret.workspace"),
    ],
)  # fmt: skip
def test_another_way_to_it_stops_the_start(
    one: tuple[str, str], others: list[tuple[str, str]], overlays: list[tuple[str, str]], code: str
) -> None:
    shown = [Mount(*one, secret=True), *(Mount(source, target, "rw") for source, target in others)]
    layers = [Overlay(lower, "/u", "/w", target) for lower, target in overlays]
    if not code:
        return watch.check(shown, layers, TOP)
    with pytest.raises(CannotEnforce) as caught:
        watch.check(shown, layers, TOP)
    assert caught.value.code == code and "Nothing was run" in caught.value.hint
    if code == "secret.overlap" and not overlays:
        watch.check(
            [shown[0], *(Mount(mount.source, mount.target, "rw", secret=True) for mount in shown[1:])], [], TOP
        )  # all of it is watched then
    watch.check(
        [Mount(mount.source, mount.target, mount.mode) for mount in shown], layers, TOP
    )  # without the mark it is none of our business


def test_in_the_workspace_only_files_that_cannot_be_written(tmp_path: Path) -> None:
    top = str(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    workspace = Mount(top, top, "rw")
    watch.check([workspace, Mount(f"{top}/file", f"{top}/file", secret=True)], [], top)
    for bad in (Mount(f"{top}/folder", f"{top}/folder", secret=True), Mount(f"{top}/file", f"{top}/file", "rw", secret=True)):
        with pytest.raises(CannotEnforce) as caught:
            watch.check([workspace, bad], [], top)
        assert caught.value.code == "secret.workspace"


@pytest.mark.root
def test_an_overlay_as_source_and_a_mount_below_are_watched_as_well(secret: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounting needs root")
    for name in ("up", "work", "merged"):
        (tmp_path / name).mkdir()
    script = f"""
    mount -t overlay o -o lowerdir={secret},upperdir={tmp_path}/up,workdir={tmp_path}/work {tmp_path}/merged
    mount -t tmpfs t {tmp_path}/merged/sub && echo k > {tmp_path}/merged/sub/below
    exec "$@"
    """
    code = """
import os, select, sys
from stockade.core.values import Mount
from stockade.walls import watch
for act in (lambda: open(top + "/key").read(), lambda: open(top + "/sub/below").read(), lambda: open(top + "/key", "a").write("x"), lambda: open(top + "/key").read()):
    top = sys.argv[1]
    watched = watch.Watch([Mount(top, "/secret", secret=True)])
    assert not select.select(watched.descriptors, [], [], 0)[0]
    act()
    assert select.select(watched.descriptors, [], [], 0)[0]
    watched.close()
"""
    words = ["unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", code, f"{tmp_path}/merged"]
    assert shutil.which("unshare")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
