"""The gate's own parts give up what they do not need, by Landlock (landlock(7), Documentation/userspace-api/landlock.rst): on top of the box around all of them.

A part that is taken over by what it parses then has no file but what is named here, starts no program, and cannot listen on a port.
"""

from __future__ import annotations

import ctypes
import os
import platform

from stockade.core.errors import WallFailed

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same number on every architecture
_PATH_BENEATH, _VERSION = 1, 1
EXECUTE, WRITE, READ, LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE, MAKE_SOCKET = 1 << 4, 1 << 5, 1 << 9
_ALL = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # rights on files that each ABI knows
_BIND, _CONNECT = 1 << 0, 1 << 1  # TCP; from ABI 4
_ABSTRACT, _SIGNAL = 1 << 0, 1 << 1  # scopes; from ABI 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("parent", ctypes.c_int32))


def doorman() -> None:
    """No file, no program, no connection over TCP: only the sockets that it is handed, and the engine's, which it finds by path."""
    _restrict({}, network=_BIND | _CONNECT, scoped=_ABSTRACT | _SIGNAL)


def brain(directory: str) -> None:
    """Reads what the box shows (modules, how names are resolved), has sockets in `directory`, starts nothing."""
    _restrict(
        {"/": READ | LIST, directory: READ | LIST | REMOVE | MAKE_SOCKET, os.path.dirname(directory): REMOVE_DIR}, network=_BIND, scoped=0
    )


def engine(binary: str, roots: str, directory: str) -> None:
    """Reads its binary, libraries, configuration and trusted roots; whatever it starts would have to be one of these."""
    loader = _loader()
    found = {os.path.realpath(binary): READ | EXECUTE, os.path.realpath(roots): READ, directory: READ | LIST | REMOVE | MAKE_SOCKET}
    found |= {
        loader: READ | EXECUTE,
        os.path.dirname(_mapped("libc") or loader): READ,
        "/etc/ld.so.cache": READ,
        "/proc": READ | LIST,
        "/sys": READ | LIST,
    }
    found |= {"/dev/null": READ | WRITE, "/dev/urandom": READ}
    _restrict({path: rights for path, rights in found.items() if os.path.exists(path)}, network=_BIND, scoped=_ABSTRACT | _SIGNAL)


def fallback(directory: str) -> None:
    """mitmproxy in Envoy's place: reads what the box shows, since Python loads code when it needs it; has sockets in `directory`, starts nothing."""
    _restrict({"/": READ | LIST, directory: READ | LIST | REMOVE | MAKE_SOCKET}, network=_BIND, scoped=_ABSTRACT | _SIGNAL)


def _loader() -> str:
    """The dynamic loader, which the kernel has to be able to run as well."""
    return _mapped("ld-") or os.path.realpath(f"/lib64/ld-linux-{platform.machine().replace('_', '-')}.so.2")


def _mapped(beginning: str) -> str:
    """The path of a library of this process whose name begins so, "" if there is none (proc_pid_maps(5))."""
    with open("/proc/self/maps") as maps:
        paths = (line.split(None, 5)[-1].strip() for line in maps)
        return next((path for path in paths if os.path.basename(path).startswith(beginning)), "")


def _restrict(paths: dict[str, int], *, network: int, scoped: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result = int(libc.syscall(number, *arguments))
        if result < 0:
            problem = os.strerror(ctypes.get_errno())
            raise WallFailed(
                f"the gate cannot confine itself: landlock: {problem}", code="gate.landlock", hint="`stockade doctor` tries Landlock."
            )
        return result

    abi = call(_CREATE, None, ctypes.c_size_t(0), _VERSION)
    known = _ALL[max(known for known in _ALL if known <= abi)]
    attributes = _Ruleset(known, network if abi >= 4 else 0, scoped if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = call(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    for path, rights in paths.items():
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        directory = os.path.isdir(path)
        rule = _Beneath(rights & (known if directory else EXECUTE | WRITE | READ), parent)
        call(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        os.close(parent)
    call(_RESTRICT, ruleset, 0)
    os.close(ruleset)
