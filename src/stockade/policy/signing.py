"""The [signing] table of all layers: which key may sign for the sandbox, and what. The private key is never looked at; an ssh-agent of the user's has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stockade.core.errors import PolicyError
from stockade.core.ssh import read_key
from stockade.core.values import Signing
from stockade.policy.model import keys_of
from stockade.policy.paths import expand, within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.core.values import Mount
    from stockade.policy.caps import Caps
    from stockade.policy.files import Watch
    from stockade.policy.read import Document

GIT = ("git",)  # the namespace of commits and tags (gitformat-signature(5))


class SigningRules:
    """One merge of the [signing] tables; a later layer's keys replace an earlier one's, as in [workspace]."""

    def __init__(
        self, watch: Watch, cwd: str, caps: dict[int, Caps], errors: list[PolicyError], warnings: list[PolicyError], shown: Sequence[Mount]
    ) -> None:
        self.watch, self.cwd, self.caps, self.errors, self.warnings, self.shown = watch, cwd, caps, errors, warnings, shown

    def merge(self, documents: Sequence[Document]) -> Signing | None:
        """What may be signed, None if no layer says anything. Errors are collected."""
        found: dict[str, Any] = {}
        holders: dict[str, Document] = {}
        for one in documents:
            if one.tables.signing is None:
                continue
            self.caps[id(one)].signing(one)
            if one.layer == "file":
                hint = "Make sure that this is meant: what is signed inside looks as if you had signed it."
                self.warnings.append(one.error("this file says what the sandbox may sign", "signing", code="policy.lent-key", hint=hint))
            for name in keys_of("signing"):
                value = getattr(one.tables.signing, name)
                if value is not None:
                    found[name], holders[name] = value, one
            holders[""] = one
        if not holders:
            return None
        last = holders[""]
        if "key" not in found:
            hint = 'Name the file of the public key: key = "~/.ssh/agent_ed25519.pub".'
            self.errors.append(last.error("[signing] names no key", "signing", code="policy.missing-key", hint=hint))
            return None
        if found.get("namespaces") == ():
            hint = "Leave namespaces out for git, or leave [signing] out for nothing."
            self.errors.append(
                holders["namespaces"].error("this lets nothing be signed", "signing", "namespaces", code="policy.grants-nothing", hint=hint)
            )
        holder = holders["key"]
        key = self._key(found["key"], holder)
        rate, seconds = found.get("rate", (0, 0))
        names = tuple(dict.fromkeys(found.get("namespaces", GIT)))
        return Signing(key, expand(found["key"], self.cwd), names, found.get("uses", 0), rate, seconds, holder.origin("signing", "key"))

    def _key(self, written: str, holder: Document) -> str:
        def wrong(message: str, code: str, hint: str) -> str:
            self.errors.append(holder.error(message, "signing", "key", code=code, hint=hint))
            return ""

        path = expand(written, self.cwd)
        self.watch.note("real", path)
        real = os.path.realpath(path)
        steps = list(_steps(path))
        for mount in self.shown:
            # Whoever can write on the way there chooses which of the user's keys signs next time; and where a public key lies, the private one is near.
            if any(within(step, mount.source) for step in steps):
                message = f"the key {written} lies in {mount.source}, or is reached through it, and the sandbox sees that"
                return wrong(message, "policy.key-mounted", "Keep both halves of the key elsewhere, or mount less.")
        lines = [line for line in self.watch.text(real).splitlines() if line.strip()]
        if not lines:
            return wrong(f"there is no public key in {written}", "policy.no-key", "Make one: ssh-keygen -t ed25519 -f ~/.ssh/agent_ed25519")
        if "PRIVATE KEY" in lines[0]:
            message = f"{written} is a private key; the policy names the public one"
            return wrong(message, "policy.private-key", f'Write key = "{written}.pub"; the private key stays in your ssh-agent.')
        try:
            if len(lines) > 1:
                raise ValueError("the file holds more than one line")
            return str(read_key(lines[0]))
        except ValueError as error:
            return wrong(f"{written}: {error}", "policy.bad-key", "A public key is one line, as ssh-keygen writes it into a .pub file.")


def _steps(path: str) -> Iterator[str]:
    """Every place that is looked at on the way to `path`, each named without symbolic links before its last part (path_resolution(7))."""
    at, left, links = "/", path.split("/"), 0
    while left and links <= 40:
        name = left.pop(0)
        if name in ("", ".", ".."):
            at = os.path.dirname(at) if name == ".." else at
            continue
        here = os.path.join(at, name)
        yield here
        try:
            target = os.readlink(here)
        except OSError:
            at = here
            continue
        links += 1
        at = "/" if target.startswith("/") else at
        left = target.split("/") + left
