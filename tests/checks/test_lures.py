"""Requests that are made up to be refused: no policy grants one, each says what is wrong with it, and nothing tells when one comes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from publicsuffixlist import PublicSuffixList

from stockade.checks.grants import HttpRequest, decide
from stockade.checks.lures import Lure, due, lure
from stockade.checks.normalise import is_name, normalise_path
from stockade.core.values import ALLOW, ASK, DENY, Grant

LAW = settings(deadline=None)  # how long one example takes says nothing on a busy machine

HOSTS = (
    "api.example.com example.com *.example.com examlpe.com registry.example.org files.example.co.uk shop.com.au x.io api.x.ai a.b.c.example.net me.github.io "
    "bucket.s3.amazonaws.com 1password.com xn--bcher-kva.example db.corp open.localhost localhost 198.51.100.7 *.dropzone.example paste.dropzone.example"
).split()
SUFFIXES = PublicSuffixList()

grants = st.lists(
    st.builds(
        Grant,
        host=st.sampled_from(HOSTS),
        port=st.sampled_from([443, 8443]),
        scheme=st.sampled_from(["https", "http", "tcp"]),
        paths=st.lists(st.sampled_from(["/", "/v1/*", "/files/**", "/a/*/b"]), max_size=2).map(tuple),
        methods=st.lists(st.sampled_from(["GET", "POST", "*"]), max_size=2).map(tuple),
        effect=st.sampled_from([ALLOW, ASK, DENY]),
        max_upload=st.just(1 << 30),
    ),
    max_size=4,
)
likes = st.lists(st.tuples(st.sampled_from(["POST", "GET"]), st.text(max_size=9) | st.just("/v2/jobs")), max_size=3)
seeds = st.integers(0, 1 << 32)


def asked(found: Lure) -> HttpRequest:
    return HttpRequest(
        found.method, found.host, found.path, "https" if found.scheme == "https" else "http", found.port, length=found.length
    )


def owner(host: str) -> str | None:
    return SUFFIXES.privatesuffix(host.removeprefix("*."))


@LAW
@given(grants, likes, seeds)
def test_no_policy_lets_one_out_or_would_ask_for_it(held: list[Grant], like: list[tuple[str, str]], seed: int) -> None:
    found = lure(held, like, Random(seed))
    verdict = decide(asked(found), tuple(held))
    assert verdict.effect == DENY and verdict.rule in ("host-not-granted", "bare-ip")


@LAW
@given(grants, likes, seeds)
def test_it_reads_like_a_request_and_says_what_is_wrong(held: list[Grant], like: list[tuple[str, str]], seed: int) -> None:
    found = lure(held, like, Random(seed))
    assert found.host.isascii() and found.host.isprintable() and (is_name(found.host) or found.host.replace(".", "").isdecimal())
    assert normalise_path(found.path) == found.path or (found.method, found.path) in like
    assert 512 <= found.length <= 64 << 20 or (found.method, found.length) == ("GET", 0)
    assert found.why.startswith(found.host) and found.why.endswith(".") and found.why.isprintable()


@LAW
@given(grants, seeds)
def test_its_host_is_never_somebody_whom_the_policy_knows(held: list[Grant], seed: int) -> None:
    """Otherwise it might be right to approve it: files.example.com is the owner's of api.example.com, and api.exarnple.com is not."""
    found = lure(held, (), Random(seed))
    known = {owner(grant.host) for grant in held if not grant.host[-1].isdecimal() and owner(grant.host)}
    if not found.host[-1].isdecimal():
        assert owner(found.host) not in known


@LAW
@given(grants, likes, seeds, st.randoms())
def test_chance_alone_changes_it(held: list[Grant], like: list[tuple[str, str]], seed: int, order: Random) -> None:
    shuffled = [*held, *held]
    order.shuffle(shuffled)
    assert lure(held, like, Random(seed)) == lure(held, like, Random(seed)) == lure(shuffled, like, Random(seed))


def several(held: list[Grant], like: list[tuple[str, str]] | None = None) -> list[Lure]:
    chance = Random(7)
    return [lure(held, like or [], chance) for _ in range(300)]


def test_they_resemble_what_is_really_asked() -> None:
    held = [Grant("api.example.com", 8443, paths=("/v1/*",), methods=("POST",), effect=ASK), Grant("other.test", paths=("/x",))]
    found = several([*held, Grant("denied.test", effect=DENY)], [("POST", "/v2/uploads"), ("GET", "/never")])
    alike = [one for one in found if one.host.endswith(".com")]
    in_front = [one for one in found if one.host.startswith("api.example.com.")]
    assert len(alike) > 90 and len(in_front) > 40
    assert {one.port for one in alike} == {8443} and {"/v2/uploads", "/v1/sync"} < {one.path for one in alike}
    assert not any("other" in one.host or "denied" in one.host or one.path == "/never" for one in found)
    assert len({one.host for one in alike}) > 5 and len(set(found)) > 290 - sum(one.length == 0 for one in found)


def test_what_resembles_a_name_is_none_that_is_granted_too() -> None:
    alike = {one.host for one in several([Grant("example.com")]) if not one.host[-1].isdecimal()}
    granted = [Grant("example.com"), *(Grant(f"*.{host}") for host in sorted(alike)[::2])]
    found = {one.host for one in several(granted)}
    assert len(alike) > 9 and found & alike and not found & {*sorted(alike)[::2]}


def test_where_names_are_registered_below_a_countrys_own_that_part_stays() -> None:
    hosts = {one.host for one in several([Grant("files.example.co.uk")]) if one.why.endswith("bytes.") and "looks like" in one.why}
    assert len(hosts) > 5 and all(host.startswith("files.") and host.endswith(".co.uk") for host in hosts)


def test_without_grants_there_are_lures_too() -> None:
    hosts = {one.host for one in several([])}
    assert "169.254.169.254" in hosts and "paste.dropzone.example" in hosts and any(host.startswith("203.0.113.") for host in hosts)


def test_names_that_belong_to_nobody_are_not_imitated() -> None:
    assert not [one for one in several([Grant("open.localhost", scheme="http")]) if "localhost" in one.host]


def test_by_default_chance_is_the_systems() -> None:
    assert len({lure([]) for _ in range(20)}) > 5
    assert any(due(0.5, 1) for _ in range(64))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.25, 0.5, 0.9])
def test_so_many_of_all_that_is_shown_are_lures(rate: float) -> None:
    chance, since, shown, lures = Random(3), 0, 40_000, 0
    gaps = []
    for _ in range(shown):
        if due(rate, since, chance):
            gaps.append(since)
            lures, since = lures + 1, 0
        else:
            since += 1
    wanted = min(rate, 0.5)
    assert lures / shown == pytest.approx(wanted, rel=0.15)
    assert min(gaps) >= 1 and (rate >= 0.5 or max(gaps) > 3 * min(gaps))  # never two in a row, and no rhythm


@LAW
@given(st.floats(max_value=0) | st.just(float("nan")), st.integers(0, 1000), seeds)
def test_at_no_rate_there_is_none(rate: float, since: int, seed: int) -> None:
    assert not due(rate, since, Random(seed)) and not due(0.5, 0, Random(seed))


def test_what_is_shown_says_nothing_of_what_comes() -> None:
    assert {due(0.2, 1, Random(seed)) for seed in range(40)} == {True, False} == {due(0.2, 10_000, Random(seed)) for seed in range(40)}
    assert [due(0.2, 1, Random(seed)) for seed in range(40)] == [due(0.2, 999, Random(seed)) for seed in range(40)]
