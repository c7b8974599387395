"""INVARIANT: no text makes the reading of a token raise or take long. Accepted is only what an independent reader, the library by itself, finds signed by this
session's key for this credential; and what was made from a token by appending blocks passes only where the token itself would.

The first byte chooses: the rest is a text as it stands in a header, or bytes of a token that are written as one, or Datalog that the holder of a true token
appends to it.
"""

from __future__ import annotations

import base64
import time
from contextlib import suppress

from biscuit_auth import Biscuit, PublicKey

from checks import test_tokens as tested
from checks.test_tokens import FACTS, HEAD, KEY, NOW, OWN, SESSION
from stockade.checks.tokens import FAILED, FOREIGN, LONGEST, Tokens

_RAW = base64.urlsafe_b64decode(OWN.removeprefix(HEAD) + "==")
WORDS = (
    b"t", b"b", b"d", HEAD.encode(), b"stockade-placeholder-", b"=", b"-", _RAW, _RAW[:60], b'"\x22\n ', b"\x0a", b"\x12", b"\x1a", b"\xff\xff\xff\xff\x0f", b"\x80",
    b'check if method("GET")', b"check all ", b"reject if ", b" or ", b", ", b"; ", b"path($p)", b"$p", b".starts_with(", b".matches(", b'"/v1"', b"time($t)", b"$t < ",
    b"2027-01-01T00:00:00Z", b" || ", b" && ", b" == ", b"[1, 2]", b".any($x -> ", b")", b"(", b"!", b"f(1);", b" <- ", b" trusting previous", b"true", b"null", b"{}",
)  # fmt: skip
KEPT = {
    "the token itself": b"t" + OWN.encode(),
    "a sibling's": b"t" + tested.FOREIGNERS["a sibling's"].encode(),
    "another credential's under this name": b"t" + tested.FOREIGNERS["one for another credential under this name"].encode(),
    "half of one": b"t" + OWN[:200].encode(),
    "nothing behind the head": b"t" + HEAD.encode(),
    "its bytes": b"b" + _RAW,
    "a bit turned": b"b" + _RAW[:60] + bytes([_RAW[60] ^ 1]) + _RAW[61:],
    "messages in messages": b"b" + b"\x12\x02" * 500,
    "a length beyond the end": b"b\x12\xff\xff\xff\xff\x0f",
    "a number that never ends": b"b" + b"\x80" * 64,
    "a check that holds": b'dcheck if method("GET"), path($p), $p.starts_with("/v1") || $p == "/x"',
    "one that does not": b'dcheck if method("POST")',
    "a rule": b'dmethod("POST") <- path($p)',
    "a regular expression": b'dcheck if path($p), $p.matches("(a*)*b")',
    "a loop": b"dcheck if [1, 2].all($a -> [1, 2].any($b -> $a == $b))",
    "a comparison of kinds that cannot be compared": b"dcheck if path($p), $p < 1",
}
FAULT = ("stockade.checks.tokens._checked", lambda *_: ("", ""))


def one(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    text = rest.decode("utf-8", "replace")
    if kind == b"b":
        text = HEAD + base64.urlsafe_b64encode(rest).decode()
    elif kind == b"d":
        try:
            text = tested.narrowed(OWN, text)
        except BaseException as error:  # it is no Datalog, or the library panics on the holder's side
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            return
    tokens = Tokens(SESSION, KEY)
    began = time.process_time()
    rule, reason = tokens.refused(text, "own", FACTS, NOW)
    assert time.process_time() - began < 1
    assert (rule, reason) == tokens.refused(text, "own", FACTS, NOW), "what is remembered says the same"
    assert reason.isprintable() and bool(rule) == bool(reason) and rule in ("", FOREIGN, FAILED)
    assert tokens.refused(text, "other-key", FACTS, NOW)[0] == FOREIGN
    with suppress(ValueError):
        tokens.name(text)
    if rule != FOREIGN:
        assert _signed(text) and len(text) <= LONGEST
    if rule == "" and kind == b"d":
        assert not _plainly_false(rest)


def _signed(text: str) -> bool:
    token = Biscuit.from_base64(text.removeprefix(HEAD), PublicKey(KEY))
    return token.block_source(0) == f'session("{SESSION}");\ncredential("own");\n'


def _plainly_false(code: bytes) -> bool:
    """Whether another check that cannot hold is among these."""
    return any(part.strip() == b'check if method("POST")' for part in code.split(b";"))
