"""Pulling images from a real registry: what comes is what was asked for, hostile layers reach nothing of the host, and a pull that dies leaves nothing behind."""

from __future__ import annotations

import http.client
import http.server
import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from conftest import unavailable
from session.supervised import adopting, offspring
from stockade.core.errors import CannotEnforce, StockadeError, Tampered
from stockade.walls import images, pulling, registry
from walls import boxes
from walls.boxes import until
from walls.depot import Depot, Made, busybox, depot, digest, entry, image, index, layer

pytestmark = pytest.mark.wall
STOCKADE = [sys.executable, "-m", "stockade", "image"]
DIRECTORY, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Depot]:
    boxes.require()
    with depot(tmp_path_factory.mktemp("depot")) as found:
        yield found


@pytest.fixture(scope="module")
def small(there: Depot) -> str:
    return there.put("small", image(layer(entry("hello", b"hello\n", mode=0o644)), config={"Env": ["A=b"]}), tag="1.0")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with the filters that all tests share."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shared = Path(boxes.scratch(), "xdg_cache_home/stockade")
    (tmp_path / "cache/stockade").mkdir(parents=True, mode=0o700)
    if (shared / "seccomp").exists():
        subprocess.run(["cp", "-r", shared / "seccomp", tmp_path / "cache/stockade/"], check=True)
    return tmp_path / "cache/stockade/images"


def pull(reference: str, **options: object) -> images.Image:
    return pulling.pull(registry.reference(reference), **options)  # type: ignore[arg-type]


def tree(reference: str) -> Path:
    return Path(images.root_of(reference.rpartition("@")[2]), "tree")


def left(cache: Path) -> list[str]:
    """What lies where images are, but for the lock and layers that were fetched whole."""
    return sorted(
        str(path.relative_to(cache))
        for folder in ("roots", "store")
        if (cache / folder).exists()
        for path in (cache / folder).iterdir()
        if path.name != "blobs"
    )


# ---- what is asked for is what comes ------------------------------------------------------------------------------------------------


def test_a_tag_is_resolved_and_what_is_here_is_not_asked_for_again(there: Depot, small: str, cache: Path) -> None:
    found = pull(f"{there.address}/small:1.0")
    assert found.references == (small,) and found.environment == ("A=b",) and found.files == 1
    assert (tree(small) / "hello").read_text() == "hello\n" and left(cache) == [f"roots/{found.digest[7:]}"]
    before = there.log.stat().st_size
    assert pull(small) == found and there.log.stat().st_size == before
    with pytest.raises(StockadeError) as caught:
        pull(f"{there.address}/small:2.0")
    assert caught.value.code == "image.registry" and "manifest unknown" in caught.value.message


@pytest.mark.parametrize("shape", ["docker", "plain", "index", "no layers"])
def test_every_usual_shape_of_an_image(there: Depot, cache: Path, shape: str) -> None:
    content = layer(entry("etc", kind=DIRECTORY), entry("etc/x", shape.encode(), mode=0o644))
    if shape == "index":
        mine, other = image(content), image(layer(entry("wrong")), machine="s390x")
        for one in (mine, other):
            there.put("many", one)
        reference = there.put("many", index(("s390x", other), (registry.machine(), mine)))
    elif shape == "no layers":
        reference = there.put("none", image())
    else:
        reference = there.put(shape, image(content, docker=shape == "docker", zipped=shape != "plain"))
    found = pull(reference)
    assert found.digest == reference.rpartition("@")[2] and found.platform == f"linux/{registry.machine()}"
    assert shape == "no layers" or (tree(reference) / "etc/x").read_text() == shape


def test_an_image_for_another_machine_is_refused_by_name(there: Depot, cache: Path) -> None:
    other = image(layer(entry("x")), machine="s390x")
    alone = there.put("other", other)
    for reference in (alone, there.put("others", index(("s390x", other))) if there.put("others", other) else ""):
        with pytest.raises(StockadeError, match="linux/s390x") as caught:
            pull(reference)
        assert caught.value.code == "image.platform" and left(cache) == []


def test_layers_are_kept_once_and_go_with_the_last_image_that_has_them(there: Depot, cache: Path) -> None:
    shared, own = layer(entry("shared", b"s" * 9000)), layer(entry("own", b"o"))
    first, second = there.put("one", image(shared)), there.put("two", image(shared, own))
    pull(first)
    before = there.log.read_text().count("/blobs/")
    found = pull(second)
    assert there.log.read_text().count("/blobs/") - before <= 4  # its configuration twice, one layer: not the shared one
    stored = cache / "store/blobs/sha256"
    images.remove(images.find(first))
    assert {f"sha256:{path.name}" for path in stored.iterdir()} == set(found.blobs) and not tree(first).exists()
    images.remove(images.find(second))
    assert list(stored.iterdir()) == [] and left(cache) == []


def test_a_record_that_is_not_ours_stops_a_session_and_is_mended_by_a_pull(small: str, cache: Path) -> None:
    pull(small)
    for content in ("", "[]", "{}", '{"version": 1, "names": 7}', '{"version": 1, "who": 1}'):
        (tree(small).parent / "image.json").write_text(content)
        with pytest.raises(Tampered) as caught:
            images.hold(small)
        assert caught.value.code == "image.unreadable" and "stockade image pull" in caught.value.hint and list(images.images()) == []
    assert pull(small).references == (small,)
    images.hold(small).close()


def test_what_a_session_holds_is_not_removed(small: str, cache: Path) -> None:
    pull(small)
    held = images.hold(small)
    assert held.environment == {"A": "b"} and held.tree == str(tree(small))
    with pytest.raises(StockadeError) as caught:
        images.remove(images.find(small))
    assert caught.value.code == "image.in-use" and tree(small).exists()
    held.close()
    images.remove(images.find(small))
    with pytest.raises(CannotEnforce) as missing:
        images.hold(small)
    assert missing.value.code == "image.missing" and f"stockade image pull {small}" in missing.value.hint


def test_credentials_come_from_the_named_file_alone(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "htpasswd").write_text("ada:$2b$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n")  # "open sesame"
    secret = "YWRhOm9wZW4gc2VzYW1l"
    with depot(tmp_path, f"auth: {{htpasswd: {{realm: r, path: {tmp_path}/htpasswd}}}}\n") as private:
        private.headers["Authorization"] = f"Basic {secret}"
        reference = private.put("private", image(layer(entry("x", b"y"))))
        auth = json.dumps({"auths": {private.address: {"auth": secret}}})
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker/config.json").write_text(auth)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(StockadeError) as caught:
            pull(reference)
        assert caught.value.code == "image.registry" and "--authfile" in caught.value.hint
        (tmp_path / "auth.json").write_text(auth)
        assert pull(reference, authfile=str(tmp_path / "auth.json")).files == 1


def test_without_the_programs_the_error_says_how_to_get_them(small: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "UMOCI", "/usr/bin/no-such-umoci")
    with pytest.raises(CannotEnforce) as caught:
        pull(small)
    assert caught.value.code == "image.tools" and "apt install no-such-umoci" in caught.value.hint


# ---- lies ---------------------------------------------------------------------------------------------------------------------------


class Liar(http.server.ThreadingHTTPServer):
    """In front of a registry; what is asked for under a path that holds `what` comes changed."""

    daemon_threads = True

    def __init__(self, behind: str, what: str, change: Callable[[bytes], bytes]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with closing(http.client.HTTPConnection(behind, timeout=20)) as connection:
                    connection.request("GET", self.path, headers={"Accept": ", ".join(self.headers.get_all("Accept") or ["*/*"])})
                    answer = connection.getresponse()
                    body = answer.read()
                if what in self.path:
                    body = change(body)
                self.send_response(answer.status)
                for name in ("Content-Type", "Docker-Content-Digest", "Docker-Distribution-Api-Version"):
                    if answer.headers[name]:
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(OSError):  # whoever has heard enough leaves
                    self.wfile.write(body if self.command == "GET" else b"")

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.mark.parametrize("what", ["nothing", "/manifests/", "configuration", "layer", "longer", "endless"])
def test_a_registry_that_lies_is_found_out(there: Depot, cache: Path, what: str) -> None:
    made = image(layer(entry("x", os.urandom(3000))))
    reference = there.put("lied", made)
    blob = {"configuration": made.blobs[0], "layer": made.blobs[1], "longer": made.blobs[1], "endless": made.blobs[1]}.get(what)
    change = {
        "longer": lambda body: body + b"\0" * 9999,
        "endless": lambda body: body + bytes(32 << 20),
    }.get(what, lambda body: body[:-9] + b"x" + body[-8:])
    with Liar(there.address, digest(blob)[7:] if blob else what, change) as liar:
        asked = f"127.0.0.1:{liar.server_address[1]}/lied@{made.digest}"
        if what == "nothing":
            assert pull(asked).digest == made.digest
        else:
            with pytest.raises(StockadeError) as caught:
                pull(asked)
            assert caught.value.code in ("image.registry", "image.digest") and left(cache) == []
            assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < pulling.LONGEST
        liar.shutdown()
    assert pull(reference).digest == made.digest


def test_a_layer_that_was_changed_in_the_store_is_fetched_again(there: Depot, cache: Path) -> None:
    made = image(layer(entry("x", b"right")))
    reference = there.put("stored", made)
    stored = cache / f"store/blobs/sha256/{digest(made.blobs[1])[7:]}"
    stored.parent.mkdir(parents=True, mode=0o700)
    stored.write_bytes(made.blobs[1][:-1] + b"!")
    with pytest.raises(StockadeError) as caught:
        pull(reference)
    assert caught.value.code == "image.digest" and left(cache) == [] and not stored.exists()
    assert pull(reference).files == 1


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": "sha256:" + "0" * 64, "size": 1}]},
        {"config": {"mediaType": "application/vnd.example.helm+json", "digest": "sha256:" + "0" * 64, "size": 1}},
        {"mediaType": "application/vnd.example.thing+json"},
    ],
    ids=["a layer of another kind", "a configuration of another kind", "something else"],
)
def test_what_is_no_image_is_refused(there: Depot, cache: Path, change: dict[str, object]) -> None:
    raw = json.dumps({**json.loads(image(layer(entry("x"))).manifest), **change}).encode()
    with Liar(there.address, "/manifests/", lambda _: raw) as liar:
        there.put("thing", image(layer(entry("x"))))
        with pytest.raises(StockadeError) as caught:
            pull(f"127.0.0.1:{liar.server_address[1]}/thing")
        assert caught.value.code in ("image.kind", "image.registry") and left(cache) == []
        liar.shutdown()


# ---- hostile layers -----------------------------------------------------------------------------------------------------------------


def far(path: Path) -> str:
    return "../" * 30 + str(path).lstrip("/")


def hostile(outside: Path) -> dict[str, list[bytes]]:
    """Layers by what they try on `outside`, which holds a file `kept`."""
    link = entry("out", kind=LINK, link=str(outside))
    up = entry("out", kind=LINK, link=far(outside))
    return {
        "a name with ..": [layer(entry(far(outside / "new"), b"x"))],
        "a name with .. in it": [layer(entry("a", kind=DIRECTORY), entry(f"a/{far(outside / 'new')}", b"x"))],
        "an absolute name": [layer(entry(str(outside / "new"), b"x"))],
        "through an absolute link": [layer(link, entry("out/new", b"x"))],
        "through a link with ..": [layer(up, entry("out/new", b"x"))],
        "through a link of a lower layer": [layer(link), layer(entry("out/new", b"x"))],
        "over a link to a file": [layer(entry("out", kind=LINK, link=str(outside / "kept"))), layer(entry("out", b"x"))],
        "through a chain of links": [
            layer(entry("a", kind=LINK, link="b"), entry("b", kind=LINK, link=str(outside)), entry("a/new", b"x"))
        ],
        "a hard link out": [layer(entry("h", kind=HARD, link=str(outside / "kept")), entry("h", b"x"))],
        "a hard link out with ..": [layer(entry("h", kind=HARD, link=far(outside / "kept")), entry("h", b"x"))],
        "a hard link through a link": [layer(link, entry("h", kind=HARD, link="out/kept"), entry("h", b"x"))],
        "a whiteout through a link": [layer(link), layer(entry("out/.wh.kept"))],
        "an opaque whiteout through a link": [layer(link), layer(entry("out/.wh..wh..opq"))],
        "a whiteout with ..": [layer(entry("x")), layer(entry(f"{far(outside)}/.wh.kept"))],
        "a whiteout of ..": [layer(entry("x")), layer(entry(".wh..."), entry(".wh.."), entry(".wh."))],
        "modes through a link": [layer(link), layer(entry("out", kind=DIRECTORY, mode=0o777))],
        "the root as a link": [layer(entry(".", kind=LINK, link=str(outside)), entry("new", b"x"))],
        "the root as a link, /.": [layer(entry("/.", kind=LINK, link=str(outside)), entry("new", b"x"))],
    }


CASES = list(hostile(Path("/")))
# With these a plain tar writes outside: they do attack something.
REACHES = ("a name with ..", "an absolute name", "through an absolute link", "through a link with ..", "through a chain of links")


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_layer_reaches_nothing_outside(there: Depot, cache: Path, tmp_path: Path, case: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "kept").write_text("kept")
    if case in REACHES:
        control = tmp_path / "control"
        control.mkdir()
        for one in hostile(outside)[case]:
            with tarfile.open(fileobj=io.BytesIO(one)) as archive:
                archive.extractall(control, filter="fully_trusted")
        assert (outside / "new").read_text() == "x"
        (outside / "new").unlink()
    made = image(*hostile(outside)[case], layer(entry("benign", b"fine", mode=0o644)))
    reference = there.put("hostile", made)
    try:
        pull(reference)
    except StockadeError as error:
        assert error.code == "image.unpack" and left(cache) == []
    else:
        assert (tree(reference) / "benign").read_text() == "fine"
    assert [path.name for path in outside.iterdir()] == ["kept"] and (outside / "kept").read_text() == "kept"
    assert (outside / "kept").stat().st_nlink == 1 and stat.S_IMODE(outside.stat().st_mode) == 0o750


CAPABLE = bytes.fromhex("0100000200200000000000000000000000000000").decode("utf-8", "surrogateescape")  # cap_net_raw+ep


def test_no_device_nor_set_id_bit_lies_on_the_host(there: Depot, cache: Path) -> None:
    nodes = [
        entry(name, kind=kind, devmajor=1, devminor=3, mode=0o666)
        for name, kind in (("null", tarfile.CHRTYPE), ("disk", tarfile.BLKTYPE), ("pipe", tarfile.FIFOTYPE))
    ]
    capable = entry("capable", b"x")
    capable[0].pax_headers = {"SCHILY.xattr.security.capability": CAPABLE, "SCHILY.xattr.user.overlay.opaque": "y"}
    reference = there.put(
        "odd",
        image(
            layer(
                *nodes, entry("su", b"#!", mode=0o6755), entry("shared", kind=DIRECTORY, mode=0o3777), entry("closed", kind=DIRECTORY, mode=0), capable,
                entry("closed/inside", b"x", mode=0), entry("owned", b"x", uid=1234, gid=1234, mode=0o640), entry("twice", b"1"), entry("twice", b"22"),
                entry("new\nline", b"x"), entry("\u00e4\U0001f600", b"x"),
            )
        ),
    )  # fmt: skip
    found = pull(reference)
    modes = {path.relative_to(tree(reference)): path.lstat().st_mode for path in tree(reference).rglob("*")}
    assert all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in modes.values()) and len(modes) == found.files
    assert not any(mode & 0o6000 for mode in modes.values()) and modes[Path("su")] & 0o777 == 0o755 and modes[Path("shared")] & stat.S_ISVTX
    assert (tree(reference) / "twice").read_text() == "22" and (tree(reference) / "owned").stat().st_uid == os.geteuid()
    assert not os.listxattr(tree(reference) / "capable") and not os.listxattr(tree(reference) / "owned")
    images.remove(images.find(reference))  # whatever its modes are
    assert left(cache) == []


def test_whiteouts_hide_what_lower_layers_have_and_nothing_else(there: Depot, cache: Path) -> None:
    below = layer(*(entry(name, kind=DIRECTORY) for name in ("a", "b")), *(entry(name, b"x") for name in ("a/one", "a/two", "b/one", "c")))
    above = layer(entry("a/.wh.one"), entry("b/.wh..wh..opq"), entry("b/new", b"y"), entry(".wh.c"))
    reference = there.put("white", image(below, above))
    pull(reference)
    assert sorted(str(path.relative_to(tree(reference))) for path in tree(reference).rglob("*")) == ["a", "a/two", "b", "b/new"]


def sparse(size: int) -> bytes:
    """A file that says to be so large and has one byte (GNU tar's sparse format 1.0, tar(5))."""
    info, content = entry("hole", f"1\n{size - 1}\n1\n".encode().ljust(512, b"\0") + b"x", mode=0o644)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole", "GNU.sparse.realsize": str(size)}
    return layer((info, content))


@pytest.mark.parametrize("bomb", ["one file", "many files", "many names", "a hole", "announced"])
def test_an_image_that_is_too_large_is_stopped(there: Depot, cache: Path, monkeypatch: pytest.MonkeyPatch, bomb: str) -> None:
    monkeypatch.setattr(pulling, "MOST_FILES", 500)
    zeros = bytes(3 << 20)
    made = {
        "one file": lambda: image(layer(entry("zeros", bytes(64 << 20)))),
        "many files": lambda: image(layer(*(entry(str(number), zeros) for number in range(40)))),
        "many names": lambda: image(layer(*(entry(str(number)) for number in range(2000)))),
        "a hole": lambda: image(sparse(1 << 40)),
        "announced": lambda: announced(1 << 40),
    }[bomb]()
    reference = there.put("bomb", made) if bomb != "announced" else ""
    if bomb == "announced":
        there.put("bomb", image(layer(entry("x"))))
        with Liar(there.address, "/manifests/", lambda _: made.manifest) as liar, pytest.raises(StockadeError) as caught:
            pull(f"127.0.0.1:{liar.server_address[1]}/bomb", most=16 << 20)
    else:
        with pytest.raises(StockadeError) as caught:
            pull(reference, most=16 << 20)
    assert caught.value.code in ("image.size", *(["image.unpack"] if bomb == "a hole" else [])) and left(cache) == []
    if bomb == "many files":
        assert pull(reference, most=1 << 30).size >= 40 * len(zeros)


def announced(size: int) -> Made:
    """An image whose layer says to be so large."""
    made = image(layer(entry("x")))
    manifest = json.loads(made.manifest)
    manifest["layers"][0]["size"] = size
    return Made(made.blobs, json.dumps(manifest).encode(), made.kind)


# ---- programs that were taken over ----------------------------------------------------------------------------------------------------


def taken_over(cache: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """What a registry that has found a hole in skopeo makes of it: it does its work, and `then` besides, where it was put."""
    (cache / "store").mkdir(parents=True, mode=0o700)
    (cache / "store/skopeo").write_text(f'#!/bin/sh\n/usr/bin/skopeo "$@" || exit\ncd /store\n{then}\n')
    (cache / "store/skopeo").chmod(0o755)
    monkeypatch.setattr(pulling, "require", lambda: None)
    monkeypatch.setattr(pulling, "SKOPEO", "/store/skopeo")


PLANTS = {
    "nothing": ":",
    "where an answer is kept": "for pull in pull-*; do ln -sf OUTSIDE/kept $pull/asked; done",
    "where the layout is made": "for pull in pull-*; do ln -sfn OUTSIDE $pull/image; done",
    "where layers are fetched to": "for pull in pull-*; do [ -e $pull/layout ] || ln -s OUTSIDE $pull/layout; done",
    "where layers are kept": "rm -r blobs; ln -s OUTSIDE blobs",
    "where layers are kept, below": "rm -r blobs/sha256; ln -s OUTSIDE blobs/sha256",
    "the folder of this pull": "for pull in pull-*; do rm -r $pull; ln -s OUTSIDE $pull; done",
    "a folder for a layer": "mkdir -p blobs/sha256/more/below",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_links_of_a_fetcher_that_was_taken_over_lead_nowhere(
    there: Depot, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (outside / "sha256").mkdir()
    (outside / "sha256/kept").write_text("kept")
    reference = there.put("taken", image(layer(entry("x", b"fine", mode=0o644))))
    with monkeypatch.context() as changed:
        taken_over(cache, changed, PLANTS[plant].replace("OUTSIDE", str(outside)))
        try:
            pull(reference)
        except StockadeError as error:
            assert plant != "nothing" and error.code in ("image.registry", "image.digest")
        else:
            assert (tree(reference) / "x").read_text() == "fine"
    assert pull(reference).files == 1 and (tree(reference) / "x").read_text() == "fine"
    images.remove(images.find(reference))
    assert left(cache) == ["store/skopeo"] and list((cache / "store/blobs/sha256").iterdir()) == []
    found = {str(path.relative_to(outside)): path.read_text() for path in outside.rglob("*") if path.is_file()}
    assert found == {"kept": "kept", "sha256/kept": "kept"} and sorted(path.name for path in outside.iterdir()) == ["kept", "sha256"]


@pytest.mark.parametrize(
    "then", ["true", "mv /out/tree /out/old && ln -s OUTSIDE /out/tree", "rm -r /out/tree", "echo > /out/more", "mkdir /out/image.json"]
)
def test_what_an_unpacker_leaves_beside_the_tree_or_for_it_is_no_image(
    there: Depot, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    (tmp_path / "kept").write_text("kept")
    reference = there.put("taken", image(layer(entry("x", b"fine", mode=0o644))))
    monkeypatch.setattr(pulling, "_UNPACK", f"{pulling._UNPACK} && {then.replace('OUTSIDE', str(tmp_path))}")
    if then == "true":
        pull(reference)
        assert (tree(reference) / "x").read_text() == "fine"
        return
    with pytest.raises(StockadeError) as caught:
        pull(reference)
    assert caught.value.code == "image.unpack" and left(cache) == [] and (tmp_path / "kept").read_text() == "kept"


# ---- what a registry says ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_variables_that_could_not_be_read_again_are_refused_before_anything_is_kept(there: Depot, cache: Path, size: int) -> None:
    made = image(layer(entry("x")))
    about = json.dumps(
        {**json.loads(made.blobs[0]), "config": {"Env": ["A=" + "\x01" * 9, "B=" + "\u00e4" * (size // 2)]}}, ensure_ascii=False
    ).encode()
    manifest = json.loads(made.manifest)
    manifest["config"] |= {"digest": digest(about), "size": len(about)}
    reference = there.put("wordy", Made([about, made.blobs[1]], json.dumps(manifest).encode(), made.kind))
    if size == 1000:
        pull(reference)
        images.hold(reference).close()
        return
    with pytest.raises(StockadeError) as caught:
        pull(reference)
    assert caught.value.code == "image.kind" and left(cache) == []


@pytest.mark.parametrize("silent", [False, True])
def test_a_registry_that_falls_silent_is_left(there: Depot, cache: Path, monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    made = image(layer(entry("x", os.urandom(3000))))
    there.put("silent", made)
    monkeypatch.setattr(pulling, "SILENCE", 2.0)
    ended = threading.Event()

    def change(body: bytes) -> bytes:
        if silent:
            ended.wait(60)
        return body

    with Liar(there.address, digest(made.blobs[1])[7:], change) as liar:
        asked = f"127.0.0.1:{liar.server_address[1]}/silent@{made.digest}"
        if silent:
            with pytest.raises(StockadeError, match="nothing came") as caught:
                pull(asked)
            assert caught.value.code == "image.registry" and left(cache) == [] and not ended.is_set()
        else:
            assert pull(asked).files == 1
        ended.set()
        liar.shutdown()


# ---- ends at any moment, and several at once ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(there: Depot) -> str:
    return there.put("large", image(busybox(), layer(*(entry(f"f{number}", os.urandom(20000)) for number in range(400)))))


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*STOCKADE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("moment", [0.3, 0.8, "any", "unpacking"])
def test_a_pull_that_is_killed_leaves_nothing_that_looks_whole(large: str, cache: Path, moment: float | str) -> None:
    name = large.rpartition("@")[2][7:]
    with adopting():
        run = start("pull", large)
        if moment == "unpacking":
            assert until(lambda: run.poll() is not None or any("umoci" in line for line in offspring().values()), 30)
        else:
            time.sleep(random.uniform(0.1, 1.2) if moment == "any" else float(moment))
        run.kill()
        run.communicate()
        assert until(lambda: not [line for line in offspring().values() if "docker-registry" not in line], 20), offspring()
    if (cache / "roots" / name).exists():
        assert len(list(tree(large).iterdir())) == 402  # it was faster
    else:
        with pytest.raises(CannotEnforce):
            images.hold(large)
    assert pull(large).files > 400
    assert left(cache) == [f"roots/{name}"]


def test_two_at_once_are_one(large: str, cache: Path) -> None:
    both = [start("pull", large, "--json") for _ in range(2)]
    said = [json.loads(run.communicate(timeout=60)[0]) for run in both]
    assert [run.returncode for run in both] == [0, 0] and said[0] == said[1] and said[0]["reference"] == large
    assert len(list(images.images())) == 1 and len(left(cache)) == 1


def test_an_interrupt_ends_it_cleanly(large: str, cache: Path) -> None:
    run = start("pull", large)
    assert until(lambda: (cache / "store").exists() and any(path.name.startswith("pull-") for path in (cache / "store").iterdir()), 20)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=20)
    assert run.returncode == 130 and "Traceback" not in err and left(cache) == []


# ---- the command line -----------------------------------------------------------------------------------------------------------------


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STOCKADE, *words], capture_output=True, text=True, timeout=60)


def test_the_commands(there: Depot, small: str, cache: Path) -> None:
    name, _, hexes = small.partition("@sha256:")
    assert ask("list").stdout.startswith("No image is here") and json.loads(ask("list", "--json").stdout) == []
    done = ask("pull", f"{name}:1.0")
    assert (done.returncode, done.stdout) == (0, f'[root]\nimage = "{small}"\n') and "\r" not in done.stderr
    assert small.partition("@")[0] in ask("list").stdout and hexes[:12] in ask("list").stdout
    for word in (small, name, hexes[:8], f"sha256:{hexes}"):
        assert json.loads(ask("show", word, "--json").stdout)["references"] == [small]
    assert "A=b" in ask("show", name).stdout
    assert ask("show", "nothing").returncode == 125 and json.loads(ask("show", "nothing", "--json").stderr)["error"] == "image.unknown"
    assert ask("remove", name).stdout == f"Removed {small}\n" and json.loads(ask("list", "--json").stdout) == []
    for wrong in ("debian", "debian:12", "--x/y", "registry.example.com/A", f"{there.address}/small@sha256:12"):
        done = ask("pull", "--json", "--", wrong)
        assert done.returncode == 125 and json.loads(done.stderr)["error"] == "image.reference", wrong
    assert json.loads(ask("pull", small, "--max-size", "large", "--json").stderr)["error"] == "cli.usage"
    assert json.loads(ask("pull", small, "--authfile", "/nowhere", "--json").stderr)["error"] == "image.authfile"


def test_progress_is_for_terminals(large: str, cache: Path) -> None:
    import pty

    pid, master = pty.fork()
    if pid == 0:
        os.execv(STOCKADE[0], [*STOCKADE, "pull", large])
    said = b""
    try:
        while piece := os.read(master, 4096):
            said += piece
    except OSError:
        pass
    assert os.waitpid(pid, 0)[1] == 0 and b"unpacking" in said and b"MiB" in said and large.encode() in said


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from stockade.walls import probe_gvisor

    if not probe_gvisor.images().ok:
        unavailable("images", probe_gvisor.images().seen)
    monkeypatch.setattr(pulling, "SKOPEO", "/usr/bin/no-such-skopeo")
    found = probe_gvisor.images()
    assert (found.status, found.packages) == ("degraded", ("no-such-skopeo",)) and "apt install" in found.fix
