"""A home, a workspace and policy files of a test's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stockade.policy import cached
from stockade.policy.compile import Compiled, compile_policy

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from stockade.core.values import Policy

_CLIENTS = ("PIP_", "UV_", "NPM_CONFIG_", "npm_config_", "XDG_")


class Places:
    """Everything below `root`: home/, work/ (the current directory), managed.toml and project.toml."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.home, self.work = root.resolve() / "x", root.resolve() / "x/home", root.resolve() / "x/work"
        self.managed, self.project = self.root / "managed.toml", self.work / "project.toml"
        self.own = self.home / ".config/stockade/policy.toml"
        for folder in (self.home, self.work, self.own.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in list(os.environ):
            if name.startswith(_CLIENTS):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.chdir(self.work)

    def write(self, *, managed: str | None = None, user: str | None = None, project: str | None = None) -> Places:
        """Write layers; `version = 1` is added."""
        for path, text in ((self.managed, managed), (self.own, user), (self.project, project)):
            if text is not None:
                path.write_text(f"version = 1\n{text}", encoding="utf-8")
                path.chmod(0o600)
        return self

    def _project(self, file: bool | None) -> str | None:
        return str(self.project) if (self.project.exists() if file is None else file) else None

    def compile(self, *overrides: tuple[str, str], file: bool | None = None) -> Compiled:
        return compile_policy(
            str(self.work), policy_file=self._project(file), overrides=overrides, managed=str(self.managed), managed_owner=os.geteuid()
        )

    def load(self, *overrides: tuple[str, str], file: bool | None = None) -> Policy:
        return cached.load(
            str(self.work), policy_file=self._project(file), overrides=overrides, managed=str(self.managed), managed_owner=os.geteuid()
        )
