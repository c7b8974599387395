"""Starting a planned sandbox: descriptors pinned, limits and namespaces joined by `step launch`, and bubblewrap executed with whatever goes into it."""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce, WallFailed
from stockade.walls import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from stockade.core.values import Overlay
    from stockade.walls.door import Door

    class Launch(Protocol):
        """What a plan says about its start. In `arguments` of bubblewrap "@N" stands for the descriptor of `paths[N]` (opened without following a final
        symlink), "=N" for one that holds `data[N]`. `overlays` are mounted at the paths in `stages` before, and each of `held` ("ro:PATH", "rw:PATH") is
        made a mount of itself afterwards. `rlimits` are (resource, value) pairs of setrlimit(2)."""

        @property
        def bwrap(self) -> str: ...
        @property
        def arguments(self) -> tuple[str, ...]: ...
        @property
        def paths(self) -> tuple[str, ...]: ...
        @property
        def data(self) -> tuple[str, ...]: ...
        @property
        def overlays(self) -> tuple[Overlay, ...]: ...
        @property
        def stages(self) -> tuple[str, ...]: ...
        @property
        def held(self) -> tuple[str, ...]: ...
        @property
        def rlimits(self) -> tuple[tuple[int, int], ...]: ...
        @property
        def network(self) -> str: ...


def start(
    plan: Launch,
    door: Door | None,
    cgroups: Sequence[int],
    filters: Callable[[], tuple[int, ...]],
    inner: Callable[[int, int, int], list[str]],
    handed: Sequence[int] = (),
    *,
    standard: bool = False,
) -> tuple[_socket.socket, int, int]:
    """Start the sandbox and return without waiting: the socket to its init, bubblewrap's process number, and the descriptor of what it says.

    `door` must be given exactly when the plan's network is "door"; `cgroups` are descriptors of cgroup.procs files to join, `filters` opens the seccomp programs.
    `inner` is given the descriptors of our program, of the init's socket and of the one on which held paths are waited for (-1 = there are none), all of
    which bubblewrap's command inherits, as it does `handed`, and says what that command is. `standard`: the init's socket is its standard input, and nothing else.
    Raises CannotEnforce when a path cannot be opened as planned, WallFailed when the helper cannot be started.
    """
    if (plan.network == "door") != (door is not None):
        raise WallFailed("the plan's network and the door do not match", code="wall.network", hint="This is a bug in stockade.")
    opened: list[int] = []
    ours, theirs = native.pair()
    try:
        launch: list[str] = ["launch"]
        joined: list[int] = []
        if door is not None:
            joined = [door.user, door.network]
            launch += [f"user={door.user}", f"net={door.network}"]
        elif plan.overlays or plan.held:
            raise CannotEnforce(
                "an overlay or a held path needs the door's user namespace", code="overlay.network", hint="This is a bug in stockade."
            )
        for overlay, stage in zip(plan.overlays, plan.stages, strict=True):
            layers = [pinned(path) for path in layers_of(overlay)]
            opened += layers
            launch.append(overlay_option(layers, stage))
        holding = -1
        if plan.held:
            wait, holding = native.credentials_pair()
            opened += [wait, holding, native.words(plan.held)]
            launch.append(f"hold={opened[-1]}:{wait}")
        inherit = [*joined, *opened, *cgroups]
        launch += [f"cgroup={fd}" for fd in cgroups]
        launch += [f"rlimit={resource}:{value}" for resource, value in plan.rlimits]
        kept = [pinned(path) for path in plan.paths]
        opened += kept
        data = [native.blob(os.fsencode(text)) for text in plan.data]
        opened += data
        try:
            step = os.open(native.STEP, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise native.missing(error) from error
        opened.append(step)
        stands_for = {f"@{index}": str(fd) for index, fd in enumerate(kept)} | {f"={index}": str(fd) for index, fd in enumerate(data)}
        words = [stands_for[word] if word[:1] in ("@", "=") else word for word in plan.arguments]
        programs = filters()
        opened += programs
        for fd in programs:
            words += ["--add-seccomp-fd", str(fd)]
        arguments = native.words(words)
        opened.append(arguments)
        keep = [
            *kept,
            *data,
            *programs,
            step,
            arguments,
            *handed,
            *([] if standard else [theirs.fileno()]),
            *([holding] if plan.held else []),
        ]
        launch += [f"keep={fd}" for fd in keep]
        command = inner(step, theirs.fileno(), holding)
        stderr = os.memfd_create("bwrap", os.MFD_CLOEXEC)
        try:
            words = [*launch, "--", plan.bwrap, "--args", str(arguments), *command]
            pid = native.spawn(words, [*inherit, *keep], stderr, theirs.fileno() if standard else -1)
        except BaseException:
            os.close(stderr)
            raise
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in opened:
            os.close(fd)
    return ours, pid, stderr


def layers_of(overlay: Overlay) -> tuple[str, str, str]:
    """The directories of an overlay, in the order in which our program takes their descriptors."""
    return overlay.lower, overlay.upper, overlay.work


def overlay_option(layers: Sequence[int], stage: str) -> str:
    """How our program is told to mount an overlay at `stage`; `layers` are the descriptors of `layers_of`."""
    return f"overlay={':'.join(map(str, layers))}:{stage}"


def pinned(path: str) -> int:
    """A descriptor (O_PATH) that pins `path` as it was judged: no component may be a symlink by now (openat2 is not in Python; O_PATH, then compare).

    Raises CannotEnforce (`mount.source`, `mount.symlink`).
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CannotEnforce(
            f"cannot open {path}: {error.strerror}", code="mount.source", hint="It must exist before the start; nothing was run."
        ) from error
    # O_PATH with O_NOFOLLOW opens a final symlink itself (open(2)), under its own name.
    if os.readlink(f"/proc/self/fd/{fd}") != path or os.fstat(fd).st_mode & 0o170000 == 0o120000:
        os.close(fd)
        raise CannotEnforce(
            f"{path} is reached through a symbolic link",
            code="mount.symlink",
            hint="Name the real path; links are resolved once, before they are judged.",
        )
    return fd
