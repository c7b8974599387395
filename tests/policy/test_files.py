"""[[file]] of all layers, and mounts that are asked for: what is held, who may be asked about it, and what no layer below can widen."""

from __future__ import annotations

import pytest

from policy.support import Places
from policy.test_tools import codes
from stockade.core.errors import PolicyError
from stockade.core.tools import FileRule, MountRule
from stockade.core.values import Policy
from stockade.policy.compile import compile_policy
from stockade.policy.problems import each
from stockade.policy.visible import explain_path

ASKS = '[[file]]\npath = ".github/workflows/*.yml"\neffect = "ask"'
DENIES = '[[file]]\npath = ".envrc"\neffect = "deny"'


def test_rules_of_all_layers_add_up(places: Places) -> None:
    places.write(managed=DENIES, user=ASKS, project='[[file]]\npath = ".envrc"\neffect = "ask"')
    found = places.compile().policy.files
    assert [(one.path, one.effect) for one in found] == [(".envrc", "deny"), (".github/workflows/*.yml", "ask"), (".envrc", "ask")]
    assert str(found[0].origin) == f"{places.managed}:2 (file[0])"
    assert places.load().files == places.load().files == found and all(type(one) is FileRule for one in places.load().files)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/x",
        "~/x",
        "../x",
        "a/../b",
        "./a",
        "a//b",
        "a/",
        "",
        "*",
        "*.yml",
        "a/*/b",
        ".git/config",
        "a/.GIT/hooks/x",
        "git~1/x",
        "a\\\\b",
        "\u0430",
    ],
)
def test_paths_that_no_rule_can_name(places: Places, path: str) -> None:
    places.write(user=f'[[file]]\npath = "{path}"\neffect = "ask"')
    assert codes(places) == {"policy.bad-value"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[[file]]\npath = "a"', "policy.missing-key"),
        ('[[file]]\npath = "a"\neffect = "allow"', "policy.bad-value"),
        ('[[file]]\npath = "a"\neffect = "ask"\npeople = false', "policy.unknown-key"),
        (f'wall = "bubblewrap"\noversight = "none"\n{ASKS}', "policy.nobody-to-ask"),
        (f'[workspace]\nmode = "rw-no-delete"\n{DENIES}', "policy.file"),
        (f'[workspace]\nmode = "review"\n{DENIES}', "policy.file"),
    ],
)
def test_what_is_no_rule_is_an_error(places: Places, text: str, code: str) -> None:
    places.write(user=text)
    assert code in codes(places)


def test_where_nobody_is_there_a_file_can_still_be_held(places: Places) -> None:
    places.write(user=f'wall = "bubblewrap"\noversight = "none"\n{DENIES}')
    assert [one.effect for one in places.compile().policy.files] == ["deny"]


def test_what_the_administrator_forbids_nobody_below_has_asked(places: Places) -> None:
    places.write(managed="[caps]\nfiles = false", user=ASKS)
    assert codes(places) == {"policy.capped"}
    places.write(user=DENIES)
    assert places.compile().policy.files


def test_a_project_can_hold_and_cannot_have_anybody_asked(places: Places) -> None:
    def compiled(text: str) -> tuple[FileRule, ...]:
        return compile_policy(str(places.work), project=("stockade.toml", f"version = 1\n{text}".encode())).policy.files

    assert [one.path for one in compiled(DENIES)] == [".envrc"]
    with pytest.raises(PolicyError) as caught:
        compiled(ASKS)
    assert {error.code for error in each(caught.value)} == {"policy.project"}


def mounted(path: object, *more: str) -> str:
    return "\n".join(("[[mount]]", f'path = "{path}"', *more))


def test_a_mount_that_is_asked_for_is_no_mount(places: Places) -> None:
    (places.home / "sets").mkdir()
    places.write(user=mounted("~/sets", 'effect = "ask"', 'at = "/srv/sets"'))
    found: Policy = places.compile().policy
    real = str(places.home / "sets")
    assert found.mounts == () and [(one.source, one.target, one.written) for one in found.offers] == [(real, "/srv/sets", "~/sets")]
    assert places.load() == places.load() == found and type(places.load().offers[0]) is MountRule
    explained = [explain_path(action, f"{real}/x", found, str(places.work))[0] for action in ("read", "write")]  # type: ignore[arg-type]  # both are
    assert [one.effect for one in explained] == ["ask", "deny"]
    places.write(project=mounted(real, 'at = "/srv/sets"'))
    assert codes(places) == {"policy.capped"}  # nobody below lifts the question
    places.write(user=mounted("~/sets", 'at = "/srv/sets"', "secret = true"), project=mounted(real, 'effect = "ask"', 'at = "/srv/sets"'))
    assert codes(places) == {"policy.capped"}  # nor a mark


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (('mode = "rw"',), "policy.mount-asked"),
        (("secret = true",), "policy.mount-asked"),
        (('mode = "ro"', "oversight"), "policy.nobody-to-ask"),
    ],
)
def test_what_cannot_be_asked_for(places: Places, more: tuple[str, ...], code: str) -> None:
    (places.home / "sets").mkdir()
    nobody = 'wall = "bubblewrap"\noversight = "none"\n' if "oversight" in more else ""
    places.write(user=nobody + mounted("~/sets", 'effect = "ask"', *(line for line in more if line != "oversight")))
    assert codes(places) == {code}


def test_caps_and_what_is_never_shown_bind_what_is_asked_for(places: Places) -> None:
    (places.home / "sets").mkdir()
    (places.home / ".ssh").mkdir()
    places.write(managed='[caps]\nmounts = ["/srv"]\nmodes = ["rw", "ro"]', user=mounted("~/sets", 'effect = "ask"'))
    assert "policy.capped" in codes(places)
    places.managed.unlink()
    places.write(user=mounted("~/.ssh", 'effect = "ask"'))
    assert codes(places) == {"policy.forbidden-path"}
    places.write(user="", project=mounted("~/sets", 'effect = "ask"'))
    with pytest.raises(PolicyError) as caught:
        compile_policy(str(places.work), project=("stockade.toml", f"version = 1\n{mounted('.', 'effect = "ask"')}".encode()))
    assert "policy.project" in {error.code for error in each(caught.value)}
