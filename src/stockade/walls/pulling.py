"""Pulling an image: skopeo fetches it and umoci unpacks it, each in a box of the bubblewrap wall, and what they made is checked against the digest that was asked for.

skopeo has the network, and of the host its store, the trusted roots and an authentication file if one is named. umoci has no network, reads the store and writes
one new directory. Neither is trusted: which layers there are is read from a manifest whose digest was compared here, and so is each layer before it is
unpacked. Formats: OCI image specification 1.1 ("Image Manifest", "Image Index"), Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from stockade.core.errors import CannotEnforce, StockadeError, Tampered
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Limits, Mount
from stockade.walls import bubblewrap, images, seccomp
from stockade.walls.images import LONGEST, Image
from stockade.walls.programs import printable
from stockade.walls.registry import INDEX, Part, Reference, decoded, described, digest_of, instance_for, kind_of, layout, machine, parts_of
from stockade.walls.workspace.cleanup import discard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Progress = Callable[[str, int, int], None]  # what is done, and how many bytes of how many (0: not known)

SKOPEO, UMOCI = "/usr/bin/skopeo", "/usr/bin/umoci"
MOST, MOST_FILES = 10 << 30, 1_000_000  # bytes and files of an image, unless told otherwise
SILENCE = 300.0  # seconds without a byte, after which a registry is left; as many as a slow disk may take for a layer that has come
TICK = 0.1  # seconds between two looks at what a program has made
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
# In the box of umoci, which has nothing but the one new directory to write to. What a guest has no use for must not lie on the host either: set-user-ID
# bits, anything but files, folders and links; and a folder that its owner cannot enter could not be removed.
_UNPACK = r"""umoci raw unpack --rootless --image /image:x /out/tree &&
find /out/tree -xdev -type d ! -perm -u=rwx -exec chmod u+rwx {} \; &&
find /out/tree -xdev \( -type b -o -type c -o -type p -o -type s \) -delete &&
find /out/tree -xdev \( -type f -o -type d \) -perm /6000 -exec chmod a-s {} + &&
sync -f /out"""


def require() -> None:
    """Raises CannotEnforce (`image.tools`) where a program is missing."""
    lacking = [os.path.basename(path) for path in (SKOPEO, UMOCI) if not os.access(path, os.X_OK)]
    if lacking:
        raise CannotEnforce(
            f"pulling images needs {' and '.join(lacking)}",
            code="image.tools",
            hint=f"Debian: sudo apt install {' '.join(lacking)}   (or: stockade doctor --wall gvisor --fix)",
        )


def pull(wanted: Reference, *, authfile: str = "", most: int = MOST, progress: Progress = lambda *_: None) -> Image:
    """Pull an image, unless it is here. Nothing is left of it if that fails or is killed, and layers that were fetched whole are used again.

    Raises StockadeError: `image.tools`, `image.registry`, `image.digest`, `image.kind`, `image.platform`, `image.size`, `image.unpack`; and OSError.
    """
    require()
    progress("waiting for another pull", 0, 0)
    lock = images.lock()
    try:
        images.make()
        images.sweep()  # what was killed has left
        here = _here(wanted, wanted.digest)
        if here is not None:
            return here
        folder = images.place(f"store/pull-{os.urandom(4).hex()}")
        os.mkdir(folder, 0o700)
        try:
            return _Pull(wanted, folder, authfile, most, progress).run()
        finally:
            discard(folder)
    finally:
        os.close(lock)


def _here(wanted: Reference, digest: str) -> Image | None:
    """The image if it is here already; it has this name too from now on. The lock is held."""
    if not digest:
        return None
    path = f"{images.root_of(digest)}/image.json"
    try:
        found = Image.read(path)
    except FileNotFoundError:
        return None
    except Tampered:  # nobody can use it as it is
        discard(os.path.dirname(path))
        return None
    if wanted.name not in found.names:
        found = replace(found, names=(*found.names, wanted.name))
        found.write(path)
    return found


class _Pull:
    def __init__(self, wanted: Reference, folder: str, authfile: str, most: int, progress: Progress) -> None:
        self._wanted, self._folder, self._most, self._progress = wanted, folder, most, progress
        self._auth = authfile

    def run(self) -> Image:
        wanted = self._wanted
        self._progress(f"asking {wanted.registry}", 0, 0)
        raw = self._asked(str(wanted), wanted.digest)
        digest = wanted.digest or digest_of(raw)
        here = _here(wanted, digest)
        if here is not None:
            return here
        manifest, instance, where = decoded(raw, "manifest"), digest, f"linux/{machine()}"
        if kind_of(manifest) in INDEX:
            instance = instance_for(manifest, where)
            manifest = decoded(self._asked(f"{wanted.name}@{instance}", instance), "manifest")
        configuration, layers = parts_of(manifest)
        if sum(layer.size for layer in layers) > self._most:
            raise _too_large(self._most)
        name = f"{wanted.name}@{instance}"
        about = self._asked(name, configuration.digest, "--config")
        facts = decoded(about, "configuration")
        found = f"{facts.get('os', 'linux')}/{facts.get('architecture', machine())}"
        if found != where:
            raise StockadeError(
                f"{wanted} is for {found[:100]}, and this machine is {where}", code="image.platform", hint="Pull another one."
            )
        self._fetch(name, layers)
        self._progress("checking digests", 0, 0)
        for layer in layers:
            _check(layer)
        fresh = images.place(f"roots/.new-{os.urandom(4).hex()}")
        os.mkdir(fresh, 0o700)
        try:
            size, files = self._unpack(about, layers, fresh)
            blobs = tuple(dict.fromkeys(layer.digest for layer in layers))
            image = described(facts.get("config"), (wanted.name,), digest, instance, where, blobs, size, files)
            image.write(f"{fresh}/image.json")
            os.rename(fresh, images.root_of(digest))
        except BaseException:
            discard(fresh)
            raise
        return image

    def _asked(self, name: str, digest: str, *what: str) -> bytes:
        """The manifest of an image, or (`--config`) its configuration, as the registry has it. Raises StockadeError (`image.registry`, `image.digest`)."""
        with open(os.memfd_create("asked", os.MFD_CLOEXEC), "rb") as file:  # under no name, which skopeo could make a link
            words = ["--command-timeout", "120s", "inspect", "--raw", *what, *self._options(""), f"docker://{name}"]
            self._skopeo(words, LONGEST, file.fileno())
            raw = os.pread(file.fileno(), LONGEST, 0)
        if digest and digest_of(raw) != digest:
            raise _lie(f"what the registry sends for {digest} of {name}")
        return raw

    def _fetch(self, name: str, parts: Sequence[Part]) -> None:
        """Every part that is not in the store. Raises StockadeError (`image.registry`)."""
        wanted = [part for part in parts if not os.path.exists(_path(part.digest))]
        total = sum(part.size for part in wanted)

        folder = f"{self._folder}/layout-{os.urandom(4).hex()}"
        known, since = -1, time.monotonic()

        def look() -> None:
            nonlocal known, since
            whole = sum(part.size for part in wanted if os.path.exists(_path(part.digest)))
            begun = 0
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):  # what is renamed just now is counted next time
                        begun += entry.stat().st_size if entry.is_file(follow_symlinks=False) else 0
            self._progress("fetching", min(total, whole + begun), total)
            if whole + begun != known:
                known, since = whole + begun, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                hint = "Pull it again: what has come whole is kept."
                raise StockadeError(f"nothing came from {self._wanted.registry} for {SILENCE:g} s", code="image.registry", hint=hint)

        os.mkdir(folder, 0o700)
        inside = f"/store/{os.path.basename(self._folder)}/{os.path.basename(folder)}"
        words = [
            "copy",
            "--quiet",
            *self._options("src-"),
            "--dest-oci-accept-uncompressed-layers",
            "--dest-shared-blob-dir",
            "/store/blobs",
        ]
        largest = max([LONGEST, *(part.size for part in parts)])
        self._skopeo([*words, f"docker://{name}", f"oci:{inside}:x"], largest, -1, look)
        for part in parts:
            if not os.path.exists(_path(part.digest)):
                raise StockadeError(
                    f"skopeo brought no {part.digest}, which {name} consists of", code="image.registry", hint="Pull it again."
                )

    def _options(self, side: str) -> list[str]:
        found = [f"--{side}tls-verify=false"] if self._wanted.loopback else []
        return [*found, *(["--authfile", "/auth.json"] if self._auth else ["--no-creds" if not side else "--src-no-creds"])]

    def _skopeo(self, words: Sequence[str], largest: int, stdout: int, look: Callable[[], None] = lambda: None) -> None:
        mounts = [Mount(images.place("store"), "/store", "rw")]
        for source, target in (
            (os.environ.get("SSL_CERT_FILE") or CERTIFICATES, CERTIFICATES),
            ("/etc/resolv.conf", "/etc/resolv.conf"),
            ("/etc/hosts", "/etc/hosts"),
            (self._auth, "/auth.json"),
        ):
            if source and (os.path.exists(source) or source == self._auth):
                mounts.append(Mount(os.path.realpath(source), target))
        environment = {name: os.environ[name] for name in PROXIES if name in os.environ} | {
            "TMPDIR": "/store/" + os.path.basename(self._folder)
        }
        box = _Box(mounts, largest, network=True)
        status, said = box.run([SKOPEO, "--insecure-policy", *words], environment, stdout, look)
        if not all(map(images.real, (self._folder, *images.layers()))):  # we write there next
            hint = "Nothing of it was kept. Tell whoever looks after this machine: skopeo does not do this by itself."
            raise StockadeError("skopeo has put something else in the place of the store's folders", code="image.registry", hint=hint)
        if status:
            hint = "Look at the name, the tag and the network."
            if re.search("unauthorized|denied|authentication required", said):
                hint = "It may be private: --authfile FILE names a file as `skopeo login --authfile FILE` writes it."
            raise StockadeError(f"cannot get {self._wanted}: {_last(said) or f'skopeo: status {status}'}", code="image.registry", hint=hint)

    def _unpack(self, about: bytes, layers: Sequence[Part], fresh: str) -> tuple[int, int]:
        """Unpack into `fresh`/tree; how many bytes and files that makes. Raises StockadeError (`image.unpack`, `image.size`)."""
        around = f"{self._folder}/image-{os.urandom(4).hex()}"  # what skopeo wrote around the parts is not used
        mounts = [Mount(around, "/image"), Mount(fresh, "/out", "rw")]
        os.makedirs(f"{around}/blobs/sha256")
        for name, content in layout(about, layers).items():
            with open(f"{around}/{name}", "wb") as file:
                file.write(content)
        for digest in {layer.digest for layer in layers}:
            place = f"blobs/sha256/{digest[7:]}"
            os.close(os.open(f"{around}/{place}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            mounts.append(Mount(_path(digest), f"/image/{place}"))
        used, looked = (0, 0), 0.0

        def look() -> None:
            nonlocal used, looked
            began = time.monotonic()
            if began < looked:
                return
            size, files = usage(fresh)
            used = size, files - 1  # the tree itself
            looked = time.monotonic() + 4 * (time.monotonic() - began)  # a fifth of the time at most
            self._progress("unpacking", used[0], 0)
            if used[0] > self._most or used[1] > MOST_FILES:
                raise _too_large(self._most)

        status, said = _Box(mounts, self._most, network=False).run(["/bin/sh", "-c", _UNPACK], {"TMPDIR": "/tmp"}, -1, look)
        if "file too large" in said:  # RLIMIT_FSIZE
            raise _too_large(self._most)
        if status:
            raise StockadeError(
                f"cannot unpack {self._wanted}: {_last(said) or f'umoci: status {status}'}",
                code="image.unpack",
                hint="Nothing of it was kept.",
            )
        if os.listdir(fresh) != ["tree"] or not images.real(f"{fresh}/tree"):  # a link there would be a guest's root
            raise StockadeError(
                f"unpacking {self._wanted} has left something else than its files", code="image.unpack", hint="Nothing of it was kept."
            )
        looked = 0.0
        look()
        return used


class _Box:
    """One program of the host's in a box of the bubblewrap wall."""

    def __init__(self, mounts: Sequence[Mount], largest: int, *, network: bool) -> None:
        wanted = Confinement(
            mounts=tuple(mounts), limits=Limits(processes=0, memory=4 << 30, file_size=largest, scratch=1 << 30), home="/home/user"
        )
        plan = bubblewrap.plan(wanted, bubblewrap.look(wanted.home), dangerously_share_host_network=network)
        self._box = bubblewrap.open_box(plan, filters=seccomp.filters if network else seccomp.unpacking_filters)

    def run(self, words: Sequence[str], environment: dict[str, str], stdout: int, look: Callable[[], None]) -> tuple[int, str]:
        """Run it to its end, calling `look` meanwhile: (status, what it said). If `look` raises, it is ended."""
        said = os.memfd_create("said", os.MFD_CLOEXEC)
        box = self._box
        try:
            environment = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": "/home/user", "LANG": "C.UTF-8", **environment}
            child = box.spawn(words, env=environment, cwd="/tmp", stdout=stdout if stdout >= 0 else said, stderr=said)
            poll = select.poll()
            poll.register(box.fileno(), select.POLLIN)
            while child.status is None and not child.error:
                if poll.poll(TICK * 1000):
                    box.step()
                else:
                    look()
            size = os.fstat(said).st_size
            return child.exit_code, printable(os.pread(said, 4000, max(0, size - 4000)))
        finally:
            box.close()
            os.close(said)


# ---- the store ------------------------------------------------------------------------------------------------------------------------


def _path(digest: str) -> str:
    return images.place(f"store/blobs/sha256/{digest[7:]}")


def _check(part: Part) -> None:
    """What is in the store has the digest that it is called by; what has not is removed. Raises StockadeError (`image.digest`)."""
    try:
        with open(os.open(_path(part.digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            whole = os.fstat(file.fileno()).st_size == part.size and hashlib.file_digest(file, "sha256").hexdigest() == part.digest[7:]
    except OSError:
        whole = False
    if not whole:
        path = _path(part.digest)
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        raise _lie(part.digest)


def usage(folder: str) -> tuple[int, int]:
    """What a tree takes while it is made: (bytes on the disk, files). Links are not followed; what vanishes meanwhile counts as nothing.

    Raises StockadeError (`image.unpack`) for what cannot be looked at: nothing grows unseen.
    """
    size = files = 0
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(_readable(path)) as found:
                for entry in found:
                    status = entry.stat(follow_symlinks=False)
                    size, files = size + status.st_blocks * 512, files + 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{path}/{entry.name}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # names that are too long together
            hint = "Nothing of it was kept."
            raise StockadeError(f"what it unpacks to cannot be looked at: {error.strerror}", code="image.unpack", hint=hint) from error
    return size, files


def _readable(path: str) -> str:
    """A folder of an image, which its owner can read from now on; never what a link leads to."""
    if not os.access(path, os.R_OK | os.X_OK, follow_symlinks=False):
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.chmod(f"/proc/self/fd/{fd}", os.fstat(fd).st_mode & 0o777 | 0o700)
        finally:
            os.close(fd)
    return path


def _last(said: str) -> str:
    """The last thing that a program said, without its log's trappings."""
    line = said.strip().rpartition("\n")[2]
    found = re.search(r'msg="((?:[^"\\]|\\.)*)"', line)
    return (found[1].replace('\\"', '"') if found else line)[:500]


def _lie(what: str) -> StockadeError:
    hint = "The registry, or whoever is between, sent something else than was asked for. Nothing of it was kept."
    return StockadeError(f"{what} does not have that digest", code="image.digest", hint=hint)


def _too_large(most: int) -> StockadeError:
    return StockadeError(
        f"the image is larger than {most >> 20} MiB or has more than {MOST_FILES} files",
        code="image.size",
        hint="Nothing of it was kept. If it has to be that large: --max-size.",
    )
