"""The wiring of the gate's own process: checks decide, the gateway carries.

Run as `python -I -m stockade.gatehouse ENGINE ROOTS.pem` with descriptor 3 (gateway/serve.py).
"""

from __future__ import annotations

import sys
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from stockade.checks import bodies, canaries, credentials, fields, grants, normalise, offered, protected, raw, sigv4, tools, usage
from stockade.checks.tokens import Tokens
from stockade.core.asks import safe
from stockade.core.tools import FileRule, MountRule, ToolRule
from stockade.core.values import ALLOW, DENY, GATE, Grant, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stockade.gateway.flow import Asked

_LARGE = 512 << 10  # bytes of a body that takes longer to read than another process to make
_LARGE_WITH_CANARIES = 2 << 10  # bytes of headers and body, of which every layer is undone


class Judge:
    """The checks, as the gateway asks them (gateway/flow.py states the protocol)."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._usage = usage.Usage(tainted=bool(config["tainted"]))
        self._learning = bool(config["learning"])
        held = {f"the secret of {name}": item["secret"] for name, item in config["credentials"].items()}
        held |= {f"the session token of {name}": item["aws"]["token"] for name, item in config["credentials"].items() if "aws" in item}
        self._watch = canaries.Watch({f"the canary {name}": text for name, text in config["canaries"].items()}, held)
        self._given = tuple(Grant.from_plain(item) for item in config["grants"])
        self._grants = self._given
        self._tools = tuple(ToolRule.from_plain(item) for item in config.get("tools", ()))
        self._files = tuple(FileRule.from_plain(item) for item in config.get("files", ()))
        self._offers = tuple(MountRule.from_plain(item) for item in config.get("offers", ()))
        self._counted = tuple(filter(usage.counted, self._grants))
        key = config.get("token_key", "")
        self._tokens = Tokens(config["session"], key) if key else None
        self.revoke([], config.get("revoked_tokens", []))
        self._credentials = tuple(_in_use(name, item, self._tokens) for name, item in config["credentials"].items())
        self._signing = {one.name for one in self._credentials if one.services}

    def request(self, **asked: Any) -> tuple[Verdict, Grant | None]:
        state = self._usage.state(time.time(), self._counted)
        return grants.choose(grants.HttpRequest(**asked), self._grants, self._credentials, state)

    def weigh(self, **asked: Any) -> tuple[tuple[Grant, grants.Refusal | None], ...]:
        """What each grant that names the host says to a request, the deciding one first: for people who ask why (session/predict.py)."""
        state = self._usage.state(time.time(), self._counted)
        return grants.weigh(grants.HttpRequest(**asked), self._grants, self._credentials, state)

    def spend(self, grant: Grant, length: int) -> Callable[[], None]:
        if not usage.counted(grant):
            return lambda: None
        now = time.time()
        self._usage.spend(grant, length, now)
        return lambda: self._usage.give_back(grant, length, now)

    def reads(self, path: str, grant: Grant) -> bool:
        return bool(grant.body) or self._watch.thorough or fields.inspected(path)

    def searches(self, grant: Grant, headers: tuple[tuple[str, str], ...], start: bytes) -> bool:
        if grant.credential in self._signing:
            return sigv4.needs_body(headers)
        return "*" not in grant.credential_fields and bool(bodies.kinds(headers, start))

    def carried(self, parts: Iterable[bytes]) -> str:
        return self._watch.found(parts)

    def revoke(self, positions: list[int], tokens: list[str]) -> None:
        gone = {self._given[position] for position in positions}
        if self._tokens is not None:
            self._tokens.revoke(tokens)
        self._grants = tuple(grant for grant in self._grants if grant not in gone or grant.effect == DENY)

    def taint(self) -> None:
        self._usage.tainted = True

    def tainted(self) -> bool:
        return self._usage.tainted

    def secretive(self) -> bool:
        return any(grant.secret for grant in self._given)

    def connect(self, host: str, port: int) -> Verdict:
        verdict = grants.decide_connect(host, port, self._grants)
        # To learn what would be asked of a host, its tunnel is opened to us: every request in it is still decided, and refused.
        return Verdict(ALLOW, "learning") if self._learning and verdict.rule == "host-not-granted" else verdict

    def raw(self, host: str, port: int) -> tuple[Verdict, Grant | None]:
        return raw.decide_raw(host, port, self._grants, self._usage.state(time.time(), self._counted))

    def more(self, grant: Grant, sent: int, size: int) -> str:
        if sent > grant.max_upload:
            return "upload-too-large"
        return "" if self._usage.upload(grant, size) else "upload-budget-spent"

    def name(self, host: str) -> bool:
        return host != GATE and (grants.granted_name(host, self._grants) or (self._learning and normalise.is_name(host)))

    def tool(self, body: bytes) -> tuple[Verdict, dict[str, Any]]:
        call = tools.read(body)
        verdict, rule = tools.decide(call, self._tools)
        place = self._tools.index(rule) if rule is not None else -1
        said = {"event": call.event, "tool": call.name, "digest": call.digest, "length": len(call.shown), "shown": tools.beginning(call)}
        return verdict, {**said, "place": place}

    def file(self, query: str, body: bytes) -> tuple[Verdict, dict[str, Any]]:
        change = protected.read(query, body)
        verdict, rule = protected.decide(change.path, self._files)
        place = self._files.index(rule) if rule is not None else -1
        content = b64encode(change.content).decode()
        return verdict, {"path": change.path, "content": content, "digest": change.digest, "length": len(body), "place": place}

    def mount(self, body: bytes) -> tuple[Verdict, dict[str, Any]]:
        path = offered.read(body)
        verdict, rule = offered.decide(path, self._offers)
        return verdict, {"path": safe(path)[:1000], "place": self._offers.index(rule) if rule is not None else -1}

    def dear(self, asked: Asked) -> bool:
        if not asked.body and not self._watch.thorough:
            return False
        packed = any(name == "content-encoding" and value.strip().lower() not in ("", "identity") for name, value in asked.headers)
        if packed or len(asked.body) > _LARGE:
            return True
        said = len(asked.body) + len(asked.target) + sum(len(value) for _, value in asked.headers)
        return self._watch.thorough and said > _LARGE_WITH_CANARIES

    def spent(self, grant: Grant, length: int) -> tuple[str, str]:
        return usage.spent(grant, length, self._usage.state(time.time(), self._counted))

    def place(self, grant: Grant) -> int:
        return self._given.index(grant)

    def grant(self, place: int) -> Grant:
        return self._given[place]

    def pieces(self) -> dict[str, int]:
        return self._watch.pieces

    def seen(self, pieces: dict[str, int]) -> None:
        self._watch.seen(pieces)

    def authority(self, text: str, default_port: int) -> tuple[str, int]:
        return normalise.authority(text, default_port)

    def body(self, host: str, path: str, body: bytes) -> str | None:
        return fields.forbidden_fields(host, path, body)


def _in_use(name: str, item: dict[str, Any], tokens: Tokens | None) -> credentials.CredentialInUse:
    aws = item.get("aws", {"services": (), "regions": ()})
    return credentials.CredentialInUse(
        name, item["header"], item["template"], item["placeholder"], bool(item["user"]), item.get("query", ""),
        tuple(aws["services"]), tuple(aws["regions"]), tokens,
    )  # fmt: skip


if __name__ == "__main__":
    from stockade.gateway.serve import serve

    serve(Judge, sys.argv[1], sys.argv[2])
