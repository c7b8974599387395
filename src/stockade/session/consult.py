"""Asks a model about one question, in a box that reaches this one URL: `python -I -m stockade.session.consult`, the job on standard input, an opinion on standard output.

What the model answers is read here and nowhere else. INVARIANT: there is no secret in here: the gate adds the credential, and of what is asked it is told what a
person would be shown.
"""

from __future__ import annotations

import http.client
import json
import sys

from stockade.checks import reviewing
from stockade.gateway.calling import post


def consult(job: dict[str, object]) -> reviewing.Opinion:
    """Ask. Never raises: whatever goes wrong is an opinion that leaves it to a person, with the reason's code."""
    api = str(job["api"])
    try:
        status, answer = post(
            str(job["scheme"]),
            str(job["host"]),
            int(str(job["port"])),
            str(job["path"]),
            str(job["body"]).encode(),
            reviewing.headers(api),
            authority=str(job["authority"]),
            timeout=float(str(job["timeout"])),
            most=reviewing.LONGEST,
        )
        if status != 200:
            return reviewing.Opinion("person", "", f"status-{status}")
        return reviewing.said(api, answer)
    except ValueError:
        return reviewing.Opinion("person", "", "unreadable")
    except (OSError, http.client.HTTPException) as error:
        return reviewing.Opinion("person", "", "slow" if isinstance(error, TimeoutError) else "unreachable")


if __name__ == "__main__":
    sys.stdout.buffer.write(reviewing.told(consult(json.load(sys.stdin.buffer))))
