"""Spellings that have a normal form and spellings that are refused. What holds for all of them: tests/fuzz/normalise.py."""

from __future__ import annotations

import pytest

from stockade.checks.normalise import Ambiguous, authority, normalise_host, normalise_path, query_names


@pytest.mark.parametrize("text", ["Example.COM", "example.com.", "EXAMPLE.com"])
def test_one_host(text: str) -> None:
    assert normalise_host(text) == "example.com"


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "2130706433", "0x7f.1", "0x7f000001", "1.2.3.4.", "[::1]", "::1", "example.com:80:80", "a.0x10", "017700000001", "127.1"],
)
def test_addresses_in_disguise(text: str) -> None:
    with pytest.raises(Ambiguous) as caught:
        normalise_host(text)
    assert caught.value.rule == "bare-ip"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "-a.com",
        "a-.com",
        "a_b.com",
        "exa mple.com",
        "exämple.com",
        "e\u0131.com",
        "a.com/x",
        "a" * 64 + ".com",
        "\u212aelvin.com",
        "a.com\x00",
    ],
)
def test_bad_hosts(text: str) -> None:
    with pytest.raises(Ambiguous):
        normalise_host(text)


@pytest.mark.parametrize(
    "text", ["/a/../b", "/a/./b", "/a//b", "/a%2fb", "/a%2Fb", "/a%5cb", "/%2e%2e/b", "/a/..;/b", "/a/..;x=1/b", "/;x/b", "/a/;x", "/a/..%3b/b",
     "/a%00", "/a%", "/a%zz", "/a%252e", "/a\\b", "/a b", "/é", "a", "", "/a#b", "/a?b"]
)  # fmt: skip
def test_bad_paths(text: str) -> None:
    with pytest.raises(Ambiguous):
        normalise_path(text)


@pytest.mark.parametrize(
    ("text", "wanted"), [("/%61", "/a"), ("/a%c3%a9", "/a%C3%A9"), ("/", "/"), ("/a/", "/a/"), ("/a;v=1/b", "/a;v=1/b"), ("/...", "/...")]
)
def test_paths(text: str, wanted: str) -> None:
    assert normalise_path(text) == wanted


def test_query_names() -> None:
    assert query_names("a=1&X-Api_Key=2&%6bey=3;t+oken") == ("a", "xapikey", "key", "token")


def test_authority() -> None:
    assert authority("Example.com:8443", 443) == ("example.com", 8443)
    assert authority("example.com", 80) == ("example.com", 80)
    for text in (
        "user@example.com",
        "user:pw@example.com:443",
        "example.com:",
        "example.com:0443",
        "example.com:99999",
        "example.com:+1",
        "[::1]:443",
        "a,b",
    ):
        with pytest.raises(Ambiguous):
            authority(text, 443)
