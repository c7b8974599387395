"""Git over HTTPS with a real git on both sides: clone, fetch, and a push that may move some refs and no others; the key stays outside."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from gateway.harness import Gate, Quiet, Served, certified, running
from policy.support import Places
from stockade.core.frozen import replace
from stockade.gateway.certs import Authority
from walls.workspace_box import git, repository

pytestmark = pytest.mark.wall
HOST, USER, TOKEN, STAND_IN = "git.localhost", "x-access-token", "real-token-93c1", "stockade-placeholder-forge"
RULE = f"""
[[egress]]
host = "{HOST}"
git = "push"
repositories = ["owner/code"]
refs = ["refs/heads/agent/**"]
credential = "forge"

[[egress]]
host = "{HOST}"
git = "fetch"
repositories = ["owner/library", "shared/*"]
credential = "forge"

[credential.forge]
source = "env:FORGE_TOKEN"
user = "{USER}"
"""


class Forge:
    """`git http-backend` behind TLS and HTTP Basic. `keys` holds what came in as authorization."""

    def __init__(self, directory: Path) -> None:
        authority = Authority("forge")
        self.ca = directory / "ca.pem"
        self.ca.write_text(authority.pem)
        self.root, self.keys = directory / "root", []  # type: Path, list[str]
        for name in ("owner/code", "owner/library", "owner/secret", "shared/one"):
            source = repository(directory / "sources" / name)
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            git(directory, "clone", "-q", "--bare", str(source), str(self.root / f"{name}.git"))
            git(self.root / f"{name}.git", "config", "http.receivepack", "true")
            (self.root / name).symlink_to(f"{Path(name).name}.git")
        forge = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                forge.keys.append(self.headers.get("authorization", ""))
                length = int(self.headers.get("content-length", "0"))
                body = self.rfile.read(length)
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                if forge.keys[-1] != "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode():
                    self._reply("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="forge"')], b"")
                    return
                path, _, query = self.path.partition("?")
                env = {
                    "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(forge.root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("content-type", ""), "CONTENT_LENGTH": str(len(body)),
                    "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""), "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
                    "REMOTE_USER": USER, "REMOTE_ADDR": "127.0.0.1", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent",
                }  # fmt: skip
                done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, timeout=30)
                head, _, answer = done.stdout.partition(b"\r\n\r\n")
                headers = [tuple(line.decode().split(": ", 1)) for line in head.split(b"\r\n") if line]
                status = next((value for name, value in headers if name == "Status"), "200 OK")
                self._reply(status, [(name, value) for name, value in headers if name not in ("Status", "Content-Length")], answer)

            do_POST = do_GET

            def _reply(self, status: str, headers: list[Any], body: bytes) -> None:
                code, _, words = status.partition(" ")
                self.send_response(int(code), words)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = Served(Handler, certified(authority, directory, HOST))
        self.port, self.close = self.server.server_port, self.server.close

    def refs(self, name: str) -> dict[str, str]:
        rows = git(self.root / f"{name}.git", "for-each-ref", "--format=%(refname) %(objectname)").split("\n")
        return dict(row.split() for row in rows if row)


@dataclass
class Scene:
    gate: Gate
    forge: Forge
    place: Path

    def git(self, *words: str, cwd: Path | None = None, more: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        """A git that knows the gate as its proxy and its certificate, and no key."""
        env = {
            "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
            "GIT_SSL_CAINFO": str(self.gate.ca_file), "https_proxy": f"http://127.0.0.1:{self.gate.ports['http-proxy']}",
        }  # fmt: skip
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.test")
        return subprocess.run(
            ["git", *identity, *more, *words], cwd=cwd or self.place, env=env | environment, capture_output=True, text=True, timeout=60
        )

    def url(self, name: str) -> str:
        return f"https://{HOST}:{self.forge.port}/{name}"


@pytest.fixture(scope="module")
def scene(engine_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("forge")
    if subprocess.run(["git", "http-backend"], capture_output=True).returncode not in (0, 1, 128):
        unavailable("git", "git http-backend is not there")
    forge = Forge(directory)
    with pytest.MonkeyPatch.context() as patch:
        places = Places(tmp_path_factory.mktemp("policy"), patch)
        policy = places.write(user=RULE).compile().policy
    grants = tuple(replace(one, port=forge.port, private=True) for one in policy.grants)
    credential = {"header": "authorization", "template": "Basic {}", "user": USER, "secret": TOKEN, "placeholder": STAND_IN}
    upstream = type("Ca", (), {"ca": forge.ca})()
    with running(directory, upstream, grants, credentials={"forge": credential}) as gate:
        yield Scene(gate, forge, tmp_path_factory.mktemp("work"))
    forge.close()


@pytest.fixture
def clone(scene: Scene, tmp_path: Path) -> Path:
    done = scene.git("clone", "-q", scene.url("owner/code.git"), str(tmp_path / "code"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "code"


@pytest.mark.parametrize("name", ["owner/code", "owner/library.git", "shared/one", "shared/one.git"])
@pytest.mark.parametrize("protocol", ["0", "2"])
def test_clone_and_fetch_with_a_key_that_never_was_inside(scene: Scene, tmp_path: Path, name: str, protocol: str) -> None:
    scene.forge.keys.clear()
    done = scene.git("clone", "-q", scene.url(name), str(tmp_path / "x"), more=("-c", f"protocol.version={protocol}"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x/a.txt").read_text() == "one\n" and set(scene.forge.keys) == {
        "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
    }
    assert scene.git("fetch", "-q", cwd=tmp_path / "x").returncode == 0
    assert TOKEN not in repr(scene.gate.events)


@pytest.mark.parametrize(
    "name", ["owner/secret", "owner/secret.git", "owner/other", "else/one", "shared/../owner/secret", "shared/one/../../owner/secret.git"]
)
def test_other_repositories_do_not_come(scene: Scene, tmp_path: Path, name: str) -> None:
    scene.forge.keys.clear()
    assert scene.git("clone", "-q", scene.url(name), str(tmp_path / "x")).returncode != 0
    assert not scene.forge.keys


def commit(clone: Path, scene: Scene, size: int = 10) -> None:
    (clone / "new").write_bytes(os.urandom(size))
    assert scene.git("add", "new", cwd=clone).returncode == 0
    assert scene.git("commit", "-qm", "work", cwd=clone).returncode == 0


@pytest.mark.parametrize("size", [10, 300_000, 3_000_000])
def test_a_push_to_a_granted_ref_arrives(scene: Scene, clone: Path, size: int) -> None:
    commit(clone, scene, size)
    done = scene.git("push", "-q", "origin", f"HEAD:refs/heads/agent/work-{size}", cwd=clone)
    assert done.returncode == 0, done.stderr
    assert scene.forge.refs("owner/code")[f"refs/heads/agent/work-{size}"] == scene.git("rev-parse", "HEAD", cwd=clone).stdout.strip()


@pytest.mark.parametrize(
    "words",
    [
        ("HEAD:refs/heads/main",),
        ("--force", "HEAD:refs/heads/main"),
        ("HEAD:refs/heads/agent/x", "HEAD:refs/heads/main"),
        ("HEAD:refs/tags/v1",),
        ("HEAD:refs/heads/agent",),
        ("HEAD:refs/heads/Agent/x",),
        (":refs/heads/agent/kept",),
        ("--mirror",),
    ],
)
def test_a_push_to_another_ref_does_not(scene: Scene, clone: Path, words: tuple[str, ...]) -> None:
    assert scene.git("push", "-q", "--force", "origin", "HEAD:refs/heads/agent/kept", cwd=clone).returncode == 0
    commit(clone, scene)
    before = scene.forge.refs("owner/code")
    done = scene.git("push", "-q", "origin", *words, cwd=clone)
    assert done.returncode != 0 and scene.forge.refs("owner/code") == before
    assert any(event.get("rule") == "ref-not-granted" for event in scene.gate.events)


def test_control_without_the_gate_these_pushes_work(scene: Scene, clone: Path) -> None:
    """The forge itself takes them from whoever has the key."""
    key = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
    direct = ("-c", f"http.extraHeader=Authorization: Basic {key}")
    commit(clone, scene)
    before = scene.forge.refs("owner/code")
    for words in (("--force", "HEAD:refs/heads/main"), ("HEAD:refs/tags/control",)):
        done = scene.git("push", "-q", "origin", *words, cwd=clone, more=direct, https_proxy="", GIT_SSL_CAINFO=str(scene.forge.ca))
        assert done.returncode == 0, done.stderr
    assert scene.forge.refs("owner/code")["refs/heads/main"] != before["refs/heads/main"]


def test_a_repository_to_read_is_not_one_to_push_to(scene: Scene, tmp_path: Path) -> None:
    assert scene.git("clone", "-q", scene.url("owner/library"), str(tmp_path / "x")).returncode == 0
    commit(tmp_path / "x", scene)
    before = scene.forge.refs("owner/library")
    assert scene.git("push", "-q", "origin", "HEAD:refs/heads/agent/x", cwd=tmp_path / "x").returncode != 0
    assert scene.forge.refs("owner/library") == before


@pytest.mark.parametrize(
    ("user", "password", "passes"),
    [
        (USER, STAND_IN, True),
        ("anybody", STAND_IN, True),
        (USER, "attackers-own-token", False),
        (STAND_IN, "", False),
        (USER, STAND_IN + "x", False),
    ],
)
def test_only_the_stand_in_passes_as_a_password(scene: Scene, tmp_path: Path, user: str, password: str, passes: bool) -> None:
    scene.forge.keys.clear()
    header = "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    done = scene.git("clone", "-q", scene.url("owner/code"), str(tmp_path / "x"), more=("-c", f"http.extraHeader={header}"))
    assert (done.returncode == 0) is passes
    assert {base64.b64decode(key[6:]).decode() for key in scene.forge.keys} == ({f"{USER}:{TOKEN}"} if passes else set())
