"""A complete agent in a page: reads a task, asks the model, runs the shell commands it is told to, reports back, until the model is done.

Needs only the standard library of any Python 3.8 or newer, since it runs inside sandboxes. Usage: scripted.py TASK
Talks the Anthropic Messages API at $ANTHROPIC_BASE_URL (default https://api.anthropic.com) with the key in $ANTHROPIC_API_KEY.
"""

# mypy: ignore-errors
# (its annotations would need a Python newer than those it must run on)

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

BASE = os.environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
BASH = {
    "name": "bash",
    "description": "Run a command.",
    "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
}
TURNS = 30


def ask(messages):
    """One turn of the model. Retries what a client would: a gateway that is still starting, an overloaded server."""
    body = json.dumps({"model": "claude-drill", "max_tokens": 1024, "messages": messages, "tools": [BASH]}).encode()
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": os.environ.get("ANTHROPIC_API_KEY", "")}
    for attempt in range(3):
        try:
            with urllib.request.urlopen(urllib.request.Request(BASE + "/v1/messages", body, headers), timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            print("model:", error.code, error.read(2000).decode(errors="replace"), file=sys.stderr)
            if error.code < 500:
                sys.exit(70)
        except OSError as error:
            print("model:", error, file=sys.stderr)
        time.sleep(0.5 * (attempt + 1))
    sys.exit(69)


def run(command):
    """Run one command as the model asked; its output is what the model reads next."""
    try:
        done = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=30
        )
        return done.stdout.decode(errors="replace")[:20000] + "\nexit status " + str(done.returncode)
    except subprocess.TimeoutExpired:
        return "timed out"


def main():
    messages = [{"role": "user", "content": sys.argv[1]}]
    for _ in range(TURNS):
        content = ask(messages)["content"]
        messages.append({"role": "assistant", "content": content})
        results = []
        for block in content:
            if block["type"] == "text":
                print(block["text"])
            elif block["type"] == "tool_use":
                print("$", block["input"]["command"])
                output = run(block["input"]["command"])
                print(output)
                results.append({"type": "tool_result", "tool_use_id": block["id"], "content": output})
        if not results:
            return
        messages.append({"role": "user", "content": results})
    sys.exit("the model did not come to an end")


main()
