"""Registries come from the clients' configuration; every host here is one of the test's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import stockade.policy
from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.values import Grant
from stockade.policy import clients, presets
from stockade.policy.files import Watch


def grants(places: Places, preset: str, more: str = "") -> list[tuple[str, str, int, tuple[str, ...]]]:
    found = places.write(project=f'[[egress]]\npreset = "{preset}"\n{more}').compile().policy.grants
    assert all(one.origin.preset == preset and one.origin.line == 3 for one in found)
    if preset in ("pypi", "npm", "debian"):
        assert all(one.methods == ("GET", "HEAD") and one.query == "none" and one.max_upload == 0 for one in found)
    return [(one.scheme, one.host, one.port, one.paths) for one in found]


def test_pip_mirror_from_the_users_configuration(places: Places) -> None:
    (places.home / ".config/pip").mkdir()
    (places.home / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://user:hunter2@mirror.corp.test/repo/pypi/simple\n"
        "extra-index-url =\n  http://extra.corp.test:8081/root/+simple/\n  file:///opt/wheels\n"
    )
    found = grants(places, "pypi")
    assert ("https", "mirror.corp.test", 443, ("/repo/pypi/**",)) in found
    assert ("http", "extra.corp.test", 8081, ("/root/**",)) in found
    assert not any("wheels" in str(one) for one in found)
    compiled = places.compile()
    assert "hunter2" not in repr(compiled.policy) and any("user or password" in str(warning) for warning in compiled.warnings)
    values = dict(compiled.policy.environment.set_values)
    assert values["PIP_INDEX_URL"] == values["UV_DEFAULT_INDEX"] == "https://mirror.corp.test/repo/pypi/simple"
    assert "http://extra.corp.test:8081/root/+simple/" in values["PIP_EXTRA_INDEX_URL"]


def test_the_environment_beats_pips_files(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.corp.test/simple/")
    assert grants(places, "pypi", 'files_host = "files.corp.test"') == [
        ("https", "env.corp.test", 443, ("/**",)),
        ("https", "files.corp.test", 443, ("/**",)),
    ]


def test_uv_configuration(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (places.home / ".config/uv").mkdir()
    (places.home / ".config/uv/uv.toml").write_text(
        '[[index]]\nurl = "https://uv.corp.test/simple"\ndefault = true\n[[index]]\nname = "x"\nurl = "https://x.corp.test/simple"\n'
    )
    assert {host for _, host, _, _ in grants(places, "pypi")} == {"uv.corp.test", "x.corp.test"}


def test_without_configuration_pip_itself_says_where_its_index_is(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    found = clients.pip(Watch())
    if not found:
        pytest.skip("no pip on this machine")
    assert found[0].default and found[0].url.endswith("/simple/") and found[0].files_host
    hosts = [(host, paths) for _, host, _, paths in grants(places, "pypi")]
    assert [paths for _, paths in hosts] == [("/simple/**",), ("/**",)] and hosts[1][0] == found[0].files_host
    assert places.compile().policy.environment.set_values == ()


def test_pips_constant_is_read_not_run() -> None:
    source = 'import os\nos.abort()\nPyPI = PackageIndex("https://index.test/", file_storage_domain="files.test")\n'
    index = clients._pip_constant(source, "p")
    assert index is not None and (index.url, index.files_host) == ("https://index.test/simple/", "files.test")
    assert clients._pip_constant("PyPI = 1", "p") is None
    assert clients._pip_constant("PyPI = (", "p") is None


def test_npm_registry_and_scopes(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_globalconfig", "/nonexistent/npmrc")
    (places.home / ".npmrc").write_text(
        "; c\nregistry = https://npm.corp.test/api/npm/\n@acme:registry=https://acme.corp.test\n//x/:_authToken=t\n"
    )
    assert grants(places, "npm") == [
        ("https", "npm.corp.test", 443, ("/api/npm/**",)),
        ("https", "acme.corp.test", 443, ("/**",)),
    ]
    assert places.compile().policy.environment.set_values == (("npm_config_registry", "https://npm.corp.test/api/npm/"),)
    monkeypatch.setenv("npm_config_registry", "http://other.corp.test:4873/")
    assert grants(places, "npm")[0] == ("http", "other.corp.test", 4873, ("/**",))


def test_npms_own_default_is_read_from_its_program(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    package = places.root / "lib/node_modules/npm"
    (package / "bin").mkdir(parents=True)
    (package / "bin/npm-cli.js").write_text("")
    definitions = package / "node_modules/@npmcli/config/lib/definitions/definitions.js"
    definitions.parent.mkdir(parents=True)
    definitions.write_text("  registry: new Definition('registry', {\n    default: 'https://default.test/',\n    type: url,\n")
    (places.root / "bin").mkdir()
    (places.root / "bin/npm").symlink_to("../lib/node_modules/npm/bin/npm-cli.js")
    monkeypatch.setenv("PATH", f"{places.work}:{places.root}/bin")
    assert grants(places, "npm") == [("https", "default.test", 443, ("/**",))]


def test_a_projects_client_configuration_is_not_read(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{places.work}/bin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (places.work / ".npmrc").write_text("registry=https://evil.test/\n")
    (places.work / "uv.toml").write_text('index-url = "https://evil.test/simple"\n')
    (places.work / "bin").mkdir()
    (places.work / "bin/npm").write_text("#!/bin/sh\n")
    for preset in ("npm", "pypi"):
        with pytest.raises(PolicyError, match="nothing to grant"):
            grants(places, preset)


APT = """\
# deb http://commented.test/debian x main
deb [arch=amd64 signed-by=/k] http://one.test/debian/ bookworm main # c
deb-src https://two.test:8443/debian bookworm main
deb cdrom:[Disc]/ bookworm main
"""
DEB822 = """\
Types: deb
# a comment
URIs: http://three.test/debian
 https://four.test/debian-security
Suites: bookworm

Types: deb
Enabled: no
URIs: http://off.test/
Suites: x
"""


def test_apt_sources_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(APT)
    (tmp_path / "sources.list.d/a.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/b.list.off").write_text("deb http://five.test/ x main\n")
    urls = [url for url, _ in clients.apt(Watch(), str(tmp_path))]
    assert urls[:2] == ["http://one.test/debian/", "https://two.test:8443/debian"]
    assert urls[-2:] == ["http://three.test/debian", "https://four.test/debian-security"] and not any(
        "off" in url or "five" in url for url in urls
    )


def test_debian_grants_what_apt_says(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("http://one.test/debian/", "f"), ("file:/srv/mirror", "f"), ("tor+http://x.test/", "f"), ("https://two.test/d", "f")]
    monkeypatch.setattr(clients, "apt", lambda watch: found)
    assert grants(places, "debian") == [("http", "one.test", 80, ("/debian/**",)), ("https", "two.test", 443, ("/d/**",))]
    assert any("tor+http" in str(warning) for warning in places.compile().warnings)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "https://192.0.2.1/simple",
        "https://h.test/a/../simple",
        "https://h.test/a%2f*",
        "ftp://h.test/simple",
        "https:///simple",
    ],
)
def test_an_index_that_no_rule_can_name_is_skipped_with_a_warning(url: str) -> None:
    warnings: list[str] = []
    assert presets._place(url, "pip.conf", warnings) is None and warnings and "pip.conf" in warnings[0]


def by_host(places: Places, preset: str, more: str = "") -> dict[str, list[Grant]]:
    found: dict[str, list[Grant]] = {}
    for one in places.write(project=f'[[egress]]\npreset = "{preset}"\n{more}').compile().policy.grants:
        found.setdefault(one.host, []).append(one)
    return found


def test_model_presets(places: Places) -> None:
    ((anthropic,),) = by_host(places, "anthropic").values()
    assert (anthropic.methods, anthropic.paths, anthropic.credential) == (
        ("POST",),
        ("/v1/messages", "/v1/messages/count_tokens"),
        "anthropic",
    )
    (credential,) = places.compile().policy.credentials
    assert (credential.source, credential.header, credential.template, credential.env) == (
        "env:ANTHROPIC_API_KEY",
        "x-api-key",
        "{}",
        "ANTHROPIC_API_KEY",
    )
    ((openai,),) = by_host(places, "openai", 'max_upload = "1 KiB"').values()
    assert openai.methods == ("POST",) and openai.max_upload == 1024 and all("files" not in path for path in openai.paths)
    assert places.compile().policy.credentials[0].template == "Bearer {}"
    ((gemini,),) = by_host(places, "gemini").values()
    assert (gemini.methods, gemini.paths, gemini.parameters) == (("POST",), ("/v1beta/models/*",), ("alt",))  # and no key=
    (credential,) = places.compile().policy.credentials
    assert (credential.source, credential.header, credential.template) == ("env:GEMINI_API_KEY", "x-goog-api-key", "{}")


def test_a_credential_of_your_own_replaces_the_presets(places: Places) -> None:
    by_host(places, "anthropic", '[credential.anthropic]\nsource = "file:~/key"\nheader = "x-api-key"')
    (own,) = places.compile().policy.credentials
    assert (own.source, own.template, own.env) == ("file:~/key", "{}", "")
    by_host(places, "anthropic", 'credential = "other"\n[credential.other]\nsource = "env:OTHER"')
    (other,) = places.compile().policy.credentials
    assert (other.name, other.template, other.env) == ("other", "Bearer {}", "OTHER")


def test_github_is_for_reading(places: Places) -> None:
    hosts = by_host(places, "github-read")
    posts = [one for some in hosts.values() for one in some if set(one.methods) - {"GET", "HEAD"}]
    assert [(one.host, one.methods, one.paths) for one in posts] == [("github.com", ("POST",), ("/*/*/git-upload-pack",))]
    assert all(one.credential == "" for some in hosts.values() for one in some)


def test_no_registry_is_named_in_the_code() -> None:
    """The only hosts written down are those of the presets that are about one host."""
    allowed = {"api.anthropic.com", "api.openai.com", "github.com", "api.github.com", "codeload.github.com", "raw.githubusercontent.com"}
    allowed |= {
        "generativelanguage.googleapis.com",
        "docs.npmjs.com",
        "git-scm.com",
        "no-color.org",
        "toml.io",
        "json-schema.org",
        "publicsuffix.org",
    }  # documents that comments cite
    folder = Path(stockade.policy.__file__).parent
    for file in [*folder.glob("*.py"), folder / "schema.json"]:
        for host in re.findall(r"\b(?:[a-z0-9-]+\.)+(?:com|org|io|net)\b", file.read_text()):
            assert host in allowed or host.endswith("example.com"), f"{host} in {file.name}"
