"""Folders that are shown only once a person has approved it: into the running sandbox, read-only, and in the ledger before (M20, M21, M37)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place, Terminal, command
from session.test_approvals import code, end, events, fresh, server, stockade, waiting  # noqa: F401  and fixtures
from session.test_changes import one
from stockade.core.frozen import replace
from stockade.core.tools import MountRule
from stockade.core.values import Asking, Mount, Origin, Policy
from walls.boxes import until

pytestmark = pytest.mark.wall

ASK = """
ask() { curl -s -m 60 --noproxy '' -x "$http_proxy" -d "{\\"path\\": \\"$1\\"}" -w ' %{http_code}\\n' http://stockade.internal/mount; }
"""


@pytest.fixture
def data(place: Place) -> Path:
    data = place.root.resolve() / "data"
    (data / "below").mkdir(parents=True)
    (data / "file").write_text("hello\n")
    (data / "run").write_text("#!/bin/sh\necho ran\n")
    (data / "run").chmod(0o755)
    return data


def policy(data: Path, *targets: str, **asking: int) -> Policy:
    offers = tuple(
        MountRule(str(data), target, "~/data", Origin("p.toml", 3 + at, f"mount[{at}]"))
        for at, target in enumerate(targets or ("/srv/data",))
    )
    return Policy(offers=offers, approvals=replace(Asking(), **asking))


def start(place: Place, script: str, given: Policy) -> Any:
    return place.start("/bin/sh", "-c", f"{ASK}\n{script}", policy=given)


def test_what_a_person_approves_is_there_and_can_only_be_read(place: Place, data: Path) -> None:
    before = "ls -A /srv/data; cat /srv/data/file; echo x > /srv/data/file; rmdir /srv/data; mv /srv/data /tmp/x; mkdir /srv/data/a; ls -ld /srv/data | cut -c1-10"
    after = """cat /srv/data/file /srv/data/below/../file; /srv/data/run
        for try in 'echo x > /srv/data/file' 'rm /srv/data/file' 'mkdir /srv/data/below/x' 'chmod 777 /srv/data/file' 'touch /srv/data/file' 'mv /srv/data/file /tmp/file'
        do sh -c "$try" && echo DONE "$try"; done
        mv /srv/data /tmp/away || rmdir /srv/data || umount /srv/data || echo held; grep ' /srv/data ' /proc/self/mountinfo | cut -d' ' -f6"""
    run = start(
        place,
        f"({before}) 2>/dev/null; ask '~/data'; ({after}) 2>/dev/null; ask '~/data'; ask /etc; ask '~/data/below'; ask '~/data/'",
        policy(data),
    )
    try:
        asked = one(place)
        assert (asked["action"], asked["key"], asked["risk"], asked["people"]) == ("mount", "mount /srv/data", "medium", True)
        assert asked["what"] == f"show the folder {data} at /srv/data, read-only, with all that is in it: 3 entries at its top"
        assert asked["rule"] == "p.toml:3 (mount[0])" and not asked["reversible"]
        assert "approval.people" in stockade(place, "allow", asked["session"], str(asked["number"]), "--for-session", "--json").stderr
        assert stockade(place, "allow", asked["session"], str(asked["number"])).stdout.endswith("Allowed.\n")
        out, err = run.communicate(timeout=60)
    finally:
        end(run)
    lines = out.decode().splitlines()
    assert lines[0].startswith("dr-x") or lines[0].startswith("drwx"), lines  # an empty folder, and nothing else
    assert json.loads(lines[1]) == {"path": "~/data", "mounted": True, "why": ""} and lines[2] == " 202"
    assert lines[3:7] == ["hello", "hello", "ran", "held"], lines
    assert all(line.startswith("ro,nosuid,nodev") for line in lines[7:9]) and "DONE" not in out.decode()
    rest = [json.loads(line) for line in lines[9:] if line.startswith("{")]
    assert ["there already" in each["why"] for each in rest] == [True, False, False, False] and not any(each["mounted"] for each in rest)
    assert sorted(os.listdir(data)) == ["below", "file", "run"] and (data / "file").read_text() == "hello\n"
    told = events(place, "ask", "answer", "mount.add", "mount", "mount.refused")
    assert [each["kind"] for each in told] == ["ask", "answer", "mount.add", "mount", "mount.refused", *["mount"] * 4]
    add = events(place, "mount.add")[0]
    assert (add["source"], add["target"], add["mode"]) == (str(data), "/srv/data", "ro")
    assert b"a mount waits for your word (medium risk): mount /srv/data" in err
    shown = next(each for each in events(place, "session.start"))
    assert not any(source == str(data) for source, _, _ in shown["mounts"])


def test_in_the_terminal_with_what_looks_like_a_secret_and_what_was_swapped(place: Place, data: Path) -> None:
    """The second folder is another one by the time it is approved, the third a link to somewhere else: neither is shown."""
    for name in (".env", "id_ed25519"):
        (data / name).write_text("x")
    others = [place.root.resolve() / f"other{number}" for number in (1, 2)]
    for other in others:
        other.mkdir()
        (other / "old").write_text("x")
    rules = [MountRule(str(data), f"{place.home}/sets/data", "~/data")]
    rules += [MountRule(str(other), f"/srv/{other.name}", other.name) for other in others]
    script = f"{ASK}\nfor one in '~/data' other1 other2; do ask $one; done; ls /srv/other1 /srv/other2 ~/sets/data; read line"
    person = Terminal(place, (), words=command(Policy(offers=tuple(rules)), ("/bin/bash", "-c", script), tty=None))
    try:
        person.resize(300, 40)
        person.expect("may this be shown inside.*risk: high")
        person.expect(r"5 entries at its top; some look like secrets: .env, id_ed25519")
        person.type(f"{code(person)}\r")
        person.expect('"mounted": true')
        letters = code(person)
        others[0].rename(place.root / "kept")
        others[0].mkdir()
        (others[0] / "planted").write_text("x")
        person.type(f"{letters}\r")
        person.expect('"mounted": false.*is another folder than the one that was shown')
        letters = code(person)
        others[1].rename(place.root / "kept2")
        others[1].symlink_to("/etc")
        person.type(f"{letters}\r")
        person.expect('"mounted": false')
        person.expect("/srv/other1:\r\n\r\n/srv/other2:\r\n")
        person.expect("below.*file")
        person.type("\r")
    finally:
        person.close()
    assert [each["effect"] for each in events(place, "answer")] == ["allow"] * 3
    assert [each["code"] for each in events(place, "mount.refused")] == ["mount.changed", "policy.forbidden-path"]


def test_what_is_refused_is_not_there_and_other_sessions_see_nothing(place: Place, data: Path) -> None:
    given = policy(data)
    runs = [
        start(place, f"ask '~/data'; touch done{number}; until [ -e go ]; do sleep 0.05; done; ls /srv/data", given) for number in (1, 2)
    ]
    try:
        assert until(lambda: len(waiting()) == 2, 30)
        first, second = waiting()
        assert (
            stockade(place, "allow", first["session"], str(first["number"])).returncode
            == stockade(place, "deny", second["session"]).returncode
            == 0
        )
        assert until(lambda: (place.work / "done1").exists() and (place.work / "done2").exists(), 20)
        (place.work / "go").touch()
        outs = sorted(run.communicate(timeout=60)[0].decode().count("file\n") for run in runs)
    finally:
        for run in runs:
            end(run)
    assert outs == [0, 1]


def test_what_cannot_be_asked_for_stops_the_start(place: Place, data: Path) -> None:
    work = str(place.work.resolve())
    for given in (
        replace(policy(data), wall="gvisor"),
        policy(data, f"{work}/data"),
        policy(data, "/srv/data", "/srv/data/below"),
        replace(policy(data, "/srv/x/data"), mounts=(Mount(str(data), "/srv/x", "ro"),)),
        replace(policy(data), mounts=(Mount(str(data / "below"), "/srv/below", "ro", secret=True),)),
        policy(data / "file"),
    ):
        done = place.run("true", policy=given)
        assert done.returncode == 125 and b'"mount.ask"' in done.stderr, done.stderr
    assert b'"policy.' in place.run("true", policy=policy(Path("/"))).stderr  # what may never be shown is not asked about either
    assert not (place.work / "data").exists()
