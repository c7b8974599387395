from __future__ import annotations

import pytest

from policy.support import Places
from stockade.policy.visible import explain_path


@pytest.mark.parametrize(
    ("action", "path", "effect", "rule"),
    [
        ("read", "a.txt", "allow", "is rw"),
        ("write", "new/deep/file", "allow", "is rw"),
        ("write", ".git/hooks/x", "allow", "is rw"),
        ("read", "~/data/x", "allow", "is ro"),
        ("write", "~/data/x", "deny", "is ro"),
        ("write", "~/notes", "deny", "not-visible"),
        ("read", "~/.aws/credentials", "deny", "not-visible"),
        ("read", "link", "deny", "leads-outside"),
        ("read", "/usr/bin/env", "allow", "system"),
        ("write", "/usr/bin/env", "deny", "not-visible"),
        ("read", "/etc/shadow", "deny", "not-visible"),
        ("read", "../work/../home/x", "deny", "not-visible"),
    ],
)
def test_paths(places: Places, action: str, path: str, effect: str, rule: str) -> None:
    (places.home / "data").mkdir()
    (places.home / ".aws").mkdir()
    (places.home / ".aws/credentials").write_text("x")
    (places.work / "link").symlink_to(places.home / ".aws/credentials")
    policy = places.write(user='[[mount]]\npath = "~/data"').compile().policy
    verdict, _ = explain_path("read" if action == "read" else "write", path, policy, str(places.work))
    assert verdict.effect == effect and rule in verdict.rule
    if ".aws" in path:
        assert verdict.grant == "" and "[credential.NAME]" in " ".join(verdict.reasons)


def test_the_grant_that_is_shown_allows_it(places: Places) -> None:
    (places.home / 'odd "name"').mkdir()
    (places.home / 'odd "name"/x').write_text("")
    policy = places.compile().policy
    asked = '~/odd "name"/x'
    verdict, _ = explain_path("read", asked, policy, str(places.work))
    wider = places.write(user=verdict.grant).compile().policy
    assert explain_path("read", asked, wider, str(places.work))[0].effect == "allow"


def test_a_secret_is_said_to_be_one(places: Places) -> None:
    (places.home / "data").mkdir()
    policy = places.write(user='[[mount]]\npath = "~/data"\nsecret = true').compile().policy
    verdict, _ = explain_path("read", "~/data/x", policy, str(places.work))
    assert verdict.effect == "allow" and "after_secret" in verdict.reasons[0]
