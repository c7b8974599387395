"""What people read when a policy is wrong: whole texts."""

from __future__ import annotations

import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.policy.problems import each, show
from stockade.policy.read import parse

GOLDEN = [
    ('[workspce]\npath = "."', "f:2: unknown key workspce\n  Did you mean workspace?"),
    ('[[egress]]\nhost = "a.b"\nmetods = []', "f:4: unknown key egress[0].metods\n  Did you mean methods?"),
    (
        'methods = ["GET"]',
        "f:2: unknown key methods\n  methods belongs in [egress] or [reviewer.allow] or [reviewer.deny]. "
        "The keys of a policy are: version, serial, wall, oversight, gate, workspace, mount, environment, "
        "limits, root, egress, credential, canary, signing, approvals, reviewer, tool, file, caps.",
    ),
    ('wall = "bublewrap"', 'f:2: wall must be one of auto, bubblewrap, gvisor, vm, not "bublewrap"\n  Did you mean "bubblewrap"?'),
    ("wall = 1", "f:2: wall must be one of auto, bubblewrap, gvisor, vm, not 1"),
    ('[[egress]]\nhost = "a.b"\nport = "443"', 'f:4: egress[0].port must be a whole number, not "443"\n  Write port = 443, without quotes.'),
    ('[[egress]]\nprivate = "yes"', 'f:3: egress[0].private must be true or false, not "yes"\n  Write private = true or private = false, without quotes.'),
    ('[environment]\npass = "TERM"', 'f:3: environment.pass must be a list in [ ], not "TERM"\n  Write pass = ["TERM"]'),
    ('[egress]\nhost = "a.b"', "f:2: egress must be a list in [ ], not a table\n  Write it as [[egress]], with two brackets: there may be several."),
    ('[limits]\nmemory = "8"', "f:3: limits.memory: '8' has no unit; write \"512 MiB\", \"8 GiB\" or \"none\""),
    ('[limits]\nwall_time = "2 moons"', "f:3: limits.wall_time: 'moons' is not a unit of time; write \"90 s\", \"30 min\", \"2 h\" or \"none\""),
    ("[limits]\nprocesses = -1", "f:3: limits.processes must be at least 0, not -1"),
    (
        '[[egress]]\nhost = "https://a.b/c"',
        "f:3: egress[0].host: 'https://a.b/c' is a URL; the host alone goes here\n  Write host = \"api.example.com\", or \"*.example.com\" for every "
        "name below it. Paths go into paths, the scheme into scheme.",
    ),
    ('[[egress]]\nhost = "a.b:80"', "f:3: egress[0].host: 'a.b:80' holds a port\n  Write host = \"a.b\" and port = 80."),
    (
        '[credential.x]\nsource = "sk-ant-abcdef"',
        "f:3: credential.x.source: this does not say where the credential comes from; a secret itself never stands in a policy\n"
        "  Write env:NAME, file:/path, command:program argument ..., or keyring:service/user.",
    ),
    ("[credential.x]", "f:2: credential.x.source is missing\n  Write source = ..."),
    ('a = "', "f:2: not valid TOML: Expected '\"' (at the end of the file)\n  Text goes in double quotes, lists in [ ], and each key stands once on a line of its own (toml.io)."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), GOLDEN)
def test_golden(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(f"version = 1\n{text}".encode(), layer="user", name="f")
    if "toml.io" in message:  # the middle part is tomllib's own
        assert str(caught.value).startswith("f:2: not valid TOML: ") and "toml.io" in caught.value.hint
    else:
        assert show(caught.value) == message
    assert caught.value.line == int(message.split(":")[1])


def test_all_errors_of_a_file_come_together() -> None:
    with pytest.raises(PolicyError) as caught:
        parse(b"version = 1\nwal = 1\n[limits]\nmemory = []\n\ncpu = 3\n", layer="user", name="f")
    assert [(error.line, error.key) for error in each(caught.value)] == [(2, "wal"), (4, "limits.memory"), (6, "limits.cpu")]
    assert len(caught.value.plain()["errors"]) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "line", "text"),
    [
        (b"version = 1\nx = \xff\n", 2, "not UTF-8"),
        (b"version = 2\n", 1, "version 2 is not known"),
        (b"", 0, "version is missing"),
        (b"version = true", 1, "version: must be a whole number"),
        (b"a = " + b"[" * 5000, 0, "nested too deeply"),
        (b"version = 1\n" + b".".join([b"a"] * 20000) + b" = 1", 2, "more than 500 dots"),  # a minute of tomllib's
        (b"[" + b".".join([b"a"] * 20000) + b"]", 1, "more than 500 dots"),
        (b"version = 1\n" + b"\n".join(b".".join([b"%c" % letter] * 500) + b" = 1" for letter in b"abcdefgh"), 2, "unknown key"),
        (b"[" + b".".join([b"a"] * 500) + b"]\n" + b".".join([b"a"] * 250) + b" = {" + b".".join([b"a"] * 250) + b" = 1}", 0, "too deeply"),
        (b"version = 1\na = 1\na = 2", 3, "not valid TOML"),
        (b"a = " + b"9" * 5000, 0, "not valid TOML"),
    ],
)
def test_broken_files(data: bytes, line: int, text: str) -> None:
    with pytest.raises(PolicyError, match=text) as caught:
        parse(data, layer="user", name="f")
    assert caught.value.line in (line, 1)


def test_a_byte_order_mark_and_crlf_are_read() -> None:
    found = parse("\ufeffversion = 1\r\n[workspace]\r\npath = 'ü'\r\n".encode(), layer="user", name="f")
    assert found.tables.workspace is not None and found.tables.workspace.path == "ü"
    assert found.origin("workspace", "path").line == 3


@pytest.mark.parametrize(
    ("project", "code", "line", "text"),
    [
        ('[workspace]\npath = "gone"', "policy.missing-path", 3, "does not exist"),
        ('[workspace]\npath = "/"', "policy.forbidden-path", 3, "whole file system"),
        ('[workspace]\npath = "~"', "policy.forbidden-path", 3, "whole home"),
        ('[[mount]]\npath = "~/.."', "policy.forbidden-path", 3, "whole home"),
        ('[[mount]]\npath = "~/.config/stockade"', "policy.forbidden-path", 3, "stockade's own"),
        ('[[mount]]\npath = "~/.config"', "policy.forbidden-path", 3, "stockade's own"),
        ('[[mount]]\npath = "~/.local/state/stockade/ledger"', "policy.forbidden-path", 3, "stockade's own"),
        ('[[mount]]\npath = "/var/lib/stockade/vm"', "policy.forbidden-path", 3, "stockade's own"),
        ('[[mount]]\npath = "~/.ssh"', "policy.forbidden-path", 3, "holds credentials"),
        ('[[mount]]\npath = "~/.local/share"', "policy.forbidden-path", 3, "keyrings holds credentials"),
        ('[[mount]]\npath = "/proc/self"', "policy.forbidden-path", 3, "belongs to the kernel"),
        ('[[mount]]\npath = "/dev/null"', "policy.forbidden-path", 3, "belongs to the kernel"),
        ('[[mount]]\npath = "gone"', "policy.missing-path", 3, "does not exist"),
        ('[[mount]]\npath = "."\n[[mount]]\npath = "."', "policy.mounted-twice", 4, "mounted twice"),
        ('[[egress]]\nhost = "a.example"\npaths = []', "policy.grants-nothing", 4, "has no paths"),
        ('[[egress]]\nhost = "a.example"', "policy.grants-nothing", 2, "has no paths"),
        ('[[egress]]\nhost = "a.example"\npaths = ["/"]\nmethods = []', "policy.grants-nothing", 5, "has no methods"),
        ('[[egress]]\npaths = ["/"]', "policy.missing-key", 2, "neither a host nor a preset"),
        ('[[egress]]\npreset = "anthropic"\npaths = ["/"]', "policy.preset", 4, "cannot stand with a preset"),
        ('[[egress]]\nhost = "a.example"\npaths = ["/"]\ncredential = "k"', "policy.no-credential", 5, "no credential k"),
        ('[[egress]]\nhost = "a.example"\npaths = ["/"]\nheaders = ["X-Api-Key"]', "policy.key-header", 5, "any key pass"),
        ('[environment]\npass = [\n "TERM",\n "OPENAI_API_KEY"]', "policy.secret-passed", 3, "looks like a credential"),
        ('[environment]\npass = ["PATH"]', "policy.not-passed", 3, "not taken from outside"),
        ('[environment]\nset = {A = "ghp_0123456789abcdefghij0123"}', "policy.secret-set", 3, "is a credential"),
        ("[limits]\nmemory = 8", "policy.bad-value", 3, "too little"),
        ('[caps]\nmodes = ["ro"]', "policy.caps-here", 2, "no effect"),
    ],
)
def test_what_a_policy_means_is_checked(places: Places, project: str, code: str, line: int, text: str) -> None:
    (places.home / ".ssh").mkdir()
    (places.home / ".local/share/keyrings").mkdir(parents=True)
    with pytest.raises(PolicyError, match=text) as caught:
        places.write(project=project).compile()
    assert [(error.code, error.line) for error in each(caught.value)] == [(code, line)]
    assert caught.value.file == str(places.project) and caught.value.hint


def test_a_passed_credential_gets_the_brokers_recipe(places: Places) -> None:
    with pytest.raises(PolicyError) as caught:
        places.write(user='[environment]\npass = ["ACME_API_KEY"]').compile()
    assert '[credential.acme]\n    source = "env:ACME_API_KEY"' in caught.value.hint and "[[egress]]" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "GITHUB_TOKEN",
        "DB_PASSWORD",
        "MY_SECRET_X",
        "APIKEY",
        "GH_PAT",
        "NPM_AUTH",
        "SSH_AUTH_SOCK",
        "api_key",
    ],
)
def test_names_of_credentials(places: Places, name: str) -> None:
    with pytest.raises(PolicyError, match="looks like a credential"):
        places.write(user=f'[environment]\npass = ["{name}"]').compile()


@pytest.mark.parametrize("name", ["TERM", "EDITOR", "AWS_REGION", "KEYBOARD", "MONKEY_COUNT", "CI", "PATHEXT", "LC_*"])
def test_names_of_other_things(places: Places, name: str) -> None:
    names = places.write(user=f'[environment]\npass = ["{name}"]').compile().policy.environment.pass_names
    assert (name if name != "LC_*" else "LC_ALL") in names


def test_a_credential_file_inside_the_workspace_is_refused(places: Places) -> None:
    rule = '[[egress]]\nhost = "a.example"\npaths = ["/"]\ncredential = "k"\n'
    with pytest.raises(PolicyError, match="which the sandbox sees"):
        places.write(user=f'{rule}[credential.k]\nsource = "file:{places.work}/key"').compile()
    assert places.write(user=f'{rule}[credential.k]\nsource = "file:~/key"').compile().policy.credentials


def test_warnings(places: Places) -> None:
    text = '[credential.k]\nsource = "env:K"\n[[egress]]\nhost = "localhost"\npaths = ["/"]\n'
    found = places.write(project=text).compile()
    assert {(one.code, one.line) for one in found.warnings} == {
        ("policy.unused-credential", 2), ("policy.private", 4), ("policy.writable", 0),
    }  # fmt: skip
    assert found.policy.credentials == ()


def test_where_a_login_lies_is_not_shown_and_a_folder_without_one_is(places: Places) -> None:
    for name in (".claude", ".codex", ".cargo", ".config/BraveSoftware"):
        (places.home / name).mkdir(parents=True, exist_ok=True)
    policy = "".join(f'[[mount]]\npath = "~/{name}"\n' for name in (".claude", ".codex", ".cargo"))
    assert len(places.write(project=policy).compile().policy.mounts) == 3
    for name in (".claude/.credentials.json", ".codex/auth.json", ".cargo/credentials.toml"):
        (places.home / name).write_text("{}")
    with pytest.raises(PolicyError) as caught:
        places.write(project=policy + '[[mount]]\npath = "~/.config/BraveSoftware"\n').compile()
    assert [error.code for error in each(caught.value)] == ["policy.forbidden-path"] * 4
