"""A server that takes only requests signed for AWS with one key, and says of each what it thought. The verification is written here from AWS's documentation
("Signature Version 4 for API requests", IAM User Guide), and shares no code with what signs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from gateway.harness import Quiet, Served, certified
from stockade.gateway.certs import Authority

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Got:
    """One request as it arrived. `wrong` is why its signature does not hold, "" if it does."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    wrong: str

    def header(self, name: str) -> str:
        return ",".join(value for key, value in self.headers if key == name)


def signature(
    method: str, target: str, headers: dict[str, str], signed: list[str], payload: str, secret: str, scope: str, moment: str
) -> str:
    """The signature that these facts should have. `scope` is DATE/REGION/SERVICE/aws4_request."""
    date, region, service, _ = scope.split("/")
    path, _, query = target.partition("?")
    # S3 decodes the path once and encodes it once; other services encode what arrives once more.
    path = quote(unquote(path), safe="/-_.~") if service == "s3" else quote(path, safe="/-_.~")
    pairs = sorted(
        (quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~"))
        for name, _, value in (p.partition("=") for p in query.split("&") if p)
    )
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in signed)
    request = "\n".join([method, path, "&".join(f"{name}={value}" for name, value in pairs), lines, ";".join(signed), payload])
    text = "\n".join([ALGORITHM, moment, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def objection(method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes, identity: str, secret: str, token: str) -> str:
    """Why AWS would refuse this request, "" if it would not."""
    found = {name: ",".join(value for key, value in headers if key == name) for name, _ in headers}
    match = re.fullmatch(rf"{ALGORITHM} Credential=([^/]+)/([^,]+), SignedHeaders=([^,]+), Signature=(\w+)", found.get("authorization", ""))
    if not match:
        return "no signature"
    if match[1] != identity:
        return f"the key {match[1]} does not exist"
    if found.get("x-amz-security-token", "") != token:
        return "the session token"
    signed = match[3].split(";")
    if missing := [name for name in found if (name == "host" or name.startswith("x-amz-")) and name not in signed]:
        return f"not signed: {missing}"
    said = found.get("x-amz-content-sha256", "")
    payload = said or hashlib.sha256(body).hexdigest()
    if re.fullmatch("[0-9a-f]{64}", payload) and payload != hashlib.sha256(body).hexdigest():
        return "the hash of the body"
    right = signature(method, target, found, signed, payload, secret, match[2], found.get("x-amz-date", ""))
    return "" if hmac.compare_digest(right, match[4]) else "the signature does not match"


class Aws:
    """HTTPS on 127.0.0.1 for the names of `hosts`, under a CA of its own (`ca`, as a gate's upstream needs it)."""

    def __init__(self, directory: Path, hosts: tuple[str, ...], identity: str, secret: str, token: str = "") -> None:
        authority = Authority("aws test")
        self.ca = directory / "aws-ca.pem"
        self.ca.write_text(authority.pem)
        self.got: list[Got] = []
        aws = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                if self.headers.get("expect"):
                    self.send_response_only(100)
                    self.end_headers()
                body = b""
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = tuple((name.lower(), value) for name, value in self.headers.items())
                wrong = objection(self.command, self.path, headers, body, identity, secret, token)
                aws.got.append(Got(self.command, self.path, headers, body, wrong))
                answer = wrong.encode() or (b"{}" if "x-amz-target" in self.headers else b"stored" if self.command == "GET" else b"")
                self.send_response(403 if wrong else 200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

        self.server = Served(Handler, certified(authority, directory, *hosts))
        self.port, self.close = self.server.server_port, self.server.close
