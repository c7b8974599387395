"""Mounts give what they say and nothing beyond: read-only ones no write, writable ones no way out."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from stockade.core.errors import CannotEnforce, WallFailed
from stockade.core.values import Mount, Overlay
from stockade.walls.conformance import probes
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import NO_DOOR, Skipped, expect, explained, refused

if TYPE_CHECKING:
    from stockade.walls.conformance.lab import Lab

TREE = ("file", "other", "empty/")
RESERVED = (
    "/", "/usr", "/etc", "/proc", "/dev", "/sys", "/bin", "/sbin", "/lib", "/lib64", "/proc/x", "/dev/x", "/sys/x", "relative", "", "/mnt/../etc",
    "/mnt//x", "/mnt/x/", "/mnt/./x",
)  # fmt: skip
ROOT_ONLY = "only root can make such a file, so that nothing would show that the probe works"
NOT_HERE = "the file system of the temporary directory, or what this machine runs in, does not let the control succeed"
NO_OVERLAY = "overlayfs does not work on the file system of the temporary directory"


def state(folder: str) -> dict[str, tuple[int, bytes, float]]:
    """All that an operation could change: mode, content and time of every file below."""
    found = {}
    for top, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(top, name)
            about = os.lstat(path)
            content = b""
            if stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[path] = about.st_mode, content, about.st_mtime
    return found


@check("mounts.read-only", "on a read-only mount every operation that writes fails with an error, and the host's files stay as they are")
def read_only(lab: Lab) -> None:
    folder = lab.folder(*TREE)
    before = state(folder)
    for operation in probes.OPERATIONS:
        lab.control_of(probes.OPERATE, operation, lab.folder(*TREE))
    with lab.open(Mount(folder, "/mnt/data", "ro")) as opened:
        for operation in probes.OPERATIONS:
            done = opened.sh(probes.OPERATE, operation, "/mnt/data")
            expect(done.code and done.err, f"{operation} worked, or its refusal was silent")
            expect(state(folder) == before, f"{operation} changed the host's files")
        expect(opened.sh(probes.READ, "/mnt/data/file").text == "file", "the twin: it cannot be read")


@check("mounts.read-write", "on a writable mount every operation works and is seen outside, byte for byte, and so is what changes outside")
def read_write(lab: Lab) -> None:
    natively, inside = (lab.folder(*(f"{operation}/empty/" for operation in probes.OPERATIONS)) for _ in range(2))
    for top in (natively, inside):
        for operation in probes.OPERATIONS:
            for name in ("file", "other"):
                with open(f"{top}/{operation}/{name}", "w") as file:
                    file.write(name)
    with lab.open(Mount(inside, "/mnt/w", "rw")) as opened:
        for operation in probes.OPERATIONS:
            lab.control_of(probes.OPERATE, operation, f"{natively}/{operation}")
            done = opened.sh(probes.OPERATE, operation, f"/mnt/w/{operation}")
            expect(done.code == 0, f"{operation}: {done.said}")
    # A kernel of its own may keep a FIFO to itself.
    there, here = (
        {path[len(top) :]: about[:2] for path, about in state(top).items() if path != f"{top}/fifo/new"} for top in (natively, inside)
    )
    expect(there == here, f"other files than natively: {sorted(path for path in {*there, *here} if there.get(path) != here.get(path))}")
    folder, given = lab.folder(), bytes(range(256)) * 1000
    with lab.open(Mount(folder, "/mnt/w", "rw")) as opened:
        expect(opened.sh("cat > /mnt/w/bytes", stdin=given).code == 0, "a file cannot be written")
        with open(f"{folder}/bytes", "rb") as file:
            expect(file.read() == given, "other bytes are outside than were written inside")
        with open(f"{folder}/later", "wb") as file:
            file.write(given)
        expect(opened.run("/bin/cat", "/mnt/w/later").out == given, "what is written outside later is not seen inside")


@check("mounts.nested", "a read-only mount within a writable one stays read-only, and a single file can be a mount")
def nested(lab: Lab) -> None:
    outer, inner, single = lab.folder("inner/"), lab.folder(*TREE), f"{lab.folder('one')}/one"
    before = state(inner)
    with lab.open(Mount(outer, "/mnt/w", "rw"), Mount(inner, "/mnt/w/inner", "ro"), Mount(single, "/mnt/one", "ro")) as opened:
        for operation in probes.OPERATIONS:
            expect(opened.sh(probes.OPERATE, operation, "/mnt/w/inner").code, f"{operation} worked")
        for script in ("mv /mnt/w/inner /mnt/w/moved", "rm -rf /mnt/w/inner", "echo evil > /mnt/one", "rm -f /mnt/one"):
            expect(opened.sh(script).code, f"`{script}` worked")
        expect(state(inner) == before, "the host's files were changed")
        expect(
            opened.sh("echo mine > /mnt/w/new && cat /mnt/one /mnt/w/inner/file").text == "onefile",
            "the twin: the outer one cannot be written to",
        )
    with open(single) as file:
        expect(file.read() == "one", "the host's file was changed")


@check("mounts.symlinks", "a symbolic link in a mount that points outside leads nowhere, for reading and for writing")
def symlinks(lab: Lab) -> None:
    top = lab.folder("secret", "w/")
    work = f"{top}/w"
    links = {
        "absolute": f"{top}/secret", "relative": "../secret", "folder": top, "chain": "absolute", "root": "/proc/1/root", "own": f"/proc/self/root{top}/secret",
    }  # fmt: skip
    for name, to in links.items():
        os.symlink(to, f"{work}/{name}")
    ways = ("absolute", "relative", "folder/secret", "chain", f"root{top}/secret", "own")
    natively = [
        f"{work}/{way}" for way in ways if not way.startswith("root")
    ]  # an ordinary user may not look through another's /proc/PID/root
    expect(lab.control_of(probes.READ, *natively).text == "secret" * len(natively), "the control did not read the secret")
    with lab.open(Mount(work, "/mnt/w", "rw")) as opened:
        for way in (*ways, "../secret"):
            expect("secret" not in opened.sh(probes.READ, f"/mnt/w/{way}").out.decode("utf-8", "replace"), f"{way} leads outside")
        opened.sh(probes.OVERWRITE, *(f"/mnt/w/{way}" for way in ways))
        with open(f"{top}/secret") as file:
            expect(file.read() == "secret", "a file outside was written to")
        expect(
            opened.sh("cd /mnt/w && echo mine > f && ln -s f l && cat l").text == "mine", "the twin: a link within the mount does not work"
        )
    lab.control_of(probes.OVERWRITE, f"{work}/relative")
    with open(f"{top}/secret") as file:
        expect(file.read() == "evil\n", "the control did not write through the link")


@check("mounts.hard-links", "no hard link can be made to a file of another mount, which would make it writable")
def hard_links(lab: Lab) -> None:
    data, work = lab.folder("file"), lab.folder()
    lab.control_of(probes.LINK, f"{data}/file", f"{work}/natively")
    with lab.open(Mount(data, "/mnt/data", "ro"), Mount(work, "/mnt/w", "rw")) as opened:
        for source in ("/mnt/data/file", "/etc/passwd", "/usr/bin/env"):
            done = opened.sh(probes.LINK, source, "/mnt/w/inside")
            expect(done.code and done.err, f"a hard link to {source} was made, or its refusal was silent")
        expect(
            opened.sh("cd /mnt/w && echo mine > f && ln f g && cat g").text == "mine",
            "the twin: a hard link within the mount does not work",
        )
    expect(os.stat(f"{data}/file").st_nlink == 2, "the file has another name")  # the control's


@check("mounts.devices", "a device file in a mount opens no device, and none can be made", ROOT_ONLY, NOT_HERE)
def devices(lab: Lab) -> None:
    if os.geteuid():
        raise Skipped(ROOT_ONLY)
    folder, tried = lab.folder(), 0
    # Kernel messages; and zeros, unless another kernel has zeros of its own.
    for name, minor in (("kmsg", 11), *([] if lab.wall.OWN_KERNEL else [("zero", 5)])):
        try:
            os.mknod(f"{folder}/{name}", stat.S_IFCHR | 0o666, os.makedev(1, minor))
        except OSError:
            continue
        if (
            lab.control().sh(probes.DEVICE, f"{folder}/{name}").code
            or lab.control().sh(probes.MAKE_DEVICE, f"{folder}/made", "1", str(minor)).code
        ):
            continue
        os.unlink(f"{folder}/made")
        tried += 1
        with lab.open(Mount(folder, "/mnt/w", "rw")) as opened:
            expect(opened.sh(probes.DEVICE, f"/mnt/w/{name}").code, f"the host's {name} was read through a device file")
            for place in ("/mnt/w", "/tmp"):
                expect(
                    opened.sh(probes.MAKE_DEVICE, f"{place}/made", "1", str(minor)).code,
                    f"a device file for {name} was made in {place}, and read",
                )
            expect(opened.sh("echo mine > /mnt/w/f && cat /mnt/w/f").text == "mine", "the twin: the mount cannot be written to")
    if not tried:
        raise Skipped(NOT_HERE)


@check("mounts.set-id", "a set-user-ID file in a mount gives nobody's rights", ROOT_ONLY, NOT_HERE)
def set_id(lab: Lab) -> None:
    if os.geteuid():
        raise Skipped(ROOT_ONLY)
    folder = lab.folder()
    if lab.control().sh(probes.SET_ID, folder).text != "65534":
        raise Skipped(NOT_HERE)
    with lab.open(Mount(folder, "/mnt/w", "rw")) as opened:
        done, mine = opened.sh("/mnt/w/id -u"), opened.sh("id -u")
        expect(mine.code == 0 and (done.code or done.text == mine.text), f"it ran as user {done.text}, and not as {mine.text}")


@check("mounts.targets", "no mount may hide or replace a place that belongs to the wall, or be written in another way than plainly")
def targets(lab: Lab) -> None:
    folder = lab.folder("file")
    for target in RESERVED:
        what, wanted = f"target {target!r}", lab.wanted(Mount(folder, target, "ro"))
        explained(what, refused(what, (CannotEnforce,), lab.plan, wanted))
    with lab.open(Mount(folder, "/srv/a b/c", "ro")) as opened:
        expect(opened.sh(probes.READ, "/srv/a b/c/file").text == "file", "the twin: a harmless target does not work")


@check("mounts.overlay", "an overlay shows what is below it, and keeps every write to itself", NO_DOOR, NO_OVERLAY)
def overlay(lab: Lab) -> None:
    lower, place = lab.folder(*TREE), lab.folder("upper/", "work/", "stage/")
    before = state(lower)
    layer = Overlay(lower, f"{place}/upper", f"{place}/work", "/mnt/layer")
    try:
        with lab.open(network="door", overlays=(layer,), stage=f"{place}/stage") as opened:
            opened.until(lambda: opened.box.ready, "the sandbox did not stand")
            expect(
                opened.sh("cd /mnt/layer && cat file && echo mine > file && echo new > new && rm other && cat file").text == "filemine",
                "it cannot be used",
            )
    except WallFailed as error:
        if "overlay" in error.message:
            raise Skipped(NO_OVERLAY) from error
        raise
    expect(state(lower) == before, "a write reached what lies below")
    with open(f"{place}/upper/file") as file:
        expect(file.read() == "mine\n", "the write is not in the upper layer")


@check("mounts.held", "what is held in place can be neither moved nor removed, and a read-only part of it not written to", NO_DOOR)
def held(lab: Lab) -> None:
    top = lab.folder("a/b/", "a/b/file")
    scripts = (
        "mv a z",
        "mv a/b z",
        "mv a/b a/c",
        "rm -rf a/b",
        "echo evil > a/b/file",
        "echo evil > a/b/new",
        "rm -f a/b/file",
        "chmod 777 a/b/file",
        "mv a/b/file z",
    )
    before = state(f"{top}/a")
    loose = lab.folder(*(f"{number}/a/b/" for number in range(len(scripts))))
    with lab.open(Mount(loose, loose, "rw"), network="door") as opened:  # the control: nothing is held
        for number, script in enumerate(scripts):
            done = opened.sh(f"echo mine > a/b/file && {script}", cwd=f"{loose}/{number}")
            expect(done.code == 0, f"the control: `{script}` does not work ({done.said}), so that nothing is proved")
    with lab.open(Mount(top, top, "rw"), network="door", held=(f"rw:{top}/a", f"ro:{top}/a/b")) as opened:
        for script in scripts:
            expect(opened.sh(script, cwd=top).code, f"`{script}` worked")
        # mv(1) to another mount copies first, and what it copied may stay.
        expect(state(f"{top}/a") == before, "the host's files were changed")
        expect(
            opened.sh("echo fine > a/new && cat a/b/file a/new", cwd=top).text == "a/b/filefine",
            "the twin: what is beside it cannot be written to",
        )
