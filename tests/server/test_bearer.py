"""Who may speak to the tools over HTTP: laws of the one function that every request passes first (M18). tests/cli/test_tools_http.py has what comes over a wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.core.errors import StockadeError
from stockade.server.access import Asking
from stockade.server.bearer import Bearer, Refusal, place

TEXT = st.text(st.characters(codec="latin-1"), max_size=20)
NAMES = st.sampled_from(["host", "origin", "authorization", "cookie", "mcp-session-id"])


@given(st.sampled_from(["GET", "POST", "DELETE"]), TEXT, TEXT, st.lists(st.tuples(NAMES, TEXT)))
def test_law_nothing_passes_without_the_token(method: str, path: str, query: str, headers: list[tuple[str, str]]) -> None:
    access = Bearer("127.0.0.1", 4000)
    for more in ((), (("host", "127.0.0.1:4000"),)):
        with pytest.raises(Refusal) as caught:
            access.enter(Asking(method, path, query, (*headers, *more)))
        assert caught.value.status in (400, 401, 403) and access.token not in caught.value.message


@given(NAMES, TEXT, st.sampled_from(["127.0.0.1", "::1"]))
def test_law_each_header_that_counts_counts_and_stands_there_once(name: str, text: str, address: str) -> None:
    access = Bearer(address, 4000)
    here = access.url.removeprefix("http://").removesuffix("/mcp")
    good = {"host": here, "origin": f"http://{here}", "authorization": f"Bearer {access.token}", "cookie": "x", "mcp-session-id": "y"}
    assert access.enter(Asking("POST", "/mcp", "", tuple(good.items()))) == good
    with pytest.raises(Refusal):
        access.enter(Asking("POST", "/mcp", "", (*good.items(), (name, text))))
    if name in ("host", "origin", "authorization") and text not in (good[name], "localhost:4000"):
        with pytest.raises(Refusal):
            access.enter(Asking("POST", "/mcp", "", tuple({**good, name: text}.items())))


@given(st.one_of(TEXT, st.ip_addresses().map(str), st.builds("{}:{}".format, st.ip_addresses(v=4), st.integers(0, 70000))))
def test_law_what_is_listened_on_is_loopback(text: str) -> None:
    try:
        address, port = place(text)
    except StockadeError as error:
        assert error.code == "tools.address"
    else:
        assert address == "::1" or address.startswith(("127.", "::ffff:127.", "::ffff:7f"))
        assert port == 0 or 1024 <= port <= 65535
