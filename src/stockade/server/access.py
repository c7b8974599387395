"""Who may speak to a page on loopback. Pure: what a request says of itself in, yes or why not out.

Anything on the machine can connect to such a port, and any page in the browser can send requests there. So whoever comes needs what only the terminal
showed (a link that works once, then a cookie), and a request counts only if the browser says that this very page sent it.

INVARIANT: whatever is not plainly allowed is refused, before anything of it is read.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from stockade.core.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Scope

ADDRESS = "127.0.0.1"
COOKIE = "stockade"
LARGEST = 16 << 10  # bytes of a body
# Nothing but our own three files runs or is loaded, nobody frames or reads us, and no text can become markup (Content Security Policy Level 3; Trusted Types).
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_ONCE = (
    *("host", "origin", "cookie", "content-length", "content-type", "sec-fetch-site"),
    *("authorization", "accept", "mcp-session-id", "mcp-protocol-version"),
)


@frozen
class Asking:
    """What a request says of itself. `headers`: names in lower case, in order, repeated ones too."""

    method: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def asking(scope: Scope) -> Asking:
    """What a request of a server (ASGI) says of itself."""
    lines = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"])
    return Asking(scope["method"], scope["path"], scope["query_string"].decode("latin-1"), lines)


class Refused(Exception):
    """It is refused; the text says why, to whoever sits at the browser, and nothing that helps a guess."""


class Access:
    """Who may speak to what listens on `port`, which only the terminal knows how to reach.

    The room is a path that nobody can guess. The cookie is bound to it, since browsers send one to every port of a host (RFC 6265, section 8.5): what else listens on loopback does not
    get to see it.
    """

    def __init__(self, port: int) -> None:
        self._hosts = (f"{ADDRESS}:{port}", f"localhost:{port}")
        self.room = secrets.token_urlsafe(16)
        self._cookie = secrets.token_urlsafe(32)
        self._link = ""

    def link(self) -> str:
        """A new link, which lets one browser in, once. The one before it does not work any more."""
        self._link = secrets.token_urlsafe(32)
        return f"http://{self._hosts[0]}/{self.room}/?link={self._link}"

    def enter(self, asking: Asking) -> str:
        """ "" if a request may pass; what the cookie is to be if it comes by the link, which is used up by that. Raises Refused."""
        said = headers(asking)
        if said.get("host") not in self._hosts:  # another name that leads here: DNS rebinding
            raise Refused("This is not the address that the terminal shows.")
        room, slash, rest = asking.path.removeprefix("/").partition("/")
        if not slash or not same(room, self.room):
            raise Refused("Open the link that the terminal shows.")
        site, page = said.get("sec-fetch-site", ""), rest == "" and asking.method == "GET"
        if site not in (("none", "same-origin") if page else ("same-origin",)):
            raise Refused(
                "Another page led here, or this browser does not say which one did. Copy the link from the terminal into its address bar."
            )
        if page and "link" in (query := parse_qs(asking.query)):
            if not self._link or not same(query["link"][0], self._link):
                raise Refused("This link was used already. The terminal shows the next one.")
            self._link = ""
            return f"{COOKIE}={self._cookie}; Path=/{self.room}/; HttpOnly; SameSite=Strict"
        if not any(same(value, self._cookie) for value in _cookies(said.get("cookie", ""))):
            raise Refused("Open the link that the terminal shows.")
        if asking.method == "POST":
            _post(said)
        elif asking.method != "GET":
            raise Refused("There is no such request.")
        return ""


def headers(asking: Asking) -> Mapping[str, str]:
    """The headers by name. Raises Refused where one that counts is there twice."""
    found: dict[str, str] = {}
    for name, value in asking.headers:
        if name in found and name in _ONCE:
            raise Refused("A header that counts is there twice.")
        found[name] = value
    return found


def _post(said: Mapping[str, str]) -> None:
    """What changes something comes from our own page: a form of another can neither send JSON nor hide its origin (RFC 6454, section 7)."""
    if said.get("origin") != f"http://{said['host']}":
        raise Refused("Another page sent this.")
    if said.get("content-type") != "application/json":
        raise Refused("This is not JSON.")
    length = said.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 9 and int(length) <= LARGEST):
        raise Refused("This is too long, or does not say how long it is.")


def _cookies(text: str) -> list[str]:
    """The values of all cookies of our name: another page of this host may have set one, too, and shuts nobody out by that."""
    return [value for name, _, value in (part.strip().partition("=") for part in text.split(";")) if name == COOKIE]


def same(one: str, other: str) -> bool:
    """Whether what a request says is a secret of ours, in a time that tells nothing."""
    return secrets.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())
