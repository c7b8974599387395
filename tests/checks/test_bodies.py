"""Credentials hidden in bodies. Invariants: nothing raises for any bytes; a field named like a credential is found in every dress that some reader takes off;
what reads fast answers as what reads plainly."""

from __future__ import annotations

import gzip
import json
import re
import sys
import time
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stockade.checks import bodies
from stockade.checks.credentials import CREDENTIAL_PARAMETERS
from stockade.checks.grants import HttpRequest, decide
from stockade.core.values import ALLOW, PLACEHOLDER, Grant

STAND_IN = f"{PLACEHOLDER}other-0123"
FORM = ("content-type", "application/x-www-form-urlencoded")
JSON = ("content-type", "application/json")
PARTS = ("content-type", "multipart/form-data; boundary=XX")


def refused(body: bytes, *headers: tuple[str, str], spared: tuple[str, ...] = ()) -> str:
    return bodies.refused(headers, len(body), body[:64], body, spared)


def parts(*texts: str, end: str = "\r\n") -> bytes:
    return "".join(f"--XX{end}{text.replace('|', end)}{end}" for text in texts).encode() + f"--XX--{end}".encode()


FIELD = 'Content-Disposition: form-data; name="{}"||value'
HIDDEN: dict[str, tuple[bytes, tuple[tuple[str, str], ...]]] = {
    "form": (b"note=1&api_key=evil", (FORM,)),
    "form, oddly spelled": (b"note=1&A%50i-Key=evil", (FORM,)),
    "form, by semicolon": (b"note=1;token=evil", (FORM,)),
    "form that begins like JSON": (b"[=1&token=evil", (FORM,)),
    "form of another charset": (b"password=x", (("Content-Type", "Application/X-WWW-Form-Urlencoded; charset=latin-1"),)),
    "form, gzip": (gzip.compress(b"client_secret=evil"), (FORM, ("content-encoding", "gzip"))),
    "form, zlib": (zlib.compress(b"client_secret=evil"), (FORM, ("Content-Encoding", "deflate"))),
    "form, brotli": (b"\x0b\x02\x80", (FORM, ("content-encoding", "br"))),
    "form, gzip twice": (gzip.compress(gzip.compress(b"a=b")), (FORM, ("content-encoding", "gzip, gzip"))),
    "form, gzip and more": (gzip.compress(b"a=b") + gzip.compress(b"&token=evil"), (FORM, ("content-encoding", "gzip"))),
    "form, no gzip": (b"token=evil", (FORM, ("content-encoding", "gzip"))),
    "a placeholder in a form": (f"x={STAND_IN}".encode(), (FORM,)),
    "JSON": (b'{"model":"m","api_key":"evil"}', (JSON,)),
    "JSON, another type": (b'{"api_key":"evil"}', (("content-type", "application/vnd.x+json"),)),
    "JSON without a type": (b' \n{"api_key":"evil"}', ()),
    "JSON as bytes": (b'{"api_key":"evil"}', (("content-type", "application/octet-stream"),)),
    "JSON, escaped": (b'{"\\u0061pi_key":"evil"}', (JSON,)),
    "JSON, twice": (b'{"api_key":"evil","api_key":null}', (JSON,)),
    "JSON, second level": (b'{"auth":{"password":"evil"}}', (JSON,)),
    "JSON, headers": (b'{"extra_headers":{"Authorization":"Bearer evil"}}', (JSON,)),
    "JSON, list": (b'[1,{"Access-Token":"evil"}]', (JSON,)),
    "JSON lines": (b'{"a":1}\n{"secret":"evil"}\n', (JSON,)),
    "JSON in UTF-16": ('{"api_key":"evil"}'.encode("utf-16"), (JSON,)),
    "JSON in UTF-16 without a type": ('{"api_key":"evil"}'.encode("utf-16-be"), ()),
    "JSON with a mark": (b'\xef\xbb\xbf{"api_key":"evil"}', ()),
    "JSON with a comment": (b'{/*"*/"api_key":"evil"}', (JSON,)),
    "JSON with a comma too many": (b'{"api_key":"evil",}', (JSON,)),
    "JSON with bare names": (b"{api_key:'evil'}", (JSON,)),
    "JSON too deep to be read": (b'{"api_key":"evil","x":' + b"[" * 200_000, (JSON,)),
    "two types": (b"token=evil", (("content-type", "text/plain"), FORM)),
    "a placeholder in JSON": (json.dumps({"x": STAND_IN}).encode(), (JSON,)),
    "a placeholder with its scheme": (json.dumps({"h": {"x": f"Bearer {STAND_IN}"}}).encode(), (JSON,)),
    "multipart": (parts(FIELD.format("note"), FIELD.format("api_key")), (PARTS,)),
    "multipart, no quotes": (parts("Content-Disposition: form-data; name=token||x"), (PARTS,)),
    "multipart, case": (parts("CONTENT-DISPOSITION: Form-Data; Name=Token||x"), (PARTS,)),
    "multipart, RFC 2231": (parts("Content-Disposition: form-data; name*=utf-8''t%6Fken||x"), (PARTS,)),
    "multipart, continued": (parts('Content-Disposition: form-data; name*0="to"; name*1="ken"||x'), (PARTS,)),
    "multipart, two names": (parts('Content-Disposition: form-data; name="note"; name="token"||x'), (PARTS,)),
    "multipart, folded": (parts('Content-Disposition: form-data;| name="token"||x'), (PARTS,)),
    "multipart, line feeds": (parts(FIELD.format("token"), end="\n"), (PARTS,)),
    "multipart, a header": (parts('Content-Disposition: form-data; name="f"|Authorization: Bearer evil||x'), (PARTS,)),
    "multipart, a header with a space": (parts("aUTHORIZATION : Bearer evil||x"), (PARTS,)),
    "multipart, after a bad line": (parts("nonsense|Cookie: a=b||x"), (PARTS,)),
    "multipart in multipart": (
        parts("Content-Type: multipart/mixed; boundary=YY||--YY|X-Api-Key: evil||x|--YY--"),
        (("content-type", "multipart/mixed; boundary=XX"),),
    ),
    "multipart, two boundaries": (parts(FIELD.format("note")), (("content-type", "multipart/form-data; boundary=XX; boundary=YY"),)),
    "multipart, no boundary": (b"x", (("content-type", "multipart/form-data"),)),
    "multipart, quoted boundary": (parts(FIELD.format("token")), (("content-type", 'multipart/form-data; boundary="XX"'),)),
    "multipart, a character set that raises": (parts("Content-Disposition: form-data; name*=idna''token||x"), (PARTS,)),
    "multipart, a number that raises": (parts(f"Content-Disposition: form-data; name*{'9' * 5000}=token||x"), (PARTS,)),
    "multipart, two dispositions": (parts(f"{FIELD.format('a').partition('|')[0]}|{FIELD.format('b')}"), (PARTS,)),
    "multipart, more parameters than are read": (parts("Content-Disposition: form-data" + ";" * 200 + "||x"), (PARTS,)),
    "multipart, longer headers than are read": (parts("X: " + "x" * 10_000 + "|" + FIELD.format("token")), (PARTS,)),
    "multipart, more parts in parts than are read": (
        parts(*["Content-Type: multipart/mixed; boundary=YY|" + "|--YY" * 40] * 40),
        (("content-type", "multipart/mixed; boundary=XX"),),
    ),
    "a placeholder in a part": (parts(f'Content-Disposition: form-data; name="f"||{STAND_IN}'), (PARTS,)),
}  # fmt: skip
BENIGN: dict[str, tuple[bytes, tuple[tuple[str, str], ...]]] = {
    "form": (b"note=1&page_token_count=2&monkey=3", (FORM,)),
    "form, empty": (b"token=", (FORM,)),
    "form, gzip": (gzip.compress(b"note=hello"), (FORM, ("content-encoding", "gzip"))),
    "JSON": (b'{"note":"hello","max_tokens":1,"tokens":["a"],"key":"name","token":null}', (JSON,)),
    "a conversation": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "tool_use", "input": {"token": "x", "password": "y"}}]}]}).encode(),
        (JSON,),
    ),
    "a tool's schema": (b'{"tools":[{"input_schema":{"properties":{"token":{"type":"string"}}}}]}', (JSON,)),
    "a table's row": (b'{"TableName":"jobs","Key":{"token":{"S":"x"}}}', (JSON,)),
    "prose": (json.dumps({"input": f'say "api_key": and {STAND_IN} and more'}).encode(), (JSON,)),
    "JSON lines": (b'{"a":1}\n\n{"b":{"c":{"token":"deep"}}}\n', (JSON,)),
    "an environment that was printed": (json.dumps({"messages": [{"content": f"KEY={STAND_IN}\n"}]}).encode(), (JSON,)),
    "multipart": (parts(FIELD.format("note"), 'Content-Disposition: form-data; name="file"; filename="token"||Authorization: in a file'), (PARTS,)),
    "bytes": (b"\x00token=1&api_key=x", (("content-type", "application/octet-stream"),)),
    "text": (b"token=1&api_key=x", (("content-type", "text/plain"),)),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_ones_are_found(name: str) -> None:
    body, headers = HIDDEN[name]
    assert refused(body, *headers) and "evil" not in refused(body, *headers)
    grant = Grant("api.example.com", methods=("POST",))
    request = HttpRequest("POST", "api.example.com", headers=headers, length=len(body), body=body, start=body)
    verdict = decide(request, (grant,))
    assert verdict.rule == "credential-in-body" and "credential_fields" in verdict.reasons[0]


@pytest.mark.parametrize("name", BENIGN)
def test_what_is_none_passes(name: str) -> None:
    body, headers = BENIGN[name]
    assert refused(body, *headers) == ""
    grant = Grant("api.example.com", methods=("POST",))
    request = HttpRequest("POST", "api.example.com", headers=headers, length=len(body), body=body, start=body)
    assert decide(request, (grant,)).effect == ALLOW


def test_a_grant_says_what_is_no_credential() -> None:
    for spared in (("token",), ("To-Ken",), ("*",)):
        assert refused(b"token=1", FORM, spared=spared) == ""
        assert refused(b'{"token":"1"}', JSON, spared=spared) == ""
        assert refused(b'{"token":"1",}', JSON, spared=spared) == ""
        assert refused(parts(FIELD.format("token")), PARTS, spared=spared) == ""
    assert refused(b"token=1&password=2", FORM, spared=("token",))


def test_what_has_not_been_read_is_not_judged_yet() -> None:
    assert bodies.refused((JSON,), 10, b'{"token":', None, ()) == ""
    assert bodies.kinds((JSON,), b"") and bodies.kinds((), b"{") and not bodies.kinds((("content-type", "application/zip"),), b"PK")
    assert "more than" in bodies.refused((JSON,), bodies.LARGEST + 1, b"{", None, ())
    assert bodies.refused((JSON,), bodies.LARGEST + 1, b"{", None, ("*",)) == ""


def test_as_much_is_searched_as_the_gate_holds() -> None:
    from stockade.gateway.config import MAX_BUFFERED

    assert bodies.LARGEST == MAX_BUFFERED


@pytest.mark.parametrize(
    "body",
    [
        b'"' * 400_000, b'{"' + b'\\"' * 200_000, b'{"a":"' + b"\\" * 400_000, b"{" + b'"a":' * 80_000, b"[" * 400_000, b"{" + b"a" * 400_000,
        b"{" + b" " * 400_000, b"{" + b"\\u0061" * 60_000, b'{"token":"' + b"x" * 400_000 + b'"', b"{\n" * 200_000,
        b"--XX\r\n" * 60_000, b"--XX\r\nContent-Disposition: form-data; " + b'name="a";' * 20_000, b"--XX\r\n" + b"\r\n" * 200_000,
        b"--XX\r\n" + b"a:b\r\n\t" * 60_000, b"a=b&" * 90_000, b"&" * 400_000, b"d:" * 200_000, b"d :" * 100_000, b":" + b"-" * 400_000, b": " * 200_000, b"d" + b" " * 400_000 + b":",
        b"1\n" * 200_000, b"%" * 400_000 + b";", b"%41" * 100_000 + b";", b"a=" + b"+" * 400_000, b"--XX" * 100_000,
        b"--XX\nContent-Disposition: a" + b";" * 400_000, b"--XX\nContent-Disposition: a;\"" + b";" * 7_000 + b"\n\n--XX",
        b"--XX\n" + b"Content-Type: multipart/mixed; boundary=Y\n" * 150 + b"\n" + b"-" * 400_000, b"--XX\n" + b"Content-Disposition:\n" * 20_000,
 b"{" + b"9" * 400_000, b"{" + b"a\"" * 200_000, b"a=;" * 90_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("header", [FORM, JSON, PARTS])
def test_no_body_takes_long(body: bytes, header: tuple[str, str]) -> None:
    """The work is linear: a body of this size that were searched in quadratic time would take minutes."""
    began = time.process_time()
    refused(body, header)
    assert time.process_time() - began < 3


# The same as `bodies` says of JSON and of what is none, word by word: the oracle.
STRING = re.compile(r'"((?:[^"\\]++|\\.)*+)(?:"(\s*+:)?|$)', re.DOTALL)
WORD = re.compile(r"""(?<![\w.$-])([\w.$-]++)["']?\s*+:""")
JSON_NAMES = CREDENTIAL_PARAMETERS - {"key", "sig", "signature", "sessionid"}


def plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def names_one(text: str) -> bool:
    """Whether one of the names in valid JSON is like a credential's."""
    names = (json.loads(f'"{match[1]}"', strict=False) for match in STRING.finditer(text) if match[2])
    return any(plain(name) in JSON_NAMES for name in names)


def named_loosely(text: str, spared: frozenset[str]) -> str | None:
    """The first name like a credential's in what is no JSON."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return next((match[1] for match in WORD.finditer(text) if plain(match[1]) in JSON_NAMES - spared), None)


TEXTS = st.lists(
    st.sampled_from(
        ['"', "'", ":", " :", "\\", "\\u", "\\u0061", "\\u003A", "\\u00e9", "{", "}", ",", "\n", "\u2028", "\xa0", ".", "-", "_", "$", "1", "\u0301", "\ud835", "{{"]
        + ["token", "api_key", "Pa", "ssword", "pa\xdfword", "aut\u1e96", "\u0130d", "\u0390", "to\u212aen", "\ufb06", "a.u-t_h", '"pwd" :', "\u017fecret:", '{"token":1}']
    )
    | st.text(max_size=3),
    max_size=20,
).map("".join)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(["token", '"token":', "\\", f"x {PLACEHOLDER}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["token", "a", "pa\xdfword", "", "api-key", '"pwd":']) | st.text(max_size=4), inner, max_size=3)
    ),
)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=3), st.sampled_from([None, 1]), st.booleans())
def test_in_json_names_are_found_as_word_by_word(documents: list[Any], indent: int | None, ascii_only: bool) -> None:
    texts = [json.dumps(document, indent=indent, ensure_ascii=ascii_only) for document in documents]
    expected = [text for text in texts if PLACEHOLDER in text or names_one(text)]
    assert bodies._documents(f" {text}\r\n" for text in texts) == [json.loads(text, object_pairs_hook=bodies._Pairs) for text in expected]


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.sampled_from([frozenset(), frozenset(["token", "auth"])]))
def test_in_what_is_no_json_names_are_found_as_word_by_word(text: str, spared: frozenset[str]) -> None:
    expected = named_loosely(text, spared)
    try:
        bodies._lenient(text, spared)
    except bodies.Found as found:
        assert expected is not None
        if expected.isascii() and plain(expected) == expected.lower():
            assert f"names a field {expected!a}" in str(found)
    else:
        assert expected is None


def test_every_letter_that_is_another_in_ascii_is_known() -> None:
    letters = (chr(number) for number in range(128, sys.maxunicode + 1) if chr(number).isalnum())
    assert [letter for letter in letters if plain(letter).isascii()] == list(bodies._ODD)


PIECES = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u0061", b"token", b"api_key", b"--XX", b"--", b"\r\n", b"\n", b" ", b"=", b"&", b";", b"%", b"\xff", b"\x00"]
    + [b"Content-Disposition: form-data; name*0*=x''%", b"Content-Type: multipart/mixed; boundary=XX", b"Authorization: x", PLACEHOLDER.encode(), b"1e999", b"9" * 5000]
)  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(PIECES | st.binary(max_size=8), max_size=30).map(b"".join),
    st.sampled_from([FORM, JSON, PARTS, ("content-encoding", "gzip")]),
    st.text(max_size=20),
)
@example(b"--XX\r\nContent-Disposition: form-data; name*=nonsense''%ff\r\n\r\nx", PARTS, "")
@example(b"--XX\r\nContent-Disposition: form-data; name*0*=a'b; name*1=\r\n\r\nx", PARTS, "")
def test_nothing_raises(body: bytes, header: tuple[str, str], text: str) -> None:
    for headers in ((header,), (header, FORM), (JSON, header), (header, ("content-type", text))):
        assert isinstance(bodies.refused(headers, len(body), body, body, ()), str)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=6), st.text(max_size=6) | st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=2), max_size=3
    ),
    st.sampled_from(["token", "Api-Key", "PASSWORD"]),
)
def test_a_field_among_others_is_found_wherever_it_stands(document: dict[str, Any], name: str) -> None:
    for changed in ({**document, name: "evil"}, {name: "evil", **document}, {**document, "x": {name: "evil"}}):
        for text in (json.dumps(changed), json.dumps(changed, ensure_ascii=False, indent=1), json.dumps([changed])):
            assert refused(text.encode("utf-8", "surrogatepass"), JSON)
