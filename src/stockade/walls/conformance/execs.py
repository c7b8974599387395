"""A box runs commands faithfully: what was asked for, and how it ended."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from typing import TYPE_CHECKING

from stockade.core.values import Mount
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import Failed, expect, refused

if TYPE_CHECKING:
    from stockade.walls.conformance.lab import Lab

CODES = (0, 1, 2, 3, 42, 63, 64, 77, 99, *range(120, 132), 137, 143, 192, 254, 255)
DEADLY = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE,
    signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
ODD = ("", " ", "-", "--", "\n", "a b", "'\"$(id)`\\", "*", "ä€", os.fsdecode(bytes(range(1, 256))), "x" * 100_000)


@check("exec.exit-codes", "every exit status comes through")
def exit_codes(lab: Lab) -> None:
    box = lab.box()
    found = {code: box.sh(f"exit {code}").code for code in CODES}
    wrong = {code: got for code, got in found.items() if code != got}
    expect(not wrong, f"exit status: {', '.join(f'{code} came as {got}' for code, got in wrong.items())}")


@check("exec.signals", "a command that a signal ends has 128 + the signal's number")
def signals(lab: Lab) -> None:
    box = lab.box()
    found = {number: box.sh(f"kill -{int(number)} $$; sleep 5; exit 7").code for number in DEADLY}
    wrong = {number.name: got for number, got in found.items() if got != 128 + number}
    expect(not wrong, f"wrong status: {wrong}")


@check("exec.missing-program", "a program that is not there is 127, and the box goes on")
def missing_program(lab: Lab) -> None:
    box = lab.box()
    for name in ("no-such-program", "/no/such/program", ""):
        running = box.start(name)
        code = box.finish(running).code
        expect(code == 127 and running.child.error, f"{name!r} gave {code}")
    expect(box.sh("exit 4").code == 4, "the box does not go on")


@check("exec.not-executable", "what is there and cannot be executed is 126")
def not_executable(lab: Lab) -> None:
    box = lab.box()
    expect(box.sh("echo text > /tmp/plain").code == 0, "/tmp cannot be written to")
    for name in ("/tmp/plain", "/tmp", "/tmp/plain/x"):
        running = box.start(name)
        code = box.finish(running).code
        expect(code == 126 and running.child.error, f"{name} gave {code}")


@check(
    "exec.working-directory", "a command starts where it is told; a place that is not there is an error, and not that of a missing program"
)
def working_directory(lab: Lab) -> None:
    box = lab.box()
    expect(box.sh("mkdir -p '/tmp/a b/\tc'").code == 0, "/tmp cannot be written to")
    for place in ("/", "/usr/lib", "/tmp/a b/\tc"):
        done = box.sh("pwd", cwd=place)
        expect(done.out == f"{place}\n".encode(), f"in {place!r} pwd(1) says {done.text!r}")
    running = box.start("/bin/sh", "-c", "exit 0", cwd="/no/such")
    code = box.finish(running).code
    expect(code == 126 and running.child.error < 0, f"a working directory that is not there gave {code}, error {running.child.error}")


@check("exec.arguments", "arguments of any bytes arrive exactly: empty, with spaces and line ends, not UTF-8, long")
def arguments(lab: Lab) -> None:
    done = lab.box().run("/usr/bin/printf", "%s\\0", *ODD)
    got = done.out.split(b"\0")[:-1]
    wrong = [word[:20] for word, found in zip(ODD, got, strict=False) if os.fsencode(word) != found]
    expect(done.code == 0 and len(got) == len(ODD) and not wrong, f"{len(got)} of {len(ODD)} arguments arrived; other than sent: {wrong}")


@check("exec.environment", "the environment is what was given, with values of any bytes, and nothing else")
def environment(lab: Lab) -> None:
    box = lab.box()
    for given in ({}, {"A": "1"}, {"A": "", "b c": "=", os.fsdecode(b"\xff\n"): os.fsdecode(bytes(range(1, 256))), "LONG": "y" * 100_000}):
        done = box.run("/usr/bin/env", "-0", env=given)
        got = {*done.out.split(b"\0")[:-1]}
        wanted = {os.fsencode(f"{name}={value}") for name, value in given.items()}
        missing, more = wanted - got, got - wanted
        expect(not more, f"more than was given: {sorted(item.split(b'=')[0] for item in more)}")
        expect(not missing, f"not as given: {sorted(item.split(b'=')[0] for item in missing)}")


@check("exec.user", "commands run as the user that the wall names, and know a name for it")
def user(lab: Lab) -> None:
    wanted = os.getuid() if lab.wall.USER < 0 else lab.wall.USER
    done = lab.box().sh("id -u && id -un")
    found = done.text.split()
    expect(
        done.code == 0 and found[:1] == [str(wanted)] and len(found) == 2,
        f"`USER` says {wanted}, and inside it is {done.text or done.said}",
    )


@check("exec.nul", "a NUL byte and an empty argv are refused before anything runs; too many arguments are an error, and the box goes on")
def nul(lab: Lab) -> None:
    opened = lab.box()
    box = opened.box
    for argv, env, cwd in (
        (["echo", "a\0b"], {}, "/"),
        (["echo"], {"A\0": "b"}, "/"),
        (["echo"], {"A": "b\0"}, "/"),
        (["echo"], {}, "/tmp\0"),
        ([], {}, "/"),
    ):
        refused(f"{argv} {env} {cwd!r}", (ValueError,), box.spawn, argv, env=env, cwd=cwd)
    for count in (30, 100):  # more than execve(2) takes; more than anybody takes
        running = opened.start("true", *["x" * 100_000] * count)
        code = opened.finish(running).code
        expect(code == 126 and running.child.error, f"{count * 100_000} bytes of arguments gave {code}")
    expect(opened.sh("exit 4").code == 4, "the box does not go on")


@check("exec.stdin", "standard input is what was given, byte for byte, and then its end")
def stdin(lab: Lab) -> None:
    box = lab.box()
    for given in (b"", b"\0", bytes(range(256)) * 700):
        done = box.run("/bin/cat", stdin=given)
        expect(done.code == 0 and done.out == given, f"of {len(given)} bytes {len(done.out)} came back, or others")


@check("exec.streams-apart", "standard output and standard error stay apart")
def streams_apart(lab: Lab) -> None:
    done = lab.box().sh("echo to-out; echo to-err >&2; echo out-again")
    expect(done.out == b"to-out\nout-again\n" and done.err == b"to-err\n", f"output {done.out!r}, errors {done.err!r}")


@check("exec.large-streams", "64 MiB of random bytes pass whole in both directions at once")
def large_streams(lab: Lab) -> None:
    given = os.urandom(64 << 20)
    done = lab.box().run("/bin/cat", stdin=given, seconds=4 * lab.patience)
    expect(len(done.out) == len(given), f"{len(given)} bytes went in, {len(done.out)} came out")
    expect(hashlib.sha256(done.out).digest() == hashlib.sha256(given).digest(), "other bytes came out than went in")


@check("exec.small-writes", "many small writes arrive all, and in order")
def small_writes(lab: Lab) -> None:
    done = lab.box().sh("i=0; while [ $i -lt 3000 ]; do echo line $i; echo error $i >&2; i=$((i+1)); done")
    for name, got in (("line", done.out), ("error", done.err)):
        expect(
            got == b"".join(b"%s %d\n" % (name.encode(), number) for number in range(3000)),
            f"lines of {name!r} are missing, or in another order",
        )


@check("exec.at-once", "several commands run at once and know nothing of one another")
def at_once(lab: Lab) -> None:
    box, count = lab.box(), 8
    # Each waits until all have come: one after another they would never end.
    script = f"cat > /tmp/at-once.$1; until [ $(ls /tmp/at-once.* | wc -l) -ge {count} ]; do sleep 0.05; done; cat /tmp/at-once.$1; exit $1"
    running = [box.begin(script, str(number), stdin=b"for %d" % number) for number in range(count)]
    try:
        for number, each in enumerate(running):
            done = box.finish(each)
            expect(done.code == number and done.out == b"for %d" % number, f"command {number} gave {done.said}")
    except BaseException:
        lab.renew()
        raise
    box.sh("rm /tmp/at-once.*")


@check("exec.background", "a background process that outlives its command keeps neither the command nor the box from ending")
def background(lab: Lab) -> None:
    with lab.open() as opened:
        began = time.monotonic()
        done = opened.sh("setsid sleep 7.25 >/dev/null 2>&1 </dev/null & echo left")
        expect(done.code == 0 and done.text == "left", f"the command gave {done.said}")
        expect(time.monotonic() - began < 5, "the command ended only with the process that it left behind")
        expect("7.25" in opened.sh("cat /proc/[0-9]*/cmdline").text, "the process that was left behind is gone")
        began = time.monotonic()
        opened.box.close()
        expect(time.monotonic() - began < 3, "closing waited for the process that was left behind")


@check("exec.signal-group", "a signal reaches the whole process group, grandchildren too; for a command that ended nothing happens")
def signal_group(lab: Lab) -> None:
    with lab.open() as opened:
        running = opened.begin("sh -c 'sleep 601 & sleep 601 & echo up; wait' & wait")
        other = opened.begin("echo up; exec sleep 602")
        opened.until(lambda: running.out and other.out, "the commands did not start")
        opened.box.signal(running.child, signal.SIGTERM)
        done = opened.finish(running)
        expect(done.code == 128 + signal.SIGTERM, f"the command gave {done.code}")
        left = opened.sh("cat /proc/[0-9]*/cmdline | tr '\\000' ' '").text
        expect("sleep 601" not in left, "grandchildren are left")
        expect("sleep 602" in left, "another command was hit")
        opened.box.signal(running.child, signal.SIGKILL)
        expect(opened.sh("exit 4").code == 4, "the box does not go on")
        opened.box.signal(other.child, signal.SIGKILL)
        expect(opened.finish(other).code == 128 + signal.SIGKILL, "SIGKILL did not end the other command")


@check("exec.timeout", "when time is over everything ends: also what has left the process group and ignores signals")
def timeout(lab: Lab) -> None:
    folder = lab.folder()
    beat = "trap '' TERM HUP INT QUIT; while :; do echo beat >> /mnt/w/beats; sleep 0.05; done"
    with lab.open(Mount(folder, "/mnt/w", "rw")) as opened:
        opened.begin('setsid /bin/sh -c "$1" >/dev/null 2>&1 & sleep 600', beat)
        opened.until(lambda: _size(f"{folder}/beats"), "the heart did not begin to beat")
        opened.box.close()
        size = _size(f"{folder}/beats")
        time.sleep(0.5)
        expect(_size(f"{folder}/beats") == size, "a process goes on after its sandbox was ended")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


@check("exec.one-place", "all commands of a box see the same files and processes")
def one_place(lab: Lab) -> None:
    box = lab.box()
    expect(
        box.sh("echo mine > /tmp/one; echo mine > ~/one; sleep 17.5 >/dev/null 2>&1 & echo $! > /tmp/one.pid").code == 0,
        "it could not be written",
    )
    expect(box.sh("cat /tmp/one ~/one; rm /tmp/one ~/one").text.split() == ["mine", "mine"], "the next command sees other files")
    expect("17.5" in box.sh("cat /proc/[0-9]*/cmdline").text, "the next command sees other processes")
    expect(box.sh("kill -9 $(cat /tmp/one.pid)").code == 0, "the next command cannot end it")


@check("exec.descriptors", "descriptors that are handed over become 3, 4, ...")
def descriptors(lab: Lab) -> None:
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    try:
        os.write(pipes[0][1], b"through three")
        os.close(pipes[0][1])
        done = lab.box().sh("cat <&3; echo through four >&4", fds=(pipes[0][0], pipes[1][1]))
        expect(done.text == "through three", f"descriptor 3: {done.said}")
        os.set_blocking(pipes[1][0], False)
        try:
            got = os.read(pipes[1][0], 100)
        except BlockingIOError:
            got = b""
        expect(got == b"through four\n", f"descriptor 4 carried {got!r}")
    finally:
        for fd in (pipes[0][0], *pipes[1]):
            os.close(fd)


@check("exec.terminal", "a command can have a terminal of the sandbox's own")
def terminal(lab: Lab) -> None:
    opened = lab.box()
    child = opened.box.spawn(
        ["/bin/sh", "-c", "test -t 0 && test -t 1 && tty && read x && echo got $x"], env={"PATH": "/usr/bin:/bin"}, tty=True
    )
    try:
        opened.until(lambda: child.pid or child.error, "the command did not start")
        if child.terminal < 0:
            raise Failed("the box made no terminal")
        os.set_blocking(child.terminal, False)
        os.write(child.terminal, b"hello\n")
        got = bytearray()

        def done() -> bool:
            try:
                got.extend(os.read(child.terminal, 4096))
            except OSError:
                pass
            return child.status is not None and b"got hello" in got

        opened.until(done, "nothing came back through the terminal")
        expect(child.exit_code == 0 and b"/dev/" in got, f"status {child.exit_code}: {bytes(got)!r}")
    finally:
        if child.terminal >= 0:
            os.close(child.terminal)
