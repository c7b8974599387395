"""Where secrets come from, and what is not a secret that can stand in a header."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.values import Credential
from stockade.gateway import broker


def resolve(source: str, environment: dict[str, str] | None = None) -> str:
    return broker.resolve(Credential("own", source), environment or {})


def failure(source: str, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(StockadeError) as caught:
        resolve(source, environment)
    assert caught.value.hint
    return caught.value.message


def test_environment() -> None:
    assert resolve("env:KEY", {"KEY": "s3cret"}) == "s3cret"
    assert "KEY" in failure("env:KEY")


def test_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    assert resolve(f"file:{tmp_path}/key") == "s3cret"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("file:~/key") == "s3cret"
    assert "cannot be read" in failure(f"file:{tmp_path}/none")


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("command:printf '%s\\n' 'a $HOME b'") == "a $HOME b"  # never through a shell
    assert "status 3" in failure("command:sh -c 'echo s3cret; exit 3'")
    assert "not there" in failure("command:no-such-program-here")
    assert "split" in failure("command:'")
    assert "empty command" in failure("command:")
    monkeypatch.setattr(broker, "_COMMAND_TIMEOUT", 0.1)
    assert "within" in failure("command:sleep 5")


def test_a_command_does_not_obey_what_lies_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many programs do: `python -m` imports what lies where it is started, git reads its settings. Nothing of a project runs before anybody trusts it (M16)."""
    for name in ("json.py", "here"):
        (tmp_path / name).write_text("#!/bin/sh\nprint = None; open('taken', 'w')\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    asks = "import json; print(len(json.dumps([])))"
    subprocess.run([sys.executable, "-c", asks], capture_output=True, check=False)
    (tmp_path / "taken").unlink()  # the control: it is run
    assert resolve(f"command:{sys.executable} -c '{asks}'") == "2"
    assert "not there" in failure("command:./here") and not (tmp_path / "taken").exists()


@pytest.mark.parametrize("value", ["", "\n", "a\nb", "a\r\nx-evil: 1", "a\x00b", "a\tb", " a", "a ", "a\n\n", "x" * 16385, "é"])
def test_what_cannot_stand_in_a_header(value: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(value)
    for source, environment in ((f"file:{tmp_path}/key", {}), ("env:KEY", {"KEY": value})):
        message = failure(source, environment)
        assert len(value) < 3 or value not in message


def test_unknown_source() -> None:
    assert "no known kind" in failure("vault:x") and "no known kind" in failure("")


def test_no_value_in_any_message(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret-value\nmore")
    assert "s3cret" not in failure(f"file:{tmp_path}/key") + failure("command:sh -c 'echo s3cret-value; exit 1'")


def test_keyring_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("keyring")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.get_password = lambda service, user: {"svc/me": "s3cret"}.get(f"{service}/{user}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", module)
    assert resolve("keyring:svc/me") == "s3cret"
    assert "not in the keyring" in failure("keyring:svc/other")
    assert "SERVICE/USER" in failure("keyring:svc")


def test_keyring_by_secret_tool_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tool = tmp_path / "secret-tool"
    tool.write_text('#!/bin/sh\ntest "$*" = "lookup service svc username me" && echo s3cret\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert resolve("keyring:svc/me") == "s3cret"
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotEnforce):
        resolve("keyring:svc/me")


def test_for_a_gate() -> None:
    credential = Credential("own", "env:KEY", header="x-api-key", template="{}")
    first, second = (broker.mint(session, (credential,))[0]["own"] for session in ("s-one", "s-two"))
    assert first != second and first.startswith("stockade-placeholder-own-")
    assert broker.for_gate((credential,), {"own": first}, {"KEY": "s3cret"}) == {
        "own": {"header": "x-api-key", "template": "{}", "user": "", "secret": "s3cret", "placeholder": first}
    }


def test_without_the_library_a_stand_in_is_random_and_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "biscuit_auth", None)
    credential = Credential("own", "env:KEY", header="x-api-key", template="{}")
    (first, key), (second, _) = broker.mint("s-one", (credential,)), broker.mint("s-one", (credential,))
    assert first != second and first["own"].startswith("stockade-placeholder-own-") and key == ""
