"""A real registry on loopback, and images made by hand: layers as tar, their configuration and manifest as JSON (OCI image specification), put there over HTTP."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import random
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import unavailable
from stockade.core.errors import CannotEnforce
from stockade.walls import pulling, registry

DOCKER_REGISTRY, BUSYBOX = "/usr/bin/docker-registry", "/bin/busybox"
OCI, DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
APPLETS = (
    "sh",
    "cat",
    "ls",
    "id",
    "dd",
    "echo",
    "env",
    "mkdir",
    "rm",
    "sleep",
    "touch",
    "ln",
    "chown",
    "stat",
    "mount",
    "find",
    "pwd",
    "test",
    "hostname",
)


def require() -> None:
    """Skip, or fail where it must work, when a program is not here."""
    for path in (DOCKER_REGISTRY, BUSYBOX):
        if not shutil.which(path):
            unavailable("images", f"there is no {path}")
    if b"/ld-linux" in Path(BUSYBOX).read_bytes()[:4096]:
        unavailable("images", f"{BUSYBOX} is not the static one (Debian: busybox-static)")
    try:
        pulling.require()
    except CannotEnforce as error:
        unavailable("images", str(error))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o755, **more: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a layer; `more` are attributes of TarInfo."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer, not compressed. Nothing is normalised: names stay as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def busybox() -> bytes:
    """A layer with a shell: one static program and links to it."""
    links = (entry(f"bin/{name}", kind=tarfile.SYMTYPE, link="busybox") for name in APPLETS)
    etc = entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n", mode=0o644)
    return layer(
        entry("bin", kind=tarfile.DIRTYPE),
        entry("bin/busybox", Path(BUSYBOX).read_bytes()),
        *links,
        entry("etc", kind=tarfile.DIRTYPE),
        etc,
    )


@dataclass
class Made:
    """An image as bytes: every blob, and its manifest of that media type."""

    blobs: list[bytes]
    manifest: bytes
    kind: str

    @property
    def digest(self) -> str:
        return digest(self.manifest)


def image(
    *layers: bytes, config: Mapping[str, object] | None = None, docker: bool = False, zipped: bool = True, machine: str = "", **change: Any
) -> Made:
    """An image of these layers; `change` replaces keys of its manifest."""
    packed = [gzip.compress(one, 1, mtime=0) if zipped else one for one in layers]
    facts = {
        "architecture": machine or registry.machine(), "os": "linux", "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
    }  # fmt: skip
    about = json.dumps(facts).encode()
    kinds = (
        (f"{DOCKER}container.image.v1+json", f"{DOCKER}image.rootfs.diff.tar" + ".gzip" * zipped)
        if docker
        else (f"{OCI}config.v1+json", f"{OCI}layer.v1.tar" + "+gzip" * zipped)
    )
    kind = f"{DOCKER}distribution.manifest.v2+json" if docker else f"{OCI}manifest.v1+json"
    manifest = {
        "schemaVersion": 2, "mediaType": kind, "config": {"mediaType": kinds[0], "digest": digest(about), "size": len(about)},
        "layers": [{"mediaType": kinds[1], "digest": digest(one), "size": len(one)} for one in packed], **change,
    }  # fmt: skip
    return Made([about, *packed], json.dumps(manifest).encode(), kind)


def index(*made: tuple[str, Made]) -> Made:
    """An image for several machines ("amd64", ...)."""
    entries = [
        {"mediaType": one.kind, "digest": one.digest, "size": len(one.manifest), "platform": {"os": "linux", "architecture": machine}}
        for machine, one in made
    ]
    kind = f"{OCI}index.v1+json"
    return Made([], json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode(), kind)


@dataclass
class Depot:
    """A registry that runs. `log` is what it says; `headers` are sent with whatever is put there."""

    address: str
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, made: Made, *, tag: str = "latest") -> str:
        """Store an image; the reference by its digest."""
        connection = http.client.HTTPConnection(self.address, timeout=20)

        def ask(method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> http.client.HTTPResponse:
            connection.request(method, path, body, {"Content-Type": kind, **self.headers})
            answer = connection.getresponse()
            answer.read()
            assert answer.status < 300, (method, path, answer.status)
            return answer

        try:
            for blob in made.blobs:
                location = ask("POST", f"/v2/{name}/blobs/uploads/").headers["Location"]
                path = location.removeprefix(f"http://{self.address}")
                ask("PUT", f"{path}{'&' if '?' in path else '?'}digest={digest(blob)}", blob)
            ask("PUT", f"/v2/{name}/manifests/{tag}", made.manifest, made.kind)
        finally:
            connection.close()
        return f"{self.address}/{name}@{made.digest}"


def free_port() -> int:
    """A port of loopback that nobody listens on, below those that the kernel gives to connections (ip(7), ip_local_port_range): one of these could come to be its own other
    end while we wait for a server there, and keep the server from it."""
    for _ in range(100):
        with suppress(OSError), socket.create_server(("127.0.0.1", random.randrange(15_000, 32_000))) as found:
            return int(found.getsockname()[1])
    raise AssertionError("no port is free")


@contextmanager
def depot(folder: Path, more: str = "") -> Iterator[Depot]:
    """Debian's docker-registry as a process of its own, on loopback and without TLS; `more` is added to its settings."""
    require()
    port = free_port()
    settings = folder / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: false}}}}\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{more}"
    )
    log = folder / "registry.log"
    with log.open("wb") as out:
        process = subprocess.Popen([DOCKER_REGISTRY, "serve", str(settings)], stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        yield Depot(f"127.0.0.1:{port}", log)
    finally:
        process.kill()
        process.wait()
