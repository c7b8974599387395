"""Requests to AWS that the gate signs anew (Signature Version 4): which of them can be, for which service and region, and what their bodies must be.

The sandbox signs with a placeholder, so its signature is worth nothing and is never looked at. What is: whose key it names, for what, and what it says of the
body. Presigned URLs are queries that carry a credential, and refused as such. Source: AWS IAM User Guide, "Signature Version 4 for API requests";
Amazon S3 API Reference, "Authenticating Requests (AWS Signature Version 4)".
"""

from __future__ import annotations

import re
from hashlib import sha256

from stockade.checks.credentials import CredentialInUse
from stockade.core.values import S3

# What every client of AWS sends, and what no service acts on beyond carrying out the same request. Others (x-amz-target names the operation,
# x-amz-copy-source makes S3 fetch, x-amz-acl opens an object) a grant must list.
HEADERS = frozenset(
    """x-amz-date x-amz-content-sha256 x-amz-user-agent x-amz-decoded-content-length x-amz-trailer x-amz-checksum-mode x-amz-checksum-type
    x-amz-sdk-checksum-algorithm x-amz-checksum-crc32 x-amz-checksum-crc32c x-amz-checksum-crc64nvme x-amz-checksum-sha1 x-amz-checksum-sha256
    amz-sdk-invocation-id amz-sdk-request amz-sdk-retry content-md5""".split()
)
UNSIGNED = frozenset({"UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})  # TLS alone protects these bodies on their way
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 +Credential=([^/,\s]+)/(\d{8})/([^/,\s]+)/([^/,\s]+)/aws4_request *, *SignedHeaders=[a-z0-9;._-]+ *, *Signature=[0-9a-f]{64}"
)
_HASH = re.compile(r"[0-9a-f]{64}")
_CHUNKS = (
    "its body comes in chunks with signatures of their own (x-amz-content-sha256: STREAMING-...), which the gate cannot sign anew; "
    'turn them off: AWS_REQUEST_CHECKSUM_CALCULATION=when_required, and in boto3 Config(s3={"payload_signing_enabled": False})'
)


class Refused(ValueError):
    """A request that is not signed anew. `rule` is a closed code, the text a sentence for people."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


def scope(value: str | None, own: CredentialInUse) -> tuple[str, str]:
    """(service, region) to sign for, from the Authorization header; None in its place is a request that nobody signed.

    Raises Refused if that header names another key, or no granted service and region.
    """
    services, regions = ", ".join(own.services), ", ".join(own.regions)
    if value is None:
        if len(own.services) == len(own.regions) == 1:
            return own.services[0], own.regions[0]
        raise Refused("signature-not-granted", f"it is not signed, so it does not say which of {services} and {regions} it is for")
    if value.startswith("AWS4-ECDSA-P256-SHA256"):
        raise Refused(
            "signature-not-granted", "it is signed for many regions at once (SigV4A), which the gate does not do; name one region"
        )
    match = _AUTHORIZATION.fullmatch(value)
    if match is None or not own.placeholder or match[1] != own.placeholder:
        reason = "the header authorization does not name this session's placeholder as its key; the gate signs with the real key itself"
        raise Refused("foreign-credential", reason)
    region, service = match[3], match[4]
    if service not in own.services or region not in own.regions:
        asked = ascii(f"{service} in {region}"[:80])[1:-1]
        raise Refused("signature-not-granted", f"the key signs for {services} in {regions}, not for {asked}")
    return service, region


def signed_hash(headers: tuple[tuple[str, str], ...]) -> str | None:
    """What the request says of its body: the only x-amz-content-sha256, or None."""
    return next((value for name, value in headers if name.lower() == "x-amz-content-sha256"), None)


def needs_body(headers: tuple[tuple[str, str], ...]) -> bool:
    """Whether the body must be read to sign the request."""
    return signed_hash(headers) not in UNSIGNED


def check(headers: tuple[tuple[str, str], ...], scheme: str, body: bytes | None, own: CredentialInUse) -> None:
    """Raises Refused if the gate cannot sign this request. `body` as in `grants.HttpRequest`."""
    names = [name.lower() for name, _ in headers]
    for name in names:
        if name.startswith("x-amz-") and names.count(name) > 1:
            raise Refused("signature-not-granted", f"the header {ascii(name[:60])[1:-1]} comes twice, and a signature is over one reading")
    service, _ = scope(next((value for name, value in headers if name.lower() == "authorization"), None), own)
    said = signed_hash(headers)
    if said in UNSIGNED:
        if service not in S3 or scheme != "https":
            raise Refused("signature-not-granted", "the signature leaves out the body, which is granted for S3 over TLS only")
    elif said is not None and said.startswith("STREAMING-"):
        raise Refused("signature-not-granted", _CHUNKS)
    elif said is not None and (not _HASH.fullmatch(said) or (body is not None and sha256(body).hexdigest() != said)):
        raise Refused("signature-not-granted", "x-amz-content-sha256 is not the hash of the body")
