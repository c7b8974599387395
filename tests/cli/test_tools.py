"""`stockade tools`: an agent loop outside, whose tools work inside (M23). The server is a process of its own, as a client starts it; attacks run natively, through the tools, and as a twin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.clients import PATIENCE, Piped, Remote, fresh, processes
from session.supervised import Place, Terminal, offspring
from stockade.server import tools
from stockade.walls import bubblewrap, gvisor
from stockade.walls.vm import wall as vm
from walls.boxes import require, until

pytestmark = pytest.mark.wall


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Piped]:
    """One server for every test that leaves it as it was."""
    client = Piped(fresh(tmp_path_factory.mktemp("tools")))
    yield client
    assert client.close() == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return fresh(tmp_path)


def natively(client: Piped, script: str, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The very command that a tool runs, without a wall."""
    return subprocess.run(["/bin/sh", "-c", script, "sh", *words], cwd=client.place.work, input=stdin, capture_output=True, timeout=60)


# ---- the protocol -------------------------------------------------------------------------------------------------------------------


def test_it_says_what_it_is_and_what_each_tool_takes(shared: Piped) -> None:
    hello = shared.hello["result"]
    assert hello["protocolVersion"] == "2025-06-18" and hello["serverInfo"]["name"] == "stockade" and hello["capabilities"] == {"tools": {}}
    for asked, given in (("2024-11-05", "2024-11-05"), ("2031-01-01", "2025-06-18"), (None, "2025-06-18")):
        assert shared.ask("initialize", protocolVersion=asked)["result"]["protocolVersion"] == given
    listed = {tool["name"]: tool for tool in shared.ask("tools/list")["result"]["tools"]}
    assert [*listed] == ["bash", "read", "write", "edit", "list", "search", "restart"]
    assert {name for name, tool in listed.items() if tool["annotations"]["readOnlyHint"]} == {"read", "list", "search"}
    assert {name for name, tool in listed.items() if tool["annotations"]["destructiveHint"]} == {"bash", "write", "edit", "restart"}
    assert listed["edit"]["inputSchema"]["required"] == ["path", "old", "new"]
    assert all(tool["inputSchema"]["additionalProperties"] is False for tool in listed.values())


BAD = {
    "no JSON": (b"{", -32700, None),
    "no UTF-8": (b'"\xff"', -32700, None),
    "nested without end": (b"[" * 100_000, -32700, None),
    "a batch": (b"[]", -32600, None),
    "another protocol": (b'{"id":"x","method":"ping"}', -32600, "x"),
    "an id that is none": (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
    "a method that is none": (b'{"jsonrpc":"2.0","id":"x","method":1}', -32600, "x"),
    "a method that there is not": (b'{"jsonrpc":"2.0","id":"x","method":"shell/run"}', -32601, "x"),
    "params that are none": (b'{"jsonrpc":"2.0","id":"x","method":"ping","params":[1]}', -32602, "x"),
    "a tool that there is not": (b'{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"host_bash"}}', -32602, "x"),
    "arguments that are none": (b'{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"bash","arguments":"ls"}}', -32602, "x"),
    "an argument that is missing": (b'{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"bash"}}', -32602, "x"),
    "more than a message may be": (b'"' + b"x" * (9 << 20) + b'"', -32600, None),
}


@pytest.mark.parametrize("why", BAD)
def test_bad_input_is_an_error_and_the_server_goes_on(shared: Piped, why: str) -> None:
    data, code, ident = BAD[why]
    shared.write(data + b"\n")
    assert shared.answer(ident)["error"]["code"] == code
    assert shared.ask("ping")["result"] == {}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bash", {"command": ["ls"]}),
        ("bash", {"command": "a\0b"}),
        ("bash", {"command": "\ud800"}),
        ("bash", {"command": "x" * 100_001}),
        ("bash", {"command": "ls", "timeout": True}),
        ("bash", {"command": "ls", "timeout": 0}),
        ("bash", {"command": "ls", "host": True}),
        ("read", {"path": "a", "offset": "1"}),
        ("edit", {"path": "a", "old": "", "new": "b"}),
        ("restart", {"wall": "none"}),
    ],
)
def test_wrong_arguments_run_nothing(shared: Piped, name: str, arguments: dict[str, object]) -> None:
    assert shared.answer(shared.start(name, **arguments))["error"]["code"] == -32602


def test_a_client_that_does_not_read_holds_nothing_up_for_ever(shared: Piped) -> None:
    many = range(10_000, 15_000)
    asked = b"".join(json.dumps({"jsonrpc": "2.0", "id": ident, "method": "tools/list"}).encode() + b"\n" for ident in many)
    writer = threading.Thread(target=shared.write, args=(asked,))
    writer.start()
    writer.join(1)
    assert writer.is_alive()  # not all is taken while nothing is read
    assert all(len(shared.answer(ident)["result"]["tools"]) == len(tools.TOOLS) for ident in many)
    writer.join(PATIENCE)


def test_standard_input_that_is_a_file_is_refused(place: Place) -> None:
    (place.root / "asked").write_text('{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
    with (place.root / "asked").open() as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "stockade", "tools"], cwd=place.work, env=place.env, stdin=stdin, capture_output=True, timeout=60
        )
    assert done.returncode == 125 and done.stdout == b"" and b"has to be a pipe" in done.stderr


def test_a_person_at_a_terminal_is_told_how_to_use_it(place: Place) -> None:
    terminal = Terminal(place, [], words=[sys.executable, "-m", "stockade", "tools", "--no-project"])
    try:
        terminal.expect("claude mcp add stockade -- stockade tools --no-project", 60)
        terminal.type("\x04")
        assert terminal.wait(60) == 0
    finally:
        terminal.close()


# ---- the tools ----------------------------------------------------------------------------------------------------------------------


def test_a_command_tells_its_streams_and_how_it_ended(shared: Piped) -> None:
    assert shared.good("bash", command="echo out; echo err >&2; exit 3") == "exit code 3\nstdout:\nout\n\nstderr:\nerr\n"
    (shared.place.work / "sub").mkdir()
    assert shared.good("bash", command="pwd; cat", cwd="sub") == f"exit code 0\nstdout:\n{shared.place.work}/sub\n"
    assert "exit code 126" in (said := shared.good("bash", command="echo ran", cwd="nope")) and "nope" in said and "ran\n" not in said
    assert shared.call("bash", command="echo begun; sleep 300", timeout=1) == (
        True,
        "killed after 1 s, which was its timeout\nstdout:\nbegun\n",
    )
    long = shared.good("bash", command="echo first; seq 1 100000; echo last")
    assert (
        "stdout had 588906 bytes" in long
        and "first\n1\n" in long
        and long.endswith("100000\nlast\n")
        and "bytes in the middle are left out" in long
    )
    assert len(long) < tools.SHOWN + 300
    assert shared.good("bash", command="x=1; cd /") and shared.good("bash", command='echo "$x"; pwd').endswith(f"\n\n{shared.place.work}\n")


def test_files_are_written_read_and_changed(shared: Piped) -> None:
    content = "".join(f"line {number} \N{SNOWMAN}\n" for number in range(1, 3001))
    shared.good("write", path="new/folder/-odd name.txt", content=content)
    file = shared.place.work / "new/folder/-odd name.txt"
    assert file.read_text() == content
    assert shared.good("read", path="new/folder/-odd name.txt", offset=2999) == "line 2999 \N{SNOWMAN}\nline 3000 \N{SNOWMAN}\n"
    page = shared.good("read", path="new/folder/-odd name.txt", limit=2)
    assert page == "note: cut after line 2: go on with offset 3\nline 1 \N{SNOWMAN}\nline 2 \N{SNOWMAN}"
    assert shared.call("edit", path="new/folder/-odd name.txt", old="line 1 ", new="x")[0] is False
    failed, why = shared.call("edit", path="new/folder/-odd name.txt", old="line 2", new="x")
    assert failed and "occurs 1111 times" in why
    failed, why = shared.call("edit", path="new/folder/-odd name.txt", old="line 4711", new="x")
    assert failed and "does not occur" in why
    shared.good("edit", path="new/folder/-odd name.txt", old="line 2", new="x", all=True)
    assert file.read_text() == content.replace("line 1 ", "x").replace("line 2", "x")
    assert shared.good("list", path="new/folder").endswith("-odd name.txt\n")
    assert shared.good(
        "search", pattern="^line 300[01]? ", path="new", glob="*.txt"
    ) == "new/folder/-odd name.txt:300:line 300 \N{SNOWMAN}\nnew/folder/-odd name.txt:3000:line 3000 \N{SNOWMAN}\n".replace(
        "new/", "./new/"
    )
    assert shared.good("search", pattern="-nothing like it") == "no match"
    shared.good("write", path="empty", content="")
    assert shared.good("read", path="empty") == "note: the file is empty"
    assert shared.good("read", path="new/folder/-odd name.txt", offset=9999) == "note: the file has no line 9999"
    (shared.place.work / "raw").write_bytes(b"a\xff\0b" + b"x" * (1 << 20))
    assert "cut after 262144 bytes" in shared.good("read", path="raw")
    failed, why = shared.call("edit", path="raw", old="x", new="y" * 200_000, all=True)  # of 200 GB on the host
    assert failed and "would have 209715200004 bytes" in why
    shared.good("edit", path="raw", old="b", new="c")
    assert (shared.place.work / "raw").read_bytes()[:5] == b"a\xff\0cx"
    cut_short = natively(shared, tools.WRITE, "./empty", "5", stdin=b"four")
    assert cut_short.returncode and (shared.place.work / "empty").read_text() == ""
    for name, arguments in (
        ("read", {"path": "nope"}),
        ("read", {"path": "new"}),
        ("list", {"path": "nope"}),
        ("search", {"pattern": "("}),
        ("write", {"path": "new", "content": ""}),
    ):
        failed, why = shared.call(name, **arguments)
        assert failed and why


def test_calls_run_beside_one_another(shared: Piped) -> None:
    first = shared.start("bash", command="until [ -e signal ]; do sleep 0.05; done; echo seen")
    (shared.place.work / "count").write_text("0")
    changes = [shared.start("edit", path="count", old="0", new="00", all=True) for _ in range(8)]
    assert not any(shared.end(change)[0] for change in changes)
    assert (shared.place.work / "count").read_text() == "0" * 256  # none was lost
    shared.good("write", path="signal", content="")
    assert shared.end(first) == (False, "exit code 0\nstdout:\nseen\n")


def test_a_call_that_is_cancelled_ends_inside_and_is_not_answered(shared: Piped) -> None:
    call = shared.start("bash", command="sleep 4711 & echo $$ > pid; sleep 4711")
    assert until(lambda: (shared.place.work / "pid").exists() and (shared.place.work / "pid").read_text().endswith("\n"), PATIENCE)
    count = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c ^4711"
    assert shared.good("bash", command=count).endswith("\n2\n")
    for wrong in (None, True, [call], 10**9, call):
        shared.cancel(wrong)
    assert until(lambda: shared.good("bash", command=f"{count} || true").endswith("\n0\n"), PATIENCE)
    assert call not in shared.seen


def test_no_more_than_so_many_calls_run_at_once(shared: Piped) -> None:
    shared.good("bash", command="mkfifo never")
    calls = [shared.start("bash", command="cat never") for _ in range(64)]
    shared.send({"jsonrpc": "2.0", "id": calls[0], "method": "tools/call", "params": {"name": "list"}})
    assert shared.answer(calls[0])["error"]["code"] == -32600
    assert shared.answer(shared.start("list"))["error"]["code"] == -32000
    for call in calls:
        shared.cancel(call)
    assert "never" in shared.good("list")


def test_every_command_is_on_record(shared: Piped) -> None:
    shared.good("bash", command="echo on-record")
    started = [event["command"] for event in shared.place.ledger() if event["kind"] == "exec.start"]
    assert ["/bin/sh", "-c", tools.BASH, "sh", "echo on-record", "."] in started


# ---- attacks ------------------------------------------------------------------------------------------------------------------------

SECRET = "the-secret-of-the-host"


@pytest.mark.parametrize("way", ["upwards", "absolute", "link", "folder link", "bash", "search", "list", "edit"])
def test_what_is_outside_the_workspace_is_not_read(shared: Piped, way: str) -> None:
    work, outside = shared.place.work, shared.place.root / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text(f"{SECRET}\n")
    (work / "twin").mkdir(exist_ok=True)
    (work / "twin/secret").write_text("of-the-workspace\n")
    for name, target in (("link", "../outside/secret"), ("twin-link", "twin/secret"), ("folder", "../outside"), ("twin-folder", "twin")):
        if not (work / name).is_symlink():
            (work / name).symlink_to(target)
    page = ("1", "10", "1000")
    attack: tuple[str, dict[str, object]]
    attack, twin, native = {
        "upwards": (("read", {"path": "../outside/secret"}), "twin/secret", (tools.READ, "./../outside/secret", *page)),
        "absolute": (("read", {"path": f"{outside}/secret"}), f"{work}/twin/secret", (tools.READ, f"{outside}/secret", *page)),
        "link": (("read", {"path": "link"}), "twin-link", (tools.READ, "./link", *page)),
        "folder link": (("read", {"path": "folder/secret"}), "twin-folder/secret", (tools.READ, "./folder/secret", *page)),
        "bash": (("bash", {"command": "cat ../outside/secret"}), "", (tools.BASH, "cat ../outside/secret", ".")),
        "search": (("search", {"pattern": "secret", "path": "../outside"}), "", (tools.SEARCH, "secret", "../outside", "*")),
        "list": (("list", {"path": "../outside"}), "", ("ls -lA -- $1; cat $1/secret", "../outside")),
        "edit": (("edit", {"path": "link", "old": SECRET, "new": "taken"}), "", (tools.READ, "./link", *page)),
    }[way]
    assert SECRET.encode() in natively(shared, *native).stdout
    _, text = shared.call(attack[0], **attack[1])
    assert SECRET not in text and "exit code 0" not in text and (outside / "secret").read_text() == f"{SECRET}\n"
    if twin:
        assert shared.good("read", path=twin) == "of-the-workspace\n"
    else:
        assert "of-the-workspace" in shared.good("search", pattern="of-the", path="twin") and "secret" in shared.good("list", path="twin")


@pytest.mark.parametrize("way", ["write", "link", "bash"])
def test_what_is_outside_the_workspace_is_not_written(shared: Piped, way: str) -> None:
    work, outside = shared.place.work, shared.place.root / "planted"
    outside.mkdir(exist_ok=True)
    if not (work / "way-out").is_symlink():
        (work / "way-out").symlink_to("../planted")
    name = f"{way}-native"
    target = "way-out" if way == "link" else "../planted"
    assert natively(shared, tools.WRITE, f"./{target}/{name}", "1", stdin=b"x").returncode == 0 and (outside / name).read_text() == "x"
    if way == "bash":
        shared.call("bash", command="mkdir -p ../planted; echo x > ../planted/confined")
    else:
        shared.call("write", path=f"{target}/confined", content="x")
    assert os.listdir(outside) and not (outside / "confined").exists()
    shared.good("write", path="twin-written/confined", content="x")
    assert (work / "twin-written/confined").read_text() == "x"
    for made in outside.iterdir():
        made.unlink()


# ---- a sandbox that dies or never stands ----------------------------------------------------------------------------------------------

WALLS: dict[str, tuple[Any, Sequence[str], str]] = {
    "bubblewrap": (bubblewrap, (), "bwrap"),
    "gvisor": (gvisor, (), "bwrap"),
    "vm": (vm, ("--limit", "memory=256MiB"), "qemu-system-x86_64"),
}


@pytest.mark.parametrize(("name", "way"), [("bubblewrap", Piped), ("gvisor", Piped), ("vm", Piped), ("bubblewrap", Remote), ("vm", Remote)])
def test_a_dead_sandbox_is_told_and_nothing_runs_on_the_host(place: Place, name: str, way: type[Piped | Remote]) -> None:
    wall, options, part = WALLS[name]
    require(wall)
    client = way(place, "--wall", name, *options)
    marker = place.root / "ran-on-the-host"
    try:
        client.good("bash", command="echo kept > kept; echo lost > /tmp/lost; sync")
        running = client.start("bash", command="echo begun > begun; sleep 300")
        assert until(lambda: (place.work / "begun").exists(), PATIENCE)
        for pid, line in offspring(client.server.pid).items():
            if line.split(" ")[0].rpartition("/")[2] == part:
                os.kill(pid, signal.SIGKILL)
        failed, text = client.end(running)
        assert failed and "(wall." in text and "The tool `restart` starts a new sandbox" in text
        for tool, arguments in (
            ("bash", {"command": f"touch {marker} ran-in-the-workspace"}),
            ("write", {"path": str(marker), "content": "x"}),
            ("write", {"path": "ran-in-the-workspace", "content": "x"}),
            ("read", {"path": "kept"}),
        ):
            failed, text = client.call(tool, **arguments)
            assert failed and "(wall." in text and "restart" in text
        assert not marker.exists() and not (place.work / "ran-in-the-workspace").exists()
        assert client.ask("ping")["result"] == {}
        assert "a new sandbox stands" in client.good("restart")
        assert client.good("bash", command="cat kept; ls /tmp/lost 2>/dev/null || true") == "exit code 0\nstdout:\nkept\n"
        client.good("edit", path="kept", old="kept", new="changed")
        assert (place.work / "kept").read_text() == client.good("read", path="kept") == "changed\n"
        assert client.good("search", pattern="^chan", glob="k*") == "./kept:1:changed\n" and "kept" in client.good("list")
    finally:
        code = client.close()
    assert code == 0 and [event["wall"] for event in place.ledger() if event["kind"] == "session.start"] == [name, name]
    assert len([event for event in place.ledger() if event["kind"] == "session.exit"]) == 2


def test_one_that_never_stands_is_told_and_nothing_runs_on_the_host(place: Place) -> None:
    client = Piped(place, before="import stockade.walls.bubblewrap as b; b.PROGRAMS = ('/nowhere/bwrap',)")
    try:
        for name, arguments in (
            ("bash", {"command": f"touch {place.root}/ran {place.work}/ran"}),
            ("restart", {}),
            ("write", {"path": "ran", "content": ""}),
        ):
            failed, text = client.call(name, **arguments)
            assert failed and "(bubblewrap.missing)" in text and "`restart` starts a new sandbox" in text
        assert not (place.root / "ran").exists() and not (place.work / "ran").exists()
    finally:
        assert client.close() == 0


def test_a_limit_and_a_restart_in_the_middle_are_told(place: Place) -> None:
    # Whatever is printed in the server by mistake is no message.
    stray = "import stockade.server.mcp as m; begin = m.Sandbox.begin; m.Sandbox.begin = lambda self: (print('stray', flush=True), begin(self))[1]"
    client = Piped(place, "--limit", "output=1MiB", "--wall", "bubblewrap", before=stray)
    try:
        failed, text = client.call("bash", command="yes")
        assert failed and "bytes of output (session.limit)" in text and "restart" in text
        client.good("restart")
        running = client.start("bash", command="echo begun > begun; sleep 300")
        assert until(lambda: (place.work / "begun").exists(), PATIENCE)
        client.good("restart")
        failed, text = client.end(running)
        assert failed and "session.closed" in text
    finally:
        assert client.close() == 0


def test_restarts_that_are_cancelled_do_not_pile_up(place: Place) -> None:
    # Each start waits until the test lets it: so that the first restart is under way for as long as the others come.
    slow = (
        "import asyncio, os\nimport stockade.server.mcp as m\nrestart, calls = m.Sandbox._restart, []\n"
        "async def wait(self):\n calls.append(1)\n"
        f" while not os.path.exists({str(place.root / 'go')!r}): await asyncio.sleep(0.01)\n"
        " return await restart(self)\nm.Sandbox._restart = wait"
    )
    client = Piped(place, "--wall", "bubblewrap", before=slow)
    try:
        client.good("bash", command="true")
        kept = client.start("restart")
        for _ in range(20):
            ident = client.start("restart")
            client.ask("ping")  # it has been taken, and runs
            client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": ident}})
        client.ask("ping")
        (place.root / "go").touch()
        failed, text = client.end(kept)
        assert not failed and "a new sandbox stands" in text
        assert client.good("bash", command="echo on") == "exit code 0\nstdout:\non\n"
        assert "a new sandbox stands" in client.good("restart")  # one after it is another one
    finally:
        assert client.close() == 0
    assert len([event for event in place.ledger() if event["kind"] == "session.start"]) == 3


@pytest.mark.parametrize(
    ("way", "how"),
    [(Piped, "end of input"), *((way, name) for way in (Piped, Remote) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"))],
)
def test_nothing_outlives_the_server(place: Place, way: type[Piped | Remote], how: str) -> None:
    client = way(place, "--wall", "bubblewrap")
    client.start("bash", command="setsid sleep 300 & echo begun > begun; sleep 300")
    assert until(lambda: (place.work / "begun").exists(), PATIENCE)
    inside = processes(client, "sleep 300", 2)
    if how != "end of input":
        client.server.send_signal(getattr(signal, how))
    assert client.server.wait(PATIENCE) in (0, -signal.SIGKILL) if how != "end of input" else client.close() == 0
    client.close()
    assert until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in inside), PATIENCE)
