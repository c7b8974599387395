"""The administrator's policy from a server: signed by a pinned key, and never an older edition. Run by root, from a timer; no start ever waits for a network.

INVARIANT: what is in force stays until a new edition has passed every check: the signature, then its number, then that it is a policy. It is put in place whole.

An edition is a C2SP signed-note (https://c2sp.org/signed-note, Ed25519) whose text is the policy file, with `serial` in it. So it is one file, and other tools can
make and check it.
"""

from __future__ import annotations

import fcntl
import os
import tomllib
from typing import TYPE_CHECKING

from stockade.core.errors import PolicyError, StockadeError, Tampered
from stockade.core.frozen import frozen
from stockade.core.notes import Verifier, signature_line, split
from stockade.policy import files
from stockade.policy.problems import each, raise_all
from stockade.policy.read import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPMessage
    from typing import IO

_SILENCE, _LONGEST = 30.0, 120.0  # seconds: without a byte, and in all
_MOST = files.MAX_BYTES + 4096  # bytes of an edition: the largest policy and some signatures
_STAYS = "What is in force stays. Try again later; `curl -v` to this address says more."


@frozen
class Fetched:
    """What came of it: the `serial` that is in force now, and the one before (0 = none)."""

    serial: int
    before: int
    changed: bool


@frozen
class Edition:
    """A signed policy: its bytes, as they are served; its number; and the key to pin."""

    data: bytes
    serial: int
    verifier: Verifier


def fetch(url: str, *, pinned: str, target: str) -> Fetched:
    """Fetch an edition from `url`, and put it to `target` if it is newer. `pinned` is the file of the verifier key; all belong to this user, or root.

    Raises StockadeError, and `target` is as it was: `policy.pin`, `policy.fetch` (nothing came), `policy.signature`, `policy.rollback`, `policy.serial`, `policy.unwritable`,
    and what is wrong with the policy itself or with who owns the files.
    """
    verifier = pin(pinned)
    text = opened(_download(url), verifier)
    serial = number(text, url)
    directory = os.path.dirname(os.path.abspath(target))
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once could put an older one in place of a newer
        now = files.read(target, owner=os.geteuid())
        before = 0 if now is None else _serial(now, target)
        if serial < before or (serial == before and now != text):
            what = f"edition {serial}, which is older than {before}" if serial < before else f"another edition with the number {serial}"
            hint = "A server that was rolled back, or taken over, serves that. Give each edition a higher serial than all before."
            raise StockadeError(f"{url} has {what}, which is in force in {target}", code="policy.rollback", hint=hint)
        parse(text, layer="managed", name=url)
        if now == text:
            return Fetched(serial, before, False)
        _install(target, text, lock)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        os.close(lock)
    return Fetched(serial, before, True)


def pin(path: str) -> Verifier:
    """The verifier key that an administrator has put there. Raises StockadeError `policy.pin`, PolicyError `policy.unsafe-file`."""
    data = files.read(path, owner=os.geteuid())
    hint = "`stockade policy sign` prints the line that belongs there; bring it to this machine by another way than the policy."
    if data is None:
        raise StockadeError(f"there is no pinned key in {path}", code="policy.pin", hint=hint)
    try:
        return Verifier.from_text(data.decode())
    except (Tampered, UnicodeDecodeError):
        raise StockadeError(f"{path} does not hold a verifier key", code="policy.pin", hint=hint) from None


def opened(edition: bytes, verifier: Verifier) -> bytes:
    """The text of an edition that this key has signed. Raises StockadeError `policy.signature`."""
    hint = "What is in force stays. Either the server is not the one that you mean, or the key was changed: then pin the new one here."
    try:
        text, signatures = split(edition)
    except ValueError as error:
        raise StockadeError(f"what was fetched is no signed policy: {error}", code="policy.signature", hint=hint) from None
    wrong = verifier.wrong(text, signatures)
    if wrong == "key":
        raise StockadeError(f"it is not signed by the pinned key {verifier}", code="policy.signature", hint=hint)
    if wrong:
        raise StockadeError("its signature is wrong: it was changed after it was signed", code="policy.signature", hint=hint)
    return text


def number(text: bytes, name: str) -> int:
    """The serial of an edition. Raises StockadeError `policy.serial` if it has none, PolicyError if it is not TOML."""
    serial = _serial(text, name)
    if serial < 1:
        hint = "Write serial = 1 below version = 1, and count it up with every edition."
        raise StockadeError(f"{name} has no serial", code="policy.serial", hint=hint)
    return serial


def sign(path: str, key_file: str, *, name: str, password: Callable[[], str]) -> Edition:
    """The edition that the policy file at `path` makes. `key_file` is an Ed25519 key (PKCS #8, PEM), called `name`; `password` is asked if it is encrypted.

    Raises PolicyError for what is wrong with the policy as a managed one, StockadeError `policy.serial`, `policy.text`, `policy.key`.
    """
    from stockade.policy.compile import compile_policy

    data = files.read(path)
    if data is None:
        raise PolicyError(f"there is no file {path}", code="policy.no-file", hint="Name the policy that is to be signed.")
    serial = number(data, path)
    try:
        compile_policy(os.getcwd(), managed=path, managed_owner=os.stat(path).st_uid)
    except PolicyError as error:
        raise_all([one for one in each(error) if one.file == path])  # what is wrong with one's own is none of its business
    verifier, made = _key(key_file, name, password)
    edition = data + b"\n" + signature_line(verifier, made(data))
    try:
        if split(edition)[0] != data:
            raise ValueError("it does not end with a line break")
    except ValueError as error:
        hint = "Use spaces for tabs, and end the last line with a line break."
        raise StockadeError(f"{path} cannot be signed as it stands: {error}", code="policy.text", hint=hint) from None
    return Edition(edition, serial, verifier)


def _key(path: str, name: str, password: Callable[[], str]) -> tuple[Verifier, Callable[[bytes], bytes]]:
    """The key that checks, and what signs."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        message, hint = "nothing here can sign: the Python package `cryptography` is missing", "Install it: pip install 'stockade[ledger]'"
        raise StockadeError(message, code="policy.no-cryptography", hint=hint) from error
    if not name.isprintable() or not name or any(letter.isspace() or letter == "+" for letter in name):
        raise StockadeError(f"{name!r} cannot be the name of a key", code="policy.key", hint="It holds neither spaces nor +.")
    hint = "Make one: openssl genpkey -algorithm ed25519 -aes256 -out policy.pem"
    try:
        with open(path, "rb") as file:
            pem = file.read(files.MAX_BYTES)
        try:
            found = load_pem_private_key(pem, None)
        except TypeError:  # it is encrypted
            found = load_pem_private_key(pem, password().encode())
    except OSError as error:
        raise StockadeError(f"cannot read the key {path}: {error.strerror}", code="policy.key", hint=hint) from error
    except ValueError:
        raise StockadeError(f"{path} holds no key, or the password is wrong", code="policy.key", hint=hint) from None
    if not isinstance(found, Ed25519PrivateKey):
        raise StockadeError(f"{path} does not hold an Ed25519 key", code="policy.key", hint=hint)
    return Verifier.from_public(name, found.public_key().public_bytes_raw()), found.sign


def _serial(data: bytes, name: str) -> int:
    """The serial that stands in a policy file, 0 if none does."""
    try:
        found = tomllib.loads(data.decode()).get("serial", 0)
    except (ValueError, RecursionError):
        parse(data, layer="managed", name=name)  # says what is wrong
        raise PolicyError("this is no TOML", code="policy.syntax", file=name) from None
    return found if type(found) is int else 0


def _install(target: str, text: bytes, directory: int) -> None:
    """Put it in place whole, readable for all, and wait for the disk. Raises OSError, PolicyError `policy.unsafe-file` if others could change it there."""
    temporary = f"{target}.{os.getpid()}"
    opened_file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(opened_file, "wb") as file:
            file.write(text)
            file.flush()
            os.fchmod(opened_file, 0o644)
            os.fsync(opened_file)
        if files.read(temporary, owner=os.geteuid()) != text:
            raise OSError(0, "it does not say what was written")
        os.replace(temporary, target)
        os.fsync(directory)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def _download(url: str) -> bytes:
    """What stands at an HTTPS URL. Follows no redirect, and goes through the proxy that the environment names. Raises StockadeError `policy.fetch`.

    In a thread that nobody waits for longer: each byte starts the socket's own time anew, and a server that says "100 Continue" without end has no other.
    """
    import threading

    said: list[bytes | Exception] = []

    def transfer() -> None:
        try:
            said.append(_transfer(url))
        except Exception as error:
            said.append(error)

    thread = threading.Thread(target=transfer, daemon=True)
    thread.start()
    thread.join(_LONGEST)
    if not said:
        raise StockadeError(f"cannot fetch {url}: it takes longer than {_LONGEST:g} s", code="policy.fetch", hint=_STAYS)
    found = said[0]
    if isinstance(found, Exception):
        raise found
    return found


def _transfer(url: str) -> bytes:
    import http.client
    import urllib.error
    import urllib.request

    class Straight(urllib.request.HTTPRedirectHandler):
        def redirect_request(
            self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
        ) -> None:
            return None

    if not url.startswith("https://"):
        raise StockadeError(f"{url} is not an https:// address", code="policy.fetch", hint="Editions are fetched over HTTPS only.")
    try:
        request = urllib.request.Request(url, headers={"accept": "text/plain, */*"})  # noqa: S310  # it is https, as was looked at above
        with urllib.request.build_opener(Straight).open(request, timeout=_SILENCE) as answer:
            data = b""
            while len(data) <= _MOST and (piece := answer.read1(_MOST)):
                data += piece
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise StockadeError(f"cannot fetch {url}: {error}", code="policy.fetch", hint=_STAYS) from error
    if len(data) > _MOST:
        raise StockadeError(f"what {url} serves is larger than any policy", code="policy.fetch", hint=_STAYS)
    return data


def _unwritable(target: str, error: OSError) -> StockadeError:
    hint = "Nothing was changed. The administrator's policy is root's to write: run it as root."
    return StockadeError(f"cannot write {target}: {error.strerror}", code="policy.unwritable", hint=hint)
