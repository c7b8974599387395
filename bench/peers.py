"""The gate against a direct connection, srt's intercepting proxy and mitmdump: the same client and the same server for all, taking turns, in one run.

    python bench/peers.py [--rounds N] [--seconds S] [--json] [--profile FILE]

The gate is measured from inside `stockade run`: door, doorman, engine, the full decision, a credential, and a ledger that has each request before it moves.
srt's proxy and mitmdump stand alone, without a sandbox before them and without a record, which favours them; they check host, method and path, and exchange
a header. The client (bench/load.py) and the server (Envoy with ready answers) share the machine with what they measure: ratios are the result, not times.
Peers come from `scripts/peers`; one that is absent is left out. `--profile` samples the brain with py-spy, if that is there, while requests come.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT, HERE = Path(__file__).parents[1], Path(__file__).parent
PEERS = Path(os.environ.get("STOCKADE_PEERS") or ROOT / ".tools/peers")
PYTHON = (
    "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
)  # one that is there inside as well, and the same for all
HOST, KEY, STAND_IN = "api.localhost", "bench-key-9d1c77aa", "bench-stand-in-0000"
SIZE = 32 << 20  # bytes of a large download or upload
CONNECTIONS, THREADS = 16, 8
PROXY, DOOR = "the gate, by its proxy", "the gate, transparent"


class Route:
    """A way to the server, and the client on it, which is started once and told what to measure."""

    def __init__(self, name: str, client: subprocess.Popen[str], way: dict[str, Any], between: subprocess.Popen[str] | None = None) -> None:
        self.name, self.client, self.way, self.between = name, client, way, between

    def measure(self, kind: str, arguments: list[Any]) -> float:
        assert self.client.stdin and self.client.stdout
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"kind": kind, "way": self.way, "arguments": arguments}), file=self.client.stdin, flush=True)
            line = self.client.stdout.readline()
        answer = json.loads(line or '{"error": "the client ended"}')
        if "error" in answer:
            raise SystemExit(f"{self.name}: {kind}: {answer['error']}")
        return float(answer["value"])

    def used(self) -> dict[str, float]:
        """Seconds of processor time that each process between client and server has used so far, by what it is."""
        found: dict[str, float] = {}
        for pid in [self.between.pid, *descendants(self.between.pid)] if self.between else []:
            with contextlib.suppress(OSError):  # it has just ended
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if argv[1:3] == [b"-I", b"load.py"]:  # the client, inside
                    continue
                tasks = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
                found[_part(pid, argv)] = found.get(_part(pid, argv), 0) + sum(map(int, tasks)) / 1e9
        return found


def _part(pid: int, argv: list[bytes]) -> str:
    if b"stockade.gatehouse" in argv and b"bwrap" not in argv[0]:
        return "brain" if _children(pid) else "doorman"
    return "engine" if argv[0].endswith(b"/envoy") else "supervisor and the rest"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def standard_port() -> list[int]:
    """443, if we may listen there: the transparent way leads to no other port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 443))
        except OSError:
            return []
    return [443]


@contextlib.contextmanager
def server(directory: Path, ports: list[int]) -> Iterator[Path]:
    """Envoy with ready answers behind TLS; gives the PEM file of its authority."""
    from stockade.gateway import engine
    from stockade.gateway.certs import Authority
    from stockade.gateway.envoy import typed

    authority = Authority("bench")
    ca, big = directory / "upstream-ca.pem", directory / "big"
    ca.write_text(authority.pem)
    big.write_bytes(bytes(SIZE))
    certificate = {"certificate_chain": {"inline_string": authority.leaf(HOST)}, "private_key": {"inline_string": authority.leaf_key}}
    mine = {"headers": [{"name": "x-api-key", "string_match": {"exact": KEY}}]}  # whoever does not exchange the key gets nothing
    small = {"direct_response": {"status": 200, "body": {"inline_string": "a small answer\n"}}}
    routes = [
        {"match": {"path": "/v1/small", **mine}, **small},
        {"match": {"path": "/v1/put", **mine}, **small},
        {"match": {"path": "/v1/big", **mine}, "direct_response": {"status": 200, "body": {"filename": str(big)}}},
    ]
    filters = [
        typed(
            "envoy.filters.http.buffer", "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=2 * SIZE
        ),  # answer when it is whole
        typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="server",
        http_filters=filters,
        route_config={
            "max_direct_response_body_size_bytes": SIZE,
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
        },
    )
    tls = typed("tls", "extensions.transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context={"tls_certificates": [certificate]})
    listeners = [
        {
            "name": f"server-{port}",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": [manager], "transport_socket": tls}],
        }
        for port in ports
    ]
    config = directory / "server.json"
    config.write_text(json.dumps({"static_resources": {"listeners": listeners}}))
    argv = [engine.find(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--use-dynamic-base-id", "-l", "error"]
    with started(argv, stdin=subprocess.DEVNULL):
        for port in ports:
            reachable(port, "the server")
        yield ca


@contextlib.contextmanager
def started(argv: list[str], **named: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that is ended with the block: by the end of its standard input, where that is a pipe."""
    process = subprocess.Popen(argv, text=True, **named)
    try:
        yield process
    finally:
        if process.stdin:
            with contextlib.suppress(BrokenPipeError):  # it has ended before
                process.stdin.close()
        else:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def reachable(port: int, what: str) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit(f"{what} did not start to listen")


def policy(directory: Path, ports: list[int]) -> Path:
    """What the gate is given: for each port the same as the peers check, with the credential."""
    grants = "".join(
        f'[[egress]]\nhost = "{HOST}"\nport = {port}\nmethods = ["GET", "PUT"]\npaths = ["/v1/**"]\ncredential = "own"\n'
        'max_upload = "64 MiB"\nprivate = true\n\n'
        for port in ports
    )
    path = directory / "stockade.toml"
    path.write_text(f'version = 1\n\n{grants}[credential.own]\nsource = "env:BENCH_KEY"\nheader = "x-api-key"\n')
    return path


def stockade(directory: Path, ca: Path, rules: Path) -> tuple[list[str], dict[str, str], Path]:
    """The beginning of `stockade run`, its environment (with a state of its own), and the workspace."""
    work, home = directory / "work", directory / "home"
    work.mkdir()
    home.mkdir()
    shutil.copy(HERE / "load.py", work)
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(home), "SSL_CERT_FILE": str(ca), "BENCH_KEY": KEY}
    env |= {"XDG_CACHE_HOME": f"{directory}/cache", "XDG_STATE_HOME": f"{directory}/state", "XDG_CONFIG_HOME": f"{home}/.config"}
    return [str(ROOT / ".venv/bin/stockade"), "run", "--no-tty", "--policy", str(rules), "--workspace", str(work), "--"], env, work


def way(port: int, address: list[Any], tunnel: bool, ca: str, key: str) -> dict[str, Any]:
    return {"host": HOST, "port": port, "address": address, "tunnel": tunnel, "ca": ca, "key": key}


@contextlib.contextmanager
def routes(directory: Path, ca: Path, ports: list[int], run: list[str], env: dict[str, str], work: Path) -> Iterator[list[Route]]:
    """The direct way, the gate's, and those of the peers that are installed."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    port = ports[0]
    outside = [PYTHON, "-I", str(HERE / "load.py")]
    with contextlib.ExitStack() as stack:
        found = [Route("direct", stack.enter_context(started(outside, **pipes)), way(port, ["127.0.0.1", port], False, str(ca), KEY))]
        inside = stack.enter_context(started([*run, PYTHON, "-I", "load.py"], env=env, cwd=work, **pipes))
        found.append(Route(PROXY, inside, way(port, ["127.0.0.1", 3128], True, "$SSL_CERT_FILE", "$BENCH_KEY"), inside))
        if 443 in ports:
            found.append(Route(DOOR, inside, way(443, [HOST, 443], False, "$SSL_CERT_FILE", "$BENCH_KEY"), inside))
        package = PEERS / "node_modules/@anthropic-ai/sandbox-runtime"
        if (node := shutil.which("node")) and package.exists():
            argv = [node, str(HERE / "srt_proxy.mjs"), str(package), HOST, STAND_IN, KEY, str(ca)]
            proxy = stack.enter_context(started(argv, **pipes))
            assert proxy.stdout
            number, _, theirs = proxy.stdout.readline().strip().partition(" ")
            if not number:
                raise SystemExit("srt's proxy did not start")
            client = stack.enter_context(started(outside, **pipes))
            found.append(Route("srt", client, way(port, ["127.0.0.1", int(number)], True, theirs, STAND_IN), proxy))
        if (mitmdump := PEERS / "mitm/bin/mitmdump").exists():
            listening, own = free_port(), directory / "mitm"
            argv = [str(mitmdump), "-q", "--listen-host", "127.0.0.1", "-p", str(listening), "-s", str(HERE / "mitm_addon.py")]
            for option in (f"confdir={own}", f"ssl_verify_upstream_trusted_ca={ca}", "connection_strategy=lazy", "upstream_cert=false"):
                argv += ["--set", option]
            named = {"BENCH_HOST": HOST, "BENCH_KEY": KEY, "BENCH_PLACEHOLDER": STAND_IN}
            proxy = stack.enter_context(started(argv, env={**os.environ, **named}, stdin=subprocess.DEVNULL))
            reachable(listening, "mitmdump")
            client = stack.enter_context(started(outside, **pipes))
            theirs = str(own / "mitmproxy-ca-cert.pem")
            found.append(Route("mitmdump", client, way(port, ["127.0.0.1", listening], True, theirs, STAND_IN), proxy))
        yield found


def cold(run: list[str], env: dict[str, str], work: Path, port: int) -> float:
    """Milliseconds from the start of `stockade run -- curl` until curl has its answer, with a gate that must be started for it."""
    asked = ["curl", "-sS", "-m", "20", "--noproxy", "", "-x", "http://127.0.0.1:3128", "-o", "/dev/null", "-w", "%{http_code}\n"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*run, *asked, f"https://{HOST}:{port}/v1/small"], env=env, cwd=work, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        said = process.stdout.readline().strip()
        took = time.perf_counter() - began
    if said != "200":
        raise SystemExit(f"curl in a new sandbox: status {said}")
    return took * 1000


KINDS: dict[str, tuple[str, str]] = {  # kind: what it says, and how its numbers are written
    "rate": (f"small requests/s, {CONNECTIONS} kept-alive connections", ".0f"),
    "latency": ("small request on an open connection, ms", ".3f"),
    "fresh": ("new TLS connections/s, with a request each", ".0f"),
    "download": ("download, MB/s", ".0f"),
    "upload": ("upload, MB/s", ".0f"),
}
COSTS = {"rate": "a small request", "fresh": "a new connection and its request", "download": "a megabyte down", "upload": "a megabyte up"}


def bars(medians: dict[str, dict[str, float]], first: float) -> list[tuple[str, float, str, float, bool]]:
    """(what, value, how it is compared, bar, kept) for each bar whose contenders were there; the gate's ways each."""
    found = []

    def bar(what: str, value: float, sign: str, limit: float) -> None:
        found.append((what, round(value, 3), sign, limit, value >= limit if sign == ">=" else value <= limit))

    for gate in (name for name in (PROXY, DOOR) if name in medians["rate"]):
        for peer, kind, limit in (
            ("mitmdump", "rate", 6.0),
            ("srt", "rate", 1.3),
            ("srt", "fresh", 5.0),
            ("direct", "download", 0.7),
            ("direct", "upload", 0.7),
        ):
            if peer in medians[kind]:
                bar(f"{KINDS[kind][0].partition(',')[0]}: {gate} / {peer}", medians[kind][gate] / medians[kind][peer], ">=", limit)
        bar(f"added median latency, ms: {gate}", medians["latency"][gate] - medians["latency"]["direct"], "<=", 1.0)
    bar("first request of a cold gate, s after the command starts", first / 1000, "<=", 0.4)
    return found


def profile(found: list[Route], seconds: float, file: str) -> None:
    """Sample the brain while requests come by the proxy."""
    spy = next((str(path) for path in [PEERS / "mitm/bin/py-spy"] if path.exists()), shutil.which("py-spy"))
    if spy is None:
        raise SystemExit("--profile needs py-spy: scripts/peers installs it")
    route = next(route for route in found if route.name == PROXY)
    brain = next(pid for pid in descendants(route.client.pid) if _is_brain(pid))
    argv = [spy, "record", "--pid", str(brain), "--duration", str(max(1, round(seconds))), "--rate", "500", "--format", "raw", "-o", file]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as sampler:
        while sampler.poll() is None:
            route.measure("rate", [1.0, CONNECTIONS])


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_brain(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _part(pid, Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")) == "brain"
    return False


def descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from descendants(child)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0, help="of each measurement (the large bodies take what they take)")
    options.add_argument("--json", action="store_true")
    options.add_argument("--profile", metavar="FILE", help="instead of comparing, sample the brain for ten seconds (py-spy's raw format)")
    given = options.parse_args()
    rounds = max(given.rounds, 1)
    arguments: dict[str, list[Any]] = {
        "rate": [given.seconds, CONNECTIONS],
        "latency": [given.seconds / 2],
        "fresh": [given.seconds, THREADS],
        "download": [SIZE],
        "upload": [SIZE],
    }
    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as scratch, contextlib.ExitStack() as stack:
        directory = Path(scratch)
        ports = [free_port(), *standard_port()]
        ca = stack.enter_context(server(directory, ports))
        run, env, work = stockade(directory, ca, policy(directory, ports))
        found = stack.enter_context(routes(directory, ca, ports, run, env, work))
        for route in found:  # warm: leaves are minted, pools are filled
            route.measure("rate", [0.3, CONNECTIONS])
        if given.profile:
            profile(found, 10, given.profile)
            return 0
        values: dict[str, dict[str, list[float]]] = {kind: {route.name: [] for route in found} for kind in KINDS}
        firsts: list[float] = []
        costs: dict[str, dict[str, dict[str, list[float]]]] = {kind: {} for kind in COSTS}  # by route and part
        for _ in range(rounds):
            for kind in KINDS:
                for route in random.sample(found, len(found)):
                    before = route.used()
                    value = route.measure(kind, arguments[kind])
                    values[kind][route.name].append(value)
                    if kind in COSTS:
                        count = value * given.seconds if kind in ("rate", "fresh") else SIZE / 1e6
                        for part, used in route.used().items():
                            taken = (used - before.get(part, 0)) / count * 1000
                            costs[kind].setdefault(route.name, {}).setdefault(part, []).append(taken)
            firsts.append(cold(run, env, work, ports[0]))
        medians = {kind: {name: statistics.median(measured) for name, measured in row.items()} for kind, row in values.items()}
        first = statistics.median(firsts)
        cost = {
            kind: {name: {part: statistics.median(each) for part, each in parts.items()} for name, parts in rows.items()}
            for kind, rows in costs.items()
        }
    held = bars(medians, first)
    if given.json:
        shown = [dict(zip(("what", "value", "comparison", "bar", "kept"), bar, strict=True)) for bar in held]
        print(json.dumps({"rounds": rounds, "medians": medians, "cpu_ms": cost, "first_request_ms": first, "bars": shown}, indent=2))
    else:
        names = list(medians["rate"])
        width = max(len(text) for text, _ in KINDS.values())
        print(" " * width, *(f"{name:>22}" for name in names))
        for kind, (text, form) in KINDS.items():
            print(f"{text:{width}}", *(f"{medians[kind][name]:>22{form}}" for name in names))
        for kind, what in COSTS.items():
            print(f"\nprocessor time of {what}, ms:")
            for name, parts in cost[kind].items():
                each = ", ".join(f"{part} {value:.3f}" for part, value in parts.items())
                print(f"  {name:22} {sum(parts.values()):.3f}" + (f" ({each})" if len(parts) > 1 else ""))
        print(f"\nmedians of {rounds} rounds; the bars:")
        for what, value, sign, limit, kept in held:
            print(f"  {'kept  ' if kept else 'MISSED'}  {value:8.2f} {sign} {limit:<4} {what}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
