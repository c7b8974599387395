"""Programs that a release has too old (gVisor's runsc, QEMU), from Debian's own archive: which sources this machine has, and what has to be written and run.

Nothing here is on the way of a sandbox. `steps_here` and `sources` read the machine, the rest only decides. Formats: sources.list(5), apt_preferences(5), os-release(5).
"""

from __future__ import annotations

import glob
import platform
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.walls import programs, runsc
from stockade.walls.programs import Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

APT = "/etc/apt"
_OWN = f"{APT}/sources.list.d/stockade-"
BEHIND = "bookworm"  # the release whose own packages are too old; its backports have good ones
# What says how a mirror is to be trusted goes with its address; the names in a one-line entry, and those in a deb822 stanza.
KEPT = {"arch": "Architectures", "signed-by": "Signed-By", "trusted": "Trusted", "check-valid-until": "Check-Valid-Until"}
_FALSE = ("no", "false", "without", "off", "disable", "0")  # as apt reads them


@frozen
class Source:
    """One enabled entry for binary packages. `options` are (deb822 name, value) of those in KEPT; a value may have several lines (a key)."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


@frozen
class Wanted:
    """A program in `package`; `others` have to come with it from the same release. `version` finds in a package's version the numbers that `oldest` is compared with;
    `without` is what to do where no package is good enough.
    """

    package: str
    others: tuple[str, ...]
    version: str
    oldest: tuple[int, ...]
    without: str

    @property
    def list(self) -> str:
        return f"{_OWN}{self.package}.sources"

    @property
    def preferences(self) -> str:
        return f"{APT}/preferences.d/stockade-{self.package}"

    def numbers(self, version: str) -> tuple[int, ...]:
        """() where there are none."""
        found = re.search(self.version, version)
        return tuple(map(int, found.groups())) if found else ()


RUNSC = Wanted(
    "runsc",
    (),
    r"(20\d{6})",
    (runsc.OLDEST,),
    f"Install gVisor's runsc, {runsc.OLDEST} or later, to {runsc.PROGRAMS[1]} or {runsc.PROGRAMS[0]}: from this distribution, or from the packages and "
    "releases that gVisor publishes itself (its documentation, under Installation, says how).",
)
QEMU = Wanted(
    "qemu-system-x86",
    ("qemu-system-common", "qemu-system-data", "seabios"),
    r"(?:^|:)(\d+)\.(\d+)",
    (8, 2),  # the first with memory-backend-file,readonly=on,rom=off: many machines from one snapshot
    "Install QEMU 8.2 or later (qemu-system-x86_64) to /usr/bin: from this distribution, or from its backports.",
)
BEHIND_PACKAGES = {wanted.package: wanted for wanted in (RUNSC, QEMU)}


# ---- reading ----------------------------------------------------------------------------------------------------------------------


def one_line(text: str) -> list[Source]:
    """The entries of a file in the one-line format; what is no entry is left out."""
    found = []
    for line in text.splitlines():
        entry = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*|(?!\[))(.*)", line)
        # A word may hold spaces in brackets or quotes (the address of a disc); "#" begins a comment elsewhere.
        words = re.findall(r'(?:\[[^\]]*\]|"[^"]*"|[^\s\["#])+|#.*', entry[2]) if entry else []
        words = words[: next((at for at, word in enumerate(words) if word.startswith("#")), None)]
        if entry and len(words) > 1:
            pairs = [pair.partition("=") for pair in (entry[1] or "").split()]
            options = [(KEPT[name.lower()], value.replace(",", " ")) for name, _, value in pairs if name.lower() in KEPT and value]
            found.append(Source((words[0],), (words[1],), tuple(words[2:]), tuple(options)))
    return found


def deb822(text: str) -> list[Source]:
    """The enabled stanzas of a file in the deb822 format; what is no stanza is left out."""
    found = []
    for fields in _stanzas(text):
        types, uris, suites, components = (tuple(fields.get(name, "").split()) for name in ("types", "uris", "suites", "components"))
        if "deb" in types and uris and suites and fields.get("enabled", "yes").strip().lower() not in _FALSE:
            options = tuple((name, fields[name.lower()]) for name in KEPT.values() if fields.get(name.lower(), "").strip())
            found.append(Source(uris, suites, components, options))
    return found


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Each stanza, its field names in lower case. A value keeps its line ends: it may be a key."""
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.split("\n"), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += f"\n{line.rstrip()}"
        else:
            before, colon, after = line.partition(":")
            name = before.strip().lower() if colon else ""
            if name:
                fields[name] = after.strip()


def written(source: Source) -> str:
    """`source` as a deb822 stanza."""
    lines = [
        "Types: deb",
        f"URIs: {' '.join(source.uris)}",
        f"Suites: {' '.join(source.suites)}",
        f"Components: {' '.join(source.components)}",
    ]
    lines += [f"{name}:{'' if value.startswith(chr(10)) else ' '}{value}" for name, value in source.options]
    return "\n".join(lines) + "\n"


# ---- deciding ---------------------------------------------------------------------------------------------------------------------


def archive(sources: Sequence[Source], codename: str) -> Source | None:
    """The entry of Debian's main archive for the release `codename`; None without evidence that there is one.

    Others name their suites after Debian's releases too. Evidence is, from the best: Debian's own key; that the same address has the release's
    updates; a path that ends in "debian", where no key is named. Addresses with a password in them are not taken: they would be copied.
    """
    updated = {uri.rstrip("/") for source in sources if f"{codename}-updates" in source.suites for uri in source.uris}

    def evidence(source: Source) -> int:
        key = dict(source.options).get("Signed-By", "")
        if key.rpartition("/")[2].startswith("debian-archive-"):
            return 3
        uris = {uri.rstrip("/") for uri in source.uris}
        if updated & uris:
            return 2
        return int(not key and any(uri.endswith("/debian") for uri in uris))

    able = [
        source for source in sources if codename in source.suites and "main" in source.components and all(map(plain_address, source.uris))
    ]
    best = max(able, key=evidence, default=None)
    return best if best is not None and evidence(best) else None


def releases(sources: Sequence[Source], codename: str) -> list[Source]:
    """The entries of Debian's main archive for the release `codename`, its updates and its security updates; only that, and nothing without evidence."""
    main = archive(sources, codename)
    if main is None:
        return []
    wanted = (codename, f"{codename}-updates", f"{codename}-security")
    key = dict(main.options).get("Signed-By", "")
    trusted = [one for one in sources if one == main or (dict(one.options).get("Signed-By", "") == key and "main" in one.components)]
    return [
        Source(one.uris, suites, ("main",), one.options)
        for one in trusted
        if (suites := tuple(suite for suite in one.suites if suite in wanted)) and all(map(plain_address, one.uris))
    ]


def plain_address(uri: str) -> bool:
    """Whether an address may be written into a file that everybody may read, and leads to a mirror rather than a disc."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    return "@" not in parts.netloc and parts.scheme not in ("", "cdrom")


def steps(wanted: Wanted, machine: Mapping[str, str], sources: Sequence[Source], offered: tuple[int, ...], listed: str = "") -> list[Step]:
    """What installs a good one. `machine` is os-release's content, `offered` what apt would install today (() = nothing), `listed` a list that we have written for another
    package, which has the backports already.

    Raises StockadeError (`doctor.fix`) where Debian's archive has no good one for this machine, or it cannot be told which of the sources it is.
    """
    backports = f"{BEHIND}-backports"
    install = programs.install([wanted.package])
    better = programs.install([f"{package}/{backports}" for package in (wanted.package, *wanted.others)])
    update = Step(programs.as_root("apt-get", "update"))
    if offered >= wanted.oldest:
        return [install]
    codename, name = machine.get("VERSION_CODENAME", ""), machine.get("PRETTY_NAME", "this system")
    if machine.get("ID") == "debian" and codename != BEHIND and not offered:  # no lists yet
        return [update, install]
    if machine.get("ID") != "debian" or codename != BEHIND:
        seen = f"is of {'.'.join(map(str, offered))}, too old" if offered else "is not there"
        raise StockadeError(f"{wanted.package} from the packages of {name} {seen}", code="doctor.fix", hint=wanted.without)
    if any(backports in source.suites for source in sources):
        return [update, better]
    main = archive(sources, BEHIND)
    if main is None:
        raise StockadeError(
            f"none of apt's sources here is known to be Debian's main archive of {BEHIND}",
            code="doctor.fix",
            hint=f"Add {backports} to apt's sources, and run this again.",
        )
    stanza = Source(main.uris, (backports,), ("main",), main.options)
    remark = f"Written by `stockade doctor --fix` for {' '.join((wanted.package, *wanted.others))} alone. To undo it: rm {wanted.list} {wanted.preferences}"
    # 990: also on a machine that has a default release.
    priorities = (("*", -1), *((package, 990) for package in (wanted.package, *wanted.others)))
    pins = f"Explanation: {remark}\n" + "\n".join(
        f"Package: {package}\nPin: release n={backports}\nPin-Priority: {priority}\n" for package, priority in priorities
    )
    only = ("-o", f"Dir::Etc::sourcelist={listed or wanted.list}", "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Get::List-Cleanup=0")
    return [
        programs.write(wanted.preferences, pins),  # first: what the list offers is never there without its bounds
        *([] if listed else [programs.write(wanted.list, f"# {remark}\n{written(stanza)}")]),
        Step(programs.as_root("apt-get", "update", *only, "-o", "APT::Update::Error-Mode=any")),
        better,
    ]


# ---- looking at this machine ------------------------------------------------------------------------------------------------------


def steps_here(wanted: Wanted) -> list[Step]:
    """What installs a good one on this machine. Raises StockadeError (`doctor.fix`), as `steps`."""
    _, said = programs.run(["env", "LC_ALL=C", "apt-cache", "policy", wanted.package])
    candidate = re.search(r"Candidate: (\S+)", said)
    try:
        machine: Mapping[str, str] = platform.freedesktop_os_release()
    except OSError:
        machine = {}
    others = [name for name in sorted(glob.glob(f"{_OWN}*.sources")) if name != wanted.list]
    listed = next((name for name in others if any(f"{BEHIND}-backports" in source.suites for source in sources([name]))), "")
    return steps(wanted, machine, sources(), wanted.numbers(candidate[1]) if candidate else (), listed)


def sources(files: Sequence[str] = ()) -> list[Source]:
    """The sources that apt has on this machine, but for those that we have written ourselves; or those of `files`."""
    own = [f"{APT}/sources.list", *sorted(glob.glob(f"{APT}/sources.list.d/*.list") + glob.glob(f"{APT}/sources.list.d/*.sources"))]
    return list(_read(files or [file for file in own if not file.startswith(_OWN)]))


def _read(files: Iterable[str]) -> Iterator[Source]:
    for name in files:
        try:
            with open(name, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        yield from deb822(text) if name.endswith(".sources") else one_line(text)
