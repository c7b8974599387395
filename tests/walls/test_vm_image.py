"""Images of machines: what a machine starts from is put together byte for byte, and nothing that was changed after it was built is ever handed out."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import unavailable
from stockade.cli import vm
from stockade.core import notes, places
from stockade.core.errors import CannotEnforce, StockadeError, Tampered
from stockade.core.frozen import plain, replace
from stockade.walls import debian
from stockade.walls.vm import build, image, initrd, store
from stockade.walls.vm.image import FILES, MANIFEST, ROOT, SIGNATURE, File, Image, Manifest
from stockade.walls.vm.initrd import Member
from walls.boxes import until

QEMU = "/usr/bin/qemu-system-x86_64"


def busybox() -> str:
    return shutil.which("busybox") or unavailable("busybox", "it is not installed")


# ---- what a machine starts from -----------------------------------------------------------------------------------------------------


def module(*needed: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(needed).encode() + b"\0name=x\0"


def test_modules_come_behind_what_they_need() -> None:
    there = {"blk": module("ring", "bus-x"), "ring": module(), "bus_x": module("ring", "crc"), "console": module("ring")}
    order = [name for name, _ in initrd.in_order(["console", "blk", "ring", "vmgenid"], there.get, {"crc"})]
    assert order == ["ring", "console", "bus_x", "blk"]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"a": module("b")}, "no module b"),
        ({"a": module("b"), "b": module("a")}, "need each other"),
        ({"a": module("a")}, "need each other"),
        ({"a": b"\x7fELF"}, "does not say"),
        ({}, "no module a"),
    ],
)
def test_modules_that_cannot_be_loaded_build_no_image(there: dict[str, bytes], said: str) -> None:
    with pytest.raises(StockadeError, match=said) as caught:
        list(initrd.in_order(["a"], there.get, set()))
    assert caught.value.code == "vm.kernel" and caught.value.hint


def test_the_archive_is_one_that_others_read_too(tmp_path: Path) -> None:
    made = initrd.archive(
        [
            Member("a", stat.S_IFDIR | 0o750),
            *(Member(f"a/{'n' * length}", stat.S_IFREG | 0o640, bytes(range(length))) for length in range(1, 9)),
            Member("a/empty", stat.S_IFREG | 0o755),
        ]
    )
    second = initrd.archive([Member("b", stat.S_IFREG | 0o644, b"from the second")])
    assert len(made) % initrd.BLOCK == len(second) % initrd.BLOCK == 0
    for archive in (made, second):
        subprocess.run([busybox(), "cpio", "-idm", "-H", "newc"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    for length in range(1, 9):
        assert (tmp_path / f"a/{'n' * length}").read_bytes() == bytes(range(length))
    assert stat.S_IMODE((tmp_path / "a/empty").stat().st_mode) == 0o755 and (tmp_path / "b").read_bytes() == b"from the second"
    assert (tmp_path / "b").stat().st_mtime == 0
    listed = subprocess.run(
        [busybox(), "cpio", "-tv"], input=initrd.initrd(b"BB", {"m": b"M"}), capture_output=True, check=True
    ).stdout.decode()
    rows = {line.split()[-1]: line.split() for line in listed.splitlines() if "/" in line or line.endswith("init")}
    assert rows["init"][0] == "-rwxr-xr-x" and rows["dev/console"][0] == "crw-------"
    assert "5" in rows["modules/order"], "its size"


def packed(content: bytes, *, magic: bytes = b"HdrS") -> bytes:
    """A kernel as the bootloader sees it, `content` in it compressed."""
    payload = lzma.compress(content, check=lzma.CHECK_CRC32) + len(content).to_bytes(4, "little")
    setup = bytearray(5 * 512)
    setup[0x1F1], setup[0x202:0x206] = 4, magic
    setup[0x248:0x24C], setup[0x24C:0x250] = (7).to_bytes(4, "little"), len(payload).to_bytes(4, "little")
    return bytes(setup) + bytes(7) + payload + bytes(99)


def package(files: dict[str, bytes]) -> tarfile.TarFile:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tree:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tree.addfile(member, io.BytesIO(data))
    made.seek(0)
    return tarfile.open(fileobj=made)


@pytest.mark.parametrize("usr", ["", "usr/"])
def test_a_kernel_is_taken_out_of_its_package(usr: str) -> None:
    files = {
        "./boot/vmlinuz-6.9": packed(b"\x7fELF kernel"),
        f"./{usr}lib/modules/6.9/modules.builtin": b"kernel/lib/crc.ko\n",
        f"./{usr}lib/modules/6.9/kernel/fs/a-b.ko": module("c", "crc"),
        f"./{usr}lib/modules/6.9/kernel/fs/c.ko.xz": lzma.compress(module()),
    }
    found = initrd.kernel(package(files), ["a_b"])
    assert found == initrd.Kernel("6.9", b"\x7fELF kernel", (("c", module()), ("a_b", module("c", "crc"))))
    for wrong in ({"./boot/vmlinuz-7": b""}, {"./boot/vmlinuz-6.9": b"MZ"}, {"./boot/vmlinuz-6.9": packed(b"\x7fELF", magic=b"nope")}):
        with pytest.raises(StockadeError) as caught:
            initrd.kernel(package({**files, **wrong}), ["a_b"])
        assert caught.value.code == "vm.kernel"


def test_a_kernel_that_is_packed_otherwise_stays_as_it_is() -> None:
    other = packed(b"\x7fELF").replace(b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd\0\0")
    assert initrd.unpacked(other) == other
    for broken in (packed(b"no ELF"), packed(b"\x7fELF")[:-105]):
        with pytest.raises(StockadeError):
            initrd.unpacked(broken)


def test_the_same_tree_is_the_same_file_system_however_it_was_made(tmp_path: Path) -> None:
    if not shutil.which("mkfs.erofs"):
        unavailable("vmimage", "erofs-utils is not installed")
    names = [f"d{number % 7}/f{number}" for number in range(200)]
    digests = set()
    for turn, order in enumerate((names, names[::-1], sorted(names, key=hash))):
        tree = tmp_path / str(turn)
        for name in order:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(name * 500)
        os.link(tree / names[0], tree / "linked")
        for hidden in ("proc", "tmp"):
            (tree / hidden).mkdir()
            (tree / hidden / str(turn)).write_text("left out")
        out = tmp_path / f"{turn}.erofs"
        subprocess.run([*build.EROFS, "-T1700000000", str(out), str(tree)], check=True, capture_output=True)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


# ---- how it is built ------------------------------------------------------------------------------------------------------------------


def source(suites: str, *, uri: str = "http://mirror.test/debian") -> str:
    return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main contrib\nSigned-By: {build.KEYRING}\n\n"


def test_what_is_built_depends_on_what_is_asked_for_and_not_on_the_mirror(tmp_path: Path) -> None:
    file = tmp_path / "x.sources"
    file.write_text(source("trixie"))
    recipe = build.recipe("trixie", ["nodejs"], sources=str(file), date="2026-01-31")
    assert recipe.date == 1769817600 and "nodejs" in recipe.packages and "git" in recipe.packages
    assert recipe.digest == build.recipe("trixie", ["nodejs"], mirror="http://snapshot.test/20260131/", date="2026-02-01").digest
    assert (
        recipe.digest
        != build.recipe("trixie", mirror="http://snapshot.test/").digest
        != build.recipe("bookworm", mirror="http://m.test/").digest
    )
    command = build.command(recipe, "/a dir")
    assert command[-3:] == ["trixie", "/dev/null", "/a dir/debian.sources"] and "--mode=root" in command or os.geteuid()
    assert f"--customize-hook=download {build._OUT}/root.erofs '/a dir/root.erofs'" in command


def test_of_aptss_sources_only_the_main_archive_builds_an_image() -> None:
    texts = [source("bookworm bookworm-updates bookworm-backports"), source("bookworm-security", uri="http://mirror.test/security")]
    texts.append("Types: deb\nURIs: http://vendor.test/\nSuites: bookworm\nComponents: main\nSigned-By: /etc/vendor.gpg\n\n")
    found = debian.releases(debian.deb822("".join(texts)), "bookworm")
    assert [(one.uris[0], one.suites, one.components) for one in found] == [
        ("http://mirror.test/debian", ("bookworm", "bookworm-updates"), ("main",)),
        ("http://mirror.test/security", ("bookworm-security",), ("main",)),
    ]
    assert debian.releases(debian.deb822(texts[2]), "bookworm") == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"mirror": "http://me:secret@mirror.test/"}, "cli.usage"),
        ({"mirror": "http://m.test/", "date": "yesterday"}, "cli.usage"),
        ({"mirror": "http://m.test/", "extra": ["--hook=x"]}, "cli.usage"),
        ({"mirror": "http://m.test/", "extra": ["git curl"]}, "cli.usage"),
        ({"sources": "/nonexistent"}, "vm.sources"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], code: str) -> None:
    with pytest.raises(StockadeError) as caught:
        build.recipe("bookworm", **options)  # type: ignore[arg-type]  # of several kinds
    assert caught.value.code == code and caught.value.hint


# ---- where images lie ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[image.Place]:
    """The user's own place, empty, and no other."""
    for name in ("cache", "state"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))
    monkeypatch.setattr(image, "SYSTEM", str(tmp_path / "none"))
    yield image.own()


def kept(place: image.Place, content: str = "x") -> Image:
    """An image whose files say what they are."""
    folder, lock = store.new(place)
    for name in FILES:
        Path(folder, name).write_text(f"{name} {content}")
    files = tuple(File(name, hashlib.sha256(f"{name} {content}".encode()).hexdigest(), len(f"{name} {content}")) for name in FILES)
    manifest = Manifest(image.FORMAT, "bookworm", "x86_64", "6.9", 1700000000, "r" * 64, files, ("mmdebstrap=1",), ("bash=5", "git=1:2"))
    try:
        return store.keep(place, folder, manifest)
    finally:
        os.close(lock)


def test_an_image_is_found_as_it_was_built_and_hashed_once(own: image.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotEnforce) as caught:
        image.find()
    assert caught.value.code == "vm.image" and image.BUILD in caught.value.hint
    made = kept(own)
    checks: list[str] = []
    whole = image.check
    monkeypatch.setattr(image, "check", lambda place, digest, text: (checks.append(digest), whole(place, digest, text)))
    assert image.find() == made == image.find() and not checks
    assert Path(made.root).read_text() == "root.erofs x" and made.kernel.endswith(f"{made.digest}/kernel")
    os.utime(made.root, (1, 1))
    assert image.find() == made and checks == [made.digest]
    assert image.find() == made and checks == [made.digest]
    text = Path(own.path(made.digest, MANIFEST)).read_bytes()
    signed, signatures = notes.split(text + b"\n" + Path(own.path(made.digest, SIGNATURE)).read_bytes())
    assert signed == text and len(signatures) == 1, "anybody's tool for signed notes can check it"


def flip(path: str) -> None:
    """Change a bit of a file and nothing that stat(2) lets anybody set."""
    os.chmod(path, 0o644)
    before = os.stat(path)
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(len(data) // 2)
        file.write(bytes([data[len(data) // 2] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def linked(path: str) -> None:
    os.rename(path, f"{path}-elsewhere")
    os.rename(f"{path}-elsewhere", f"{os.path.dirname(os.path.dirname(path))}/elsewhere")
    os.symlink(f"{os.path.dirname(os.path.dirname(path))}/elsewhere", path)


ALL = (*FILES, MANIFEST, SIGNATURE)
TAMPERING: dict[str, tuple[Callable[[str], object], str]] = {
    **{f"a bit of {name}": (lambda root, name=name: flip(f"{root}/{name}"), "vm.image-changed") for name in ALL},  # type: ignore[misc]
    **{f"{name} as a link": (lambda root, name=name: linked(f"{root}/{name}"), "vm.image-changed") for name in ALL},  # type: ignore[misc]
    **{f"without {name}": (lambda root, name=name: os.unlink(f"{root}/{name}"), "vm.image-changed") for name in ALL},  # type: ignore[misc]
    "something more": (lambda root: Path(root, "more").touch(), "vm.image-changed"),
    "a longer root": (lambda root: Path(root, ROOT).write_bytes(Path(root, ROOT).read_bytes() + b"more"), "vm.image-changed"),
    "a file that others write": (lambda root: os.chmod(f"{root}/{ROOT}", 0o664), "place.unsafe"),
    "a folder that others write": (lambda root: os.chmod(root, 0o775), "place.unsafe"),
    "a place that others write": (lambda root: os.chmod(os.path.dirname(root), 0o777), "place.unsafe"),
    "the folder as a link": (lambda root: linked(root), "vm.image-changed"),
    "the key of somebody else": (lambda root: Path(places.state("keys/vm.vkey")).write_text(f"{OTHER}\n"), "vm.image-changed"),
    "no key": (lambda root: os.unlink(places.state("keys/vm.vkey")), "vm.image-changed"),
    "a pointer to nowhere": (lambda root: Path(os.path.dirname(root), "current").write_text("0" * 64 + "\n"), "vm.image-changed"),
    "a pointer that climbs": (lambda root: Path(os.path.dirname(root), "current").write_text("../../x\n"), "vm.image-changed"),
    "a pointer as a link": (lambda root: linked(f"{os.path.dirname(root)}/current"), "vm.image-changed"),
    "a pointer that others write": (lambda root: os.chmod(f"{os.path.dirname(root)}/current", 0o666), "place.unsafe"),
}
OTHER = notes.Verifier.from_public("stockade-vm/0123456789abcdef", bytes(range(32)))


@pytest.mark.parametrize("how", TAMPERING)
def test_what_was_changed_is_never_handed_out(own: image.Place, how: str) -> None:
    made = kept(own)
    assert image.find() == made
    for name in ALL:
        os.chmod(own.path(made.digest, name), 0o644)
    change, code = TAMPERING[how]
    assert image.find() == made, "its mode alone is nobody's business"
    change(own.path(made.digest))
    for _ in range(2):
        with pytest.raises(StockadeError) as caught:
            image.find()
        assert caught.value.code == code and caught.value.hint
    store.remove(own, made.digest) if "place" not in how else None  # whatever it is, it can be removed


@pytest.mark.parametrize("field", Manifest._fields)  # type: ignore[attr-defined]  # of a frozen class
def test_a_manifest_that_says_something_else_is_not_signed(own: image.Place, field: str) -> None:
    made = kept(own)
    value = getattr(made.manifest, field)
    other = value + 1 if isinstance(value, int) else value + "x" if isinstance(value, str) else (*value, value[0])
    text = replace(made.manifest, **{field: other}).text()
    digest = hashlib.sha256(text).hexdigest()
    os.rename(own.path(made.digest), own.path(digest))
    os.unlink(own.path(digest, MANIFEST))
    Path(own.path(digest, MANIFEST)).write_bytes(text)
    Path(own.path("current")).write_text(f"{digest}\n")
    with pytest.raises(Tampered) as caught:
        image.find()
    assert caught.value.code == "vm.image-changed"


def test_a_manifest_is_read_only_as_it_is_written(own: image.Place) -> None:
    manifest = kept(own).manifest
    assert Manifest.read(manifest.text()) == manifest
    said = plain(manifest)
    for change in (
        {"more": 1},
        {"format": "1"},
        {"suite": None},
        {"packages": ["a", 1]},
        {"files": []},
        {"source_date": True},
        {"source_date": -1},
    ):
        with pytest.raises(ValueError):
            Manifest.read(json.dumps({**said, **change}, indent=1).encode() + b"\n")
    for text in (b"", b"[]", b"null", b"{}", b"\xff", manifest.text() + b"\n", b"[" * 100_000):
        with pytest.raises(ValueError):
            Manifest.read(text)


def test_files_of_another_image_are_not_taken(own: image.Place) -> None:
    first, second = kept(own, "one"), kept(own, "two")
    assert image.find() == second
    shutil.copyfile(first.root, f"{second.root}.new")
    os.replace(f"{second.root}.new", second.root)
    with pytest.raises(Tampered):
        image.find()
    shutil.rmtree(own.path(second.digest))
    shutil.copytree(own.path(first.digest), own.path(second.digest))  # signed, and not what the pointer means
    with pytest.raises(Tampered):
        image.find()
    assert store.use(own, first.digest) == first == image.find()


@pytest.mark.root
def test_files_of_somebody_else_are_not_taken(own: image.Place) -> None:
    made = kept(own)
    for path in (made.initrd, own.path(made.digest), own.directory):
        os.chown(path, 12345, -1)
        with pytest.raises(StockadeError) as caught:
            image.find()
        assert caught.value.code == "place.unsafe"
        os.chown(path, 0, -1)
    assert image.find() == made


@pytest.mark.root
def test_the_machines_image_comes_second_and_is_roots_all_the_way_down(own: image.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    above = Path(f"/var/lib/stockade-test-{os.urandom(4).hex()}")
    try:
        above.mkdir()
        monkeypatch.setattr(image, "SYSTEM", f"{above}/vm")
        monkeypatch.setattr(store, "SYSTEM", f"{above}/vm")
        made = kept(image.system())
        assert image.find() == made and made.place == image.system()
        assert image.named(made.digest[:8]) == (image.system(), made.digest)
        above.chmod(0o777)
        with pytest.raises(StockadeError) as caught:
            image.find()
        assert caught.value.code == "place.unsafe" and str(above) in caught.value.message
        above.chmod(0o755)
        mine = kept(own, "mine")
        assert image.find() == mine
        flip(mine.initrd)
        with pytest.raises(Tampered):
            image.find()  # and does not fall back to the other
    finally:
        shutil.rmtree(above, ignore_errors=True)


# Builds an image and is killed at the call of os.rename that the first argument counts, or goes to its end.
KILLED = """
import os, signal, sys
left, rename = int(sys.argv[1]), os.rename
def counted(*names):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)
os.rename = counted
from walls.test_vm_image import kept
from stockade.walls.vm import image
kept(image.own(), "new")
"""


def test_a_build_that_is_killed_leaves_the_old_image_or_the_new_one(own: image.Place, tmp_path: Path) -> None:
    old = kept(own, "old")
    seen = []
    for at in range(30):
        tests = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(at)], env={**os.environ, "PYTHONPATH": tests}, capture_output=True, check=False
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        found = image.find()
        seen.append(found.digest)
        if done.returncode == 0:
            break
    assert done.returncode == 0 and seen[0] == old.digest != seen[-1] and len(set(seen)) == 2
    assert not [name for name in os.listdir(own.directory) if name.startswith(".")], "what was killed has left is removed by the next"


def test_what_somebody_builds_in_is_not_swept(own: image.Place) -> None:
    folder, lock = store.new(own)
    kept(own)
    assert os.path.isdir(folder)
    os.close(lock)
    kept(own, "next")
    assert not os.path.exists(folder)


def test_an_image_in_use_stays(own: image.Place) -> None:
    made = kept(own)
    held = image.hold(made)
    with pytest.raises(StockadeError) as caught:
        store.remove(own, made.digest)
    assert caught.value.code == "vm.image-in-use" and image.find() == made
    os.close(held)
    store.remove(own, made.digest)
    for look in (image.find, lambda: image.hold(made)):
        with pytest.raises(CannotEnforce) as gone:
            look()
        assert gone.value.code == "vm.image"
    assert sorted(os.listdir(own.directory)) == ["lock"]


# ---- the command line -----------------------------------------------------------------------------------------------------------------


def test_the_command_shows_chooses_and_removes(own: image.Place, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert vm.main(words) == 0
        return capsys.readouterr().out

    assert "No image" in said("list") and json.loads(said("list", "--json")) == []
    first, second = kept(own, "one"), kept(own, "two")
    rows = {row["digest"]: row for row in json.loads(said("list", "--json"))}
    assert {digest: row["used"] for digest, row in rows.items()} == {first.digest: False, second.digest: True}
    assert rows[first.digest]["manifest"] == plain(first.manifest) and not rows[first.digest]["error"]
    assert f"* {second.digest[:16]}" in said("list") and "package    git 1:2" in said("show")
    assert json.loads(said("show", first.digest[:6], "--json"))["digest"] == first.digest
    assert said("use", first.digest[:6]).strip() == first.digest == image.find().digest
    flip(second.kernel)
    assert f"{second.kernel} is not what was built" in said("list")
    for words in (("show", second.digest[:6]), ("use", second.digest), ("show", "feed"), ("remove", "ab")):
        with pytest.raises(StockadeError):
            vm.main(words)
    assert json.loads(said("remove", "--json", second.digest))["removed"] == [second.digest] and image.find() == first
    said("remove", first.digest[:10])
    assert os.listdir(own.directory) == ["lock"]


@pytest.mark.parametrize(
    "words", [("--mirror", "http://m.test/", "--sources", "/etc/apt/sources.list"), ("--suite", "trixie", "--mirror", "x y")]
)
def test_a_build_that_makes_no_sense_is_refused_before_anything_is_done(own: image.Place, words: tuple[str, ...]) -> None:
    with pytest.raises(StockadeError) as caught:
        vm.main(["build", *words])
    assert caught.value.code == "cli.usage" and not os.path.exists(own.directory)


def test_a_builder_that_fails_says_why_and_leaves_nothing(own: image.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (*build.TOOLS, "newuidmap"):
        (tools / name).write_text("#!/bin/sh\necho 'I: running apt-get update...' >&2; echo 'E: no such mirror \033[31m' >&2; exit 25\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(build, "_subordinate", lambda: True)
    shown: list[str] = []
    with pytest.raises(StockadeError) as caught:
        build.build(build.recipe("bookworm", mirror="http://m.test/"), own, shown.append)
    assert caught.value.code == "vm.build" and "no such mirror" in caught.value.message and "\033" not in caught.value.message
    assert shown == ["running apt-get update"] and os.listdir(own.directory) == []
    monkeypatch.setattr(build, "_subordinate", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(CannotEnforce) as alone:
        build.require()
    assert alone.value.code == "vm.tools" and "usermod --add-subuids" in alone.value.hint and "--system" in alone.value.hint
    monkeypatch.undo()
    for name in build.TOOLS:
        (tools / name).unlink()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(CannotEnforce) as missing:
        build.require()
    assert missing.value.code == "vm.tools" and "erofs-utils" in missing.value.message and "apt install" in missing.value.hint


INTERRUPTED = """
import sys
from stockade.walls.vm import build, image
build._subordinate = lambda: True
build.build(build.recipe("bookworm", mirror="http://m.test/"), image.own())
"""


def test_a_build_that_is_broken_off_ends_all_that_it_started(own: image.Place, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_ins = dict.fromkeys((*build.TOOLS, "newuidmap"), "exit 1")
    stand_ins |= {
        "unshare": 'shift; exec "$@"',
        "mmdebstrap": f"sleep 1000 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/started; wait",
    }
    for name, script in stand_ins.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    surroundings = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", INTERRUPTED], env=surroundings, stderr=subprocess.PIPE
    ) as builder:
        assert until((tmp_path / "started").exists)
        started = int((tmp_path / "started").read_text())
        os.kill(started, 0)
        builder.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in builder.communicate(timeout=60)[1]
    assert until(lambda: not os.path.exists(f"/proc/{started}"))
    assert os.listdir(own.directory) == []


# ---- a machine starts from it -----------------------------------------------------------------------------------------------------------

# The wall's own program, for this test: says what it finds, tries to change the root, and ends the machine.
PROGRAM = """#!/bin/sh
echo "first: $$ $*"
echo "knows:" $(ls /sys/bus/virtio/drivers) $(sed 's/.*\t//' /proc/filesystems) .
while read -r what where rest; do echo "mount: $where $rest"; done </proc/mounts
echo "change: $(touch /usr/new 2>&1 && echo done)"
echo "scratch: $(touch /run/new 2>&1 && echo done)"
echo "tools: $(git --version) $(python3 -c 'print(6 * 7)') $(rg --version | sed -n 1p)"
for place in /proc /sys /dev /run /tmp /var/tmp /home /mnt /root; do [ -d $place ] || echo "missing: $place"; done
echo "special: $(find / -xdev -type f -perm /6000)"
echo "traces: $(find /var/log /var/cache /var/lib/apt/lists /etc/ssh -type f -name '[^c]*' ! -name 'ssh_config'; cat /etc/machine-id; cat /etc/apt/sources.list* 2>/dev/null)"
echo o >/proc/sysrq-trigger; sleep 60
"""


def console(found: Image, tmp_path: Path, program: str = "") -> str:
    """What a machine of this image says until it ends."""
    start = tmp_path / "start"
    tail = initrd.archive([Member("stockade-init", stat.S_IFREG | 0o755, program.encode())]) if program else b""
    start.write_bytes(Path(found.initrd).read_bytes() + tail)
    words = [
        QEMU,
        "-M",
        "q35,accel=tcg",
        "-cpu",
        "max",
        "-m",
        "256",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ]
    words += ["-kernel", found.kernel, "-initrd", str(start), "-append", "console=ttyS0 quiet panic=-1"]
    words += ["-drive", f"if=none,id=root,file={found.root},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=root"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("utf-8", "replace").replace("\r", "")


@pytest.mark.wall
def test_a_machine_starts_from_the_image_that_was_built(tmp_path: Path) -> None:
    if not os.access(QEMU, os.X_OK):
        unavailable("vmimage", f"{QEMU} is not installed")
    place = image.system()  # what scripts/setup has built with this version, rather than one of the user's own
    try:
        found = image.checked(place, digest) if (digest := image.current(place)) else image.find()
    except CannotEnforce as error:
        unavailable("vmimage", error.message)
    said = console(found, tmp_path, PROGRAM)
    assert "first: 1 guest\n" in said, said
    knows = next(line for line in said.splitlines() if line.startswith("knows:")).split()
    assert {"9p", "9pnet_virtio", "overlay", "erofs", "virtio_console", "virtio_net", "virtio_blk", "virtio_rng"} <= set(knows)
    assert "mount: / erofs ro," in said and "mount: /run tmpfs rw," in said and "missing:" not in said
    assert "change: touch: cannot touch '/usr/new': Read-only file system" in said and "scratch: done" in said
    assert "tools: git version " in said and " 42 ripgrep " in said
    assert "special: \n" in said and "traces: \n" in said
    alone = console(found, tmp_path)
    assert "there is no /stockade-init" in alone and "first:" not in alone
