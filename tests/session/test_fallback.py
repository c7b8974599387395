"""A session whose gate has no Envoy: the same policy is carried by mitmproxy, in the gate's own box, and every record says so."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest

from conftest import unavailable
from session.supervised import Place

pytestmark = pytest.mark.wall
WITHOUT_ENVOY = """
import sys
from stockade.gateway import engine
engine.find = lambda: engine.MITMPROXY
from stockade.cli import main
sys.exit(main(sys.argv[1:]))
"""
ASK = 'curl -s -m 20 --noproxy "" -x http://127.0.0.1:3128 -o /dev/null -w "%{{http_code}} " http://open.localhost:{port}/{path}'


def test_a_run_without_envoy_works_and_says_so(place: Place) -> None:
    if not find_spec("mitmproxy"):
        unavailable("mitmproxy", "it is not installed")
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        port = server.server_port
        policy = place.root / "policy.toml"
        policy.write_text(
            f'version = 1\n[[egress]]\nhost = "open.localhost"\nport = {port}\nscheme = "http"\nprivate = true\nmethods = ["GET"]\npaths = ["/public"]\n'
        )
        script = "; ".join(ASK.format(port=port, path=path) for path in ("public", "private"))
        argv = ["run", "--policy", str(policy), "--receipt", "../receipt.json", "--", "sh", "-c", script]
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_ENVOY, *argv], cwd=place.work, env=place.env, capture_output=True, text=True, timeout=90
        )
        server.shutdown()
    assert done.stdout == "200 403 " and seen == ["/public"], done
    assert "mitmproxy" in done.stderr and "slower" in done.stderr
    (event,) = [event for event in place.ledger() if event["kind"] == "gate.start"]
    assert event["engine"] == "mitmproxy"
    receipt = json.loads((place.root / "receipt.json").read_text())
    assert receipt["engine"] == "mitmproxy" and receipt["decisions"] == {"allow": 1, "deny": 1}
