from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.values import Limits
from stockade.policy import files
from stockade.policy.model import MODES
from stockade.policy.problems import each

RULE = '[[egress]]\nhost = "{}"\npaths = ["/x"]\n'


def test_nearer_layers_replace_values_and_add_to_lists(places: Places) -> None:
    places.write(
        managed='oversight = "none"\n' + RULE.format("m.example"),
        user='wall = "gvisor"\n[limits]\nmemory = "1 GiB"\nprocesses = 7\n'
        + RULE.format("u.example")
        + '[environment]\npass = ["EDITOR"]\n',
        project='wall = "vm"\n[limits]\nmemory = "2 GiB"\n' + RULE.format("p.example"),
    )
    found = places.compile(("limits.memory", "3 GiB"), ("egress.allow", "GET https://c.example/x"), ("environment.set", "EDITOR=ed"))
    policy = found.policy
    assert (policy.wall, policy.oversight, policy.limits.memory, policy.limits.processes) == ("vm", "none", 3 << 30, 7)
    assert [grant.host for grant in policy.grants] == ["m.example", "u.example", "p.example", "c.example"]
    assert "EDITOR" not in policy.environment.pass_names and ("EDITOR", "ed") in policy.environment.set_values
    origins = dict(found.origins)
    assert (origins["wall"].file, origins["wall"].line) == (str(places.project), 2)
    assert origins["limits.memory"].file == "command line"
    assert [path for path, _ in policy.sources] == [str(places.managed), str(places.own), str(places.project)]


def test_a_gate_of_ones_own_cannot_be_undone_below(places: Places) -> None:
    assert places.compile().policy.gate == "own"
    places.write(user='gate = "shared"')
    assert places.compile().policy.gate == "shared" and places.compile(("gate", "own")).policy.gate == "own"
    places.write(managed='gate = "own"', user='gate = "shared"')
    with pytest.raises(PolicyError, match=r"a shared gate is wider than .*:2 allows"):
        places.compile()


def test_a_projects_file_is_never_looked_for(places: Places) -> None:
    (places.work / "stockade.toml").write_text("nonsense")
    assert places.load().grants == ()
    assert places.compile().policy.sources == ()


CAPPED = [
    ('walls = ["gvisor"]', 'wall = "bubblewrap"', 'the wall "bubblewrap"', "caps.walls"),
    ('modes = ["ro"]', '[workspace]\nmode = "rw"', 'the mode "rw"', "caps.modes"),
    ('modes = ["rw-no-delete"]', '[[mount]]\npath = "."\nmode = "rw"', 'the mode "rw"', "caps.modes"),
    ('modes = ["review"]', '[workspace]\nmode = "rw-no-delete"', 'the mode "rw-no-delete"', "caps.modes"),
    ('mounts = ["~"]', "", "the path", "caps.mounts"),
    ('egress_hosts = ["*.example.com"]', RULE.format("example.com"), "the host example.com", "caps.egress_hosts"),
    ('egress_hosts = ["a.example.com"]', RULE.format("*.example.com"), "the host *.example.com", "caps.egress_hosts"),
    ("egress_hosts = []", '[[egress]]\npreset = "anthropic"', "api.anthropic.com of the preset anthropic", "caps.egress_hosts"),
    ('egress_methods = ["GET", "HEAD"]', RULE.format("a.b") + 'methods = ["GET", "PUT"]', "the method PUT", "caps.egress_methods"),
    ('egress_methods = ["GET", "HEAD"]', RULE.format("a.b") + 'methods = ["*"]', "the method *", "caps.egress_methods"),
    ("private = false", RULE.format("a.b") + "private = true", "private = true", "caps.private"),
    ('max_upload = "1 MiB"', RULE.format("a.b") + 'max_upload = "2 MiB"', "max_upload = 2 MiB", "caps.max_upload"),
    ('limits.memory = "1 GiB"', '[limits]\nmemory = "2 GiB"', "memory = 2 GiB", "caps.limits.memory"),
    ('limits.wall_time = "1 h"', '[limits]\nwall_time = "none"', "wall_time = none", "caps.limits.wall_time"),
]


@pytest.mark.parametrize("layer", ["user", "project"])
@pytest.mark.parametrize(("cap", "wish", "what", "rule"), CAPPED)
def test_a_wider_wish_is_refused_and_names_the_cap(places: Places, layer: str, cap: str, wish: str, what: str, rule: str) -> None:
    places.write(managed=f"[caps]\n{cap}", **{layer: wish})
    with pytest.raises(PolicyError) as caught:
        places.compile()
    message = str(caught.value)
    assert what in message and rule in message and f"{places.managed}:3" in message
    assert {error.code for error in each(caught.value)} == {"policy.capped"}


def test_the_command_line_is_capped_too(places: Places) -> None:
    places.write(user='[caps]\negress_hosts = []\nmodes = ["ro"]')
    for override in (("egress.allow", "GET https://a.b/"), ("workspace.mode", "rw"), ("mount.rw", str(places.root))):
        with pytest.raises(PolicyError, match=r"caps\."):
            places.compile(override)


def test_a_cap_narrows_the_defaults_by_itself(places: Places) -> None:
    caps = '[caps]\nwalls = ["vm", "gvisor"]\nmodes = ["rw-no-delete"]\nmax_upload = "1 KiB"\n[caps.limits]\nmemory = "1 GiB"\nwall_time = "1 h"\n'
    policy = places.write(managed=caps, user=RULE.format("a.b")).compile().policy
    assert (policy.wall, policy.workspace.mode) == ("vm", "rw-no-delete")
    assert (policy.limits.memory, policy.limits.wall_time, policy.limits.processes) == (1 << 30, 3600, Limits().processes)
    assert policy.grants[0].max_upload == 1024


@pytest.mark.parametrize(("modes", "mode"), [('["ro", "review"]', "review"), ('["rw-no-delete"]', "rw-no-delete"), ('["rw"]', "rw")])
def test_the_widest_mode_of_a_cap_is_the_default(modes: str, mode: str, places: Places) -> None:
    assert places.write(managed=f"[caps]\nmodes = {modes}\n").compile().policy.workspace.mode == mode


def test_a_cap_leaves_denials_and_narrower_wishes_alone(places: Places) -> None:
    places.write(managed='[caps]\negress_hosts = ["*.example.com"]\nmodes = ["rw"]', user=RULE.format("evil.test") + 'effect = "deny"\n')
    policy = places.compile(("workspace.mode", "ro"), ("egress.allow", "GET https://a.example.com/x")).policy
    assert [grant.effect for grant in policy.grants] == ["deny", "allow"] and policy.workspace.mode == "ro"


def test_a_link_does_not_lead_out_of_the_capped_roots(places: Places) -> None:
    (places.home / "data").mkdir()
    (places.work / "link").symlink_to(places.home / "data")
    places.write(managed=f'[caps]\nmounts = ["{places.work}"]')
    with pytest.raises(PolicyError, match=r"caps\.mounts"):
        places.compile(("mount.ro", "link"))


def test_a_managed_credential_cannot_be_replaced(places: Places) -> None:
    one = '[credential.k]\nsource = "env:{}"\n[[egress]]\nhost = "{}"\npaths = ["/"]\ncredential = "k"\n'
    with pytest.raises(PolicyError, match=f"the credential k is set by {places.managed}:2"):
        places.write(managed=one.format("A", "a.b"), user=one.format("B", "c.d")).compile()


def test_a_file_that_borrows_the_users_credential_is_warned_about(places: Places) -> None:
    places.write(user='[credential.k]\nsource = "env:A"\n', project=RULE.format("evil.test") + 'credential = "k"')
    assert "policy.lent-credential" in {warning.code for warning in places.compile().warnings}


WISH = st.fixed_dictionaries({"mode": st.sampled_from(MODES), "memory": st.integers(16 << 20, 1 << 34), "host": st.sampled_from(["a.x.test", "x.test", "*.x.test", "b.y.test"])})  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(WISH, WISH, st.booleans())
def test_law_a_lower_layer_never_widens_a_cap(
    places: Places, cap: dict[str, object], wish: dict[str, object], on_command_line: bool
) -> None:
    """Whatever is wished, below or at the command line: either it is refused or the result stays within the caps."""
    caps = f'[caps]\nmodes = ["{cap["mode"]}"]\negress_hosts = ["{cap["host"]}"]\nlimits.memory = {cap["memory"]}\n'
    text = f'[workspace]\nmode = "{wish["mode"]}"\n[limits]\nmemory = {wish["memory"]}\n' + RULE.format(wish["host"])
    options = (
        ("workspace.mode", str(wish["mode"])),
        ("limits.memory", str(wish["memory"]) + " B"),
        ("egress.allow", f"GET https://{wish['host']}/x"),
    )
    places.write(managed=caps, project="" if on_command_line else text)
    try:
        policy = places.compile(*(options if on_command_line else ())).policy
    except PolicyError as error:
        assert {one.code for one in each(error)} == {"policy.capped"}
        assert wish["mode"] != cap["mode"] or wish["host"] != cap["host"] or int(str(wish["memory"])) > int(str(cap["memory"]))
        return
    assert MODES.index(policy.workspace.mode) <= MODES.index(str(cap["mode"]))
    assert policy.limits.memory <= int(str(cap["memory"]))
    for grant in policy.grants:
        assert grant.host == cap["host"] or (cap["host"] == "*.x.test" and grant.host == "a.x.test")


def test_a_managed_policy_that_others_can_write_is_refused(places: Places) -> None:
    places.write(managed="")
    for mode, path in ((0o646, places.managed), (0o777, places.managed.parent)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(PolicyError, match="can be changed by others"):
            places.compile()
        path.chmod(before)
    assert places.compile().policy.sources


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a file of somebody who is not root")
def test_a_managed_policy_must_belong_to_root(places: Places) -> None:
    places.write(managed="")
    with pytest.raises(PolicyError, match="others than root"):
        files.read(str(places.managed), owner=0)


@pytest.mark.root
def test_a_managed_policy_of_an_ordinary_user_is_refused(places: Places) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    places.write(managed="")
    os.chown(places.managed, 12345, -1)
    with pytest.raises(PolicyError, match="others than root"):
        files.read(str(places.managed), owner=0)
    places.managed.chmod(0o620)
    os.chown(places.managed, 0, -1)
    with pytest.raises(PolicyError, match="others than root"):
        files.read(str(places.managed), owner=0)


def test_a_policy_that_is_no_file_is_refused(places: Places) -> None:
    os.mkfifo(places.work / "fifo")
    (places.work / "dangling").symlink_to("nowhere")
    (places.work / "large").write_bytes(b"#" * (files.MAX_BYTES + 1))
    for name, text in (("fifo", "not a regular file"), ("dangling", "link to nothing"), ("large", "larger"), (".", "not a regular file")):
        with pytest.raises(PolicyError, match=text):
            files.read(str(places.work / name))
    assert files.read(str(places.work / "none")) is None


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("limit.memory", "1 GiB", r"Did you mean limits\.memory"),
        ("egress.allow", "https://a.b/", "not a method and a URL"),
        ("egress.allow", "GET https://a.b", "names no path"),
        ("egress.allow", "GET https://u:p@a.b/x", "not a method and a URL"),
        ("egress.allow", "GET https://a.b/x?y=1", "holds a query"),
        ("egress.allow", "GET https://a.b/x always", "not known here"),
        ("egress.allow", "GET https://a.b:99999/x", "does not hold a URL"),
        ("egress.allow", "GET https://1.2.3.4/x", "is an address"),
        ("environment.set", "A", "has no value"),
        ("wall", "docker", "must be one of"),
        ("egress", "all", "only be set to none"),
        ("environment.pass", "MY_TOKEN", "looks like a credential"),
    ],
)
def test_wrong_options(places: Places, key: str, value: str, text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        places.compile((key, value))
    import re

    assert re.search(text, f"{caught.value} {caught.value.hint}") and caught.value.file == "command line"


def test_options(places: Places) -> None:
    places.write(user=RULE.format("a.b") + '[credential.k]\nsource = "env:K"')
    (places.root / "data").mkdir()
    policy = places.compile(
        ("mount.rw-no-delete", f"{places.root}/data:/data"), ("limits.processes", "9"), ("environment.set", "A=b=c"),
        ("egress.allow", "POST,PUT http://c.d:8080/v1/**?* credential=k private"), ("egress.deny", "GET https://a.b/secret"),
    ).policy  # fmt: skip
    assert (policy.mounts[0].source, policy.mounts[0].target, policy.mounts[0].mode) == (f"{places.root}/data", "/data", "rw-no-delete")
    assert policy.limits.processes == 9 and policy.environment.set_values == (("A", "b=c"),)
    grant, denial = policy.grants[1:]
    assert (grant.host, grant.port, grant.scheme, grant.methods, grant.paths, grant.query) == (
        "c.d",
        8080,
        "http",
        ("POST", "PUT"),
        ("/v1/**",),
        "any",
    )
    assert (grant.credential, grant.private, denial.effect) == ("k", True, "deny")
    assert places.compile(("egress", "none")).policy.grants == ()


def test_a_later_layer_does_not_lift_the_mark_of_a_secret(places: Places) -> None:
    (places.home / "data").mkdir()
    (places.home / "other").mkdir()
    places.write(managed='[[mount]]\npath = "~/data"\nsecret = true', user='[[mount]]\npath = "~/data"\nsecret = false')
    for options in ((), (("mount.rw", "~/data"),), (("mount.ro", f"~/other:{places.home}/data"),)):
        (found,) = places.load(*options).mounts
        assert found.secret and found.target == f"{places.home}/data"
    places.write(managed="")
    assert [mount.secret for mount in places.load().mounts] == [False]
