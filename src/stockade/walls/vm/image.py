"""Images of machines that are here: the kernel, what it starts from, and the root, each known by its digest. Building them is walls/vm/build.py,
keeping and removing them walls/vm/store.py.

    DIGEST/                    the SHA-256 of manifest.json; whoever uses the image holds a shared lock on it
        kernel, initrd, root.erofs
        manifest.json          what is in it, as `Manifest`
        manifest.sig           the signature lines of a signed note (core/notes.py) whose text is manifest.json
    current                    the digest of the image in use
    lock                       held by whoever adds or removes one
    .new-*, .old-*             half built, half removed

There are two such places: the user's own, and below it the machine's, which only root can write to. Nothing names another one.

INVARIANT: a directory has its digest for a name only once it is whole. Nothing is handed out whose signature, sizes and digests were not checked; what was checked
is remembered (outside of that place) by everything that stat(2) tells, and checked again in full when any of it differs.
"""

from __future__ import annotations

import fcntl
import os
import stat

from stockade.core import places
from stockade.core.errors import CannotEnforce, StockadeError, Tampered
from stockade.core.frozen import frozen, plain
from stockade.core.notes import Verifier, put, sha256, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1  # of images; another one is another machine
KERNEL, INITRD, ROOT = FILES = ("kernel", "initrd", "root.erofs")
MANIFEST, SIGNATURE, CURRENT, KEY = "manifest.json", "manifest.sig", "current", "vm.vkey"
SYSTEM = f"{places.SHARED}/vm"
BUILD = "stockade vm build"
_MOST = 4 << 20  # bytes of a manifest
_DIGITS = frozenset("0123456789abcdef")


@frozen
class File:
    """One of FILES: its SHA-256 in hexadecimal digits, its size in bytes."""

    name: str
    sha256: str
    size: int


@frozen
class Manifest:
    """What an image is. `packages` and `tools` (what made it) are "name=version"; `source_date` is in seconds since 1970; `recipe` is the digest of how it is made
    (build.py), whatever versions that gave.
    """

    format: int
    suite: str
    architecture: str
    kernel: str
    source_date: int
    recipe: str
    files: tuple[File, ...]
    tools: tuple[str, ...]
    packages: tuple[str, ...]

    def text(self) -> bytes:
        """As it is signed, and named by its digest."""
        import json

        return json.dumps(plain(self), indent=1).encode("ascii") + b"\n"

    @classmethod
    def read(cls, text: bytes) -> Manifest:
        """Parse what `text` gives. Raises ValueError for anything else."""
        import json

        try:
            found: dict[str, Any] = json.loads(text)
            found |= {
                "files": tuple(File(**one) for one in found["files"]),
                "tools": tuple(found["tools"]),
                "packages": tuple(found["packages"]),
            }
            made = cls(**found)
        except (TypeError, AttributeError, KeyError, RecursionError) as error:
            raise ValueError(f"it is none: {error}") from None
        if made.text() != text or made.format != FORMAT or tuple(file.name for file in made.files) != FILES:
            raise ValueError(f"it is not of format {FORMAT}")
        numbers = (made.source_date, *(file.size for file in made.files))
        words = (
            made.suite,
            made.architecture,
            made.kernel,
            made.recipe,
            *made.tools,
            *made.packages,
            *(file.sha256 for file in made.files),
        )
        if not all(type(one) is int and one >= 0 for one in numbers) or not all(type(one) is str for one in words):
            raise ValueError("a field is of another kind")
        return made

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


@frozen
class Place:
    """Where images lie: `owner` is whose all of it has to be, from the folder `top` on; `key` the file of the key that has to have signed them."""

    directory: str
    owner: int
    key: str
    top: str

    def path(self, *names: str) -> str:
        return os.path.join(self.directory, *names)


@frozen
class Image:
    """An image that was checked. `digest` is the SHA-256 of its manifest in hexadecimal digits."""

    place: Place
    digest: str
    manifest: Manifest

    @property
    def kernel(self) -> str:
        return self.place.path(self.digest, KERNEL)

    @property
    def initrd(self) -> str:
        return self.place.path(self.digest, INITRD)

    @property
    def root(self) -> str:
        return self.place.path(self.digest, ROOT)


def own() -> Place:
    """The user's own place."""
    directory = places.cache("vm")
    return Place(directory, os.geteuid(), places.state(f"keys/{KEY}"), directory)


def system() -> Place:
    """The machine's: what root put there is believed as what it put into /usr is."""
    return Place(SYSTEM, 0, f"{SYSTEM}/{KEY}", "/")


def find() -> Image:
    """The image in use: the user's own, or else the machine's. Cheap where nothing changed since it was checked.

    Raises CannotEnforce (`vm.image`) if there is none, Tampered (`vm.image-changed`) if it is not what was built, StockadeError (`place.unsafe`).
    """
    for place in (own(), system()):
        digest = current(place)
        if digest:
            return checked(place, digest)
    raise CannotEnforce("there is no image for machines here", code="vm.image", hint=f"Nothing was run. Build one: {BUILD}")


def hold(image: Image) -> int:
    """A descriptor that keeps an image from being removed until it is closed. Raises CannotEnforce (`vm.image`) if it was removed just now."""
    path = image.place.path(image.digest)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.stat(path, follow_symlinks=False).st_ino == os.fstat(fd).st_ino:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    except OSError:
        pass
    raise CannotEnforce(f"the image {image.digest[:12]} was removed", code="vm.image", hint=f"Nothing was run. Build it again: {BUILD}")


def current(place: Place) -> str:
    """The digest of the image in use there, "" if there is none. Raises Tampered (`vm.image-changed`), StockadeError (`place.unsafe`)."""
    path = place.path(CURRENT)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _changed(path, error.strerror or "it cannot be read") from error
    with open(fd, "rb") as file:
        _ours(place, path, os.fstat(fd), stat.S_IFREG)
        text = file.read(100).decode("ascii", "replace")
    if not text.endswith("\n") or not is_digest(text[:-1]):
        raise _changed(path, "it names no image")
    return text[:-1]


def is_digest(text: str) -> bool:
    """Whether `text` can be the digest of an image."""
    return len(text) == 64 and set(text) <= _DIGITS


# ---- checking ---------------------------------------------------------------------------------------------------------------------


def checked(place: Place, digest: str) -> Image:
    """The image of this digest, after it was checked or found as it was when it was. Raises as `find`."""
    seen = _look(place, digest)
    with open(_open(place.path(digest, MANIFEST)), "rb") as file:
        text = file.read(_MOST)
    if sha256(text).hexdigest() != digest:
        raise _changed(place.path(digest, MANIFEST), "its digest is another one")
    at = entry(digest)
    if seen != remembered(at):
        check(place, digest, text)
        if _look(place, digest) != seen:
            raise _changed(place.path(digest), "it changes while it is checked")
        remember(at, seen)
    try:
        return Image(place, digest, Manifest.read(text))
    except ValueError as error:
        raise _changed(place.path(digest, MANIFEST), str(error)) from error


def check(place: Place, digest: str, text: bytes) -> None:
    """Check an image of which `text` is the manifest: the signature, and each file's bytes. Raises Tampered (`vm.image-changed`)."""
    from hashlib import file_digest

    path = place.path(digest, MANIFEST)
    with open(_open(place.path(digest, SIGNATURE)), "rb") as file:
        note = text + b"\n" + file.read(_MOST)
    try:
        with open(_open(place.key), "rb") as file:
            verifier = Verifier.from_text(file.read(_MOST).decode("ascii", "replace"))
        signed, signatures = split(note)
        manifest = Manifest.read(text)
    except (ValueError, Tampered) as error:
        raise _changed(path, str(error)) from error
    if signed != text or verifier.wrong(text, signatures):
        raise _changed(path, f"the key in {place.key} has not signed it")
    for one in manifest.files:
        where = place.path(digest, one.name)
        with open(_open(where), "rb") as file:
            if os.fstat(file.fileno()).st_size != one.size or file_digest(file, "sha256").hexdigest() != one.sha256:
                raise _changed(where, "it holds something else")


def _look(place: Place, digest: str) -> str:
    """What stat(2) tells of all that an image is. Raises Tampered (`vm.image-changed`), StockadeError (`place.unsafe`) if others could have written it."""
    lines = [f"{FORMAT} {place.directory} {digest}"]
    folders = [place.path(digest)]
    while folders[-1] != place.top:
        folders.append(os.path.dirname(folders[-1]))
    try:
        for path in folders:
            _ours(place, path, os.stat(path, follow_symlinks=False), stat.S_IFDIR)
        names = sorted(os.listdir(place.path(digest)))
        if names != sorted((*FILES, MANIFEST, SIGNATURE)):
            raise _changed(place.path(digest), f"it holds {', '.join(names) or 'nothing'}")
        for path in (place.key, *(place.path(digest, name) for name in names)):
            found = os.stat(path, follow_symlinks=False)
            _ours(place, path, found, stat.S_IFREG)
            lines.append(f"{path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}")
    except OSError as error:
        raise _changed(error.filename or place.path(digest), error.strerror or "it cannot be read") from error
    return "\n".join(lines) + "\n"


def _ours(place: Place, path: str, found: os.stat_result, kind: int) -> None:
    if stat.S_IFMT(found.st_mode) != kind:
        raise _changed(path, "it is a link, or something else")
    if found.st_uid != place.owner or found.st_mode & 0o022:
        hint = "Somebody else could have changed what machines are started from. Look what it is, remove it, and build the image again."
        whose = "root" if place.owner == 0 else "you"
        raise StockadeError(f"others than {whose} could write to {path}", code="place.unsafe", hint=hint)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _changed(path, error.strerror or "it cannot be read") from error


def _changed(path: str, why: str) -> Tampered:
    hint = f"Nothing was started from it. Find out who changed it; then: stockade vm remove it, and {BUILD}"
    return Tampered(f"{path} is not what was built: {why}", code="vm.image-changed", hint=hint)


def entry(digest: str) -> str:
    """Where it is remembered that an image was checked. Raises StockadeError (`place.unsafe`, `place.unwritable`)."""
    return f"{places.private(places.state('vm'))}/checked-{digest}"


def remembered(entry: str) -> str:
    """What was written there, "" if it is not ours."""
    try:
        with open(os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or found.st_mode & 0o022 or not stat.S_ISREG(found.st_mode):
                return ""
            return file.read(_MOST).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def remember(entry: str, seen: str) -> None:
    """Write down what was seen. A full disk costs speed, nothing else."""
    try:
        put(entry, seen.encode("utf-8", "surrogateescape"))
    except OSError:
        return


# ---- those that are there ---------------------------------------------------------------------------------------------------------


def digests(place: Place) -> list[str]:
    """Of the images that are there, whole or changed; sorted."""
    try:
        return sorted(name for name in os.listdir(place.directory) if is_digest(name))
    except OSError:
        return []


def named(beginning: str) -> tuple[Place, str]:
    """The one image whose digest begins like that; the user's own first. Raises StockadeError (`vm.image-unknown`, `vm.image-ambiguous`)."""
    found = {
        digest: place for place in (system(), own()) for digest in digests(place) if len(beginning) >= 4 and digest.startswith(beginning)
    }
    if len(found) == 1:
        digest, place = found.popitem()
        return place, digest
    if found:
        raise StockadeError(
            f"{beginning} may mean {', '.join(digest[:16] for digest in found)}", code="vm.image-ambiguous", hint="Write more digits of it."
        )
    hint = "stockade vm list shows those that are here."
    raise StockadeError(f"there is no image {beginning} here", code="vm.image-unknown", hint=hint)
