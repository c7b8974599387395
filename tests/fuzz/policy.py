"""INVARIANT: whatever a policy file holds, and whatever is written on the command line, ends in a policy or in PolicyErrors that say where; and no grant in such a
policy covers every name below a public suffix, a bare top-level domain or everything."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from stockade.core.errors import PolicyError
from stockade.core.frozen import plain
from stockade.core.values import DENY, Policy
from stockade.policy import overrides
from stockade.policy.compile import compile_policy
from stockade.policy.model import TABLES, keys_of
from stockade.policy.problems import each
from stockade.policy.read import parse

_KEYS = sorted({key for table in TABLES for key in keys_of(table)} | {"x", "metods"})
_SCALARS = st.one_of(
    st.booleans().map(lambda value: str(value).lower()),
    st.integers(-10, 1 << 70).map(str),
    st.floats(allow_nan=True).map(str),
    st.sampled_from(["1979-05-27T07:32:00Z", "07:32:00", '"8 GiB"', '"ro"', '"env:A"', '"GET"', '"/v1/**"', '"*.a.b"', '"*.co.uk"', '"~"', '"/"', '"."', '"pypi"', '"\\u0000"']),
    st.text(max_size=12).map(json.dumps),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.dictionaries(st.sampled_from(_KEYS), inner, max_size=3).map(
            lambda items: "{" + ", ".join(f"{key} = {item}" for key, item in items.items()) + "}"
        ),
    ),
    max_leaves=5,
)
_LINES = st.one_of(
    st.tuples(st.sampled_from(_KEYS), _VALUES).map(lambda both: f"{both[0]} = {both[1]}"),
    st.sampled_from([f"[{key}]" for key in _KEYS] + [f"[[{key}]]" for key in _KEYS] + ["[credential.a]", "[caps.limits]"]),
    st.text(max_size=10),
)
INPUTS = st.lists(_LINES, max_size=10).map(lambda lines: "\n".join(["version = 1", *lines]).encode("utf-8", "surrogatepass"))
WORDS = (
    b"version = 1\n", b"[[egress]]\n", b'host = "', b'api.example.com"\n', b'*.example.com"\n', b'*.co.uk"\n', b'paths = ["/**"]\n', b'methods = ["GET"]\n',
    b'effect = "deny"\n', b'preset = "anthropic"\n', b'git = "push"\n', b'repositories = ["o/r"]\n', b'refs = ["refs/heads/x"]\n', b"[credential.a]\n",
    b'source = "env:A"\n', b'credential = "a"\n', b"[limits]\n", b'memory = "8 GiB"\n', b"[caps]\n", b"[workspace]\n", b'mode = "ro"\n', b"[[mount]]\n",
    b'path = "."\n', b'at = "/x"\n', b"[environment]\n", b'pass = ["TERM"]\n', b"set = {A = '1'}\n", b'rate = "1 per s"\n', b"not_after = 2027-01-31T18:00:00Z\n",
    b'body = [{pointer = "/a", most = 1}]\n', b"[canary.a]\n", b'value = "0123456789ab"\n', b'"""', b"'", b"\\u0000", b"{", b"}", b"[", b"]",
    b"egress.allow GET https://", b"limits.memory ", b"environment.set A=", b"\xff", b"\xef\xbb\xbf",
)  # fmt: skip
KEPT = {
    "a policy": b'version = 1\n[[egress]]\nhost = "*.example.com"\npaths = ["/v1/**"]\ncredential = "a"\n[credential.a]\nsource = "env:A"\n',
    "every name below a public suffix": b'version = 1\n[[egress]]\nhost = "*.co.uk"\npaths = ["/**"]\n',
    "a preset": b'version = 1\n[[egress]]\npreset = "anthropic"\nmax_upload = "1 MiB"\nrate = "5 per 10 s"\n',
    "not UTF-8": b"version = 1\nx = \xff\n",
    "nesting": b"a = " + b"[" * 5000,
    "a number of more digits than Python converts": b"a = " + b"9" * 5000,
    "a path with a zero": b'version = 1\n[[mount]]\npath = "a\\u0000"\n',
    "a rule of the command line": b"GET,HEAD https://a.example:8443/x?* credential=k private",
    "options": b"egress.allow GET https://*.a.example/x\nmount.rw .:/x\nlimits.memory 1 GiB\nenvironment.pass TERM",
}
_NOBODYS = ("", "com", "uk", "co.uk", "github.io", "s3.amazonaws.com", "amazonaws.com")
FAULT = ("stockade.policy.read._decode", lambda data, name: data.decode())


def one(data: bytes) -> None:
    document = _says_where(lambda: parse(data, layer="user", name="f"), "f", data.count(b"\n") + 1)
    text = data.decode("utf-8", "surrogateescape")
    options = [line.partition(" ")[::2] for line in text.split("\n")]
    for pairs in [((key, text),) for key in ("egress.allow", "egress.deny", "mount.ro", "environment.set", "limits.memory")] + [
        tuple(options)
    ]:
        _says_where(lambda pairs=pairs: overrides.document(pairs), "command line", 0)  # type: ignore[misc]  # bound now, on purpose
    if document is not None:
        with _home() as place:
            (place / "policy.toml").write_bytes(data)
            policy = _says_where(lambda: _compiled(place), "", 0)
        if isinstance(policy, Policy):
            assert Policy.from_plain(plain(policy)) == policy
            assert all(
                grant.effect == DENY or grant.host.removeprefix("*.") not in _NOBODYS for grant in policy.grants if grant.host[0] == "*"
            )


def _compiled(place: Path) -> Policy:
    return compile_policy(str(place / "work"), policy_file=str(place / "policy.toml"), managed=str(place / "none")).policy


def _says_where(read: object, file: str, lines: int) -> object:
    try:
        return read()  # type: ignore[operator]  # each of them is a function without arguments
    except PolicyError as error:
        for found in each(error):
            assert found.code.startswith("policy.") and found.message and json.dumps(found.plain())
            assert not file or (found.file == file and 0 <= found.line <= max(lines, 1))
        return None


@cache
def _place() -> Path:
    place = Path(tempfile.mkdtemp()).resolve()
    atexit.register(shutil.rmtree, place)
    (place / "work").mkdir()
    return place


@contextmanager
def _home() -> Iterator[Path]:
    """A home and a folder to start in, with no client of any registry configured."""
    kept = dict(os.environ)
    for name in kept:
        if name.startswith(("PIP_", "UV_", "NPM_CONFIG_", "npm_config_", "XDG_")):
            del os.environ[name]
    os.environ |= {"HOME": str(_place()), "PIP_CONFIG_FILE": os.devnull, "PATH": ""}
    try:
        yield _place()
    finally:
        os.environ.clear()
        os.environ.update(kept)
