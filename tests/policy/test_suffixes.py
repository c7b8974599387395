"""A rule about every name below another never reaches a name that anyone can register, whoever wrote the rule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import publicsuffixlist
import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.policy import suffixes
from stockade.policy.files import Watch
from stockade.policy.problems import each

LISTED = [
    "co.uk",
    "github.io",
    "s3.amazonaws.com",
    "blob.core.windows.net",
    "xn--55qx5d.cn",
    "compute.amazonaws.com",
    "kawasaki.jp",
    "anything.kawasaki.jp",
]
ABOVE = ["amazonaws.com", "core.windows.net", "windows.net"]  # names of their owner, with a public suffix among those below
OWNED = ["example.com", "example.co.uk", "me.github.io", "city.kawasaki.jp", "a.b.example.com", "corp.internal", "svc.cluster.local"]


def rule(host: str, more: str = 'paths = ["/**"]') -> str:
    return f'[[egress]]\nhost = "{host}"\n{more}\n'


@pytest.mark.parametrize("name", [*LISTED, *ABOVE])
def test_below_a_public_suffix_nothing_is_granted(places: Places, name: str) -> None:
    with pytest.raises(PolicyError, match="names of everybody") as caught:
        places.write(project=rule(f"*.{name}")).compile()
    (error,) = each(caught.value)
    assert (error.code, error.line, error.key) == ("policy.public-suffix", 3, "egress[0].host")
    assert error.message.endswith(f"below {name}" if name in LISTED else f".{name}")
    assert (f'"*.their-name.{name}"' if name in LISTED else f"each host below {name}") in error.hint


@pytest.mark.parametrize("name", OWNED)
def test_below_a_domain_of_somebody_it_is(places: Places, name: str) -> None:
    (grant,) = places.write(project=rule(f"*.{name}")).compile().policy.grants
    assert grant.host == f"*.{name}"


def test_a_public_suffix_is_a_host_like_any_other(places: Places) -> None:
    assert [grant.host for grant in places.write(project=rule("co.uk") + rule("me.github.io")).compile().policy.grants] == [
        "co.uk",
        "me.github.io",
    ]


@pytest.mark.parametrize("layer", ["managed", "user", "project", "option"])
def test_in_every_layer(places: Places, layer: str) -> None:
    options = (("egress.allow", "GET https://*.github.io/**"),) if layer == "option" else ()
    if not options:
        places.write(**{layer: rule("*.github.io")})  # type: ignore[arg-type]  # the names of its parameters
    with pytest.raises(PolicyError) as caught:
        places.compile(*options)
    assert caught.value.code == "policy.public-suffix"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (rule("*.co.uk", 'git = "fetch"\nrepositories = ["o/r"]'), "egress[0].host"),
        (rule("*.co.uk", 'paths = ["/"]\nwebsocket = true'), "egress[0].host"),
        ('[[egress]]\npreset = "pypi"\nfiles_host = "*.co.uk"', "egress[0].files_host"),
    ],
)
def test_whatever_makes_the_grant(places: Places, monkeypatch: pytest.MonkeyPatch, text: str, key: str) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.corp.test/simple/")
    with pytest.raises(PolicyError) as caught:
        places.write(project=text).compile()
    assert {(error.code, error.key) for error in each(caught.value)} == {("policy.public-suffix", key)}


def test_what_only_takes_away_may_name_one(places: Places) -> None:
    places.write(
        managed='[caps]\negress_hosts = ["*.github.io"]', user=rule("*.github.io", 'effect = "deny"'), project=rule("me.github.io")
    )
    assert {(grant.host, grant.effect) for grant in places.compile().policy.grants} == {("*.github.io", "deny"), ("me.github.io", "allow")}


def test_a_newer_list_is_believed_at_the_next_start(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = tmp_path / "list.dat"
    lists.write_text("com\n")
    monkeypatch.setattr(publicsuffixlist, "PSLFILE", str(lists))
    places.write(project=rule("*.pages.com")).load()
    lists.write_text("com\npages.com\n")
    with pytest.raises(PolicyError, match=r"below pages\.com"):
        places.load()
    lists.unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        places.load()


def test_every_suffix_of_the_list_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = tmp_path / "list.dat"
    lists.write_text(
        "// a comment.example\n\nexample // and more\nBIG.example\n*.wild.example\n!ours.wild.example\né.example\n", encoding="utf-8"
    )
    monkeypatch.setattr(publicsuffixlist, "PSLFILE", str(lists))
    found = {
        name: suffixes.shared(name, Watch())
        for name in ("example", "big.example", "wild.example", "x.wild.example", "ours.wild.example", "xn--9ca.example")
    }
    assert found == {name: "" if name.startswith("ours") else name for name in found}
    assert suffixes.shared("comment.example", Watch()) == ""


def test_it_is_loaded_only_for_such_a_rule() -> None:
    program = (
        "import os, sys, tempfile; os.environ['HOME'] = home = tempfile.mkdtemp(); file = home + '/p.toml'\n"
        "from stockade.policy.compile import compile_policy\n"
        "for host in ('example.com', '*.example.com'):\n"
        "    open(file, 'w').write(f'version = 1\\n[[egress]]\\nhost = \"{host}\"\\npaths = [\"/\"]')\n"
        "    compile_policy(tempfile.mkdtemp(), policy_file=file, managed=home + '/none'); print('publicsuffixlist' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\nTrue\n", done
