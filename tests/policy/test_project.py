"""The layer of a trusted project: what it may say, and that it loosens nothing that a layer above decided."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.values import DENY, Policy
from stockade.policy import cached, files
from stockade.policy.compile import Compiled, compile_policy
from stockade.policy.model import MODES
from stockade.policy.problems import each

RULE = '[[egress]]\nhost = "{}"\npaths = ["/x"]\n'


def compiled(places: Places, text: str, *overrides: tuple[str, str]) -> Compiled:
    return compile_policy(str(places.work), project=given_by(places, text), overrides=overrides, **where(places))


def given_by(places: Places, text: str) -> tuple[str, bytes]:
    return f"{places.work}/stockade.toml", f"version = 1\n{text}".encode()


def where(places: Places) -> dict[str, Any]:
    return {"managed": str(places.managed), "managed_owner": os.geteuid()}


def test_it_stands_below_the_users_and_above_the_command_line(places: Places) -> None:
    places.write(user=RULE.format("u.example"))
    text = '[workspace]\nmode = "ro"\n[limits]\nmemory = "1 GiB"\n' + RULE.format("p.example")
    found = compiled(places, text, ("limits.memory", "2 GiB"))
    assert found.policy.workspace.mode == "ro" and found.policy.limits.memory == 2 << 30
    assert [grant.host for grant in found.policy.grants] == ["u.example", "p.example"]
    assert found.policy.grants[1].origin.file == f"{places.work}/stockade.toml" and found.policy.grants[1].origin.line == 6
    assert dict(found.origins)["workspace.mode"].line == 3
    assert found.policy.sources[-1] == (f"{places.work}/stockade.toml", files.digest(given_by(places, text)[1]))


# (what a project says, what the error says; a part of what it may say in its place)
BARRED = [
    ('[[mount]]\npath = "~/data"\n', "shows something of your machine"),
    ('[[mount]]\npath = "."\nmode = "ro"\n', "shows something of your machine"),
    ('[environment]\npass = ["DATABASE_URL"]\n', "sets the sandbox's environment"),
    ('[environment]\nset = { ANTHROPIC_BASE_URL = "https://evil.test" }\n', "sets the sandbox's environment"),
    ('[credential.k]\nsource = "command:touch /tmp/owned"\n', "names a secret of yours"),
    ('[credential.k]\nsource = "env:HOME"\n' + RULE.format("evil.test") + 'credential = "k"\n', "names a secret of yours"),
    ('[signing]\nkey = "~/.ssh/id.pub"\n', "has something signed as yours"),
    ("[approvals]\nper_minute = 500\n", "says how you are asked"),
    ('[workspace]\npath = ".."\n', "does not choose the workspace"),
    ('wall = "bubblewrap"\n', "not for a project to choose"),
    ('wall = "auto"\n', "not for a project to choose"),
    ('oversight = "developer"\n', "not for a project to choose"),
    ('gate = "shared"\n', "not for a project to choose"),
    ('[root]\npath = "/srv"\n', "not for a project to choose"),
    ('[limits]\nmemory = "9 GiB"\n', "wider than 8 GiB"),
    ('[limits]\nmemory = "none"\n', "wider than 8 GiB"),
    ("[caps]\nmodes = []\n", "has no effect in this file"),
    (RULE.format("intranet.test") + "private = true\n", "reaches private addresses"),
    ('[[egress]]\nhost = "*"\npaths = ["/**"]\neffect = "ask"\n', "nobody has named"),
    (RULE.format("evil.test") + "after_secret = true\n", "after something secret"),
    ('[[egress]]\npreset = "anthropic"\n', "sends your credential anthropic"),
]


@pytest.mark.parametrize(("text", "says"), BARRED)
def test_what_a_project_may_not_say_stops_the_start(places: Places, text: str, says: str) -> None:
    (places.home / "data").mkdir()
    with pytest.raises(PolicyError, match=says) as caught:
        compiled(places, text)
    found = each(caught.value)
    assert {error.code for error in found} & {"policy.project", "policy.caps-here"}
    assert all(
        error.file == f"{places.work}/stockade.toml" and (error.line or "has no say" in error.message) and error.hint
        for error in found
        if error.code == "policy.project"
    )


ABOVE = [
    ('[workspace]\nmode = "ro"\n', '[workspace]\nmode = "rw"\n', '[workspace]\nmode = "ro"\n'),
    ('[workspace]\nmode = "rw-no-delete"\n', '[workspace]\nmode = "rw"\n', '[workspace]\nmode = "ro"\n'),
    ('[workspace]\nmode = "review"\n', '[workspace]\nmode = "rw-no-delete"\n', '[workspace]\nmode = "ro"\n'),
    ('[workspace]\ngit = "ro"\n', '[workspace]\ngit = "private"\n', '[workspace]\ngit = "ro"\n'),
    ('[workspace]\nscan = "before"\n', '[workspace]\nscan = "behind"\n', '[workspace]\nscan = "before"\n'),
    ('[limits]\nwall_time = "1 h"\n', '[limits]\nwall_time = "2 h"\n', '[limits]\nwall_time = "30 min"\n'),
    ('[limits]\nwall_time = "1 h"\n', '[limits]\nwall_time = "none"\n', "[limits]\nprocesses = 7\n"),
    ('[caps.limits]\nmemory = "1 GiB"\n', '[limits]\nmemory = "2 GiB"\n', '[limits]\nmemory = "1 GiB"\n'),
    ('wall = "vm"\n', 'wall = "gvisor"\n', 'wall = "vm"\n'),
    (RULE.format("api.test"), '[[egress]]\nhost = "api.test"\npaths = ["/**"]\n', RULE.format("other.test")),
    (RULE.format("api.test") + "uses = 3\n", RULE.format("api.test"), RULE.format("api.test") + "uses = 3\n"),
    (RULE.format("*.x.test"), '[[egress]]\nhost = "a.x.test"\npaths = ["/**"]\n', RULE.format("x.test")),
    (RULE.format("a.x.test"), RULE.format("*.x.test"), RULE.format("*.y.test")),
    (RULE.format("api.test"), '[[egress]]\nhost = "api.test"\nscheme = "tcp"\nport = 22\n', RULE.format("api.test") + 'effect = "deny"\n'),
    ('[credential.k]\nsource = "env:K"\n', RULE.format("evil.test") + 'credential = "k"\n', RULE.format("evil.test")),
]  # fmt: skip


@pytest.mark.parametrize("layer", ["user", "managed"])
@pytest.mark.parametrize(("above", "wider", "twin"), ABOVE)
def test_nothing_that_a_layer_above_decided_is_loosened(places: Places, layer: str, above: str, wider: str, twin: str) -> None:
    """Control: any other file may say the same. Twin: what is not wider is taken."""
    places.write(**{layer: above})
    (places.work / "project.toml").write_text(f"version = 1\n{wider}")
    if "caps" not in above:
        compile_policy(str(places.work), policy_file="project.toml", **where(places))
    with pytest.raises(PolicyError) as caught:
        compiled(places, wider)
    assert {error.code for error in each(caught.value)} <= {"policy.project", "policy.capped"}
    assert compiled(places, twin).policy.sources[-1][0] == f"{places.work}/stockade.toml"


def test_it_has_no_say_about_another_folder(places: Places) -> None:
    for name in ("other", "work/sub"):
        (places.root / name).mkdir()
    with pytest.raises(PolicyError, match="has no say") as caught:
        compiled(places, RULE.format("p.test"), ("workspace.path", "../other"))
    assert caught.value.code == "policy.project" and "--no-project" in caught.value.hint
    assert compiled(places, RULE.format("p.test"), ("workspace.path", "sub")).policy.grants


def test_it_adds_nothing_to_the_hosts_of_the_agent_that_runs(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    (places.root / "bin").mkdir()
    (places.root / "bin/claude").write_text("#!/bin/sh\n")
    (places.root / "bin/claude").chmod(0o755)
    monkeypatch.setenv("PATH", str(places.root / "bin"))
    wider = RULE.format("api.anthropic.com")
    assert compiled(places, wider).policy.grants
    with pytest.raises(PolicyError, match=r"agent:claude.* has rules for api\.anthropic\.com, and a project cannot add to those"):
        compiled(places, wider, ("agent", "claude"))
    assert len(compiled(places, RULE.format("p.example"), ("agent", "claude")).policy.grants) == 2


def test_caps_bind_a_project_as_they_bind_others(places: Places) -> None:
    places.write(managed='[caps]\negress_hosts = ["*.corp.test"]\nimages = []\n')
    with pytest.raises(PolicyError, match=r"caps\.egress_hosts"):
        compiled(places, RULE.format("evil.test"))
    with pytest.raises(PolicyError, match=r"caps\.images"):
        compiled(places, f'[root]\nimage = "registry.test/x@sha256:{"0" * 64}"\n')
    assert compiled(places, RULE.format("a.corp.test")).policy.grants


WISH = st.fixed_dictionaries({
    "mode": st.sampled_from(["", *MODES]), "memory": st.sampled_from([0, 1 << 30, 2 << 30, 16 << 30]), "wall": st.sampled_from(["", "bubblewrap", "gvisor", "vm"]),
    "host": st.sampled_from(["a.x.test", "x.test", "*.x.test", "b.y.test"]), "path": st.sampled_from(["/x", "/**"]), "effect": st.sampled_from(["allow", "ask", "deny"]),
})  # fmt: skip


def written(wish: dict[str, Any]) -> str:
    text = f'wall = "{wish["wall"]}"\n' if wish["wall"] else ""
    text += f'[workspace]\nmode = "{wish["mode"]}"\n' if wish["mode"] else ""
    text += f"[limits]\nmemory = {wish['memory']}\n" if wish["memory"] else ""
    return text + f'[[egress]]\nhost = "{wish["host"]}"\npaths = ["{wish["path"]}"]\neffect = "{wish["effect"]}"\n'


def allowed(policy: Policy, host: str, path: str) -> bool:
    """What the grants say to one path of one host, denials first."""
    found = [
        grant
        for grant in policy.grants
        if grant.host in (host, f"*.{host.partition('.')[2]}") and (path in grant.paths or "/**" in grant.paths)
    ]
    return bool(found) and all(grant.effect != DENY for grant in found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(WISH, WISH)
def test_law_a_project_only_narrows_or_grants_hosts_that_nobody_decided_on(
    places: Places, user: dict[str, Any], project: dict[str, Any]
) -> None:
    places.write(user=written(user))
    without = compile_policy(str(places.work), **where(places)).policy
    try:
        policy = compiled(places, written(project)).policy
    except PolicyError as error:
        assert {one.code for one in each(error)} == {"policy.project"}
        return
    assert MODES.index(policy.workspace.mode) <= MODES.index(without.workspace.mode) and policy.limits.memory <= without.limits.memory
    order = ["auto", "bubblewrap", "gvisor", "vm"]
    assert order.index(policy.wall) >= order.index(without.wall)
    for host in ("a.x.test", "x.test", "c.x.test"):
        decided = any(grant.effect != DENY and grant.host in (host, f"*.{host.partition('.')[2]}") for grant in without.grants)
        for path in ("/x", "/y"):
            assert not (decided and allowed(policy, host, path) and not allowed(without, host, path))


def test_the_cache_knows_the_project_by_its_content(places: Places) -> None:
    def load(text: str | None) -> Policy:
        return cached.load(str(places.work), project=None if text is None else given_by(places, text), **where(places))

    one, two = RULE.format("one.test"), RULE.format("two.test")
    for _ in range(2):
        assert [grant.host for grant in load(one).grants] == ["one.test"]
        assert [grant.host for grant in load(two).grants] == ["two.test"]
        assert load(None).grants == ()


def test_a_project_that_is_no_policy_says_so(places: Places) -> None:
    for data, code in ((b"\xff", "policy.syntax"), (b"version = 2", "policy.version"), (b"#" * (files.MAX_BYTES + 1), "policy.too-large")):
        with pytest.raises(PolicyError) as caught:
            compile_policy(str(places.work), project=("/p/stockade.toml", data), **where(places))
        assert caught.value.code == code and caught.value.file == "/p/stockade.toml"
