"""[reviewer]: the highest layer that has one brings it, and those below can only take away; a project has no say."""

from __future__ import annotations

import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.reviews import ReviewRule
from stockade.core.values import Policy
from stockade.policy.compile import compile_policy
from stockade.policy.problems import each

ASKS = '[[egress]]\nhost = "api.example.test"\nmethods = ["POST"]\npaths = ["/v1"]\neffect = "ask"\n'
RULES = '[[reviewer.allow]]\nmethods = ["GET"]\nrisk = ["low"]\nmax_size = "1 KiB"\n[[reviewer.deny]]\ntainted = true\n'
MODEL = '[reviewer]\nurl = "https://judge.example.test/v1/messages"\napi = "anthropic"\nmodel = "some-model"\ncredential = "judge"\n'
KEY = '[credential.judge]\nsource = "env:JUDGE_KEY"\nheader = "x-api-key"\n'


def codes(places: Places, project: str = "") -> set[str]:
    with pytest.raises(PolicyError) as caught:
        if project:
            compile_policy(str(places.work), project=(str(places.work / "stockade.toml"), f"version = 1\n{project}".encode()))
        else:
            places.compile()
    return {error.code for error in each(caught.value)}


def test_rules_and_a_model_with_all_that_may_be_sent_to_it(places: Places) -> None:
    places.write(user=f"{ASKS}{MODEL}{RULES}{KEY}")
    compiled = places.compile()
    found = compiled.policy.reviewer
    assert found and found.approves and compiled.warnings == ()
    assert found.allow == (ReviewRule(("GET",), (), ("low",), max_size=1024),) and found.deny == (ReviewRule(tainted=True),)
    assert found.model and (found.model.api, found.model.name, found.model.timeout) == ("anthropic", "some-model", 20)
    grant = found.model.grant
    assert (grant.host, grant.port, grant.scheme, grant.methods, grant.paths, grant.query) == (
        "judge.example.test",
        443,
        "https",
        ("POST",),
        ("/v1/messages",),
        "none",
    )
    # The key is the reviewer's: the sandbox gets no stand-in for it, and the agent's gate no secret.
    assert found.model.credential and found.model.credential.name == "judge" and compiled.policy.credentials == ()
    assert len(compiled.policy.grants) == 1
    assert places.load() == places.load() == compiled.policy  # the cache gives back the same


def test_the_key_may_be_the_agents_own(places: Places) -> None:
    places.write(user='[[egress]]\npreset = "anthropic"\n' + MODEL.replace('"judge"', '"anthropic"'))
    found = places.compile().policy
    assert found.reviewer and found.reviewer.model and (found.reviewer.model.credential,) == found.credentials


def test_who_reviews_for_a_user_approves_nothing_that_the_administrator_asks_about(places: Places) -> None:
    own, tool = ASKS.replace("/v1", "/v2"), '[[tool]]\nname = "Bash"\neffect = "ask"\n'
    for managed, user, unreviewed in (
        (ASKS + tool, own + tool + RULES, [True, False]),
        (ASKS + tool + RULES, own + tool, [False, False]),
        (ASKS + tool, own + tool, [False, False]),
    ):
        places.write(managed=managed, user=user)
        found = places.compile().policy
        assert [rule.unreviewed for rule in found.grants] == [rule.unreviewed for rule in found.tools] == unreviewed
        assert places.load() == found


@pytest.mark.parametrize(
    "below, allowed",
    [
        ('[[reviewer.deny]]\nmethods = ["DELETE"]', True),
        ("[reviewer]\napproves = false", True),
        ('[[reviewer.allow]]\nmethods = ["DELETE"]', False),
        (MODEL + KEY, False),
        ("[reviewer]\ntimeout = 30", False),
        ("[reviewer]\nprivate = true", False),
    ],
)
def test_a_layer_below_can_only_take_away(places: Places, below: str, allowed: bool) -> None:
    for layers in ({"managed": RULES, "user": below}, {"user": RULES, "project": below}):  # `project` is here the file of --policy
        for path in (places.managed, places.own, places.project):
            path.unlink(missing_ok=True)
        places.write(**layers)
        if allowed:
            found = places.compile().policy.reviewer
            assert found and len(found.deny) + (not found.approves) == 2 and len(found.allow) == 1
        else:
            assert codes(places) == {"policy.capped"}


def test_once_it_may_only_refuse_no_layer_lets_it_approve_again(places: Places) -> None:
    places.write(managed=f"[reviewer]\napproves = false\n{RULES}", user="[reviewer]\napproves = true")
    assert codes(places) == {"policy.capped"}


@pytest.mark.parametrize("written", [RULES, MODEL + KEY, "[reviewer]\napproves = false", '[[reviewer.deny]]\nmethods = ["DELETE"]'])
def test_a_repository_cannot_bring_its_own_judge(places: Places, written: str) -> None:
    assert "policy.project" in codes(places, written)


def test_a_file_that_is_named_brings_none_either(places: Places) -> None:
    places.write(project=RULES)
    assert codes(places) == {"policy.reviewer-here"}
    places.write(project='[[reviewer.deny]]\nrisk = ["high"]')
    found = places.compile().policy.reviewer
    assert found and found.deny and not found.allow


@pytest.mark.parametrize("written, fine", [(RULES, False), (MODEL + KEY, False), ('[[reviewer.deny]]\nrisk = ["high"]', True)])
def test_a_cap_that_nothing_is_approved_without_people(places: Places, written: str, fine: bool) -> None:
    places.write(managed="[caps]\nreviewer = false", user=written)
    if fine:
        assert places.compile().policy.reviewer
    else:
        assert codes(places) == {"policy.capped"}


@pytest.mark.parametrize(
    "written, code",
    [
        ("[[reviewer.allow]]", "policy.reviewer"),
        ("[[reviewer.allow]]\nreversible = false", "policy.reviewer"),
        ("[[reviewer.deny]]\nmethods = []", "policy.reviewer"),
        ("[[reviewer.allow]]\ntainted = true", "policy.unknown-key"),
        ('[reviewer]\nmodel = "m"', "policy.missing-key"),
        ('[reviewer]\nurl = "https://judge.example.test/v1"', "policy.missing-key"),
        (MODEL, "policy.no-credential"),
        (MODEL.replace("https:", "http:") + KEY, "policy.cleartext"),
        (MODEL.replace("/messages", "/messages?x=1") + KEY, "policy.bad-value"),
        (MODEL.replace("/messages", "/*") + KEY, "policy.bad-value"),
        (MODEL.replace("judge.example.test", "*.example.test") + KEY, "policy.bad-value"),
        (MODEL.replace("judge.example.test", "user@example.test") + KEY, "policy.bad-value"),
        (MODEL.replace("judge.example.test", "192.0.2.1") + KEY, "policy.bad-value"),
        (MODEL.replace("/v1/messages", "") + KEY, "policy.bad-value"),
        (f"{MODEL}timeout = '2 min'\n{KEY}", "policy.bad-value"),
        (MODEL + KEY.replace('header = "x-api-key"', 'query = "key"'), "policy.reviewer"),
        (MODEL + KEY + '[caps]\negress_hosts = ["api.example.test"]', ""),
    ],
)
def test_what_cannot_be(places: Places, written: str, code: str) -> None:
    if not code:  # a cap of one's own binds the layers below, and one of the administrator's binds this
        places.write(managed='[caps]\negress_hosts = ["api.example.test"]', user=MODEL + KEY)
        code = "policy.capped"
    else:
        places.write(user=written)
    assert code in codes(places)


def test_the_key_must_not_lie_where_the_sandbox_sees_it(places: Places) -> None:
    places.write(user=MODEL + KEY.replace("env:JUDGE_KEY", f"file:{places.work}/key"))
    assert codes(places) == {"policy.secret-mounted"}


def test_without_one_there_is_none() -> None:
    assert Policy().reviewer is None
