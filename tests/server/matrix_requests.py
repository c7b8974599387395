"""What a program inside asks for, an entry a type: how it is written, what of it can be seen, and what it does outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from server.matrix_world import Outside
from stockade.core.tools import FileRule, MountRule
from stockade.core.values import Grant, Origin

type Ports = dict[str, int]

CURL = "curl -sS -m 120 --noproxy '' -x http://127.0.0.1:3128 -w '\\n%{http_code}\\n'"


@dataclass(frozen=True)
class Request:
    """One type. `script` is Bash for one request that carries a token; `yes` and `no` are what it prints then, and `shown` what its question says.

    `effects` is what has happened by a token, `sent` what has to have happened by one request, to the byte. `rule` is named by a refusal.

    `receipt` is what is on record last before its effect. `stays`: what was done is there until the session ends, so that the same again is refused, and nobody asked.
    `tokens`: it can be asked for with tokens only that the world has made for it.
    """

    script: Callable[[Ports, str], str]
    shown: Callable[[Ports, str], str]
    sent: Callable[[str], list[bytes]]
    effects: Callable[[Outside, str], list[bytes]]
    grants: Callable[[Ports], tuple[Grant, ...]]
    yes: str = "200\ndone\n"
    no: tuple[str, ...] = ("403\ndone\n",)
    rule: str = "approval-needed"
    receipt: str = "answer"
    stays: bool = False
    tokens: bool = False


def _http(kind: str, scheme: str, host: str, *, star: bool = False) -> Request:
    def script(ports: Ports, token: str) -> str:
        return f"{CURL} -d body-{token} {scheme}://{host.format(token=token)}:{ports[kind]}/{token}"

    def grants(ports: Ports) -> tuple[Grant, ...]:
        return (Grant("*" if star else host, ports[kind], scheme, ("POST",), effect="ask", private=True),)  # type: ignore[arg-type]

    return Request(
        script,
        lambda ports, token: f"POST {scheme}://{host.format(token=token)}:{ports[kind]}/{token}",
        lambda token: [f"POST /{token} body-{token}".encode()],
        lambda outside, token: outside.with_token(kind, token),
        grants,
    )


def _websocket(ports: Ports, token: str) -> str:
    place = f"ws.localhost:{ports['websocket']}"
    head = f"GET http://{place}/{token} HTTP/1.1\\r\\nHost: {place}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    head += "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n"
    return (
        f"exec 3<>/dev/tcp/127.0.0.1/3128; printf '{head}' >&3; read -r _ status _ <&3; echo $status\n"
        f"""if [ "$status" = 101 ]; then while read -r line <&3 && [ "${{line%?}}" ]; do :; done; echo body-{token} >&3; read -r line <&3; echo "$line"; fi"""
    )


def _grpc(ports: Ports, token: str) -> str:
    message = f"body-{token}"
    url = f"https://grpc.localhost:{ports['grpc']}/demo.Talks/{token}"
    body = f"\\000\\000\\000\\000\\{len(message):03o}{message}"
    head = "-H 'te: trailers' -H 'content-type: application/grpc' -o /dev/null -D -"
    return f"printf '{body}' | curl -sS -m 120 --noproxy '' -x http://127.0.0.1:3128 --http2 -X POST -T - {head} {url} | tr -d '\\r' | grep grpc-status"


def _tcp(ports: Ports, token: str) -> str:
    return f'exec 3<>/dev/tcp/{token}.raw.localhost/{ports["tcp"]}; echo body-{token} >&3; read -r line <&3; echo "${{line:-closed}}"'


def _tool(_: Ports, token: str) -> str:
    call = json.dumps({"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {"command": f"deploy {token}"}})
    return f"""said=$(printf '%s' '{call}' | sh -c "$HOOK"); if [ $? = 0 ] && ! [[ $said == *deny* ]]; then echo {token} >> called; echo may; else echo may not; fi"""


def _file(_: Ports, token: str) -> str:
    """One line more in a file that need not be there yet. It tries to write there itself, too, before and after."""
    place, mine, tries = f"held/{token}", f"new-{token}-$$", f"(echo more >> held/{token}) 2> /dev/null"
    new = f"(cat {place} 2> /dev/null; echo body-{token}) > {mine}"
    return f"{tries}; {new}; {CURL} -o /dev/null --data-binary @{mine} 'http://stockade.internal/file?path={place}'; rm {mine}; {tries}"


def _mount(_: Ports, token: str) -> str:
    """A folder. It tries to write there, too."""
    tries = f"(echo more >> /srv/{token}/file; touch /srv/{token}/more) 2> /dev/null"
    return f"""{CURL} -o /dev/null -d '{{"path": "/srv/{token}"}}' http://stockade.internal/mount; {tries}"""


FILE = FileRule("held/*", "ask", Origin("p.toml", 7, "file[0]"))


def offer(source: str, token: str) -> MountRule:
    """What lets a folder be asked for with this token."""
    return MountRule(source, f"/srv/{token}", f"/srv/{token}", Origin("p.toml", 11, "mount[0]"))


# A type that is new is an entry here and a line in matrix.py.
REQUESTS = {
    "https": _http("https", "https", "api.localhost"),
    "http": _http("http", "http", "open.localhost"),
    "star": _http("star", "http", "{token}.localhost", star=True),
    "websocket": Request(
        _websocket,
        lambda ports, token: f"GET http://ws.localhost:{ports['websocket']}/{token}",
        lambda token: [f"/{token}".encode(), f"/{token} body-{token}\n".encode()],
        lambda outside, token: outside.with_token("websocket", token),
        lambda ports: (Grant("ws.localhost", ports["websocket"], "http", ("GET",), effect="ask", private=True, websocket=True),),
        "101\nheard\ndone\n",
    ),
    "grpc": Request(
        _grpc,
        lambda ports, token: f"POST https://grpc.localhost:{ports['grpc']}/demo.Talks/{token}",
        lambda token: [f"/demo.Talks/{token} body-{token}".encode()],
        lambda outside, token: outside.with_token("grpc", token),
        lambda ports: (
            Grant(
                "grpc.localhost",
                ports["grpc"],
                methods=("POST",),
                paths=("/demo.Talks/*",),
                query="none",
                effect="ask",
                private=True,
                grpc=True,
            ),
        ),
        "grpc-status: 0\ndone\n",
        (
            "grpc-status: 7\ndone\n",
            "curl: (92) Stream error in the HTTP/2 framing layer\ndone\n",
        ),  # as curl reads what comes before it has sent all
    ),
    "tcp": Request(
        _tcp,
        lambda ports, token: f"tcp {token}.raw.localhost:{ports['tcp']}",
        lambda token: [f"body-{token}\n".encode()],
        lambda outside, token: outside.with_token("tcp", token),
        lambda ports: (Grant("*.raw.localhost", ports["tcp"], "tcp", (), (), effect="ask", private=True),),
        "heard\ndone\n",
        ("closed\ndone\n",),
    ),
    "tool": Request(
        _tool,
        lambda ports, token: f'the tool Bash with {{"command":"deploy {token}"}}',
        lambda token: [token.encode()],
        lambda outside, token: outside.calls(token),
        lambda ports: (),
        "may\ndone\n",
        ("may not\ndone\n",),
        "tool p.toml:3 (tool[0])",
    ),
    "file": Request(
        _file,
        lambda ports, token: f"change the file held/{token}: ",
        lambda token: [f"{token} body-{token}\n".encode()],
        lambda outside, token: outside.held(token),
        lambda ports: (),
        "202\ndone\n",
        rule="file p.toml:7 (file[0])",
        receipt="file.write",
    ),
    "mount": Request(
        _mount,
        lambda ports, token: f"at /srv/{token}, read-only, ",
        lambda token: [f"{token} body-{token}\n".encode()],
        lambda outside, token: outside.inside(token),
        lambda ports: (),
        "202\ndone\n",
        rule="mount p.toml:11 (mount[0])",
        receipt="mount.add",
        stays=True,
        tokens=True,
    ),
}
