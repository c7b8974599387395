"""`plan` is a pure function: the whole argument vector for a representative confinement, and laws that hold for every one."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Limits, Mount, Overlay
from stockade.walls.bubblewrap import Host, Plan, plan, rlimits
from stockade.walls.view import RESERVED, check_target

HOST = Host(
    bwrap="/usr/bin/bwrap",
    links=(("usr/bin", "/bin"), ("/lib64", "/lib64")),  # one merged, one a directory of its own
    etc="/cache/etc/v1",
    masked=("/proc/keys",),
)
WANTED = Confinement(
    mounts=(
        Mount("/data/sets", "/work/project/data", "ro"),
        Mount("/srv/project", "/work/project", "rw"),
        Mount("/cache/ca.pem", "/etc/ssl/certs/ca-certificates.crt", "ro"),
    ),
    overlays=(Overlay("/srv/project/.git", "/state/upper", "/state/work", "/work/project/.git"),),
    network="door",
    limits=Limits(processes=100, memory=1 << 30, cpu_time=60, file_size=1 << 20, open_files=512, scratch=4096),
    environment=(("PATH", "/usr/bin"),),
    cwd="/work/project",
    home="/home/ada",
    workspace="/work/project",
)


def test_the_whole_argument_vector() -> None:
    found = plan(WANTED, HOST, stage="/state/stage")
    assert found.arguments == (
        *("--unshare-user", "--disable-userns", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"),
        *("--cap-drop", "ALL", "--as-pid-1", "--clearenv", "--hostname", "stockade"),
        *("--ro-bind", "/usr", "/usr"),
        *("--symlink", "usr/bin", "/bin"),
        *("--ro-bind", "/lib64", "/lib64"),
        *("--ro-bind", "/cache/etc/v1", "/etc"),
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"),
        *("--dev", "/dev", "--size", "4096", "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--ro-bind", "/dev/null", "/proc/keys"),
        *("--size", "4096", "--perms", "1777", "--tmpfs", "/tmp"),
        *("--size", "4096", "--perms", "1777", "--tmpfs", "/var/tmp", "--perms", "0755", "--dir", "/run"),
        *("--size", "4096", "--perms", "0700", "--tmpfs", "/home/ada"),
        *("--bind-fd", "@1", "/work/project"),
        *("--bind", "/state/stage/0", "/work/project/.git"),
        *("--ro-bind-fd", "@0", "/work/project/data"),
        *("--ro-bind-fd", "@2", "/etc/ssl/certs/ca-certificates.crt"),
        *("--remount-ro", "/", "--chdir", "/"),
    )
    assert found.paths == ("/data/sets", "/srv/project", "/cache/ca.pem")
    assert (found.overlays, found.stages) == (WANTED.overlays, ("/state/stage/0",))
    assert found.rules == (
        *("ro:/usr", "ro:/etc", "ro:/lib64", "rw:/tmp", "rw:/var/tmp", "rw:/dev", "rw:/home/ada"),
        *("rw:/work/project", "rw:/work/project/.git", "ro:/work/project/data", "ro:/etc/ssl/certs/ca-certificates.crt", "ro:/"),
    )
    assert found.landlock == 1
    assert found.rlimits == ((4, 0), (0, 60), (1, 1 << 20), (2, 1 << 30), (6, 100), (7, 512))
    assert (found.network, found.bwrap) == ("door", "/usr/bin/bwrap")


def test_the_receipt_names_a_mechanism_for_every_mount_and_for_the_network() -> None:
    lines = {line.rule: line.mechanism for line in plan(WANTED, HOST, stage="/state/stage").enforced}
    assert {f"mount {mount.target}" for mount in WANTED.mounts} | {"overlay /work/project/.git"} <= set(lines)
    assert lines["mount /work/project/data"] == "read-only bind"
    assert lines["network"].startswith("door")
    assert all(lines.values())


def test_the_default_holds_nothing() -> None:
    found = plan(Confinement(), HOST)
    assert "--unshare-net" in found.arguments
    assert not {word for word in found.arguments if word.endswith("bind-fd") or word == "--bind"}
    assert not found.paths and not found.overlays
    assert (4, 0) in found.rlimits  # no core dumps, whatever the limits


def test_only_the_gate_gets_the_hosts_network() -> None:
    """Without the door's namespace, bubblewrap makes an empty one; the one exception is spelled out and cannot come from a policy."""
    for network in ("none", "door"):
        found = plan(replace(WANTED, network=network, overlays=()), HOST)
        assert ("--unshare-net" in found.arguments) == (network == "none")
        assert "--share-net" not in found.arguments
    assert "--unshare-net" not in plan(Confinement(), HOST, dangerously_share_host_network=True).arguments


names = st.text("abcdefgh.-_", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
targets = st.lists(names, min_size=1, max_size=5).map(lambda parts: "/mnt/" + "/".join(parts))
mounts = st.lists(st.builds(Mount, targets, targets, st.sampled_from(["ro", "rw"])), max_size=12, unique_by=lambda mount: mount.target)
overlays = st.lists(targets, max_size=3, unique=True)


def _confinement(binds: list[Mount], layers: list[str]) -> Confinement:
    private = tuple(Overlay(f"/l{number}", f"/u{number}", f"/w{number}", target) for number, target in enumerate(layers))
    return Confinement(mounts=tuple(mount for mount in binds if mount.target not in layers), overlays=private, network="door")


def _placed(found: Plan) -> list[str]:
    """The targets in the order in which bubblewrap mounts them."""
    takes = {"--ro-bind": 2, "--bind": 2, "--ro-bind-fd": 2, "--bind-fd": 2, "--tmpfs": 1, "--proc": 1, "--dev": 1}
    words, order = list(found.arguments), []
    while words:
        word = words.pop(0)
        if word in takes:
            order.append(words[takes[word] - 1])
            del words[: takes[word]]
    return order


@settings(max_examples=40, deadline=None)
@given(mounts, overlays)
def test_no_mount_is_hidden_by_one_above_it(binds: list[Mount], layers: list[str]) -> None:
    order = _placed(plan(_confinement(binds, layers), HOST, stage="/s"))
    for position, target in enumerate(order):
        later = order[position + 1 :]
        assert not [other for other in later if target.startswith(other.rstrip("/") + "/")], order


@settings(max_examples=40, deadline=None)
@given(mounts, overlays)
def test_every_mount_is_placed_once_from_its_own_source_in_its_own_mode(binds: list[Mount], layers: list[str]) -> None:
    wanted = _confinement(binds, layers)
    found = plan(wanted, HOST, stage="/s")
    words = found.arguments
    placed = {
        (found.paths[int(words[index + 1][1:])], words[index + 2], "ro" if word == "--ro-bind-fd" else "rw")
        for index, word in enumerate(words)
        if word in ("--ro-bind-fd", "--bind-fd")
    }
    assert placed == {(mount.source, mount.target, mount.mode) for mount in wanted.mounts}
    assert {f"{mount.mode}:{mount.target}" for mount in wanted.mounts} <= set(found.rules)
    writable = {rule[3:] for rule in found.rules if rule.startswith("rw:")}
    ours = {"/tmp", "/var/tmp", "/dev", wanted.home}
    assert writable == ours | {mount.target for mount in wanted.mounts if mount.mode == "rw"} | set(layers)


@settings(max_examples=40, deadline=None)
@given(mounts, overlays)
def test_plan_is_pure(binds: list[Mount], layers: list[str]) -> None:
    wanted = _confinement(binds, layers)
    assert plan(wanted, HOST, stage="/s") == plan(wanted, HOST, stage="/s")


@settings(max_examples=40, deadline=None)
@given(mounts, st.booleans(), st.sampled_from(["none", "door"]))
def test_nothing_a_confinement_says_loosens_the_wall_itself(binds: list[Mount], scratch: bool, network: str) -> None:
    wanted = Confinement(mounts=tuple(binds), network=network, limits=Limits(scratch=4096 if scratch else 0))  # type: ignore[arg-type]
    words = plan(wanted, HOST).arguments
    assert {"--unshare-user", "--disable-userns", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--clearenv", "--as-pid-1"} <= set(
        words
    )
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert not {"--cap-add", "--share-net", "--dev-bind", "--dev-bind-try", "--setenv"} & set(words)
    assert words[-4:-2] == ("--remount-ro", "/")


@pytest.mark.parametrize(
    "target", [*RESERVED, "/proc/self", "/dev/shm", "/sys/kernel", "relative", "", "/a/../etc", "/a//b", "/a/", "/a\0b", "/./a"]
)
def test_reserved_and_crooked_targets_are_refused(target: str) -> None:
    with pytest.raises(CannotEnforce) as caught:
        plan(Confinement(mounts=(Mount("/data", target),)), HOST)
    assert caught.value.code == "mount.target"
    assert caught.value.hint


@given(st.text(max_size=20))
def test_a_target_that_passes_is_absolute_plain_and_not_ours(target: str) -> None:
    try:
        check_target(target)
    except CannotEnforce:
        return
    assert posixpath.isabs(target) and posixpath.normpath(target) == target
    assert target not in RESERVED


@pytest.mark.parametrize("mode", ["rw-no-delete", "wo", ""])
def test_a_mode_that_cannot_be_enforced_is_refused(mode: str) -> None:
    with pytest.raises(CannotEnforce) as caught:
        plan(Confinement(mounts=(Mount("/data", "/mnt/data", mode),)), HOST)  # type: ignore[arg-type]
    assert caught.value.code == "mount.mode"


def test_a_network_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CannotEnforce) as caught:
        plan(Confinement(network="bridge"), HOST)  # type: ignore[arg-type]
    assert caught.value.code == "network.kind"


@given(st.builds(Limits, *[st.integers(0, 1 << 40)] * 5))
def test_a_limit_of_zero_is_no_limit_and_all_others_are_set(limits: Limits) -> None:
    found = dict(rlimits(limits))
    wanted = {0: limits.cpu_time, 1: limits.file_size, 2: limits.memory, 6: limits.processes, 7: limits.open_files}
    assert found == {4: 0, **{resource: value for resource, value in wanted.items() if value}}
