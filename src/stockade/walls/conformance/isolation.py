"""Nothing of the host comes in and nothing of the sandbox reaches it: processes, keys, descriptors, environment, namespaces, kernel settings."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stockade.core.values import Mount
from stockade.walls.conformance import holder, probes
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import Skipped, expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.walls.conformance.lab import Lab

NO_KEYS = "this kernel, or what this machine runs in, keeps no keys for us"
NO_NAMESPACES = "user namespaces are refused on this machine, or there is no unshare(1), so that nothing would show that the probe works"
ROOT_ONLY = "only root could change the kernel's settings anyway"
NO_SETTINGS = "what this machine runs in does not let root change the kernel's settings"
NO_IPC = "there is no ipcmk(1) and ipcs(1) on this machine, or no ipcs(1) inside"


@contextmanager
def victim(token: str) -> Iterator[int]:
    """A process of the host that does nothing, with `token` in its command line; gives its PID."""
    with subprocess.Popen(["/bin/sh", "-c", "while :; do sleep 1; done", token], start_new_session=True) as process:
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@check("isolation.processes", "no process of the host is in view")
def processes(lab: Lab) -> None:
    box, token = lab.box(), f"victim-{lab.token}"
    with victim(token):
        expect(token in lab.control_of(probes.COMMAND_LINES).text, "the control does not see it, so that nothing is proved")
        expect(token not in box.sh(probes.COMMAND_LINES).text, "a process of the host is in view")
    expect(box.sh(f"{probes.COMMAND_LINES}\n# own-{lab.token}").text.count(f"own-{lab.token}"), "the twin: it does not see its own")


@check("isolation.signals", "no process of the host can be signalled")
def signals(lab: Lab) -> None:
    with victim("natively") as pid, victim("from inside") as other:
        lab.control_of(probes.KILL, str(pid))
        expect(_ended(pid, lab.patience), "the control's signal did not arrive, so that nothing is proved")
        lab.box().sh(probes.KILL, str(other))
        expect(not _ended(other, 0.3), "a process of the host was ended from inside")
    expect(lab.box().sh("sleep 60 & kill -TERM $! && wait $!; test $? = 143").code == 0, "the twin: it cannot end its own")


def _ended(pid: int, seconds: float) -> bool:
    from stockade.walls.conformance.census import until

    def dead() -> bool:
        with open(f"/proc/{pid}/stat") as file:  # it is our child, and stays until we have asked for its end
            return file.read().rpartition(")")[2].split()[0] == "Z"

    return until(dead, seconds)


@check("isolation.keyrings", "the caller's keys are not in view", NO_KEYS)
def keyrings(lab: Lab) -> None:
    with holder.holding(lab, "keys") as held:
        said = held.answer
        held.close()
    if not said["planted"]:
        raise Skipped(NO_KEYS)
    expect(holder.KEY in said["native"], "the control does not see the key, so that nothing is proved")
    expect(holder.KEY not in said["inside"], "a key of the caller's session is in view")
    expect(said["twin"] == "alive", "the twin: it answers nothing at all")


@check("isolation.descriptors", "a descriptor that the caller left open is not inherited")
def descriptors(lab: Lab) -> None:
    path = f"{lab.folder('leak')}/leak"
    leak = os.open(path, os.O_RDONLY)
    try:
        os.set_inheritable(leak, True)
        expect(path in lab.control_of(probes.DESCRIPTORS).text, "the control does not inherit it, so that nothing is proved")
        with lab.open() as opened:
            done = opened.sh(probes.DESCRIPTORS)
            expect(path not in done.text and "/leak" not in done.text, "it is inherited")
            expect(len(done.text.splitlines()) == 3, f"a command holds other descriptors than its three: {', '.join(done.text.split())}")
    finally:
        os.close(leak)


@check("isolation.environment", "nothing of the caller's environment is in view")
def environment(lab: Lab) -> None:
    name, value = f"CONFORMANCE_{lab.token.upper()}", f"canary-{lab.token}"
    os.environ[name] = value
    try:
        expect(value in lab.control_of(probes.ENVIRONMENT, env=os.environ).text, "the control does not see it, so that nothing is proved")
        with lab.open() as opened:
            given = {"PATH": "/usr/bin:/bin", "GIVEN": "yes"}
            found = opened.sh(f"{probes.ENVIRONMENT}; cat /proc/[0-9]*/environ 2>/dev/null; :", env=given).text
            expect(value not in found and name not in found, "it is in view")
            expect("GIVEN=yes" in found, "the twin: what is given is not there")
    finally:
        del os.environ[name]


@check("isolation.kernel", "the kernel is the host's or another one, as the wall says")
def kernel(lab: Lab) -> None:
    natively, inside = lab.control_of(probes.READ, "/proc/version"), lab.box().sh(probes.READ, "/proc/version")
    expect(inside.code == 0 and inside.out, f"it does not say which it is: {inside.said}")
    expect(
        (natively.out != inside.out) == lab.wall.OWN_KERNEL, f"`OWN_KERNEL` is {lab.wall.OWN_KERNEL}, and inside is {inside.text[:60]!r}"
    )


@check(
    "isolation.namespaces",
    "no new user namespace can be made on the host's kernel; under a kernel of its own one gives no reach",
    NO_NAMESPACES,
)
def namespaces(lab: Lab) -> None:
    if lab.control().sh(probes.USER_NAMESPACE).code:
        raise Skipped(NO_NAMESPACES)
    folder = lab.folder("file")
    with lab.open(Mount(folder, "/mnt/data", "ro")) as opened:
        done = opened.sh(probes.USER_NAMESPACE)
        expect(done.code or lab.wall.OWN_KERNEL, "a user namespace was made on the host's kernel")
        opened.sh(probes.REMOUNT, "/mnt/data")
        with open(f"{folder}/file") as file:
            expect(file.read() == "file", "with a namespace of its own it wrote to a read-only mount")
        expect(opened.sh("echo alive").text == "alive", "the twin: it does not go on")


@check("isolation.kernel-settings", "the settings of the host's kernel cannot be written to", ROOT_ONLY, NO_SETTINGS)
def kernel_settings(lab: Lab) -> None:
    if os.geteuid():
        raise Skipped(ROOT_ONLY)
    settings = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"]
    writable = [path for path in settings if os.path.exists(path) and lab.control().sh(probes.APPEND, path).code == 0]
    if not writable:
        raise Skipped(NO_SETTINGS)
    box = lab.box()
    if not lab.wall.OWN_KERNEL:
        for path in writable:
            expect(box.sh(probes.APPEND, path).code, f"{path} can be written to")
    expect(box.sh(probes.APPEND, "/tmp/setting").code == 0, "the twin: its own files cannot be written to")


@check("isolation.ipc", "shared memory of the host (System V) is not in view", NO_IPC)
def ipc(lab: Lab) -> None:
    try:
        made = subprocess.run(["ipcmk", "-M", "4096"], capture_output=True, text=True, check=False)
    except OSError:
        raise Skipped(NO_IPC) from None
    found = re.search(r"(\d+)\s*$", made.stdout)
    if made.returncode or not found:
        raise Skipped(NO_IPC)
    try:
        key = next((line.split()[0] for line in lab.control_of(probes.SHARED_MEMORY).text.splitlines() if found[1] in line.split()), "")
        expect(key, "the control does not see it, so that nothing is proved")
        done = lab.box().sh(probes.SHARED_MEMORY)
        if done.code == 127:
            raise Skipped(NO_IPC)
        expect(key not in done.text, "it is in view")
    finally:
        subprocess.run(["ipcrm", "-m", found[1]], capture_output=True, check=False)
    expect(lab.box().sh("echo alive").text == "alive", "the twin: it does not go on")
