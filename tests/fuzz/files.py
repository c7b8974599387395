"""INVARIANT: whatever is said about a file, it is a path below the workspace that nothing of git's is, in visible ASCII, and a content; or a ValueError that names its rule. What is shown of
two contents is printable ASCII, bounded, and the same for the same contents."""

from __future__ import annotations

import re

from stockade.checks import protected

# What is the same folder to some file system: blanks, dots and the name of a stream are dropped at a name's end (git's is_ntfs_dotgit).
GITS = re.compile(r"(\.git|git~1)[ .]*(:.*)?", re.IGNORECASE | re.DOTALL)
WORDS = (
    b"path=", b"ci/a.yml", b"&", b"%2f", b"%2e%2e", b"%00", b"%", b"..", b"/", b".git", b".GIT", b"git~1", b"\0", b"\n", b"\r\n", b"+x", b"-x", b"@@ -1 +1 @@", b"\xff",
    b"\xe2\x80\xae", b"\x1b[2J", b"x" * 300, b"\n" * 300, b"[no line feed at the end]",
)  # fmt: skip
KEPT = {
    "a file": b"path=ci/a.yml\0old\n\0new\n",
    "a file of git's": b"path=a/.git/config\0\0x",
    "the same in other letters": b"path=a/.GIT%20/config\0\0x",
    "a stream of it": b"path=a/.git::$INDEX_ALLOCATION/config\0\0x",
    "one that only begins so": b"path=a/.GIT%20path=/config\0\0x",
    "a way out": b"path=ci/%2e%2e/%2e%2e/etc/passwd\0\0x",
    "two paths": b"path=a&path=b\0\0x",
    "a line that turns around": b"path=a\0x\n\0\xe2\x80\xae\x1b[2J\r\n",
    "lines without an end": b"path=a\0" + b"x\n" * 300 + b"\0" + b"y\n" * 300,
    "only the last line feed": b"path=a\0x\0x\n",
}
FAULT = ("stockade.checks.protected.wholesome", bool)


def one(data: bytes) -> None:
    query, _, rest = data.partition(b"\0")
    before, _, after = rest.partition(b"\0")
    try:
        change = protected.read(query.decode("latin-1"), after)
    except ValueError as error:
        assert getattr(error, "rule", "") == "bad-file" and f"{error}".isprintable()
    else:
        assert change.path.isascii() and change.path.isprintable() and len(change.path) <= 1000 and change.content == after
        for part in change.path.split("/"):
            assert part not in ("", ".", "..") and not GITS.fullmatch(part)
    try:
        lines, more, fewer = protected.difference(before, after)
    except ValueError:
        return
    assert all(line.isascii() and line.isprintable() for line in lines) and len(lines) <= 400 and more + fewer <= len(lines)
    assert (before == after) == (not lines) and protected.difference(before, after) == (lines, more, fewer)
