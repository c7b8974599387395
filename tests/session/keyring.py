"""A real ssh-agent with a real key for one test, and an agent of the test's own that stands between, to see what is asked or to misbehave."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conftest import unavailable
from stockade.core.ssh import PublicKey, read_key
from stockade.core.values import Policy, Signing
from walls.boxes import until


class Keyring:
    """An agent at `socket` that holds the key in `file` (its public half beside it) and a second one, "other-key"."""

    def __init__(self, folder: Path, *kind: str) -> None:
        self.folder, self.file, self.socket = folder, folder / "id", str(folder / "real")
        try:
            self.process = subprocess.Popen(["ssh-agent", "-D", "-a", self.socket], stdout=subprocess.DEVNULL)
        except FileNotFoundError:
            unavailable("ssh", "there is no ssh-agent")
        assert until(lambda: os.path.exists(self.socket))
        for name, words in (("id", kind or ("ed25519",)), ("other", ("ed25519",))):
            subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", f"{name}-key", "-t", *words, "-f", str(folder / name)], check=True)
            self.run("ssh-add", "-q", str(folder / name))
        self.public = (folder / "id.pub").read_text().strip()
        (folder / "allowed").write_text(f"a@example.test {self.public}\n")

    @property
    def key(self) -> PublicKey:
        return read_key(self.public)

    def policy(self, policy: Policy | None = None, **signing: object) -> Policy:
        """One that lets the key sign."""
        from stockade.core.frozen import replace

        wanted = Signing(str(self.key), f"{self.file}.pub")
        return replace(policy or Policy(), signing=replace(wanted, **signing))

    def before(self, path: str = "") -> str:
        """Python for a supervisor: this is the user's agent."""
        return f"import os; os.environ['SSH_AUTH_SOCK'] = {path or self.socket!r}"

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the user's, who has this agent."""
        env = {**os.environ, "SSH_AUTH_SOCK": self.socket}
        return subprocess.run(argv, env=env, check=check, capture_output=True, text=True, timeout=60)

    def verify(self, repository: Path, what: str, name: str) -> str:
        """What git on the host says of a signature: of `what` = commit or tag."""
        config = ("-c", f"gpg.ssh.allowedSignersFile={self.folder}/allowed")
        done = self.run("git", "-C", str(repository), *config, f"verify-{what}", name, check=False)
        return done.stderr + done.stdout

    def end(self) -> None:
        """The agent dies."""
        self.process.terminate()
        self.process.wait()
        with suppress(FileNotFoundError):
            os.unlink(self.socket)


@contextmanager
def keyring(*kind: str) -> Iterator[Keyring]:
    """A keyring in a folder whose path is short enough for a socket's address."""
    folder = Path(tempfile.mkdtemp(prefix="stk-"))
    made = Keyring(folder, *kind)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


class Between:
    """An agent at `path` in front of the real one. `answer(message, forward)` gives the reply to a message, None = hang up."""

    def __init__(self, ring: Keyring, answer: Callable[[bytes, Callable[[bytes], bytes]], bytes | None]) -> None:
        self.path, self._real, self._answer = str(ring.folder / "between"), ring.socket, answer
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(self.path)
        self._sock.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            with sock, suppress(OSError):
                while (message := receive(sock)) and (reply := self._answer(message, self._forward)) is not None:
                    sock.sendall(frame(reply))

    def _forward(self, message: bytes) -> bytes:
        return exchange(self._real, message)

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def receive(sock: socket.socket) -> bytes:
    """One message, b"" at the end."""
    head = sock.recv(4, socket.MSG_WAITALL)
    return sock.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL) if len(head) == 4 else b""


def exchange(path: str, message: bytes) -> bytes:
    """One message to the agent at `path`, and its answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(frame(message))
        return receive(sock)
