"""Who may speak to the tools over HTTP. Pure: what a request says of itself in, yes or why not out.

Whoever comes needs a token that only the server's user was given (RFC 6750, section 2.1). Pages in browsers are no clients: one that
has the token all the same is refused by its origin or by its name.

INVARIANT: whatever is not plainly allowed is refused, before anything of its body is read.
"""

from __future__ import annotations

import secrets
from ipaddress import ip_address
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError
from stockade.server.access import Refused, headers, same
from stockade.server.rpc import INVALID, Fault, Ident

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.server.access import Asking

PATH = "/mcp"


class Refusal(Fault):
    """A request that is refused, and with which status of HTTP; `more` are headers that go with it."""

    def __init__(self, status: int, message: str, code: int = INVALID, ident: Ident | None = None, **more: str) -> None:
        super().__init__(code, message, ident)
        self.status, self.more = status, more


class Bearer:
    """Whoever has `token` may speak to what listens at `address` and `port`, under that name and no other."""

    def __init__(self, address: str, port: int) -> None:
        name = f"[{address}]" if ":" in address else address
        self._hosts = (f"{name}:{port}", f"localhost:{port}")
        self.url = f"http://{self._hosts[0]}{PATH}"
        self.token = secrets.token_urlsafe(32)

    def enter(self, asking: Asking) -> Mapping[str, str]:
        """The headers of a request that may pass. Raises Refusal."""
        try:
            said = headers(asking)
        except Refused as error:
            raise Refusal(400, str(error)) from error
        if said.get("host") not in self._hosts:  # another name that leads here: DNS rebinding
            raise Refusal(403, "This server has another name.")
        if said.get("origin", f"http://{said['host']}") != f"http://{said['host']}":  # RFC 6454, section 7
            raise Refusal(403, "A page of another site asked for this.")
        scheme, _, token = said.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not same(token.strip(" "), self.token):
            raise Refusal(
                401, "The token is missing or wrong: it goes into the header Authorization, after Bearer.", www_authenticate="Bearer"
            )
        return said


def place(text: str) -> tuple[str, int]:
    """The address and the port of ADDRESS, ADDRESS:PORT, [ADDRESS]:PORT or :PORT; port 0 stands for one that is free. Raises StockadeError (`tools.address`)."""
    address, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (address.count(":") and not address.startswith("[")):
        address, port = text, "0"
    address = address.removeprefix("[").removesuffix("]") or "127.0.0.1"
    try:
        there = ip_address("127.0.0.1" if address == "localhost" else address)
    except ValueError:
        there = None
    if there is None or not there.is_loopback or "%" in address:
        raise StockadeError(
            f"tools are served on loopback only, and {address!r} is no address there",
            code="tools.address",
            hint="What passes is not encrypted, and who has it runs commands. From another machine: ssh -L.",
        )
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and (port == "0" or 1024 <= int(port) <= 65535)):
        raise StockadeError(
            f"{port!r} is no port", code="tools.address", hint="A number from 1024 to 65535; without one, one is chosen that is free."
        )
    return str(there), int(port)
