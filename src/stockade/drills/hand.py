"""The yard's own init: raises the network, plays the internet, and runs what the drill outside asks for.

Started by `yard.Yard` as root of fresh user, network, mount, PID, IPC and UTS namespaces; speaks JSON lines on stdin and stdout. Dies with its parent.
Requests: {"op": "run", "argv", "env", "timeout"} | {"op": "take"}.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any, BinaryIO

from stockade.drills.internet import Internet, raise_network

KEEP = 8 << 20  # bytes of output kept from one command; the rest is counted and dropped


def run(argv: list[str], env: dict[str, str], timeout: float) -> dict[str, Any]:
    """Run one command to its end or its deadline, and say how it went."""
    process = subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    outputs: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    lost = 0

    def drain(pipe: BinaryIO, kept: bytearray) -> None:
        nonlocal lost
        while part := os.read(pipe.fileno(), 1 << 16):
            room = KEEP - len(kept)
            kept += part[:room]
            lost += max(0, len(part) - room)

    assert process.stdout and process.stderr
    readers = [
        threading.Thread(target=drain, args=(process.stdout, outputs["stdout"]), daemon=True),
        threading.Thread(target=drain, args=(process.stderr, outputs["stderr"]), daemon=True),
    ]
    for reader in readers:
        reader.start()
    timed_out = False
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for reader in readers:
        reader.join(2)
    text = {name: base64.b64encode(bytes(data)).decode() for name, data in outputs.items()}
    return {"code": process.returncode, "timed_out": timed_out, "lost": lost, **text}


def main() -> None:
    certificate, path_socket = sys.argv[1], sys.argv[2]
    raise_network()
    internet = Internet(certificate)
    internet.start(path_socket)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "run":
            answer = run(request["argv"], request["env"], request["timeout"])
        else:
            answer = {"records": internet.records.take()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
