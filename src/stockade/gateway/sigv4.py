"""Signs requests to AWS anew, with the real key, over what is really sent (Signature Version 4).

The signature itself is botocore's: it knows the ways in which services differ. It is imported only where such a credential exists. What is asked of it
here is decided before (checks/sigv4.py): the service, the region, and that the body is what the request says.
"""

from __future__ import annotations

import time
from hashlib import sha256
from urllib.parse import quote, unquote

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.core.values import S3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from stockade.gateway.flow import Leaving

WRITES = ("authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token")
_SIGNED = ("host", "content-type", "content-md5")  # beside every x-amz-*; what is not signed may be changed on the way, which TLS prevents


@frozen
class Keys:
    """An access key of AWS. `token` is "" for a long-lived one, `expires` Unix seconds, 0 = never."""

    id: str
    secret: str
    token: str = ""
    expires: int = 0


class Expired(ValueError):
    """The key is no longer valid. `rule` is a closed code."""

    rule = "credential-expired"


def require() -> None:
    """Raises CannotEnforce if what signs is not installed."""
    import importlib.util

    if not importlib.util.find_spec("botocore"):
        raise CannotEnforce(
            "a credential with sigv4 needs botocore to sign requests, and it is not installed",
            code="credential.no-botocore",
            hint="Install it: pip install 'stockade[aws]'",
        )


def parse(text: str, profile: str) -> Keys:
    """The key in what a `credential_process` prints (JSON, version 1), or in the section `profile` of an AWS credentials file.

    Raises ValueError with words that hold nothing of the text. Source: AWS SDKs and Tools Reference Guide, "Process credential provider".
    """
    import configparser
    import json

    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            raise ValueError("is not the JSON of a credential_process") from None
        if found.get("Version") != 1:
            raise ValueError("is not version 1 of a credential_process")
        named = [found.get(name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")]
        if not all(value is None or isinstance(value, str) for value in named):
            raise ValueError("holds a field that is not text")
        identity, secret, token, expires = (value or "" for value in named)
        return Keys(identity, secret, token, _moment(expires))
    sections = configparser.RawConfigParser()
    try:
        sections.read_string(text)
        section = sections[profile]
    except configparser.Error:
        raise ValueError("is neither the JSON of a credential_process nor an AWS credentials file") from None
    except KeyError:
        raise ValueError(f"has no section [{profile}]") from None
    identity, secret, token = (section.get(f"aws_{name}", "") for name in ("access_key_id", "secret_access_key", "session_token"))
    return Keys(identity, secret, token)


def _moment(text: str) -> int:
    import datetime

    try:
        moment = datetime.datetime.fromisoformat(text) if text else None
        if moment is not None and moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise ValueError("has an Expiration that is not a date and time with its offset (ISO 8601)") from None
    return int(moment.timestamp()) if moment else 0


def signer(item: Mapping[str, Any]) -> Callable[[Leaving], list[tuple[str, str]]]:
    """What signs for one credential of a gate's configuration: gives the headers to write over those of a request.

    What it gives raises Expired when the key is. Raises ImportError without botocore.
    """
    from botocore.auth import S3SigV4Auth, SigV4Auth
    from botocore.awsrequest import AWSRequest

    aws, key = item["aws"], _ForBotocore(item["aws"]["id"], item["secret"], item["aws"]["token"])

    class General(SigV4Auth):  # type: ignore[misc]  # it ships no types
        def payload(self, request: Any) -> str:
            return str(request.context["payload"])

    class ForS3(S3SigV4Auth):  # type: ignore[misc]  # same
        payload = General.payload

    def headers(leaving: Leaving) -> list[tuple[str, str]]:
        if 0 < aws["expires"] <= time.time():
            raise Expired("the key of AWS has expired since the gate was started; start the session again")
        given = dict(leaving.headers)
        service, region = _scope(given.get("authorization"), aws)
        path, _, query = leaving.target.partition("?")
        if service in S3:  # which signs the path as it reads it; others sign what arrives
            path = quote(unquote(path), safe="/~")
        said = given.get("x-amz-content-sha256")
        request = AWSRequest(leaving.method, f"{leaving.scheme}://{given['host']}{path}", params=_parameters(query))
        for name, value in leaving.headers:
            if name in _SIGNED or (name.startswith("x-amz-") and name not in WRITES):
                request.headers[name] = value
        request.context["payload"] = said if said and not _is_hash(said) else sha256(leaving.body).hexdigest()
        if said and service not in S3:
            request.headers["x-amz-content-sha256"] = request.context["payload"]
        (ForS3 if service in S3 else General)(key, service, region).add_auth(request)
        return [(name, request.headers[name]) for name in WRITES if name in request.headers]

    return headers


@frozen
class _ForBotocore:
    access_key: str
    secret_key: str
    token: str


def _scope(authorization: str | None, aws: Mapping[str, Any]) -> tuple[str, str]:
    """(service, region), which have been decided on: `Credential=ID/DATE/REGION/SERVICE/aws4_request`."""
    service, region = aws["services"][0], aws["regions"][0]
    if authorization is not None:
        region, service = authorization.split("/")[2:4]
    # INVARIANT: nothing is signed for a service or region that the policy does not name.
    if (
        service not in aws["services"]
        or region not in aws["regions"]
        or (authorization is None and len(aws["services"]) * len(aws["regions"]) > 1)
    ):
        raise ValueError("a signature for something that was not granted")
    return service, region


def _parameters(query: str) -> list[tuple[str, str]]:
    pairs = (part.partition("=") for part in query.split("&") if part)
    return [(unquote(name), unquote(value)) for name, _, value in pairs]


def _is_hash(said: str) -> bool:
    return not said.startswith(("UNSIGNED-", "STREAMING-"))
