"""What a guest's kernel says about its guest: gVisor's trace points, as runsc sends them to a remote sink, each message decoded by one pure function.

Messages are a header and a protobuf message (gVisor, pkg/sentry/seccheck: sinks/remote/wire/wire.go, points/*.proto; protobuf.dev, "Encoding"). The numbers
of the few fields that are wanted are in a table, everything else is skipped unread: among it the environment of commands, which may hold secrets.
Whoever wrote these bytes may be broken, or somebody who broke it.
"""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6, AF_UNIX, inet_ntop

from stockade.core.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Value = int | bytes

VERSION = 1  # of the handshake; runsc refuses less
LONGEST = 256 << 10  # bytes of a message: more than the sender's socket takes
TEXT, WORDS, LINE = 256, 16, 1024  # characters of a text, words of an argv, characters of all its words
_MOST = 64  # fields that are read of one message; what follows in an exec's is more argv, and the environment

# System calls reported by their numbers and arguments: what a guest seldom needs and an attacker tries. On x86-64 and on arm64 (the kernel's syscall_64.tbl
# and asm-generic/unistd.h), and how many of the arguments are numbers that say something.
_NUMBERS = {
    "ptrace": (101, 117, 2), "process_vm_readv": (310, 270, 1), "process_vm_writev": (311, 271, 1), "mount": (165, 40, 0), "umount2": (166, 39, 0),
    "open_tree": (428, 428, 0), "move_mount": (429, 429, 0), "fsopen": (430, 430, 0), "fsmount": (432, 432, 0), "pivot_root": (155, 41, 0),
    "chroot": (161, 51, 0), "unshare": (272, 97, 1), "setns": (308, 268, 2), "init_module": (175, 105, 0), "finit_module": (313, 273, 0),
    "bpf": (321, 280, 1), "setuid": (105, 146, 1), "setgid": (106, 144, 1), "setreuid": (113, 145, 2), "setregid": (114, 143, 2),
    "setresuid": (117, 147, 3), "setresgid": (119, 149, 3), "setfsuid": (122, 151, 1), "setfsgid": (123, 152, 1),
}  # fmt: skip
_EXECS = ((59, 322), (221, 281))  # execve, execveat
_MACHINE = int(os.uname().machine == "aarch64")
CALLS = {numbers[_MACHINE]: (name, numbers[2]) for name, numbers in _NUMBERS.items()}

# INVARIANT: but for sentry/execve no point and no context field holds a string that the guest chose. runsc leaves out a message with a string that is no UTF-8,
# and does not count it: a process that gave itself such a name would never be seen again. So an exec is reported twice, with its argv and as a number.
# The end of a system call says whose it is only where its beginning is reported too. "unshare" and "setns" do not come as long as our own filter in the guest
# refuses them before the kernel looks.
POINTS = (
    "sentry/execve", *(f"syscall/sysno/{number}/{when}" for number in _EXECS[_MACHINE] for when in ("enter", "exit")), "sentry/clone",
    "syscall/connect/enter", "syscall/bind/enter", *(f"syscall/sysno/{number}/enter" for number in CALLS),
)  # fmt: skip
_CONTEXT = ("group_id", "credentials")

CLONE, EXEC, RAW, CONNECT, BIND = KNOWN = 2, 3, 6, 10, 24  # message types (enum MessageType of points/common.proto)
DONE = "execve"  # what an exec is called that succeeded, as a number


class Malformed(ValueError):
    """Not a message that runsc sends."""


@frozen
class Event:
    """Something that a process of the guest did or tried. `pid` is its number in the guest, `uid` its effective user, `child` the process that a clone made.
    `facts` say more: plain values, whose texts are printable and cut.
    """

    what: str
    pid: int
    uid: int
    facts: dict[str, object]
    child: int = 0


def configuration(endpoint: str, points: tuple[str, ...] = POINTS) -> str:
    """What `runsc --pod-init-config` is given: these points, sent to the socket at `endpoint`. What does not fit into the socket is dropped and counted by
    runsc (no `retries`), so that a sink that is slow costs the guest nothing; a sink that cannot be reached stops the start (no `ignore_setup_error`).
    """
    import json

    listed = [{"name": name, "context_fields": _CONTEXT} for name in points]
    sinks = [{"name": "remote", "config": {"endpoint": endpoint}}]
    return json.dumps({"trace_session": {"name": "Default", "points": listed, "sinks": sinks}})


def version(message: bytes) -> int:
    """The version in a Handshake. Raises Malformed."""
    return _number(dict(_fields(message)), 1)


def header(message: bytes) -> tuple[int, int, int]:
    """(size of the header, message type, how many events were dropped so far, modulo 2^32). Raises Malformed."""
    size, kind = int.from_bytes(message[:2], "little"), int.from_bytes(message[2:4], "little")
    if not 8 <= size <= len(message):
        raise Malformed(f"a header of {size} bytes in a message of {len(message)}")
    return size, kind, int.from_bytes(message[4:8], "little")


def decode(kind: int, body: bytes) -> Event | None:
    """The event of a message of type `kind`, or None for what is none of ours: a new thread, an exec that failed or begins. Raises Malformed."""
    if kind not in KNOWN:
        return None
    words: list[bytes] = []
    found: dict[int, Value] = {}
    for number, value in _fields(body):
        if number == 3 and kind == EXEC:  # ExecveInfo.argv
            if isinstance(value, int):
                raise Malformed("a number where a text belongs")
            words.append(value)
        else:
            found[number] = value
    child = 0
    facts: dict[str, object] = {}
    if kind == EXEC:
        what, facts = "exec", {"path": text(_bytes(found, 2)), "argv": _line(words)}
    elif kind == CLONE:
        what, child = "clone", _int(_number(found, 4))
        if child != _int(_number(found, 3)):
            return None  # a thread
    elif kind in (CONNECT, BIND):
        what, facts = "connect" if kind == CONNECT else "bind", _address(_bytes(found, 6))
    elif kind == RAW and (call := _number(found, 4)) in CALLS:
        what, shown = CALLS[call]
        if shown:
            facts["arguments"] = [_int(_number(found, 5 + at)) for at in range(shown)]
    elif kind == RAW and call in _EXECS[_MACHINE]:
        what = DONE
        if 2 not in found or _number(dict(_fields(_bytes(found, 2))), 2):  # exit, and in there errorno
            return None
    else:
        return None
    context = dict(_fields(_bytes(found, 1)))
    credentials = dict(_fields(_bytes(context, 7)))
    return Event(what, _int(_number(context, 4)), _int(_number(credentials, 2)), facts, child)


def text(value: bytes) -> str:
    """`value` for people: what is no UTF-8 or not printable is spelled out, what is too long is cut after TEXT characters."""
    found = value[: 4 * TEXT + 4].decode("utf-8", "backslashreplace")  # a character has at most four bytes
    if not found.isprintable():
        found = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in found[: TEXT + 1])
    return found if len(found) <= TEXT else f"{found[:TEXT]}..."


def _line(words: list[bytes]) -> list[str]:
    """An argv, cut to WORDS words and about LINE characters; "..." stands for what is missing."""
    shown: list[str] = []
    room = LINE
    for word in words[:WORDS]:
        if room <= 0:
            break
        shown.append(text(word))
        room -= len(shown[-1])
    return [*shown, "..."] if len(shown) < len(words) else shown


def _address(value: bytes) -> dict[str, object]:
    """A struct sockaddr (sockaddr(3type)): `host` and `port`, or the `path` of a Unix socket ("@" before an abstract name), or else its `family`."""
    family = int.from_bytes(value[:2], "little")
    if family == AF_INET and len(value) >= 8:
        return {"host": inet_ntop(AF_INET, value[4:8]), "port": int.from_bytes(value[2:4], "big")}
    if family == AF_INET6 and len(value) >= 24:
        return {"host": inet_ntop(AF_INET6, value[8:24]), "port": int.from_bytes(value[2:4], "big")}
    if family == AF_UNIX:
        path = value[2:]
        return {"path": "@" + text(path[1:]) if path[:1] == b"\0" else text(path.split(b"\0", 1)[0])}
    return {"family": family}


def _int(value: int) -> int:
    """An int of C, as it was meant: 2^32 - 1 is -1."""
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def _number(found: dict[int, Value], number: int) -> int:
    value = found.get(number, 0)  # a zero is not sent
    if not isinstance(value, int):
        raise Malformed("a text where a number belongs")
    return value


def _bytes(found: dict[int, Value], number: int) -> bytes:
    value = found.get(number, b"")
    if isinstance(value, int):
        raise Malformed("a number where a text belongs")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of the first fields of a protobuf message: varints (0) as numbers below 2^64, lengths (2) as bytes, fixed sizes (1, 5) as numbers."""
    place, end = 0, len(data)
    for _ in range(_MOST):
        if place == end:
            return
        tag, place = _varint(data, place)
        kind = tag & 7
        if tag < 8 or tag >> 32:
            raise Malformed("a field without a number")
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise Malformed(f"a field of type {kind}")
        if size > end - place:
            raise Malformed("a field that is cut off")
        piece = data[place : place + size]
        place += size
        yield tag >> 3, piece if kind == 2 else int.from_bytes(piece, "little")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the least first, and the place behind it."""
    value = shift = 0
    for byte in data[place : place + 10]:
        place += 1
        if byte < 0x80:
            value |= byte << shift
            if value >> 64:
                break
            return value, place
        value |= (byte & 0x7F) << shift
        shift += 7
    raise Malformed("a number that is cut off or too large")
