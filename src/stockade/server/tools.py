"""The tools of `stockade tools`: what each is called and takes, and the command inside that does it.

INVARIANT: everything is done by a command inside the sandbox. No path is opened here, whoever named it, and of a file nothing is read but bytes that a command inside wrote to its
output. Needed inside is what POSIX has: sh, cat, dd, find, grep, head, ls, mkdir, tail, wc (and mktemp of coreutils and busybox).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stockade.core.frozen import frozen
from stockade.server.rpc import BAD_PARAMS, LARGEST, Fault
from stockade.session.command import plain_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stockade.session.live import LiveSession

SHOWN = 64 << 10  # bytes of each stream that are shown: the first half and the last
PAGE = 256 << 10  # bytes that `read` shows at once
EDITED = 4 << 20  # bytes of a file that `edit` takes, and of what it makes of one
ARGUMENT = 100_000  # bytes of one argument of a program: Linux takes 128 KiB (execve(2), MAX_ARG_STRLEN)
WAIT, LONGEST = 120, 3600  # seconds that a command may take
PATIENCE = 60.0  # seconds for tools that only look at files

BASH = 'cd "$2" || exit 126; exec "$(command -v bash || echo sh)" -c "$1"'
READ = '[ ! -d "$1" ] || { echo "$1 is a folder: use list" >&2; exit 1; }; exec <"$1" && tail -n "+$2" | head -n "$3" | head -c "$4"'
# Taken in whole before the file is touched: input that is cut short leaves what was there.
WRITE = """case $1 in */*) mkdir -p -- "${1%/*}/" || exit;; esac
new=$(mktemp) && trap 'rm -f "$new"' EXIT && cat >"$new" || exit
[ "$(wc -c <"$new")" -eq "$2" ] || { echo "the input was cut short; the file is as it was" >&2; exit 1; }
cat "$new" >"$1\""""
SEARCH = 'exec find "$2" -name .git -prune -o -type f -name "$3" -exec grep -nE -e "$1" -- /dev/null {} +'


@frozen
class Field:
    """One argument of a tool. `least` and `most` bound numbers, and `most` the bytes of a text; `default` is None where it has to be given."""

    about: str
    default: str | int | bool | None = None
    kind: type = str
    least: int = 0
    most: int = ARGUMENT

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        found: dict[str, Any] = {"type": {str: "string", int: "integer", bool: "boolean"}[self.kind], "description": self.about}
        if self.kind is int:
            found |= {"minimum": self.least, "maximum": self.most}
        if self.default not in (None, ""):
            found["default"] = self.default
        return found

    def wrong(self, value: object) -> str:
        """What is wrong with a value, or ""."""
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            return f"has to be {'a' if self.kind is not int else 'an'} {self.schema()['type']}"
        if isinstance(value, str):
            try:
                size = len(value.encode("utf-8"))
            except UnicodeEncodeError:
                return "holds half a surrogate pair, which is no character"
            if "\0" in value and self.most <= ARGUMENT:
                return "holds a NUL byte"
            return f"is longer than {self.most} bytes" if size > self.most else ""
        if isinstance(value, int) and self.kind is int and not self.least <= value <= self.most:
            return f"has to be from {self.least} to {self.most}"
        return ""


@frozen
class Answer:
    """What a tool says: `blocks` of text, the first of which is ours wherever there are several, so that nothing inside can imitate it."""

    blocks: tuple[str, ...]
    failed: bool = False


@frozen
class Tool:
    """One tool. `run` gets a session and all arguments; `hints` are MCP's annotations."""

    about: str
    fields: dict[str, Field]
    hints: dict[str, bool]
    run: Callable[..., Awaitable[Answer]] | None = None  # None: the server's own

    def described(self, name: str) -> dict[str, Any]:
        """As `tools/list` shows it."""
        schema = {
            "type": "object",
            "properties": {key: field.schema() for key, field in self.fields.items()},
            "required": [key for key, field in self.fields.items() if field.default is None],
            "additionalProperties": False,
        }
        return {"name": name, "description": self.about, "inputSchema": schema, "annotations": self.hints}

    def arguments(self, given: object) -> dict[str, Any]:
        """All arguments, with defaults. Raises Fault."""
        if not isinstance(given, dict):
            raise Fault(BAD_PARAMS, "arguments has to be an object")
        for name in given:
            if name not in self.fields:
                raise Fault(BAD_PARAMS, f"there is no argument {name[:100]!r}; there are: {', '.join(self.fields) or 'none'}")
        for name, field in self.fields.items():
            if name not in given and field.default is None:
                raise Fault(BAD_PARAMS, f"{name} is missing")
            if name in given and (why := field.wrong(given[name])):
                raise Fault(BAD_PARAMS, f"{name} {why}")
        return {name: given.get(name, field.default) for name, field in self.fields.items()}


class Kept:
    """The beginning and the end of a stream, and how much it was. Holds `SHOWN` bytes and one piece at most."""

    def __init__(self) -> None:
        self.head, self.tail, self.size = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """Some more of it."""
        self.size += len(data)
        room = SHOWN // 2 - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        del self.tail[: -SHOWN // 2]

    @property
    def text(self) -> str:
        """What is shown, with a line of ours in place of what is not."""
        left_out = self.size - len(self.head) - len(self.tail)
        gap = f"\n[{left_out} bytes in the middle are left out]\n".encode() if left_out else b""
        return bytes(self.head + gap + self.tail).decode("utf-8", "replace")


async def bash(session: LiveSession, *, command: str, timeout: int, cwd: str) -> Answer:
    out, err = Kept(), Kept()
    late = False
    async with await session.start(["/bin/sh", "-c", BASH, "sh", command, _folder(cwd)]) as running:
        try:
            async with asyncio.timeout(timeout):
                async for piece in running:
                    (out if piece.stream == "stdout" else err).add(piece.data)
                said = f"exit code {await running.wait()}"
        except TimeoutError:
            late, said = True, f"killed after {timeout} s, which was its timeout"
    for name, kept in (("stdout", out), ("stderr", err)):
        if kept.size > SHOWN:
            said += f"; {name} had {kept.size} bytes, of which the first and last {SHOWN // 2} are shown"
    named = [f"{name}:\n{kept.text}" for name, kept in (("stdout", out), ("stderr", err)) if kept.size]
    return Answer((said, *named), late)


async def read(session: LiveSession, *, path: str, offset: int, limit: int) -> Answer:
    found, said = await _do(session, READ, plain_path(path), str(offset), str(limit + 1), str(PAGE + 1))
    if said:
        return Answer((f"cannot read {path}: {said}",), True)
    lines = found.split(b"\n")
    shown = b"\n".join(lines[:limit])[:PAGE]
    notes = []
    if len(found) > PAGE and len(shown) == PAGE:
        notes.append(
            f"cut after {PAGE} bytes, in line {offset + shown.count(b'\n')}; go on from there with offset, or with bash where one line is longer"
        )
    elif len(lines) > limit and lines[limit:] != [b""]:
        notes.append(f"cut after line {offset + limit - 1}: go on with offset {offset + limit}")
    text = shown.decode("utf-8", "replace")
    if text.encode() != shown and len(shown) < PAGE:
        notes.append("this is not UTF-8: what is no character is shown as \ufffd, so do not write it back")
    if not text:  # clients and models' APIs may refuse an empty text
        notes.append("the file is empty" if offset == 1 else f"the file has no line {offset}")
    return Answer((f"note: {'; '.join(notes)}", *([text] if text else [])) if notes else (text,))


async def write(session: LiveSession, *, path: str, content: str) -> Answer:
    return await _write(session, path, content.encode())


async def edit(session: LiveSession, *, path: str, old: str, new: str, all: bool) -> Answer:
    if not old:
        raise Fault(BAD_PARAMS, "old must not be empty")
    before, said = await _do(session, READ, plain_path(path), "1", str(EDITED), str(EDITED + 1))
    if said:
        return Answer((f"cannot read {path}: {said}",), True)
    if len(before) > EDITED:
        return Answer((f"{path} is larger than {EDITED} bytes: change it with a command",), True)
    count = before.count(old.encode())
    if not count:
        return Answer((f"old does not occur in {path}; nothing was changed. Read the file and copy the text exactly.",), True)
    if count > 1 and not all:
        return Answer((f"old occurs {count} times in {path}; nothing was changed. Give more of the text around it, or all=true.",), True)
    size = len(before) + count * (len(new.encode()) - len(old.encode()))
    if size > EDITED:  # before there is any of it: it would be the host's memory
        return Answer((f"{path} would have {size} bytes, more than {EDITED}; nothing was changed. Change it with a command.",), True)
    done = await _write(session, path, before.replace(old.encode(), new.encode()))
    return done if done.failed else Answer((f"{count} replaced; {done.blocks[0]}",))


async def list_(session: LiveSession, *, path: str) -> Answer:
    return await _shown(session, 'exec ls -lA -- "$1"', "(empty)", _folder(path))


async def search(session: LiveSession, *, pattern: str, path: str, glob: str) -> Answer:
    return await _shown(session, SEARCH, "no match", pattern, _folder(path), glob)


def _folder(path: str) -> str:
    return path if path == "." else plain_path(path)  # so that what is found is called a/b and not ././a/b


async def _write(session: LiveSession, path: str, data: bytes) -> Answer:
    _, said = await _do(session, WRITE, plain_path(path), str(len(data)), stdin=data)
    return Answer((f"cannot write {path}: {said}" if said else f"{path} has {len(data)} bytes now",), bool(said))


async def _do(session: LiveSession, script: str, *words: str, stdin: bytes = b"") -> tuple[bytes, str]:
    """Run a script inside: what it wrote, and why it failed, or ""."""
    done = await session.exec(["/bin/sh", "-c", script, "sh", *words], stdin=stdin, timeout=PATIENCE, max_output=EDITED + 1)
    if done.timed_out:
        return b"", f"it took more than {PATIENCE:g} s"
    return done.stdout, done.said if done.exit_code or done.stderr else ""


async def _shown(session: LiveSession, script: str, nothing: str, *words: str) -> Answer:
    """What a script that only looks says: some of it may be out of reach, which is no failure of the rest."""
    done = await session.exec(["/bin/sh", "-c", script, "sh", *words], timeout=PATIENCE, max_output=SHOWN)
    notes = [f"cut after {SHOWN} bytes: ask for less"] if done.truncated else []
    if done.timed_out:
        notes.append(f"ended after {PATIENCE:g} s")
    if done.stderr:
        notes.append(done.said)
    text = done.stdout.decode("utf-8", "replace")
    if not text:
        return Answer(("; ".join(notes) or nothing,), bool(notes))
    return Answer((f"note: {'; '.join(notes)}", text) if notes else (text,))


def _hints(*, reads: bool, destroys: bool = False, repeatable: bool = False, open_world: bool = False) -> dict[str, bool]:
    return {"readOnlyHint": reads, "destructiveHint": destroys, "idempotentHint": reads or repeatable, "openWorldHint": open_world}


_PATH = Field("path inside, relative to the workspace")
TOOLS = {
    "bash": Tool(
        f"Run a shell command in the sandbox, in a fresh shell each time. The first block of the answer is the exit code; of each stream the first and last {SHOWN // 2} bytes are shown.",
        {
            "command": Field("what the shell runs"),
            "timeout": Field("seconds until it is killed", WAIT, int, 1, LONGEST),
            "cwd": Field("folder inside, relative to the workspace", "."),
        },
        _hints(reads=False, destroys=True, open_world=True),
        bash,
    ),
    "read": Tool(
        "Read a file in the sandbox.",
        {
            "path": _PATH,
            "offset": Field("first line, counted from 1", 1, int, 1, 1 << 40),
            "limit": Field("most lines", 2000, int, 1, 100_000),
        },
        _hints(reads=True),
        read,
    ),
    "write": Tool(
        "Write a file in the sandbox: replaces what was there, and makes folders that are missing.",
        {"path": _PATH, "content": Field("all of the new content", most=LARGEST)},
        _hints(reads=False, destroys=True, repeatable=True),
        write,
    ),
    "edit": Tool(
        "Replace text in a file in the sandbox. It has to occur exactly once, unless all is true.",
        {
            "path": _PATH,
            "old": Field("the text to replace, exactly as it stands in the file", most=LARGEST),
            "new": Field("the text to put there", most=LARGEST),
            "all": Field("replace every occurrence", False, bool),
        },
        _hints(reads=False, destroys=True),
        edit,
    ),
    "list": Tool("List a folder in the sandbox, as `ls -lA` does.", {"path": Field(_PATH.about, ".")}, _hints(reads=True), list_),
    "search": Tool(
        "Search files in the sandbox, below a folder, for lines that match. Folders named .git are left out.",
        {
            "pattern": Field("an extended regular expression, as `grep -E` has them"),
            "path": Field(f"file or folder: {_PATH.about}", "."),
            "glob": Field("only files whose name matches, for example *.py", "*"),
        },
        _hints(reads=True),
        search,
    ),
    "restart": Tool(
        "End the sandbox and start a new one. Running commands, /tmp and the home inside are gone; the workspace stays.",
        {},
        _hints(reads=False, destroys=True),
    ),
}
