"""The process that tells others what a session asks: `python -m stockade.session.courier`, started by telling.py. Reads a setup and then events, as lines of JSON.

Webhooks are signed as Standard Webhooks 1.0.0 says (webhook-id, webhook-timestamp, webhook-signature): HMAC-SHA256 over "id.timestamp.body". It lives until
its input has ended, and then for `LAST` seconds at most (and for as long as a command that gives the secret takes).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import html
import json
import os
import select
import signal
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPException
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.core.values import Credential
from stockade.gateway import broker
from stockade.gateway.errand import run
from stockade.record.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TRIES = (0.0, 1.0, 4.0)  # seconds before each try
SECONDS = 5  # for one try, all of it
LAST = 10.0  # seconds for what is left when the session has ended
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Untold(Exception):
    """It was not told; the text says why, and holds neither the secret nor the address's path."""

    def __init__(self, why: str, *, again: bool = False) -> None:
        super().__init__(why)
        self.again = again


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A redirect is an answer like any other that is not a yes: what was signed for one address goes to no other."""


class Webhook:
    """POSTs to `url`, signed with what the source `secret` gives. Raises Untold when there is no such secret."""

    def __init__(self, url: str, secret: str) -> None:
        self.name = urlsplit(url).hostname or ""
        self._url = url
        self._key = key_of(secret)
        local = urlsplit(url).scheme == "http"  # on this machine: no proxy is asked
        self._opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))

    def tell(self, ident: str, body: bytes) -> None:
        """One try. Raises Untold."""
        now = str(int(time.time()))
        request = urllib.request.Request(self._url, body, signed(self._key, ident, now, body), method="POST")  # noqa: S310 - policy/kinds.py lets only http and https in
        try:
            with _within(SECONDS), self._opener.open(request, timeout=SECONDS):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            raise Untold(f"it answered {error.code}", again=error.code in _AGAIN) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Untold(str(reason)[:200] or type(error).__name__, again=True) from None


def key_of(source: str) -> bytes:
    """The key that signs, from a credential's source. Raises Untold."""
    try:
        text = broker.resolve(Credential("webhook", source), os.environ)
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True) if text.startswith("whsec_") else b""
    except StockadeError as error:
        raise Untold(error.message) from None
    except binascii.Error:
        key = b""
    if not 24 <= len(key) <= 64:
        raise Untold('the secret is not "whsec_" and base64 of 24 to 64 bytes (openssl rand -base64 32)')
    return key


def signed(key: bytes, ident: str, now: str, body: bytes) -> Mapping[str, str]:
    """The headers of one message (Standard Webhooks 1.0.0, "Webhook headers"). `now` is in Unix seconds."""
    mac = hmac.digest(key, f"{ident}.{now}.".encode() + body, "sha256")
    return {
        "content-type": "application/json",
        "user-agent": "stockade",
        "webhook-id": ident,
        "webhook-timestamp": now,
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def shown(event: Mapping[str, Any]) -> list[str]:
    """What the desktop shows of a question. Its texts are markup there, and notify-send undoes escapes with backslashes: neither is left."""
    what = html.escape(str(event["what"])[:200].replace("\\", "%5C"))
    urgency = "critical" if event["risk"] == "high" else "normal"
    return [
        "notify-send",
        "--app-name=stockade",
        f"--urgency={urgency}",
        "--",
        f"stockade asks ({event['risk']} risk)",
        f"{what}\nstockade approvals answers it.",
    ]


class Courier:
    """Delivers one event after the other; what fails is on record once for each of those who should have been told."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._session, self._notify = str(setup["session"]), bool(setup["notify"])
        self._failed: set[str] = set()
        self._well = True
        self._until = 0.0  # when to be gone, once the session has ended
        self._webhook: Webhook | None = None
        if setup["webhook"]:
            self._try("webhook", lambda: self._open(str(setup["webhook"]), str(setup["secret"])))

    def _open(self, url: str, secret: str) -> None:
        self._webhook = Webhook(url, secret)

    def deliver(self, event: dict[str, Any]) -> None:
        """Tell everybody."""
        if self._notify and event["kind"] == "asked":
            self._try("desktop", lambda: self._show(event))
        if self._webhook is not None:
            webhook = self._webhook
            self._try(f"webhook {webhook.name}", lambda: self._send(webhook, event))

    def _show(self, event: Mapping[str, Any]) -> None:
        if why := run(shown(event), SECONDS):
            raise Untold(why)

    def _send(self, webhook: Webhook, event: dict[str, Any]) -> None:
        kind = event.pop("kind")
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        message = {"type": f"approval.{kind}", "timestamp": when, "data": {"session": self._session, **event}}
        body = json.dumps(message, separators=(",", ":")).encode()
        why = Untold("the session ended first")
        for pause in TRIES if self._well else TRIES[:1]:  # to one that was down a moment ago once is enough
            if self._ended(pause):
                break
            time.sleep(pause)
            try:
                webhook.tell(f"{self._session}-{event['ask']}-{kind}", body)
            except Untold as error:
                why, self._well = error, False
                if not error.again:
                    break
            else:
                self._well = True
                return
        raise why

    def _ended(self, pause: float) -> bool:
        """Whether there is no time left for another try after `pause`."""
        poll = select.poll()
        poll.register(0, 0)
        if not self._until and any(happened & select.POLLHUP for _, happened in poll.poll(0)):
            self._until = time.monotonic() + LAST
        return 0 < self._until < time.monotonic() + pause + SECONDS

    def _try(self, to: str, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Untold as error:
            if to in self._failed:
                return
            self._failed.add(to)
            try:
                ledger = Ledger(places.state("ledger"))
                try:
                    ledger.append({"kind": "approval.untold", "session": self._session, "to": to, "reason": str(error)})
                finally:
                    ledger.close()
                print(f"what is asked could not be told ({to}): {error}", flush=True)
            except (StockadeError, OSError):
                pass  # nobody is there any more who could be told even that


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """All of it takes no longer; a server that sends a byte now and then would keep urllib waiting. Raises TimeoutError."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("it took too long")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> None:
    """Read the setup and then events from standard input, until it ends."""
    lines = iter(sys.stdin.buffer)
    courier = Courier(json.loads(next(lines)))
    for line in lines:
        courier.deliver(json.loads(line))


if __name__ == "__main__":
    main()
