"""What a box sees of the host's files, and what it may write to: its private places, and nothing else."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from stockade.core import places
from stockade.walls.conformance import probes
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import HOME, expect

if TYPE_CHECKING:
    from stockade.walls.conformance.lab import Lab, Opened

PRIVATE = ("/tmp", "/var/tmp", "/dev/shm", HOME)


@check("files.private", "the private places can be written to, and executed from where they hold a home or /tmp")
def private(lab: Lab) -> None:
    box = lab.box()
    for place in PRIVATE:
        done = box.sh('mkdir -p "$1/sub" && echo text > "$1/sub/f" && mv "$1/sub/f" "$1/f" && cat "$1/f" && rm -r "$1/f" "$1/sub"', place)
        expect(done.code == 0 and done.text == "text", f"{place}: {done.said}")
    done = box.sh("printf '#!/bin/sh\\necho ran' > /tmp/program && chmod +x /tmp/program && /tmp/program")
    expect(done.text == "ran", f"a program in /tmp: {done.said}")


@check("files.system", "the system's files cannot be written to, and say so")
def system(lab: Lab) -> None:
    lab.control_of(probes.APPEND, f"{lab.folder()}/new")
    box, name = lab.box(), f"conformance-{lab.token}"
    for place in ("", "/usr", "/usr/bin", "/usr/lib", "/etc", "/bin", "/var", "/run"):
        done = box.sh(probes.APPEND, f"{place}/{name}")
        expect(done.code and done.err, f"a file was made in {place or '/'}, or its refusal was silent")
    for path in ("/etc/passwd", "/usr/bin/env", "/bin/sh"):
        done = box.sh(probes.APPEND, path)
        expect(done.code and done.err, f"{path} was opened for writing, or its refusal was silent")
    for script in (
        "rm -f /usr/bin/env",
        "mv /usr/bin/env /usr/bin/env2",
        "rm -f /etc/passwd",
        "rmdir /tmp",
        f"mkdir /usr/{name}",
        f"ln -s x /etc/{name}",
    ):
        done = box.sh(script)
        expect(done.code and done.err, f"`{script}` worked, or its refusal was silent")
    expect(
        box.sh(probes.APPEND, "/tmp/new").code == 0 and box.sh("/usr/bin/env true; test -s /etc/passwd").code == 0,
        "the twin: /tmp cannot be written to",
    )


@check("files.host-hidden", "nothing of the host's /tmp, home or temporary directories is in view")
def host_hidden(lab: Lab) -> None:
    name = f"canary-{lab.token}"
    home = lab.folder()
    with open(f"{home}/{name}", "w") as file:
        file.write(name)
    with tempfile.TemporaryDirectory(dir=places.private(places.cache().rstrip("/"))) as cache:
        with open(f"{cache}/{name}", "w") as file:
            file.write(name)
        planted = [f"{home}/{name}", f"{cache}/{name}"]
        done = lab.control_of(probes.FIND, name, home, cache)
        expect({*done.text.split()} == {*planted}, "the control did not find what was planted")
        lab.control_of(probes.READ, *planted)
        with lab.open(home=home) as opened:  # a home of the same name as one on the host
            _blind(opened, name, [home, cache], planted)
            expect(
                opened.sh('cd "$1" && echo mine > "$2" && cat "$2"', home, name).text == "mine",
                "the twin: the private home cannot be written to",
            )
        _blind(lab.box(), name, [home, cache], planted)
        with open(planted[0]) as file:
            expect(file.read() == name, "the host's file was written to")


def _blind(opened: Opened, name: str, folders: list[str], planted: list[str]) -> None:
    everywhere = ["/tmp", "/var", "/home", "/root", "/run", "/opt", "/srv", "/mnt", "/media", "/dev/shm", *folders]
    found = opened.sh(probes.FIND, name, *everywhere).text
    expect(not found, f"in view: {found}")
    for path in planted:
        expect(name not in opened.sh(probes.READ, path).text, f"{path} can be read")
        expect(name not in opened.sh(probes.READ, f"/proc/1/root{path}").text, f"{path} can be read through /proc/1/root")


@check("files.apart", "two boxes see nothing of each other, neither files nor processes")
def apart(lab: Lab) -> None:
    name = f"apart-{lab.token}"
    with lab.open() as one, lab.open() as two:
        running = one.begin('for place; do echo here > "$place"; done; echo up; exec sleep 603', *(f"{place}/{name}" for place in PRIVATE))
        one.until(lambda: running.out, "the command did not start")
        for opened, seen in ((one, True), (two, False)):
            for place in PRIVATE:
                expect(
                    (opened.sh(probes.READ, f"{place}/{name}").text == "here") == seen,
                    f"{place} is shared, or the twin does not see its own",
                )
            expect(("sleep 603" in opened.sh(probes.COMMAND_LINES).text) == seen, "processes are shared, or the twin does not see its own")


@check("files.ephemeral", "nothing is left in the private places for the next box")
def ephemeral(lab: Lab) -> None:
    paths = [f"{place}/kept-{lab.token}" for place in PRIVATE]
    with lab.open() as opened:
        expect(opened.sh('for path; do echo here > "$path"; done', *paths).code == 0, "the private places cannot be written to")
    with lab.open() as opened:
        left = [path for path in paths if opened.sh('test -e "$1"', path).code == 0]
    expect(not left, f"still there in the next box: {', '.join(left)}")
    expect(not any(os.path.exists(path) for path in paths), "it lies on the host")
