"""Public keys as ssh-keygen writes them are read, and everything else is refused in a sentence. Invariant: what is read is what its type says, whole."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import unavailable
from stockade.core import ssh

ED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgxnFRcIn8gybcrpTDb5qX2VzOVZiDe9IYjCd8XsEQO"


@pytest.mark.parametrize(
    "options", [("ed25519",), ("rsa", "-b", "2048"), ("ecdsa", "-b", "256"), ("ecdsa", "-b", "384"), ("ecdsa", "-b", "521")]
)
def test_what_ssh_keygen_makes_is_read_and_named_as_it_does(tmp_path: Path, options: tuple[str, ...]) -> None:
    try:
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", *options, "-C", "a comment", "-f", tmp_path / "k"], check=True)
    except FileNotFoundError:
        unavailable("ssh", "there is no ssh-keygen")
    line = (tmp_path / "k.pub").read_text()
    key = ssh.read_key(line)
    assert str(key) == " ".join(line.split()[:2])
    printed = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "k.pub"], check=True, capture_output=True, text=True).stdout
    assert printed.split()[1] == key.fingerprint


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-dss AAAAB3NzaC1kc3M=",
        "ssh-ed25519-cert-v01@openssh.com AAAA",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        ED[:-4],
        ED.replace("IHgx", "IHg="),
        ED.replace("ssh-ed25519 ", "ssh-rsa "),
        ED + "AAAA",
        "ssh-ed25519 " + "A" * 9000,
        "ssh-ed25519 é",
        f'command="x" {ED}',
    ],
)
def test_anything_else_is_not(line: str) -> None:
    with pytest.raises(ValueError, match=r"^('.*' is not a type of key|the key is not)"):
        ssh.read_key(line)


@given(st.text(max_size=80) | st.builds("{} {}".format, st.sampled_from([*ssh.KINDS, "x"]), st.text("AIDgx=/+", max_size=120)))
def test_reading_never_fails_otherwise(line: str) -> None:
    try:
        key = ssh.read_key(line)
    except ValueError:
        return
    assert ssh.read_key(str(key)) == key


@given(st.lists(st.binary(max_size=20), max_size=5), st.binary(max_size=4))
def test_strings_are_read_back_and_nothing_may_follow(parts: list[bytes], more: bytes) -> None:
    data = b"".join(map(ssh.string, parts))
    assert ssh.strings(data, len(parts)) == parts
    if more:
        with pytest.raises(ValueError):
            ssh.strings(data + more, len(parts))


@given(st.binary(max_size=40), st.integers(0, 6), st.integers(-3, 50))
def test_strings_of_garbage(data: bytes, count: int, at: int) -> None:
    try:
        found = ssh.strings(data, count, at)
    except ValueError:
        return
    assert sum(4 + len(one) for one in found) == len(data) - at
