"""Keeping and removing images of machines (walls/vm/image.py says how they lie). Nothing here is on the way of a sandbox."""

from __future__ import annotations

import fcntl
import os
import shutil
from hashlib import sha256

from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.core.notes import OwnKey, put, signature_line
from stockade.walls.vm import image
from stockade.walls.vm.image import CURRENT, FILES, KEY, MANIFEST, SIGNATURE, SYSTEM, Image, Manifest, Place, checked, current

LOCK = "lock"


def new(place: Place) -> tuple[str, int]:
    """A directory to build in, and the descriptor whose lock says that somebody does. Raises StockadeError (`place.unsafe`, `place.unwritable`)."""
    if place.directory == SYSTEM:  # for all to read
        os.makedirs(SYSTEM, 0o755, exist_ok=True)
    else:
        places.private(place.directory)
    path = place.path(f".new-{os.urandom(6).hex()}")
    os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return path, fd


def keep(place: Place, folder: str, manifest: Manifest) -> Image:
    """Sign what was built in `folder` (FILES), give it its place, and use it from now on. Raises StockadeError, OSError; then it has not been given one."""
    text = manifest.text()
    digest = sha256(text).hexdigest()
    key = OwnKey(places.state("keys"), "vm", "stockade-vm", "images of machines", "vm.key")
    places.private(places.state().rstrip("/"))
    secret = key.open(make=True)
    verifier = key.verifier(secret)
    put(os.path.join(folder, MANIFEST), text)
    put(os.path.join(folder, SIGNATURE), signature_line(verifier, secret.sign(text)))
    for name in (*FILES, MANIFEST, SIGNATURE):
        fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        finally:
            os.close(fd)
    os.chmod(folder, 0o755)  # noqa: S103  # the machine's are for all to read; the user's lie in a private directory
    lock = places.locked(place.path(LOCK))
    try:
        sweep(place)
        if place.key != os.path.join(key.directory, KEY) and _text(place.key) != f"{verifier}\n":
            put(place.key, f"{verifier}\n".encode(), 0o644)
        try:
            kept = checked(place, digest)  # built once more: what is there may be in use
        except StockadeError:
            if os.path.lexists(place.path(digest)):
                os.rename(place.path(digest), place.path(f".old-{os.urandom(6).hex()}"))
            os.rename(folder, place.path(digest))
            kept = checked(place, digest)
        else:
            shutil.rmtree(folder)
        _use(place, digest)
        sweep(place)
        return kept
    finally:
        os.close(lock)


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def use(place: Place, digest: str) -> Image:
    """Use another image of those that are there, which is checked. Raises as `find`, and OSError."""
    lock = places.locked(place.path(LOCK))
    try:
        found = checked(place, digest)
        _use(place, digest)
        return found
    finally:
        os.close(lock)


def _use(place: Place, digest: str) -> None:
    put(place.path(CURRENT), f"{digest}\n".encode(), 0o644)
    fd = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(place: Place, digest: str) -> None:
    """Remove an image, changed or not. Raises StockadeError (`vm.image-in-use`), OSError."""

    lock = places.locked(place.path(LOCK))
    try:
        path, old = place.path(digest), place.path(f".old-{os.urandom(6).hex()}")
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) if not os.path.islink(path) else -1
        try:
            if fd >= 0:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(path, old)
        except BlockingIOError:
            hint = "stockade session list shows what runs; try again when they have ended."
            raise StockadeError(f"a machine uses the image {digest[:12]}", code="vm.image-in-use", hint=hint) from None
        finally:
            if fd >= 0:
                os.close(fd)
        if _names(place) == digest:
            os.unlink(place.path(CURRENT))
        sweep(place)
    finally:
        os.close(lock)
    try:
        os.unlink(image.entry(digest))
    except FileNotFoundError:
        pass


def _names(place: Place) -> str:
    try:
        return current(place)
    except StockadeError:
        return ""


def sweep(place: Place) -> None:
    """Remove what is half built or half removed. The lock is held; what somebody builds in is locked by them."""
    for name in os.listdir(place.directory):
        path = place.path(name)
        if not name.startswith((".new-", ".old-")):
            continue
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
            continue
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
