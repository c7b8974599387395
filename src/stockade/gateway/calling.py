"""One request of our own that leaves through a gate, as any program's in a sandbox does: over the door's proxy port, with the gate's certificate trusted and no other."""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PROXY = ("127.0.0.1", 3128)  # where the door of a box answers (walls/door.py)


def post(
    scheme: str, host: str, port: int, path: str, body: bytes, headers: Mapping[str, str], *, authority: str, timeout: float, most: int
) -> tuple[int, bytes]:
    """The status, and at most `most` + 1 bytes of the answer. `authority` is the gate's certificate (PEM), `timeout` seconds of silence.

    Follows no redirect. Raises OSError (ssl.SSLError among them) and http.client.HTTPException.
    """
    standard = port == (443 if scheme == "https" else 80)
    where = host if standard else f"{host}:{port}"
    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(*PROXY, timeout=timeout, context=ssl.create_default_context(cadata=authority))
        connection.set_tunnel(host, port)
        target = path
    else:
        connection = http.client.HTTPConnection(*PROXY, timeout=timeout)
        target = f"http://{where}{path}"
    try:
        connection.request("POST", target, body, {"host": where, "accept": "application/json", "accept-encoding": "identity", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read(most + 1)
    finally:
        connection.close()
