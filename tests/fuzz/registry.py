"""INVARIANT: whatever a registry sends is an image whose every part is named by SHA-256 and comes from that registry, as a plain reader of JSON finds them too,
or is refused with a closed code; of its variables each can be handed to a program. And a reference that is accepted says what it was made from."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from stockade.core.errors import StockadeError
from stockade.walls import images, registry
from stockade.walls.registry import Part

CODES = ("image.kind", "image.platform", "image.reference")
DIGEST = "sha256:" + "0f" * 32
PART = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 9}
ABOUT = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 3}


def _manifest(*layers: object, **more: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": ABOUT, "layers": layers, **more}).encode()


WORDS = (
    b'"mediaType"', b'"digest"', b'"size"', b'"config"', b'"layers"', b'"manifests"', b'"urls"', b'"platform"', b'"Env"', b'"PATH=/bin"', DIGEST.encode(),
    b"application/vnd.oci.image.manifest.v1+json", b"{", b"}", b"[", b"]", b":", b",", b"null", b"-1", b"1e9", b"99999999999999999999", b"\\ud800", b"\\u0000",
    b"localhost/a", b"registry.example.com", b":1", b"@", b"../",
)  # fmt: skip
KEPT = {
    "an image": _manifest(PART, PART),
    "a layer from elsewhere": _manifest({**PART, "urls": ["http://elsewhere.example.com/x"]}),
    "a digest that is a path": _manifest({**PART, "digest": "sha256:../../../../etc/passwd"}),
    "another hash": _manifest({**PART, "digest": "md5:" + "0" * 32}),
    "a size that is none": _manifest({**PART, "size": -1}),
    "a size that is a truth": _manifest({**PART, "size": True}),
    "an index": json.dumps(
        {"manifests": [{**PART, "platform": {"os": "linux", "architecture": "amd64"}}, {**PART, "platform": {"os": "unknown"}}]}
    ).encode(),
    "a configuration": json.dumps({"config": {"Env": ["A=b", "no", "=x", "N=\0", "S=\ud800", 7], "Cmd": "sh", "User": {}}}).encode(),
    "deeper than a reader goes": b"[" * 100000,
    "a reference": b"registry.example.com:5000/team/tools:1.2",
    "one by its digest": f"localhost/a@{DIGEST}".encode(),
    "an option": b"--authfile",
}
FAULT = ("stockade.walls.registry._part", lambda found: Part(str(found["mediaType"]), str(found["digest"]), 9))


def one(data: bytes) -> None:
    """A manifest, an index, a configuration and a reference, all at once."""
    try:
        found = registry.decoded(data, "manifest")
    except StockadeError as error:
        assert error.code in CODES
    else:
        _read(found)
    text = data.decode("utf-8", "replace")
    try:
        reference = registry.reference(text)
    except StockadeError as error:
        assert error.code in CODES
    else:
        assert re.fullmatch(r"[a-z0-9][\w.:/@-]*", str(reference), re.ASCII)
        assert str(reference) in (text.removeprefix("docker://"), text.removeprefix("docker://") + ":latest") or reference.digest


def _read(found: dict[str, Any]) -> None:
    try:
        about, layers = registry.parts_of(found)
    except StockadeError as error:
        assert error.code in CODES
    else:
        assert [(layer["digest"], layer["size"]) for layer in found["layers"]] == [(layer.digest, layer.size) for layer in layers]
        for part, plain in zip((about, *layers), (found["config"], *found["layers"]), strict=True):
            assert re.fullmatch("sha256:[0-9a-f]{64}", part.digest) and part.size >= 0 and not plain.get("urls")
        files = registry.layout(b"{}", layers)
        assert all(json.loads(content) is not None for content in files.values())
    try:
        assert re.fullmatch("sha256:[0-9a-f]{64}", registry.instance_for(found, "linux/amd64"))
    except StockadeError as error:
        assert error.code in CODES
    image = registry.described(found.get("config"), ("localhost/a",), DIGEST, DIGEST, "linux/amd64", (), 0, 0)
    for name, value in images.variables(image.environment).items():
        assert name and "=" not in name and b"\0" not in os.fsencode(name + value)
