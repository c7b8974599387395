"""The wiring of the gate's own process: checks decide, the gateway carries.

Run as `python -I -m stockade.gatehouse` with descriptors 3 and up (gateway/serve.py).
"""

from __future__ import annotations

from typing import Any, ClassVar

from stockade.checks import fields, grants, normalise
from stockade.core.values import Grant, Origin, Verdict
from stockade.gateway.serve import serve


class Judge:
    """The checks, as the gateway asks them (gateway/flow.py states the protocol)."""

    inspected_path: ClassVar[str] = fields.INSPECTED_PATH

    def __init__(self, config: dict[str, Any]) -> None:
        self._grants = tuple(_grant(item) for item in config["grants"])
        self._credentials = tuple(
            grants.CredentialInUse(name, item["header"], item["template"], item["placeholder"])
            for name, item in config["credentials"].items()
        )

    def request(self, **asked: Any) -> tuple[Verdict, Grant | None]:
        return grants.choose(grants.HttpRequest(**asked), self._grants, self._credentials)

    def connect(self, host: str, port: int) -> Verdict:
        return grants.decide_connect(host, port, self._grants)

    def name(self, host: str) -> bool:
        return grants.granted_name(host, self._grants)

    def authority(self, text: str, default_port: int) -> tuple[str, int]:
        return normalise.authority(text, default_port)

    def inspected(self, path: str) -> bool:
        return fields.inspected(path)

    def body(self, host: str, path: str, body: bytes) -> str | None:
        return fields.forbidden_fields(host, path, body)


def _grant(item: dict[str, Any]) -> Grant:
    lists = {key: tuple(value) for key, value in item.items() if isinstance(value, list)}
    return Grant(**{**item, **lists, "origin": Origin(**item["origin"])})


if __name__ == "__main__":
    serve(Judge)
