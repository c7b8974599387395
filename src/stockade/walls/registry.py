"""What registries say about images, read: references, manifests, configurations. Pure functions over bytes of strangers; what they name is believed only as far as
a digest goes. Formats: OCI image specification 1.1 ("Image Manifest", "Image Index", "Image Configuration"), Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from typing import TYPE_CHECKING, Any

from stockade.core import oci
from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.walls.images import LONGEST, Image

if TYPE_CHECKING:
    from collections.abc import Iterable

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_REFERENCE = re.compile(f"(?P<name>(?P<registry>{oci.REGISTRY}){oci.PART}+)(?::(?P<tag>{oci.TAG}))?(?:@(?P<digest>{oci.DIGEST}))?")
_LOOPBACK = re.compile(r"(?:localhost|127\.[0-9.]+)(?::[0-9]+)?")
INDEX = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFEST = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_CONFIGURATION = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_LAYERS = {
    "application/vnd.oci.image.layer.v1.tar": "tar",
    "application/vnd.oci.image.layer.v1.tar+gzip": "tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": "tar",
}


@frozen
class Reference:
    """What to pull: `name` with its registry; a tag, a digest, or neither, which means the tag "latest"."""

    name: str
    registry: str
    tag: str
    digest: str

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine, where it may speak without TLS, as others have it."""
        return _LOOPBACK.fullmatch(self.registry) is not None

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag or 'latest'}"


@frozen
class Part:
    """A blob as a manifest names it."""

    kind: str
    digest: str
    size: int


def reference(text: str) -> Reference:
    """Raises StockadeError (`image.reference`)."""
    found = _REFERENCE.fullmatch(text.removeprefix("docker://"))
    if not found or len(text) > 500:
        hint = "Write registry/name:tag or registry/name@sha256:..., with the registry's host: registry.example.com/team/tools:1.2"
        raise StockadeError(f"{text!r} names no image of a registry", code="image.reference", hint=hint)
    return Reference(found["name"], found["registry"], "" if found["digest"] else found["tag"] or "", found["digest"] or "")


def decoded(raw: bytes, what: str) -> dict[str, Any]:
    """Raises StockadeError (`image.kind`)."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise unknown(f"its {what} is no JSON object")
    return found


def kind_of(manifest: dict[str, Any]) -> str:
    """The media type, or what it must be where it is not said (OCI: it is optional)."""
    kind = manifest.get("mediaType")
    return str(kind) if kind else INDEX[0] if "manifests" in manifest else _MANIFEST[0]


def _part(found: object) -> Part:
    """A descriptor. One that wants to be fetched from elsewhere is refused: nobody has granted that."""
    if isinstance(found, dict) and not found.get("urls"):
        kind, digest, size = found.get("mediaType"), found.get("digest"), found.get("size")
        if isinstance(kind, str) and isinstance(digest, str) and re.fullmatch(oci.DIGEST, digest) and type(size) is int and size >= 0:
            return Part(kind, digest, size)
    raise unknown("it has a part that is not named by size and SHA-256, or comes from elsewhere")


def parts_of(manifest: dict[str, Any]) -> tuple[Part, tuple[Part, ...]]:
    """The configuration and the layers. Raises StockadeError (`image.kind`)."""
    layers = manifest.get("layers")
    if kind_of(manifest) not in _MANIFEST or not isinstance(layers, list) or len(layers) > 500:
        raise unknown(f"its kind is {kind_of(manifest)[:100]!r}")
    configuration, found = _part(manifest.get("config")), tuple(map(_part, layers))
    if configuration.kind not in _CONFIGURATION or configuration.size > LONGEST:
        raise unknown(f"its configuration is of the kind {configuration.kind[:100]!r}")
    for layer in found:
        if layer.kind not in _LAYERS:
            raise unknown(f"it has a layer of the kind {layer.kind[:100]!r}")
    return configuration, found


def instance_for(index: dict[str, Any], where: str) -> str:
    """The digest of the manifest for this machine. Raises StockadeError (`image.platform`, `image.kind`)."""
    seen = []
    entries = index.get("manifests")
    for entry in entries if isinstance(entries, list) else ():
        part, plate = _part(entry), entry.get("platform")
        if isinstance(plate, dict):
            seen.append(f"{plate.get('os')}/{plate.get('architecture')}"[:50])
            if seen[-1] == where and plate.get("variant") in (None, "", "v8"):
                return part.digest
    raise StockadeError(
        f"the image is for {', '.join(seen[:20]) or 'no platform'}, and this machine is {where}",
        code="image.platform",
        hint="Pull another one.",
    )


def machine() -> str:
    return MACHINES.get(platform.machine(), platform.machine())


def described(
    found: object, names: tuple[str, ...], digest: str, manifest: str, where: str, blobs: tuple[str, ...], size: int, files: int
) -> Image:
    """What is kept of a configuration ("config" of OCI's image configuration); what has not its form counts as not said."""
    config = found if isinstance(found, dict) else {}

    def texts(name: str) -> tuple[str, ...]:
        value = config.get(name)
        return tuple(str(one) for one in value[:1000] if isinstance(one, str)) if isinstance(value, list) else ()

    def text(name: str) -> str:
        return str(config.get(name) or "")[:1000]

    return Image(
        names, digest, manifest, where, blobs, texts("Env"), texts("Entrypoint"), texts("Cmd"), text("User"), text("WorkingDir"), size, files, int(time.time())
    )  # fmt: skip


def layout(about: bytes, layers: Iterable[Part]) -> dict[str, bytes]:
    """An OCI image layout called "x" of exactly this configuration and these layers: its files but for the layers' blobs."""
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": _CONFIGURATION[0], "digest": digest_of(about), "size": len(about)},
        "layers": [
            {"mediaType": f"application/vnd.oci.image.layer.v1.{_LAYERS[layer.kind]}", "digest": layer.digest, "size": layer.size}
            for layer in layers
        ],
    }
    raw = json.dumps(manifest).encode()
    entry = {
        "mediaType": _MANIFEST[0],
        "digest": digest_of(raw),
        "size": len(raw),
        "annotations": {"org.opencontainers.image.ref.name": "x"},
    }
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        f"blobs/sha256/{digest_of(about)[7:]}": about,
        f"blobs/sha256/{digest_of(raw)[7:]}": raw,
    }


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def unknown(why: str) -> StockadeError:
    return StockadeError(f"this is no image that can be unpacked here: {why}", code="image.kind", hint="Nothing of it was kept.")
