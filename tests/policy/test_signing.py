"""[signing]: which key may sign, from which layer, and what is refused before anything starts."""

from __future__ import annotations

import json
import os

import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.values import Signing
from stockade.policy.problems import each

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgxnFRcIn8gybcrpTDb5qX2VzOVZiDe9IYjCd8XsEQO"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgxnFRcIn8gybcrpTDb5qX2VzOVZiDe9IYjCd8XsEQP"


@pytest.fixture
def keys(places: Places) -> Places:
    (places.home / "k.pub").write_text(f"{KEY} me@example.test\n")
    (places.home / "o.pub").write_text(f"{OTHER}\n")
    return places


def codes(places: Places, *overrides: tuple[str, str]) -> set[str]:
    with pytest.raises(PolicyError) as caught:
        places.compile(*overrides)
    return {error.code for error in each(caught.value)}


def test_a_key_is_read_without_its_comment_and_git_is_what_it_signs(keys: Places) -> None:
    keys.write(user='[signing]\nkey = "~/k.pub"')
    found = keys.compile().policy.signing
    assert found is not None and found.origin.line == 3 and found.file == str(keys.home / "k.pub")
    assert found == Signing(KEY, found.file, ("git",), origin=found.origin)
    assert keys.load() == keys.load() == keys.compile().policy  # the cache gives back the same


def test_links_elsewhere_are_followed(keys: Places) -> None:
    (keys.home / "dotfiles").mkdir()
    (keys.home / "k.pub").rename(keys.home / "dotfiles/k.pub")
    (keys.home / "k.pub").symlink_to("dotfiles/k.pub")
    signing = keys.write(user='[signing]\nkey = "~/k.pub"').compile().policy.signing
    assert signing is not None and signing.key == KEY


def test_without_the_table_nothing_is_signed(keys: Places) -> None:
    assert keys.write(user="").compile().policy.signing is None


def test_later_layers_replace_key_by_key_and_the_command_line_is_the_last(keys: Places) -> None:
    keys.write(
        managed='[signing]\nuses = 3\nrate = "5 per min"',
        user='[signing]\nkey = "~/k.pub"\nuses = 4',
        project='[signing]\nnamespaces = ["git", "file", "git"]',
    )
    found = keys.compile()
    signing = found.policy.signing
    assert signing is not None
    assert (signing.key, signing.uses, signing.rate, signing.rate_seconds, signing.namespaces) == (KEY, 4, 5, 60, ("git", "file"))
    assert "policy.lent-key" in {warning.code for warning in found.warnings}
    signing = keys.compile(("signing.key", "../home/o.pub")).policy.signing
    assert signing is not None and (signing.key, signing.uses) == (OTHER, 4)


def test_a_key_that_changed_is_read_again(keys: Places) -> None:
    keys.write(user='[signing]\nkey = "~/k.pub"')
    before = keys.load().signing
    (keys.home / "k.pub").write_text(OTHER)
    after = keys.load().signing
    assert before is not None and after is not None and (before.key, after.key) == (KEY, OTHER)


@pytest.mark.parametrize("layer", ["user", "project"])
def test_an_administrator_can_forbid_it(keys: Places, layer: str) -> None:
    keys.write(managed="[caps]\nsigning = false", **{layer: '[signing]\nkey = "~/k.pub"'})
    assert codes(keys) == {"policy.capped"}
    keys.write(managed="[caps]\nsigning = true")
    assert keys.compile().policy.signing


def test_a_cap_binds_the_command_line_too(keys: Places) -> None:
    keys.write(user="[caps]\nsigning = false")
    assert codes(keys, ("signing.key", "~/k.pub")) == {"policy.capped"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('key = "~/none.pub"', "policy.no-key"),
        ('key = "~/empty.pub"', "policy.no-key"),
        ('key = "~"', "policy.no-key"),
        ('key = "~/private"', "policy.private-key"),
        ('key = "~/two.pub"', "policy.bad-key"),
        ('key = "~/broken.pub"', "policy.bad-key"),
        ('key = "~/certificate.pub"', "policy.bad-key"),
        ('key = "mine.pub"', "policy.key-mounted"),
        ('key = "~/link.pub"', "policy.key-mounted"),
        ('key = "from-work.pub"', "policy.key-mounted"),
        ('key = "~/by-folder/k.pub"', "policy.key-mounted"),
        ('key = "~/loop.pub"', "policy.no-key"),
        ('key = "../home/shown/k.pub"', "policy.key-mounted"),
        ("uses = 1", "policy.missing-key"),
        ('key = "~/k.pub"\nnamespaces = []', "policy.grants-nothing"),
        ('key = "~/k.pub"\nnamespaces = ["a b"]', "policy.bad-value"),
        ('key = "~/k.pub"\nnamespaces = ["\\u00e4"]', "policy.bad-value"),
        ('key = "~/k.pub"\nrate = "often"', "policy.bad-value"),
        ('key = "~/k.pub"\nallow = "all"', "policy.unknown-key"),
    ],
)  # fmt: skip
def test_refused(keys: Places, text: str, code: str) -> None:
    for name, content in (
        ("empty.pub", "\n"),
        ("private", "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0LXBhcnQ\n"),
        ("two.pub", f"{KEY}\n{OTHER}\n"),
        ("broken.pub", KEY[:-8]),
        ("certificate.pub", "ssh-ed25519-cert-v01@openssh.com AAAA"),
        ("shown/k.pub", KEY),
        ("../work/mine.pub", KEY),
    ):
        (keys.home / name).parent.mkdir(exist_ok=True)
        (keys.home / name).write_text(content)
    (keys.home / "link.pub").symlink_to(keys.work / "mine.pub")
    (keys.work / "from-work.pub").symlink_to(keys.home / "k.pub")  # the sandbox could let it lead to another key
    (keys.work / "folder").symlink_to("../home")
    (keys.home / "by-folder").symlink_to("../work/folder")
    (keys.home / "loop.pub").symlink_to("loop.pub")
    keys.write(user=f'[[mount]]\npath = "~/shown"\n[signing]\n{text}')
    with pytest.raises(PolicyError) as caught:
        keys.compile()
    found = each(caught.value)
    assert {error.code for error in found} == {code}
    assert "c2VjcmV0" not in json.dumps([error.plain() for error in found])
    assert all(error.hint for error in found if error.code not in ("policy.unknown-key", "policy.bad-value"))


def test_the_agents_own_variable_is_ours(keys: Places) -> None:
    keys.write(user='[environment]\npass = ["SSH_AUTH_SOCK"]')
    with pytest.raises(PolicyError, match="looks like a credential and may not enter") as caught:
        keys.compile()
    assert "[signing]" in caught.value.hint
    keys.write(user='[environment]\nset = { SSH_AUTH_SOCK = "/x" }\n[signing]\nkey = "~/k.pub"')
    assert codes(keys) == {"policy.set-twice"}


def test_show_prints_it_as_a_file_would_say_it(keys: Places, capsys: pytest.CaptureFixture[str]) -> None:
    from stockade.cli import policy

    keys.write(user='[signing]\nkey = "~/k.pub"\nuses = 3\nrate = "5 per min"')
    assert policy.main(["show"]) == 0
    shown = capsys.readouterr().out
    assert (
        f'[signing]  # {keys.own}:3 (signing.key)\nkey = "{keys.home}/k.pub"\nnamespaces = ["git"]\nuses = 3\nrate = "5 per 1 min"' in shown
    )
    assert policy.main(["show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["signing"]["key"] == KEY
    assert os.path.exists(keys.own)
