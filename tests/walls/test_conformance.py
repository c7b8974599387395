"""The conformance suite passes on our walls, and each of its checks fails on a wall that leaks just there."""

from __future__ import annotations

import functools
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import stockade
from conftest import unavailable
from stockade.core.errors import CannotEnforce, StockadeError
from stockade.walls import bubblewrap, conformance, limits
from stockade.walls.conformance import CHECKS, Outcome, probes
from stockade.walls.conformance.checks import Check
from stockade.walls.conformance.lab import Failed, Lab, Opened, Skipped
from stockade.walls.conformance.native import Native
from stockade.walls.vm import wall as vm
from walls import boxes, rooted

WALLS = ("bubblewrap", "gvisor", "vm")  # a further wall of ours is named here


@pytest.fixture(autouse=True)
def own_places() -> Iterator[None]:
    with boxes.own_places():
        yield


def outcomes(wall: object, *only: str, patience: float = 30.0) -> dict[str, Outcome]:
    return {outcome.check: outcome for outcome in conformance.run(wall, only=only, patience=patience)}  # type: ignore[arg-type]  # some lack parts


@functools.cache
def of_group(wall: str, group: str) -> dict[str, Outcome] | CannotEnforce:
    """All outcomes of a group: its checks share a box, so that one run of them takes less time than each alone."""
    try:
        return outcomes(conformance.find(wall), group)
    except CannotEnforce as error:
        return error


@pytest.mark.wall
@pytest.mark.parametrize("name", [check.id for check in conformance.chosen(())])
@pytest.mark.parametrize("wall", WALLS)
def test_our_walls_pass(wall: str, name: str) -> None:
    boxes.require()
    found = of_group(wall, CHECKS[name].group)
    if isinstance(found, CannotEnforce):
        unavailable(wall, found.message)
    assert found[name].ok, found[name].reason
    if found[name].status == "skip":
        pytest.skip(found[name].reason)


@pytest.mark.wall
def test_a_machine_passes_whose_root_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes.require(vm)
    monkeypatch.setenv(rooted.PLACE, "")  # given back at the end
    rooted.unpack(str(tmp_path))
    found = outcomes(
        conformance.find("walls.rooted"), "files", "mounts.read-only", "mounts.overlay", "mounts.held", "limits.scratch", "cleanup.kill"
    )
    assert len(found) > 7 and not {name: outcome.reason for name, outcome in found.items() if not outcome.ok}


# ---- the suite itself -------------------------------------------------------------------------------------------------------------


def test_checks_have_a_group_and_say_what_holds() -> None:
    assert {check.group for check in CHECKS.values()} == {*conformance.GROUPS}
    assert all(re.fullmatch(r"[a-z]+\.[a-z-]+", name) and check.about for name, check in CHECKS.items())


def test_checks_are_chosen_by_name_and_by_group() -> None:
    assert [check.id for check in conformance.chosen(["receipt.rules"])] == ["receipt.rules"]
    assert {check.group for check in conformance.chosen(["receipt", "exec.stdin"])} == {"receipt", "exec"}
    assert next(check.id for check in conformance.chosen(())).startswith("lifecycle.")
    with pytest.raises(StockadeError) as caught:
        conformance.chosen(["receipt.rules", "no.such"])
    assert caught.value.code == "conformance.check" and "no.such" in caught.value.message


class Nothing:
    """What a check needs that opens no box."""

    NAME, ADDRESS, OWN_KERNEL, OVERHEAD, USER = "nothing", "127.0.0.1", False, 0, -1

    def look(self, home: str) -> str:
        return home


@pytest.mark.parametrize(
    ("raised", "status", "ok", "reason"),
    [
        (None, "pass", True, ""),
        (Failed("it leaks"), "fail", False, "it leaks"),
        (Skipped("no door"), "skip", True, "no door"),
        (Skipped("no time"), "skip", False, "no time"),
        (CannotEnforce("not here", code="x.y"), "fail", False, "CannotEnforce (x.y): not here"),
        (OSError(9, "Bad"), "fail", False, "OSError: [Errno 9] Bad"),
        (AttributeError("door"), "fail", False, "AttributeError: door"),
    ],
)
def test_an_outcome_speaks_for_a_wall_only_if_it_passed_or_was_skipped_for_a_declared_reason(
    monkeypatch: pytest.MonkeyPatch, raised: Exception | None, status: str, ok: bool, reason: str
) -> None:
    def fake(lab: Lab) -> None:
        if raised is not None:
            raise raised

    monkeypatch.setitem(CHECKS, "exec.fake", Check("exec.fake", "about", fake, ("no door",)))
    (outcome,) = outcomes(Nothing(), "exec.fake").values()
    assert (outcome.status, outcome.ok, outcome.reason, outcome.group) == (status, ok, reason, "exec")


def test_a_wall_that_cannot_look_is_a_typed_error() -> None:
    class Missing(Nothing):
        def look(self, home: str) -> str:
            raise CannotEnforce("the program is not installed", code="nothing.missing")

    class Broken(Nothing):
        def look(self, home: str) -> str:
            raise KeyError(home)

    for wall, code in ((Missing(), "nothing.missing"), (Broken(), "conformance.look")):
        with pytest.raises(StockadeError) as caught:
            outcomes(wall, "receipt.rules")
        assert caught.value.code == code


def test_walls_are_found_by_name_and_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_wall.py").write_text(
        "from stockade.walls.bubblewrap import ADDRESS, NAME, OVERHEAD, OWN_KERNEL, USER, look, make_door, open_box, plan\n"
    )
    (tmp_path / "half_wall.py").write_text("NAME = 'half'\n")
    (tmp_path / "bad_wall.py").write_text("1 / 0\n")
    (tmp_path / "needy_wall.py").write_text("import no_such_library_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert conformance.find("bubblewrap") is bubblewrap
    assert conformance.find("good_wall").NAME == "bubblewrap"
    assert conformance.find("walls.leaky:mangled_status").NAME == "leaky"
    for name, code, said in (
        ("no_such_wall", "unknown", "no_such_wall"), ("no.such.wall", "unknown", "no.such.wall"), ("", "unknown", ""), ("../x", "unknown", "../x"),
        ("bad_wall", "import", "ZeroDivisionError"), ("needy_wall", "import", "no_such_library_at_all"), ("half_wall", "contract", "open_box"),
        ("good_wall:gone", "contract", "plan"), ("stockade.walls.door", "contract", "look"),
    ):  # fmt: skip
        with pytest.raises(StockadeError) as caught:
            conformance.find(name)
        assert caught.value.code == f"conformance.{code}" and said in caught.value.message and caught.value.hint, name


@pytest.mark.wall
def test_a_run_leaves_nothing_and_tells_of_each_check_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes.require()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    only = ["lifecycle", "mounts", "limits.open-files", "isolation", "cleanup"]
    assert [*conformance.run(bubblewrap, only=["exec.stdin"])]  # whatever is made once is there
    before, told = (boxes.descriptors(), boxes.children(), groups()), list[str]()
    for outcome in conformance.run(bubblewrap, only=only, progress=lambda check: told.append(check.id)):
        assert told[-1] == outcome.check and outcome.seconds >= 0
    assert len(told) == len(conformance.chosen(only))
    unfinished = conformance.run(bubblewrap, only=["exec"])
    next(unfinished)
    unfinished.close()  # type: ignore[attr-defined]  # a generator
    assert (boxes.descriptors(), boxes.children(), groups()) == before
    assert [*tmp_path.iterdir()] == []


def groups() -> set[str]:
    return {name for _, folders, _ in os.walk(limits.ROOT) for name in folders if name.startswith("stockade-conformance-")}


# ---- the native control -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(Native(str(tmp_path)), 10.0)
    yield made
    made.close()
    made.close()


@pytest.mark.parametrize(
    "argv",
    [
        ("true",), (), ("/bin/sh",), ("/bin/sh", "-c", "true", "sh"), ("/bin/sh", "-c", f"{probes.READ} ", "sh", "x"), ("/bin/sh", "-c", probes.READ),
        ("sh", "-c", probes.READ, "sh"), ("/bin/sh", "-ec", probes.READ, "sh"), ("/bin/sh", "-c", probes.READ, "-c", "true"), ("/bin/sh", probes.READ),
    ],
)  # fmt: skip
def test_the_control_runs_probes_and_nothing_else(control: Opened, argv: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="probes"):
        control.box.spawn(argv, env={})
    for more in ({"tty": True}, {"fds": (0,)}):
        with pytest.raises(ValueError, match="probes"):
            control.box.spawn(["/bin/sh", "-c", probes.READ, "sh"], env={}, **more)  # type: ignore[arg-type]  # one at a time
    assert control.sh(probes.READ, __file__).out == Path(__file__).read_bytes()


HOSTILE = (
    "$(touch marker)",
    "`touch marker`",
    "; touch marker",
    "x; touch marker #",
    "--help; touch marker",
    "' ; touch marker ; '",
    "a[$(touch marker)]",
)


@pytest.mark.parametrize("probe", sorted(probes.ALL - {probes.SPIN}))
def test_no_probe_executes_its_arguments(control: Opened, tmp_path: Path, probe: str) -> None:
    """Each argument in each of the places that a probe looks at."""
    for words in [(word, word, word) for word in HOSTILE]:
        control.sh(probe, *words)
    assert not (tmp_path / "marker").exists()
    assert not Path("marker").exists()


def test_the_control_ends_and_signals_what_it_runs(control: Opened) -> None:
    running, other = control.begin(probes.SPIN), control.begin(probes.SPIN)
    assert os.path.exists(f"/proc/{running.child.pid}")
    control.box.signal(running.child, signal.SIGTERM)
    assert control.finish(running).code == 128 + signal.SIGTERM
    control.box.signal(running.child, signal.SIGKILL)  # it ended: nothing happens
    control.close()
    assert other.child.status is not None and control.box.dead


def test_nothing_of_the_product_but_the_doctor_reaches_the_suite() -> None:
    top = Path(stockade.__file__).parent
    users = {
        str(path.relative_to(top))
        for path in top.rglob("*.py")
        if re.search(r"walls\.conformance|walls import .*conformance", path.read_text())
    }
    assert {path for path in users if not path.startswith("walls/conformance/")} == {"cli/conformance.py", "walls/contract.py"} & users
    control = {str(path.relative_to(top)) for path in top.rglob("*.py") if re.search(r"\bNative\b", path.read_text())}
    assert control == {"walls/conformance/native.py", "walls/conformance/lab.py"}
