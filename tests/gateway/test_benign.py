"""The programs that people run, unchanged, through the gate: what the presets grant is enough for them. (Git, WebSockets and gRPC: test_git.py, test_websocket.py, test_grpc.py.)

Every server is one of the test's own, on loopback.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.harness import PLACEHOLDER, Gate, Quiet, Served, certified, running
from policy.support import Places
from stockade.core.values import Grant
from stockade.gateway.certs import Authority
from stockade.session.confine import CA_VARIABLES

pytestmark = pytest.mark.wall
HOST, MODEL = "open.localhost", "api.localhost"
GIB = 1 << 30


class Site:
    """Files below a path, a gibibyte, and a model that thinks aloud. `asked` holds (method, path); `pages` maps a path to (type, bytes)."""

    def __init__(self, directory: Path) -> None:
        authority = Authority("site")
        self.ca = directory / "site-ca.pem"
        self.ca.write_text(authority.pem)
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.heard = threading.Semaphore(0)  # one for each event that the client has read
        site = self
        self.zeros = directory / "zeros"
        with self.zeros.open("wb") as file:
            file.truncate(GIB)

        class Handler(Quiet):
            def do_GET(self) -> None:
                site.asked.append((self.command, self.path))
                if self.path == "/zeros":
                    return self._zeros()
                kind, body = site.pages.get(self.path, ("text/plain", b""))
                self.send_response(200 if self.path in site.pages else 404)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command == "GET" else b"")

            do_HEAD = do_GET

            def do_POST(self) -> None:
                site.asked.append((self.command, self.path))
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for number in range(3):
                    data = f"event: content_block_delta\ndata: {number}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    if not site.heard.acquire(timeout=10):
                        return  # a broken chunk: the client sees an error
                self.wfile.write(b"0\r\n\r\n")

            def _zeros(self) -> None:
                self.send_response(200)
                self.send_header("content-length", str(GIB))
                self.end_headers()
                self.wfile.flush()
                with site.zeros.open("rb") as file:
                    self.connection.sendfile(file)

        self._servers = [Served(Handler, certified(authority, directory, name)) for name in (HOST, MODEL)] + [Served(Handler)]
        self.port, self.model, self.plain = (server.server_port for server in self._servers)
        self.url = f"https://{HOST}:{self.port}"

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    served = Site(tmp_path_factory.mktemp("site"))
    yield served
    served.close()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(tmp_path, monkeypatch)


@pytest.fixture
def preset(engine_binary: str, site: Site, places: Places, tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    """A gate with what a preset comes down to, for the configuration that stands in the home by then."""
    gates = []

    def begin(name: str) -> Gate:
        site.asked.clear()
        policy = places.write(user=f'[[egress]]\npreset = "{name}"\nprivate = true\n').compile().policy
        gates.append(running(tmp_path, site, tuple(grant for grant in policy.grants if grant.host == HOST)))  # type: ignore[arg-type]
        return gates[-1].__enter__()

    yield begin
    for gate in gates:
        gate.__exit__(None, None, None)


def run(gate: Gate, places: Places, *argv: str) -> subprocess.CompletedProcess[str]:
    """A program that knows the proxy and the gate's CA as programs in a sandbox do, and nothing of this machine's configuration."""
    proxy = f"http://127.0.0.1:{gate.ports['http-proxy']}"
    environment = {"HOME": str(places.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "https_proxy": proxy, "http_proxy": proxy}
    environment |= dict.fromkeys(CA_VARIABLES, str(gate.ca_file))
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=places.work, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def wheel(name: str) -> bytes:
    """A wheel with one module (PEP 427)."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "said = 'hello'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return packed.getvalue()


def test_pip_downloads_and_installs(preset: Callable[[str], Gate], site: Site, places: Places) -> None:
    packed = wheel("benign_twin")
    link = f'<a href="../../files/benign_twin-1.0-py3-none-any.whl#sha256={hashlib.sha256(packed).hexdigest()}">x</a>'
    site.pages["/repo/simple/benign-twin/"] = ("text/html", f"<!DOCTYPE html><html><body>{link}</body></html>".encode())
    site.pages["/repo/files/benign_twin-1.0-py3-none-any.whl"] = ("application/octet-stream", packed)
    (places.home / ".config/pip").mkdir(parents=True)
    (places.home / ".config/pip/pip.conf").write_text(f"[global]\nindex-url = {site.url}/repo/simple\n")
    gate = preset("pypi")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    run(gate, places, *pip, "download", "--no-deps", "-d", "got", "benign-twin")
    run(gate, places, *pip, "install", "--no-deps", "--target", "installed", "benign-twin==1.0")
    assert [path.name for path in (places.work / "got").iterdir()] == ["benign_twin-1.0-py3-none-any.whl"]
    assert (places.work / "installed/benign_twin.py").read_text() == "said = 'hello'\n"
    assert {event["rule"] for event in gate.events if event["effect"] == "deny"} == set()


def test_npm_installs_though_it_may_not_report_what_it_installed(preset: Callable[[str], Gate], site: Site, places: Places) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in {"package.json": '{"name": "benign-twin", "version": "1.0.0"}', "index.js": "module.exports = 'hello'\n"}.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    digest = base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    version = {
        "name": "benign-twin",
        "version": "1.0.0",
        "dist": {"tarball": f"{site.url}/npm/benign-twin/-/benign-twin-1.0.0.tgz", "integrity": f"sha512-{digest}"},
    }
    described = {"name": "benign-twin", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    site.pages["/npm/benign-twin"] = ("application/json", json.dumps(described).encode())
    site.pages["/npm/benign-twin/-/benign-twin-1.0.0.tgz"] = ("application/octet-stream", packed.getvalue())
    (places.home / ".npmrc").write_text(f"registry={site.url}/npm/\nupdate-notifier=false\n")
    gate = preset("npm")
    (places.work / "package.json").write_text('{"name": "mine", "version": "1.0.0"}')
    run(gate, places, npm, "install", "benign-twin")
    assert (places.work / "node_modules/benign-twin/index.js").read_text() == "module.exports = 'hello'\n"
    assert {method for method, _ in site.asked} == {"GET"}
    assert {event["rule"] for event in gate.events if event["effect"] == "deny"} <= {"method-not-granted"}


def test_apt_updates_and_downloads(preset: Callable[[str], Gate], site: Site, places: Places) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is not installed")
    deb = b"not unpacked by a download"
    entry = "Package: benign-twin\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
    entry += f"Filename: pool/benign-twin_1.0_all.deb\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n\n"
    listed = f" {hashlib.sha256(entry.encode()).hexdigest()} {len(entry)} Packages\n"
    site.pages["/debian/./Packages"] = site.pages["/debian/Packages"] = ("text/plain", entry.encode())
    site.pages["/debian/Release"] = ("text/plain", f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n{listed}".encode())
    site.pages["/debian/pool/benign-twin_1.0_all.deb"] = ("application/octet-stream", deb)
    apt = places.root / "apt"
    for folder in ("etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "state/status").touch()
    (apt / "etc/sources.list").write_text(f"deb [trusted=yes] {site.url}/debian ./\n")
    port = site.port
    with running(places.root, site, (Grant(HOST, port, paths=("/debian/**",), query="none", max_upload=0, private=True),)) as gate:  # type: ignore[arg-type]
        options = {
            "Dir::Etc": apt / "etc", "Dir::State": apt / "state", "Dir::State::status": apt / "state/status", "Dir::Cache": apt / "cache",
            "APT::Sandbox::User": "", "Acquire::https::CAInfo": gate.ca_file, "Acquire::Languages": "none", "Dir::Log": apt,
        }  # fmt: skip
        apt_get = ("apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")))
        run(gate, places, *apt_get, "update")
        run(gate, places, *apt_get, "download", "benign-twin")
    assert (places.work / "benign-twin_1.0_all.deb").read_bytes() == deb
    assert {event["rule"] for event in gate.events if event["effect"] == "deny"} == set()


@pytest.fixture(scope="module")
def gate(engine_binary: str, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    grants = (
        Grant(MODEL, site.model, methods=("POST",), paths=("/v1/messages",), credential="own", private=True),
        Grant(HOST, site.port, paths=("/zeros",), private=True),
        Grant(HOST, site.plain, "http", paths=("/zeros",), private=True),
    )
    with running(tmp_path_factory.mktemp("gate"), site, grants) as started:  # type: ignore[arg-type]
        yield started


def connect(gate: Gate, host: str, port: int) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    connection = http.client.HTTPSConnection("127.0.0.1", gate.ports["http-proxy"], timeout=20, context=context)
    connection.set_tunnel(host, port)
    return connection


def test_a_models_words_come_as_they_are_spoken(gate: Gate, site: Site) -> None:
    """The server says nothing more before the client has read what came before: so nothing is held back on the way."""
    connection = connect(gate, MODEL, site.model)
    body = json.dumps({"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "x" * 100_000}]})
    connection.request("POST", "/v1/messages", body, {"content-type": "application/json", "x-api-key": PLACEHOLDER})
    answer = connection.getresponse()
    heard = []
    while line := answer.readline():
        if line.startswith(b"data: "):
            heard.append(int(line[6:]))
            site.heard.release()
    assert answer.status == 200 and heard == [0, 1, 2]
    connection.close()


def memory(gate: Gate, field: str) -> dict[str, int]:
    """Bytes of each part of the gate: `VmRSS` now, `VmHWM` at most so far (proc(5))."""
    found = {}
    for name, pid in gate.children().items():
        text = Path(f"/proc/{pid}/status").read_text()
        found[name] = next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(field))
    return found


def test_a_gibibyte_passes_in_constant_memory(gate: Gate, site: Site) -> None:
    gate.curl(f"http://{HOST}:{site.plain}/zeros", "-r", "0-9", "-o", "/dev/null", "-m", "1")  # everything that is made once is there
    before = memory(gate, "VmRSS")
    done = gate.curl(f"http://{HOST}:{site.plain}/zeros", "-o", "/dev/null", "-m", "90", "-w", "[%{size_download}]", patience=100)
    assert done.returncode == 0 and done.stdout.endswith(f"[{GIB}]"), done
    after = memory(gate, "VmHWM")
    grown = {name: (after[name] - before[name]) >> 20 for name in before}
    assert set(grown) == {"engine", "brain", "doorman"} and max(grown.values()) < 32, grown


def test_a_client_that_does_not_read_costs_no_memory(gate: Gate, site: Site) -> None:
    connection = connect(gate, HOST, site.port)
    connection.request("GET", "/zeros")
    answer = connection.getresponse()
    before = memory(gate, "VmRSS")
    time.sleep(0.7)
    after = memory(gate, "VmRSS")
    assert max(after[name] - before[name] for name in before) < 32 << 20
    assert len(answer.read(1 << 20)) == 1 << 20  # and it goes on
    connection.close()
