"""What a higher layer capped, no lower layer can exceed. A wider wish is refused and the refusal names the cap; built-in defaults narrow by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.frozen import replace
from stockade.core.values import DENY
from stockade.policy.model import MODES, keys_of
from stockade.policy.paths import expand, within
from stockade.policy.units import show_duration, show_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.errors import PolicyError
    from stockade.core.values import Grant, Limits
    from stockade.policy.model import CapsTable, Mode, Wall
    from stockade.policy.read import Document

_TIMES = ("cpu_time", "wall_time")
_COUNTS = ("processes", "open_files")


def shown(name: str, value: int) -> str:
    """A limit as a policy file would say it."""
    return str(value) if name in _COUNTS and value else show_duration(value) if name in _TIMES else show_size(value)


class Caps:
    """The caps of some layers together. Each method appends to `errors` what is wider than allowed; `asked` is the layer that asks."""

    def __init__(self, documents: Sequence[Document], cwd: str) -> None:
        self.all: list[tuple[Document, CapsTable]] = [(one, one.tables.caps) for one in documents if one.tables.caps is not None]
        self.cwd = cwd
        self.errors: list[PolicyError] = []

    def _refuse(self, what: str, asked: Document, key: tuple[str | int, ...], by: Document, cap: str, allowed: str) -> None:
        rule = by.origin("caps", *cap.split("."))
        message = f"{what} is wider than {rule.file}:{rule.line} allows ({rule.key})"
        self.errors.append(
            asked.error(message, *key, code="policy.capped", hint=f"Allowed: {allowed}. Only the owner of {rule.file} can widen it.")
        )

    def wall(self, value: str, asked: Document) -> None:
        """A layer chose this wall."""
        for by, cap in self.all:
            if cap.walls is not None and value not in cap.walls:
                self._refuse(f'the wall "{value}"', asked, ("wall",), by, "walls", ", ".join(cap.walls) or "none")

    def default_wall(self) -> Wall | None:
        """The wall where nobody chose: auto, or what the caps put first. None if they leave none."""
        lists = [cap.walls for _, cap in self.all if cap.walls is not None]
        if all("auto" in walls for walls in lists):
            return "auto"
        return next((wall for wall in lists[0] if all(wall in walls for walls in lists)), None)

    def mode(self, value: str, asked: Document, key: tuple[str | int, ...]) -> None:
        """A layer wants this mode for its workspace or a mount. What is narrower than an allowed mode is allowed."""
        for by, cap in self.all:
            if cap.modes is not None and value not in (modes := _narrower(cap.modes)):
                self._refuse(f'the mode "{value}"', asked, key, by, "modes", ", ".join(modes) or "none")

    def default_mode(self, value: Mode) -> Mode:
        """The widest allowed mode up to `value`; "ro" at least, since a workspace that cannot even be read is refused elsewhere."""
        for mode in reversed(MODES[: MODES.index(value) + 1]):
            if all(cap.modes is None or mode in _narrower(cap.modes) for _, cap in self.all):
                return mode
        return "ro"

    def path(self, real: str, named: str, asked: Document, key: tuple[str | int, ...]) -> None:
        """A layer, or the built-in default, wants to show this resolved host path."""
        import os

        for by, cap in self.all:
            if cap.mounts is not None and not any(within(real, os.path.realpath(expand(root, self.cwd))) for root in cap.mounts):
                self._refuse(f"the path {named}", asked, key, by, "mounts", ", ".join(cap.mounts) or "nothing")

    def image(self, value: str, asked: Document) -> None:
        """A layer wants this image."""
        name = value.partition("@")[0]
        for by, cap in self.all:
            if cap.images is None or any(one in (value, name) or one.endswith("/**") and name.startswith(one[:-2]) for one in cap.images):
                continue
            self._refuse(f"the image {value}", asked, ("root", "image"), by, "images", ", ".join(cap.images) or "none")

    def room(self, size: int, asked: Document) -> None:
        """A layer wants so much room to write in the root; what is capped is what all such room is."""
        for by, cap in self.all:
            most = cap.limits.scratch if cap.limits is not None else None
            if most and (size == 0 or size > most):
                self._refuse(f"size = {show_size(size)}", asked, ("root", "size"), by, "limits.scratch", f"at most {show_size(most)}")

    def signing(self, asked: Document) -> None:
        """A layer wants something signed."""
        for by, cap in self.all:
            if cap.signing is False:
                self._refuse("[signing]", asked, ("signing",), by, "signing", "nothing is signed")

    def reviewer(self, asked: Document, key: str) -> None:
        """A layer wants something to be approved without a person."""
        for by, cap in self.all:
            if cap.reviewer is False:
                self._refuse(f"reviewer.{key}", asked, ("reviewer", key), by, "reviewer", "a reviewer that only refuses (deny)")

    def files(self, asked: Document, key: tuple[str | int, ...]) -> None:
        """A layer wants a person to be asked about changes to a file."""
        for by, cap in self.all:
            if cap.files is False:
                self._refuse('effect = "ask"', asked, (*key, "effect"), by, "files", 'files that nobody is asked about (effect = "deny")')

    def limit(self, name: str, value: int, asked: Document) -> None:
        """A layer wants this limit; 0 = none, which is wider than any."""
        for by, cap in self.all:
            most = getattr(cap.limits, name) if cap.limits is not None else None
            if most and (value == 0 or value > most):
                self._refuse(
                    f"{name} = {shown(name, value)}", asked, ("limits", name), by, f"limits.{name}", f"at most {shown(name, most)}"
                )

    def narrow_limits(self, limits: Limits, written: set[str]) -> Limits:
        """Built-in limits, but no more than the caps."""
        for name in keys_of("limits"):
            for _, cap in self.all:
                most = getattr(cap.limits, name) if cap.limits is not None else None
                value = getattr(limits, name)
                if most and name not in written and (value == 0 or value > most):
                    limits = replace(limits, **{name: most})
        return limits

    def grant(self, grant: Grant, asked: Document, key: tuple[str | int, ...], *, upload_written: bool) -> Grant:
        """A layer wants this rule. The rule, with a default upload size narrowed to the caps."""
        for by, cap in self.all:
            if grant.effect == DENY:
                break
            via = f" of the preset {grant.origin.preset}" if grant.origin.preset else ""
            if cap.egress_hosts is not None and not any(covers(pattern, grant.host) for pattern in cap.egress_hosts):
                self._refuse(
                    f"the host {grant.host}{via}", asked, (*key, "host"), by, "egress_hosts", ", ".join(cap.egress_hosts) or "no host"
                )
            if cap.egress_methods is not None and "*" not in cap.egress_methods and grant.scheme == "tcp":
                self._refuse("raw TCP", asked, (*key, "scheme"), by, "egress_methods", ", ".join(cap.egress_methods) or "none")
            if cap.egress_methods is not None and "*" not in cap.egress_methods and (more := set(grant.methods) - set(cap.egress_methods)):
                what = f"the method {', '.join(sorted(more))}{via}"
                self._refuse(what, asked, (*key, "methods"), by, "egress_methods", ", ".join(cap.egress_methods) or "none")
            if cap.private is False and grant.private:
                self._refuse("private = true", asked, (*key, "private"), by, "private", "false")
            if cap.max_upload is not None and grant.max_upload > cap.max_upload:
                if upload_written:
                    what = f"max_upload = {show_size(grant.max_upload)}"
                    self._refuse(what, asked, (*key, "max_upload"), by, "max_upload", f"at most {show_size(cap.max_upload)}")
                grant = replace(grant, max_upload=cap.max_upload)
        return grant


def _narrower(modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
    widest = max((MODES.index(mode) for mode in modes), default=-1)
    return MODES[: widest + 1]


def covers(pattern: str, host: str) -> bool:
    """Whether every name that `host` stands for (itself, or those below "*.") is one that `pattern` stands for."""
    if pattern.startswith("*."):
        return host == pattern or host.removeprefix("*").endswith(pattern[1:]) and host.removeprefix("*.") != pattern[2:]
    return host == pattern
