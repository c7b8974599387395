"""A session's tokens: the stand-in that it holds for a credential, and what its holder made of one by narrowing it.

A token is a biscuit (biscuit-auth, specification version 3): the first block says session and credential and is signed by a key that exists only while the
session is made; whoever holds the token can append blocks with further checks, and nobody can take one away. Of the language of these blocks only what
cannot cost much is let through (`_SHAPES`): checks over the facts of the request, without facts, rules and scopes of their own, without arithmetic, regular expressions
and functions over collections. So every check is worth one comparison after another, whoever wrote it. INVARIANT: nothing else reaches the library's engine.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from typing import Any

from stockade.core.frozen import frozen
from stockade.core.values import PLACEHOLDER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What a check may ask about: predicates of one term, each of which holds once in every request.
FACTS = ("method", "scheme", "host", "port", "path", "query", "length", "time")
FOREIGN = "foreign-credential"
FAILED = "token-check"
REVOKED = "token-revoked"
LONGEST = 2048  # characters of a token
MOST_BLOCKS = 8  # with the first
_MOST_REMEMBERED = 256  # tokens, good and bad
_DEEPEST = 24  # messages in one another; a check with two levels of `||` has nine
_LONGEST_REASON = 300

# The format's messages as far as they may be used (schema.proto of biscuit-rust 6): field -> kind. "n" is a number, "b" bytes, "s" a symbol to remember,
# "p" a predicate's name; a set holds the numbers that are allowed; anything else is a message. What is not here is refused, also if the library would
# skip it. Not allowed: regular expressions (8), arithmetic and joining of strings (9 to 12), sets made from sets, bits (15 to 19), functions over collections
# (25 to 27) and foreign ones (28); closures with parameters.
_SHAPES: dict[str, dict[int, object]] = {
    "token": {2: "first", 3: "signed", 4: "proof"},
    "first": {1: "authority", 2: "key", 3: "b", 5: "n"},
    "signed": {1: "block", 2: "key", 3: "b", 5: "n"},
    "key": {1: "n", 2: "b"},
    "proof": {1: "b", 2: "b"},
    "authority": {1: "s", 3: "n", 4: "fact"},
    "fact": {1: "own"},
    "own": {1: "n", 2: "term"},
    "block": {1: "s", 3: "n", 6: "check"},
    "check": {1: "rule", 2: frozenset({0, 1, 2})},
    "rule": {1: "head", 2: "predicate", 3: "expression"},
    "head": {1: "n"},
    "predicate": {1: "p", 2: "term"},
    "term": {1: "n", 2: "n", 3: "n", 4: "n", 5: "b", 6: "n", 7: "terms", 9: "terms"},
    "terms": {1: "term"},
    "expression": {1: "op"},
    "op": {1: "term", 2: "unary", 3: "binary", 4: "closure"},
    "unary": {1: frozenset({0, 1, 2})},
    "binary": {1: frozenset({*range(8), 13, 14, *range(20, 25)})},
    "closure": {2: "op"},
}
_COMMON = {5: "time", 21: "path", 27: "query"}  # of the symbols that need not be written, those that name a fact
_FIRST_OWN = 1024  # the number of the first symbol that is written


class _Refused(ValueError):
    """Why a text is no token that may be used here."""


@frozen
class _Read:
    """A token whose signatures are this session's: the library's object, the names of its blocks, and what its first block says."""

    biscuit: Any
    ids: tuple[str, ...]
    says: str


class Tokens:
    """The tokens of one session. `key` is its public key, as `ed25519/...`."""

    def __init__(self, session: str, key: str) -> None:
        self._session, self._key = session, key
        self._revoked: set[str] = set()
        self._known: OrderedDict[str, _Read | _Refused] = OrderedDict()

    def refused(self, text: str, credential: str, facts: Mapping[str, str | int], now: float) -> tuple[str, str]:
        """(rule, reason) why `text` may not stand for `credential` in a request of which these `facts` are true at `now` (Unix seconds), ("", "") if it
        may. Never raises."""
        try:
            read = self._read(text, credential)
        except _Refused as error:
            return FOREIGN, str(error)
        if not self._revoked.isdisjoint(read.ids):
            return REVOKED, "the token, or one that it was made from, has been taken back"
        return _checked(read.biscuit, facts, now)

    def taken_back(self, text: str, credential: str) -> bool:
        """Whether this token, which was given out, has been taken back since. Costs nothing before anything has been."""
        try:
            return bool(self._revoked) and not self._revoked.isdisjoint(self._read(text, credential).ids)
        except _Refused:
            return False

    def revoke(self, ids: Iterable[str]) -> None:
        """Take back the tokens that have a block of one of these names, which are hexadecimal."""
        self._revoked.update(ids)

    def name(self, text: str) -> str:
        """The name of a token's last block: revoking it takes back this token and all that were made from it. Raises ValueError for no token of this session."""
        for credential in _credentials(text):
            try:
                return self._read(text, credential).ids[-1]
            except _Refused:
                continue
        raise ValueError("this is no token of this session")

    def _read(self, text: str, credential: str) -> _Read:
        """Raises _Refused."""
        head = f"{PLACEHOLDER}{credential}-"
        if not text.startswith(head) or len(text) > LONGEST:
            raise _Refused("it is no token of this session")
        token = text[len(head) :]
        found = self._known.get(token)
        if found is None:
            try:
                found = _verified(token, self._key)
            except _Refused as error:
                found = error
            self._known[token] = found
            if len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)
        if isinstance(found, _Refused):
            raise found
        if found.says != f'session("{self._session}");\ncredential("{credential}");\n':
            raise _Refused("it is a token for another credential")
        return found


def _credentials(text: str) -> list[str]:
    """The names of credentials that this token could be for: both a name and a token may hold hyphens."""
    if not text.startswith(PLACEHOLDER) or len(text) > LONGEST:
        return []
    parts = text[len(PLACEHOLDER) :].split("-")
    return ["-".join(parts[:count]) for count in range(1, min(len(parts), 64))]


def _verified(text: str, key: str) -> _Read:
    """The token, if it is in the closed language and signed by `key`. Raises _Refused."""
    if not text.isascii() or not all(letter.isalnum() or letter in "-_" for letter in text.removesuffix("=").removesuffix("=")):
        raise _Refused("it is no token of this session")
    try:
        data = base64.urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
        _bounded(data)
        from biscuit_auth import Biscuit, PublicKey

        biscuit = Biscuit.from_bytes(data, PublicKey(key))
        return _Read(biscuit, tuple(biscuit.revocation_ids), biscuit.block_source(0))
    except _Refused:
        raise
    except BaseException as error:  # the library's own, and what Rust panics become, which is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise _Refused("it is no token of this session") from None


def _checked(biscuit: Any, facts: Mapping[str, str | int], now: float) -> tuple[str, str]:
    from datetime import UTC, datetime, timedelta

    from biscuit_auth import AuthorizerBuilder

    try:
        values = {**{name: facts[name] for name in FACTS if name != "time"}, "time": datetime.fromtimestamp(int(now), UTC)}
        builder: Any = AuthorizerBuilder("".join(f"{name}({{{name}}});" for name in FACTS) + "allow if true;", values)
        limits = builder.limits()
        # INVARIANT: the closed language bounds the work; these are far above what it needs, so that a slow machine refuses nobody.
        limits.max_facts, limits.max_iterations, limits.max_time = 64, 4, timedelta(seconds=1)
        builder.set_limits(limits)  # missing from the stubs, as is limits()
        builder.build(biscuit).authorize()
    except BaseException as error:  # as above
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        said = str(error).rpartition("failed: ")[2].replace("n°", "")
        return FAILED, f"the token was narrowed, and does not hold for this request: {ascii(said[:_LONGEST_REASON])[1:-1]}"
    return "", ""


def _bounded(data: bytes) -> None:
    """Raises _Refused unless these bytes are a token in the closed language."""
    symbols: list[bytes] = []
    names: list[int] = []
    blocks = 0

    def walk(data: bytes, shape: str, depth: int) -> None:
        nonlocal blocks
        if depth > _DEEPEST:
            raise _Refused("the token holds checks that are nested too deep")
        blocks += shape in ("first", "signed")
        if shape == "predicate" and sum(field == 2 for field, _ in _fields(data)) != 1:
            raise _Refused("the token holds a check over what is no fact of a request")
        for field, value in _fields(data):
            kind = _SHAPES[shape].get(field)
            number = isinstance(value, int)
            if kind is None or number != (isinstance(kind, frozenset) or kind in ("n", "p")):
                raise _Refused(
                    "the token holds more than checks that can be bounded (no facts, rules, scopes, regular expressions, closures)"
                )
            if isinstance(value, int):
                if isinstance(kind, frozenset) and value not in kind:
                    raise _Refused("the token holds an operator that is not allowed here (arithmetic, regular expressions, all, any)")
                if kind == "p":
                    names.append(value)
            elif kind == "s":
                symbols.append(value)
            elif kind != "b":
                walk(value, str(kind), depth + 1)

    walk(data, "token", 0)
    if not 0 < blocks <= MOST_BLOCKS:
        raise _Refused(f"the token has more than {MOST_BLOCKS} blocks")
    for name in names:
        own = name - _FIRST_OWN
        known = _COMMON.get(name, "") if own < 0 else symbols[own].decode("latin-1") if own < len(symbols) else ""
        if known not in FACTS:
            raise _Refused(f"the token holds a check over what is no fact of a request (they are {', '.join(FACTS)})")


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a message in the wire format of Protocol Buffers (developers.google.com/protocol-buffers/docs/encoding): numbers and lengths only.

    Raises _Refused."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        if key & 7 == 0:
            found.append((key >> 3, value))
        elif key & 7 == 2 and value <= len(data) - at:
            found.append((key >> 3, data[at : at + value]))
            at += value
        else:
            raise _Refused("it is no token of this session")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= len(data):
            break
        byte = data[at]
        value |= (byte & 127) << 7 * place
        at += 1
        if byte < 128:
            return value, at
    raise _Refused("it is no token of this session")
