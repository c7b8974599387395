"""What a sandbox sees of the host, as bubblewrap's arguments: the same for a wall that runs the command itself and for one that puts a kernel between."""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.core.values import Enforced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Confinement, Mount

RESERVED = ("/", "/usr", "/etc", "/proc", "/dev", "/sys", "/bin", "/sbin", "/lib", "/lib64")


def check_target(target: str) -> None:
    """Raises CannotEnforce (`mount.target`) for a place inside that must stay ours, or a path that is not absolute and plain."""
    if not target.startswith("/") or os.path.normpath(target) != target or "\0" in target:
        raise CannotEnforce(
            f"a mount target must be an absolute, plain path, not {target!r}", code="mount.target", hint="Write it without `..` or `//`."
        )
    if target in RESERVED or target.startswith(("/proc/", "/dev/", "/sys/")):
        raise CannotEnforce(
            f"{target} inside the sandbox belongs to the wall",
            code="mount.target",
            hint="Mount it somewhere else with `at`, for example /mnt/data.",
        )


def check_mount(mount: Mount) -> None:
    """Raises CannotEnforce for a target as `check_target`, and (`mount.mode`) for a mode that is none of a mount's."""
    check_target(mount.target)
    if mount.mode not in ("ro", "rw"):
        raise CannotEnforce(
            f"{mount.target}: {mount.mode} is offered for the workspace only",
            code="mount.mode",
            hint="Mount this folder ro, or make it the workspace.",
        )


@frozen
class Shown:
    """Mounts and overlays of a confinement. "@N" in `arguments` stands for the descriptor of `paths[N]`; overlays are mounted at `stages` before. `rules`
    are Landlock's, by the paths inside."""

    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    stages: tuple[str, ...]
    rules: tuple[str, ...]


def base(links: tuple[tuple[str, str], ...], under: str = "") -> tuple[list[str], list[str]]:
    """The host's /usr and what leads there, read-only, below `under`: arguments and Landlock rules. `links` as of system.links()."""
    arguments, rules = ["--ro-bind", "/usr", f"{under}/usr"], ["ro:/usr", "ro:/etc"]
    for target, path in links:
        if target == path:  # not merged: a directory of its own
            arguments += ["--ro-bind", path, f"{under}{path}"]
            rules.append(f"ro:{path}")
        else:
            arguments += ["--symlink", target, f"{under}{path}"]
    return arguments, rules


def shown(wanted: Confinement, stage: str) -> Shown:
    """The mounts and overlays of `wanted`. Raises CannotEnforce for a mount that would hide or expose what must not be."""
    paths: list[str] = []
    stages = tuple(f"{stage}/{index}" for index in range(len(wanted.overlays)))
    binds: list[tuple[str, list[str], str]] = []
    for index, overlay in enumerate(wanted.overlays):
        binds.append((overlay.target, ["--bind", stages[index], overlay.target], f"rw:{overlay.target}"))
    for mount in wanted.mounts:
        check_mount(mount)
        paths.append(mount.source)
        verb = "--ro-bind-fd" if mount.mode == "ro" else "--bind-fd"
        binds.append((mount.target, [verb, f"@{len(paths) - 1}", mount.target], f"{mount.mode}:{mount.target}"))
    arguments: list[str] = []
    rules: list[str] = []
    for _, words, rule in sorted(binds, key=lambda item: depth(item[0])):
        arguments += words
        rules.append(rule)
    return Shown(tuple(arguments), tuple(paths), stages, tuple(rules))


def enforced(wanted: Confinement) -> list[Enforced]:
    """The receipt's lines for what is shown of the host, and what of it is held in place."""
    lines = [Enforced(f"mount {mount.target}", "read-only bind" if mount.mode == "ro" else "bind", mount.mode) for mount in wanted.mounts]
    lines += [Enforced(f"overlay {overlay.target}", "overlayfs, private upper layer") for overlay in wanted.overlays]
    paths = [held[3:] for held in wanted.held if held.startswith("ro:")]
    if paths:
        mechanism = "read-only binds, and one for each folder on the way"
        lines.append(Enforced("held in place", mechanism, f"{len(paths)}: {', '.join(paths[:20])}"))
    return lines


def depth(target: str) -> int:
    """By this the parents come before their children, so that a mount is never hidden by one above it; the order of equals is the policy's."""
    return target.count("/") if target != "/" else 0
