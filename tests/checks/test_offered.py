"""What is asked about a folder: by which name, and what a person is told of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks.offered import NO_RULE, Unreadable, decide, question, read
from stockade.core.tools import MountRule
from stockade.core.values import ASK, DENY, Origin

RULE = MountRule("/home/me/sets", "/srv/sets", "~/sets", Origin("user.toml", 3, "mount[0]"))


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'"~/sets"', b'{"path":1}', b'{"path":""}', b'{"path":"a","mode":"rw"}', b'{"path":"a\\u0000"}', b"\xff", b"[" * 60000, b'{"path":"' + b"a" * 1001 + b'"}']
)  # fmt: skip
def test_what_is_no_question(body: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        read(body)
    assert caught.value.rule == "bad-mount"


def test_only_by_the_names_that_the_rule_has() -> None:
    for path in ("~/sets", "/srv/sets"):
        verdict, rule = decide(read(json.dumps({"path": path}).encode()), (RULE,))
        assert (verdict.effect, rule) == (ASK, RULE)
    for path in ("/home/me/sets", "/srv/sets/", "/srv/sets/x", "/srv/../srv/sets", "~", "/", "~/SETS"):
        verdict, rule = decide(path, (RULE,))
        assert (verdict.effect, verdict.rule, rule) == (DENY, NO_RULE, None)


def asked(names: list[str], **more: Any) -> Any:
    return question(1, RULE, more.pop("identity", (1, 2)), names, more.pop("more", False), tainted=more.pop("tainted", False))


def test_a_question_says_what_would_be_seen() -> None:
    one = asked(["a", "b"])
    assert one.what == "show the folder /home/me/sets at /srv/sets, read-only, with all that is in it: 2 entries at its top"
    assert (one.risk, one.people, one.reviewable, one.reversible, one.key) == ("medium", True, False, False, "mount /srv/sets")
    assert asked([], tainted=True).risk == "high" and "0 or more" in asked([], more=True).what
    for name in (".env", ".env.local", "id_rsa", "server.pem", "Passwords.txt", ".aws", "api-token.json", "client_secret.json"):
        assert asked([name]).risk == "high" and asked([name]).what.endswith(f"; some look like secrets: {name}")
    assert asked(["keys.csv", "environment.yml"]).risk == "medium"
    assert asked(["a"], identity=(1, 3)).digest != one.digest


@given(st.lists(st.text(max_size=20), max_size=5))
def test_whatever_files_are_called_it_is_one_line_of_plain_letters(names: list[str]) -> None:
    one = asked([f"secret{name}" for name in names])
    assert one.what.isascii() and one.what.isprintable()
