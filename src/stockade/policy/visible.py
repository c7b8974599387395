"""What a policy says about a path of the host. The wall makes it true; this only answers questions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stockade.core import places
from stockade.core.errors import PolicyError
from stockade.core.values import ALLOW, ASK, DENY, Mount, Origin, Verdict
from stockade.policy import paths

if TYPE_CHECKING:
    from typing import Literal

    from stockade.core.values import Policy

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")


def explain_path(action: Literal["read", "write"], path: str, policy: Policy, cwd: str) -> tuple[Verdict, Origin]:
    """May a command inside `action` the host's `path`, and which rule says so? `path` may start with ~ (the host's home) or be relative to `cwd`."""
    asked = paths.expand(path, cwd)
    real = os.path.realpath(asked)
    shown = [Mount(policy.workspace.path, policy.workspace.path, policy.workspace.mode, policy.workspace.origin), *policy.mounts]
    reached = [mount for mount in shown if paths.within(asked, mount.target) or paths.within(real, mount.source)]
    if reached:
        mount = max(reached, key=lambda one: len(one.target))
        return _inside(action, real, mount), mount.origin
    for rule in policy.offers:
        if paths.within(asked, rule.target) or paths.within(real, rule.source):
            if action == "write":
                return Verdict(DENY, "not-visible", ("It can be asked for, and is read-only then.",)), rule.origin
            return Verdict(
                ASK, f"mount {rule.origin}", ("It is shown once somebody inside has asked for it and a person has approved.",)
            ), rule.origin
    other = policy.root.image or policy.root.path
    if action == "read" and not other and any(paths.within(asked, place) for place in _SYSTEM):
        return Verdict(ALLOW, "system", ("System directories are visible, read-only, as far as the wall needs them.",)), Origin()
    where = (
        "Nothing of your home is visible; inside, ~ is a private, empty folder." if _in_home(real) else "Only declared paths are visible."
    )
    if other and any(paths.within(asked, place) for place in _SYSTEM):
        where = f"The sandbox's root is {other}; of the host's system nothing is visible."
    if action == "write" and not _in_home(real) and any(paths.within(asked, place) for place in ("/tmp", "/var/tmp")):
        where = "Inside, /tmp is a private folder: writing there works and never reaches the host's."
    mode = "rw" if action == "write" else "ro"
    wider = f'[[mount]]\npath = "{_quoted(real)}"\nmode = "{mode}"\n'
    try:
        paths.judge(real, what="mount", mode=mode, origin=Origin())
    except PolicyError as error:
        if error.code == "policy.missing-path":
            return Verdict(DENY, "not-visible", (where, "It does not exist on the host; a mount needs something to show."), wider), Origin()
        return Verdict(DENY, "not-visible", (where, f"It cannot be granted: {error.message}.", error.hint)), Origin()
    return Verdict(DENY, "not-visible", (where,), wider), Origin()


def _inside(action: str, real: str, mount: Mount) -> Verdict:
    if not paths.within(real, mount.source):
        reason = f"It is a link that leads to {real}, outside {mount.source}; inside, the link leads nowhere."
        return Verdict(DENY, "leads-outside", (reason,))
    rule = f"{mount.source} is {mount.mode}"
    if action == "read" and mount.secret:
        return Verdict(
            ALLOW, rule, ("It is secret: once it was opened, only egress rules with secret or after_secret hold for the session.",)
        )
    if action == "write" and mount.mode == "ro":
        wider = f'[[mount]]\npath = "{_quoted(real if os.path.isdir(real) else os.path.dirname(real))}"\nmode = "rw"\n'
        return Verdict(DENY, rule, ("It is visible, but only for reading.",), wider)
    if action == "write" and mount.mode == "review":
        return Verdict(ALLOW, rule, ("What is written waits outside the folder until a person applies it (stockade changes).",))
    if action == "write" and mount.mode == "rw-no-delete":
        return Verdict(ALLOW, rule, ("New files and additions are allowed; what existed before cannot be lost.",))
    if action == "write" and "/.git/" in real + "/":
        return Verdict(
            ALLOW, rule, ("The sandbox writes to a private copy of .git; commits come back as data, hooks and configuration never.",)
        )
    return Verdict(ALLOW, rule)


def _in_home(real: str) -> bool:
    home = os.path.realpath(places.home())
    return home != "/" and paths.within(real, home)


def _quoted(path: str) -> str:
    """The inside of a TOML basic string (TOML 1.0, "String")."""
    return "".join(f"\\u{ord(letter):04x}" if ord(letter) < 32 or letter in '"\\\x7f' else letter for letter in path)
