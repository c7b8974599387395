"""A box comes up, answers, and ends as the contract says."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from stockade.core.errors import CannotEnforce, WallFailed
from stockade.core.values import Mount
from stockade.walls.box import NO_WAIT
from stockade.walls.conformance import census
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import NO_DOOR, Failed, Opened, expect, explained, refused

if TYPE_CHECKING:
    from stockade.walls.conformance.lab import Lab

TYPED = (CannotEnforce, WallFailed)
PROMPT = 5.0  # seconds within which a box has to be gone; a machine may be busy
TICKING = "while :; do echo tick; sleep 0.05; done"
STILL = 0.4  # seconds for which nothing may move in a pause
STUBBORN = "trap '' TERM HUP INT; (setsid sleep 600 >/dev/null 2>&1 &); sleep 600 >/dev/null 2>&1 & echo up; sleep 600"


@check("lifecycle.opens", "a box is opened without waiting, says when it stands, and runs a command")
def opens(lab: Lab) -> None:
    with lab.open() as opened:
        box = opened.box
        expect(box.pid > 0 and os.path.exists(f"/proc/{box.pid}"), "`pid` is no process of this host")
        opened.until(lambda: box.ready, "the sandbox did not stand")
        expect(not box.dead, "it says that it is dead")
        done = opened.sh("echo alive")
        expect((done.code, done.text) == (0, "alive"), f"`echo alive` gave {done.said}")
        refused("a step without news that may not wait", (BlockingIOError,), box.step, NO_WAIT)
        child = box.spawn(["/bin/sh", "-c", "exit 3"], env={})
        expect(box.wait(child) == 3 and child.pid > 0, "`wait` did not give the exit status, or the command had no number")


@check("lifecycle.door-mismatch", "a plan and a door that do not belong together start nothing", NO_DOOR)
def door_mismatch(lab: Lab) -> None:
    door = lab.door()
    try:
        for network, given in (("none", door), ("door", None)):
            plan = lab.plan(lab.wanted(network=network))
            refused(f"network {network!r} with{'' if given else 'out'} a door", TYPED, lab.attempt, plan, given)
    finally:
        door.close()


@check(
    "lifecycle.bad-source", "a mount's source that is not there, or is reached through a symbolic link, starts nothing and leaves nothing"
)
def bad_source(lab: Lab) -> None:
    folder = lab.folder("real/deep/")
    os.symlink("real", f"{folder}/link")
    with lab.open(Mount(f"{folder}/real/deep", "/mnt/w", "rw")) as opened:  # the twin
        expect(opened.sh("test -d /mnt/w").code == 0, "a good source is not shown")
    before = census.descriptors(), len(census.below(os.getpid()))
    for name in ("absent", "link", "link/deep"):
        plan = lab.plan(lab.wanted(Mount(f"{folder}/{name}", "/mnt/w", "rw")))
        explained(f"source {name!r}", refused(f"source {name!r}", TYPED, lab.attempt, plan))
    expect(
        census.until(lambda: (census.descriptors(), len(census.below(os.getpid()))) == before, lab.patience),
        "a refused start left descriptors or processes",
    )


@check("lifecycle.close", "closing ends every process, whatever it ignores, before it returns; a second time does nothing")
def close(lab: Lab) -> None:
    with census.adopting():
        known = census.known()
        with lab.open() as opened:
            running = [opened.begin(STUBBORN) for _ in range(3)]
            opened.until(lambda: all(each.out for each in running), "the commands did not start")
            expect(census.more(known), "the sandbox has no process")
            began = time.monotonic()
            opened.box.close()
            took = time.monotonic() - began
            _nothing_more(known)
            expect(took < PROMPT, f"closing took {took:.1f} s")
            opened.box.close()
            expect(opened.box.dead and opened.box.pid == 0, "a closed box does not say so")
            refused("a command in a closed box", (WallFailed, OSError, ValueError), opened.box.spawn, ["true"], env={})


@check("lifecycle.pause", "in a pause nothing inside moves and nothing is started; then all go on but those that stood still before")
def pause(lab: Lab) -> None:
    with lab.open() as opened:
        box = opened.box
        ticking = [opened.begin(TICKING), opened.begin('setsid sh -c "$1" & wait', TICKING)]
        before = opened.begin("sh -c 'kill -STOP $$; echo woken' & echo up; wait")
        doomed = opened.begin("echo up; exec sleep 600")
        opened.until(lambda: all(each.out for each in (*ticking, before, doomed)), "the commands did not start")
        _pass(opened, 0.2)  # until it has stopped itself
        box.pause()
        box.pause()
        expect(box.paused, "a paused box does not say so")
        refused("a command in a paused box", (ValueError,), box.spawn, ["true"], env={})
        _pass(opened, 0.1)  # what they had written is read
        said = [each.out for each in ticking]
        box.signal(ticking[0].child, signal.SIGCONT)
        box.signal(doomed.child, signal.SIGKILL)
        _pass(opened, STILL)
        expect([each.out for each in ticking] == said, "a paused sandbox goes on")
        box.resume()
        box.resume()
        expect(not box.paused, "a box that goes on says that it is paused")
        opened.until(lambda: all(len(each.out) > len(old) for each, old in zip(ticking, said, strict=True)), "it does not go on")
        done = opened.finish(doomed)
        expect(done.code == 128 + signal.SIGKILL, f"a command that was killed in a pause gave {done.said}")
        _answers(opened)
        expect(before.out == b"up\n", "what had stopped itself before the pause goes on after it")


@check("lifecycle.pause-close", "closing a paused box ends every process, too")
def pause_close(lab: Lab) -> None:
    with census.adopting():
        known = census.known()
        with lab.open() as opened:
            running = opened.begin(STUBBORN)
            opened.until(lambda: running.out, "the command did not start")
            opened.box.pause()
            began = time.monotonic()
            opened.box.close()
            took = time.monotonic() - began
            _nothing_more(known)
            expect(took < PROMPT, f"closing took {took:.1f} s")


@check("lifecycle.death", "a sandbox whose processes are killed is a WallFailed, never silence or an exit code")
def death(lab: Lab) -> None:
    with census.adopting():
        known = census.known()
        with lab.open() as opened:
            running = opened.begin("echo up; sleep 600")
            opened.until(lambda: running.out, "the command did not start")
            for pid in census.below(opened.box.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            error = refused("waiting in a box that was killed", (WallFailed,), opened.finish, running)
            expect(getattr(error, "code", "") and opened.box.dead, "the error has no code, or the box does not say that it is dead")
        _nothing_more(known)


@check("lifecycle.self-harm", "a sandbox that attacks its own first process goes on, or ends with a WallFailed, or can at least be closed")
def self_harm(lab: Lab) -> None:
    with census.adopting():
        known = census.known()
        with lab.open() as opened:
            try:
                for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "ABRT", "SEGV", "KILL", "STOP"):
                    opened.sh(f"kill -{name} 1", seconds=3)
            except (WallFailed, Failed):  # it ended, or has stopped what would answer: only itself is the poorer
                pass
            opened.close()
            _nothing_more(known)


@check("lifecycle.again", "boxes opened and closed one after another leave no descriptor and no process")
def again(lab: Lab) -> None:
    with lab.open():
        pass  # whatever is cached is cached now
    before = census.descriptors(), {*census.below(os.getpid())}
    for _ in range(5):
        with lab.open() as opened:
            _answers(opened)
            opened.box.wait(opened.box.spawn(["/no/such/program"], env={}))
    now = census.descriptors(), {*census.below(os.getpid())}
    expect(now[0] <= before[0], f"{now[0] - before[0]} descriptors more than before")
    expect(now[1] <= before[1], "processes are left")


def _pass(opened: Opened, seconds: float) -> None:
    over = time.monotonic() + seconds
    opened.until(lambda: time.monotonic() > over, "time does not pass", seconds + opened.patience)


def _nothing_more(known: set[int]) -> None:
    left = census.more(known)
    expect(not left, f"processes are left: {', '.join(left)}")


def _answers(opened: Opened) -> None:
    done = opened.sh("echo alive")
    if done.text != "alive":
        raise Failed(f"`echo alive` gave {done.said}")
