"""[approvals] and rules that ask: what is written above binds what is written below."""

from __future__ import annotations

import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.values import Asking
from stockade.policy.problems import each

ASKS = '[[egress]]\nhost = "api.example.test"\nmethods = ["POST"]\npaths = ["/v1"]\neffect = "ask"'


def codes(places: Places, *overrides: tuple[str, str]) -> set[str]:
    with pytest.raises(PolicyError) as caught:
        places.compile(*overrides)
    return {error.code for error in each(caught.value)}


def test_a_rule_that_asks(places: Places) -> None:
    places.write(user=f"{ASKS}\npeople = true\n[approvals]\ntimeout = '90 s'\npending = 2")
    found = places.compile().policy
    (grant,) = found.grants
    assert (grant.effect, grant.people) == ("ask", True)
    assert found.approvals == Asking(timeout=90, pending=2)
    assert places.load() == places.load() == found  # the cache gives back the same


@pytest.mark.parametrize(
    "above, below, allowed",
    [
        ("timeout = 60", "timeout = 30", True),
        ("timeout = 60", "timeout = 61", False),
        ("pending = 2", "pending = 3", False),
        ("per_minute = 2", "per_minute = 1", True),
        ("per_minute = 2", "per_minute = 3", False),
        ("refusals = 2", "refusals = 1", True),
        ("refusals = 2", "refusals = 0", False),  # it would never be paused
        ("refusals = 2", "refusals = 3", False),
        ("refusals = 0", "refusals = 3", True),
        ("canaries = 5", "canaries = 10", True),
        ("canaries = 5", "canaries = 0", False),
    ],
)
def test_what_a_layer_wrote_is_only_tightened_below(places: Places, above: str, below: str, allowed: bool) -> None:
    places.write(managed=f"[approvals]\n{above}", user=f"[approvals]\n{below}")
    if allowed:
        name, value = below.split(" = ")
        assert getattr(places.compile().policy.approvals, name) == int(value)
    else:
        assert codes(places) == {"policy.capped"}


@pytest.mark.parametrize(
    "written, code",
    [
        ("[approvals]\ntimeout = 0", "policy.bad-value"),
        ("[approvals]\ntimeout = '11 min'", "policy.bad-value"),
        ("[approvals]\npending = 0", "policy.bad-value"),
        ("[approvals]\ncanaries = 51", "policy.bad-value"),
        (ASKS.replace('"ask"', '"allow"') + "\npeople = true", "policy.people"),
        (ASKS.replace('"ask"', '"deny"') + "\npeople = true", "policy.denial"),
        (f'oversight = "none"\n{ASKS}', "policy.nobody-to-ask"),
    ],
)
def test_what_cannot_be(places: Places, written: str, code: str) -> None:
    places.write(user=written)
    assert code in codes(places)


def test_raw_tcp_may_be_asked_about(places: Places) -> None:
    places.write(user='[[egress]]\nhost = "db.example.test"\nscheme = "tcp"\nport = 5432\neffect = "ask"\npeople = true')
    (grant,) = places.compile().policy.grants
    assert (grant.effect, grant.people) == ("ask", True)


ANY = '[[egress]]\nhost = "*"\npaths = ["/**"]\neffect = "ask"'


def test_a_rule_may_ask_about_hosts_that_no_other_names(places: Places) -> None:
    places.write(user=ANY)
    (grant,) = places.compile().policy.grants
    assert (grant.host, grant.effect, grant.private) == ("*", "ask", False)


@pytest.mark.parametrize(
    "change",
    [
        ('effect = "ask"', 'effect = "allow"'),
        ('effect = "ask"', 'effect = "deny"'),
        ('effect = "ask"', ""),
        ('effect = "ask"', 'effect = "ask"\nprivate = true'),
        ('effect = "ask"', 'effect = "ask"\nheaders = ["x-some"]'),
        ('effect = "ask"', 'effect = "ask"\nwebsocket = true'),
        ('effect = "ask"', 'effect = "ask"\nafter_secret = true'),
        ('paths = ["/**"]', 'scheme = "tcp"\nport = 5432'),
        ('paths = ["/**"]', 'grpc = ["a.B/C"]'),
    ],
)
def test_but_it_allows_nothing_and_holds_nothing_more(places: Places, change: tuple[str, str]) -> None:
    places.write(user=ANY.replace(*change))
    assert "policy.any-host" in codes(places)


def test_nor_goes_beyond_what_is_above(places: Places) -> None:
    places.write(managed='[caps]\negress_hosts = ["*.example.test"]', user=ANY)
    assert codes(places) == {"policy.capped"}
    places.write(managed='[caps]\negress_hosts = ["*"]', user="")
    assert "policy.bad-value" in codes(places)


HOOK = 'webhook = "https://hooks.example.test/in"\nwebhook_secret = "env:HOOK"'


def test_who_is_told_is_for_the_user_and_the_administrator_to_say(places: Places) -> None:
    places.write(user=f"[approvals]\n{HOOK}\nnotify = true")
    told = places.compile().policy.approvals
    assert (told.webhook, told.webhook_secret, told.notify) == ("https://hooks.example.test/in", "env:HOOK", True)
    assert places.load() == places.load() == places.compile().policy
    places.write(managed=f"[approvals]\n{HOOK}", user="[approvals]\nnotify = true")
    assert places.compile().policy.approvals == told
    places.write(managed=f"[approvals]\n{HOOK}", user=f"[approvals]\n{HOOK.replace('hooks', 'mine')}")
    assert codes(places) == {"policy.capped"}
    for line in (HOOK, "notify = true"):
        places.write(managed="", user="", project=f"[approvals]\n{line}")
        assert codes(places) == {"policy.told"}


@pytest.mark.parametrize(
    "written, code",
    [
        ('webhook = "https://hooks.example.test/in"', "policy.told"),
        ('webhook_secret = "env:HOOK"', "policy.told"),
        (HOOK.replace("https", "http"), "policy.bad-value"),
        (HOOK.replace("https", "file"), "policy.bad-value"),
        (HOOK.replace("https://hooks", "https://me:secret@hooks"), "policy.bad-value"),
        (HOOK.replace("/in", "/in#part"), "policy.bad-value"),
        (HOOK.replace("/in", "/i n"), "policy.bad-value"),
        (HOOK.replace("hooks.example.test", ""), "policy.bad-value"),
        (HOOK.replace("hooks.example.test", "hooks.example.test:x"), "policy.bad-value"),
        (HOOK.replace("env:HOOK", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "policy.bad-value"),
        (HOOK.replace("env:HOOK", "file:WORK/secret"), "policy.secret-mounted"),
        ("notify = 1", "policy.bad-type"),
    ],
)
def test_a_webhook_that_cannot_be(places: Places, written: str, code: str) -> None:
    places.write(user=f"[approvals]\n{written.replace('WORK', str(places.work))}")
    assert code in codes(places)


def test_a_webhook_on_this_machine_may_be_in_the_clear(places: Places) -> None:
    for host in ("127.0.0.1:9000", "localhost:9000", "[::1]:9000"):
        places.write(user=f"[approvals]\n{HOOK}".replace("https://hooks.example.test", f"http://{host}"))
        assert places.compile().policy.approvals.webhook == f"http://{host}/in"
