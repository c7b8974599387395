"""How the OCI names images and what they are made of, as regular expressions: distribution specification, "Pulling manifests", with the registry always written out;
image specification, "Digests".
"""

from __future__ import annotations

REGISTRY = r"(?:[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::[0-9]+)?|[a-z0-9-]+:[0-9]+|localhost)"
PART = r"(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)"  # of a name, after the registry
TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
DIGEST = r"sha256:[0-9a-f]{64}"
