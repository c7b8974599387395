"""Images of the OCI that are here: unpacked once, below the user's cache, by digest. Pulling them is walls/pulling.py; a session only looks one up.

    images/lock                      held by whoever pulls or removes
    images/store/blobs/sha256/HEX    layers as registries hand them out, shared by all images; and what skopeo needs while it works
    images/roots/HEX/                HEX is the digest that policies name; whoever uses one holds a shared lock on it
        tree/                        the files
        image.json                   what is known about it, as `Image`

INVARIANT: a directory has its name in roots/ only once it is whole. Nothing of a tree is ever executed, parsed or followed on the host.
"""

from __future__ import annotations

import fcntl
import json
import os
import re

from stockade.core import oci, places
from stockade.core.errors import CannotEnforce, StockadeError, Tampered
from stockade.core.frozen import frozen, plain
from stockade.walls.workspace.cleanup import discard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

VERSION = 1  # of image.json
LONGEST = 4 << 20  # bytes of a manifest, a configuration, or image.json: as registries bound manifests
_DIGEST = re.compile(oci.DIGEST)


@frozen
class Image:
    """An image that is here. `names` are what it was pulled as ("registry/name"), `digest` is what they name it by; `manifest` the digest of the part for
    `platform` ("linux/amd64"), the same if there is only one. `blobs` are the digests of its layers. Of its configuration: `environment`
    ("NAME=VALUE"), and what nobody obeys here: `entrypoint`, `command`, `user`, `folder`. `size` in bytes, `pulled` in seconds since 1970.
    """

    names: tuple[str, ...]
    digest: str
    manifest: str
    platform: str
    blobs: tuple[str, ...]
    environment: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    user: str
    folder: str
    size: int
    files: int
    pulled: int

    @classmethod
    def read(cls, path: str) -> Self:
        """From its file, which we have written. Raises FileNotFoundError, Tampered (`image.unreadable`)."""
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                found: dict[str, Any] = json.loads(file.read(LONGEST + 1))
            if found.pop("version") != VERSION:
                raise ValueError("another version")
            fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
            return cls(**fields)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            hint = "Pull it again: stockade image pull registry/name@sha256:..."
            raise Tampered(f"{path} is not what was written there: {error}", code="image.unreadable", hint=hint) from error

    def write(self, path: str) -> None:
        """To its file, whole or not at all. Raises StockadeError (`image.kind`) if it could not be read again: then it could be neither used nor removed."""
        text = json.dumps({"version": VERSION, **plain(self)})
        if len(text) > LONGEST:
            hint = "Nothing of it was kept. Its variables, mostly, are too long."
            raise StockadeError(f"what {self.digest} says about itself is longer than {LONGEST >> 20} MiB", code="image.kind", hint=hint)
        temporary = f"{path}.{os.urandom(4).hex()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @property
    def references(self) -> tuple[str, ...]:
        """As a policy names it."""
        return tuple(f"{name}@{self.digest}" for name in self.names)


@frozen
class Held:
    """An image in use: the real path of its files, the variables it sets, and the descriptor that keeps it from being removed."""

    tree: str
    environment: dict[str, str]
    lock: int

    def close(self) -> None:
        os.close(self.lock)


def place(name: str = "") -> str:
    """A path below the images' directory, all links resolved; not created."""
    return os.path.join(os.path.realpath(places.cache("images")), name)


def make() -> None:
    """Make the folders here. What a program that fetches has put in the place of one goes, what it leads to does not. The lock is held."""
    for path in layers():
        if os.path.lexists(path) and not real(path):
            os.unlink(path)
    for path in (place("roots"), place("store"), *layers()):
        os.makedirs(path, 0o700, exist_ok=True)


def layers() -> tuple[str, str]:
    """The folders of the store in which layers lie, the outer one first. Whatever fetches can write beside and into them."""
    return place("store/blobs"), place("store/blobs/sha256")


def real(path: str) -> bool:
    """Whether it is a directory, and no link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def root_of(digest: str) -> str:
    """Where the image of `digest` ("sha256:HEX") is, once it is whole. Raises ValueError."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(digest)
    return place(f"roots/{digest[7:]}")


def hold(reference: str) -> Held:
    """The image "registry/name@sha256:..." for as long as the result is not closed. Starts no process and asks nobody.

    Raises CannotEnforce (`image.missing`) if it has not been pulled, Tampered (`image.unreadable`).
    """
    try:
        root = root_of(reference.rpartition("@")[2])
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise missing(reference) from None
    try:
        places.private(os.path.dirname(root))
        fcntl.flock(fd, fcntl.LOCK_SH)
        found = Image.read(f"{root}/image.json")  # not there any more if it was removed just now
        if os.stat(root).st_ino != os.fstat(fd).st_ino:
            raise FileNotFoundError(root)  # and pulled again: the lock is on the old one
        return Held(f"{root}/tree", variables(found.environment), fd)
    except FileNotFoundError:
        os.close(fd)
        raise missing(reference) from None
    except BaseException:
        os.close(fd)
        raise


def missing(reference: str) -> CannotEnforce:
    """The error for an image that is not here."""
    return CannotEnforce(
        f"the image {reference} has not been pulled",
        code="image.missing",
        hint=f"Nothing was run; a session never pulls by itself. Run: stockade image pull {reference}",
    )


def variables(environment: tuple[str, ...]) -> dict[str, str]:
    """An image's variables; what cannot be one ("NAME" alone, no name, a NUL, no text) is left out."""
    pairs = (entry.partition("=") for entry in environment if not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in entry))
    return {name: value for name, equals, value in pairs if name and equals}


def images() -> Iterator[Image]:
    """Those that are here, in the order in which they were pulled. One that cannot be read is left out (`find` names it)."""
    found = []
    try:
        names = os.listdir(place("roots"))
    except OSError:
        return
    for name in names:
        try:
            found.append(Image.read(f"{root_of(f'sha256:{name}')}/image.json"))
        except (OSError, ValueError, Tampered):
            continue
    yield from sorted(found, key=lambda image: image.pulled)


def find(named: str) -> Image:
    """The one image that is meant: by its reference, its digest or the beginning of that, or its name if only one has it.

    Raises StockadeError (`image.unknown`, `image.ambiguous`).
    """
    name, _, digest = named.rpartition("@")
    digest = digest.removeprefix("sha256:")
    found = [
        image
        for image in images()
        if (re.fullmatch("[0-9a-f]{4,64}", digest) and image.digest.startswith(f"sha256:{digest}") and (not name or name in image.names))
        or named in image.names
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise StockadeError(
            f"{named} may mean {', '.join(image.digest[:19] for image in found)}", code="image.ambiguous", hint="Name it by its digest."
        )
    raise StockadeError(f"there is no image {named} here", code="image.unknown", hint="stockade image list shows those that are here.")


def lock() -> int:
    """The descriptor of the lock that whoever changes anything here holds; waits for it. Raises StockadeError (`place.unsafe`, `place.unwritable`)."""
    places.private(place())
    return places.locked(place("lock"))


def remove(image: Image) -> int:
    """Remove an image, and the layers that no other has; how many bytes its files were. Raises StockadeError (`image.in-use`)."""
    held = lock()
    try:
        root = root_of(image.digest)
        try:
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(root, place(f"roots/.old-{os.urandom(4).hex()}"))
        except BlockingIOError:
            hint = "stockade session list shows what runs; try again when they have ended."
            raise StockadeError(f"a session uses {image.digest}", code="image.in-use", hint=hint) from None
        finally:
            os.close(fd)
        sweep()
        prune()
        return image.size
    finally:
        os.close(held)


def sweep() -> None:
    """Remove what is half made or half removed. The lock is held."""
    for folder, beginning in (("roots", "."), ("store", "pull-")):
        for name in _names(place(folder)):
            if name.startswith(beginning):
                discard(place(f"{folder}/{name}"))


def prune() -> None:
    """Remove layers that no image has, and what else lies there. The lock is held."""
    make()
    used = {digest[7:] for image in images() for digest in image.blobs}
    for name in _names(place("store/blobs/sha256")):
        if name not in used:
            discard(place(f"store/blobs/sha256/{name}"))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
