"""A good runsc from Debian's own archive: which sources this machine has, and what has to be written and run. Nothing here is on the way of a sandbox.

`runsc_steps` reads the machine, the rest only decides. Formats: sources.list(5), apt_preferences(5), os-release(5).
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
LIST = f"{APT}/sources.list.d/stockade-runsc.sources"
PREFERENCES = f"{APT}/preferences.d/stockade-runsc"
BEHIND = "bookworm"  # the release whose own runsc is too old; its backports have a good one
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

    able = [source for source in sources if codename in source.suites and "main" in source.components and all(map(_plain, source.uris))]
    best = max(able, key=evidence, default=None)
    return best if best is not None and evidence(best) else None


def _plain(uri: str) -> bool:
    """Whether an address may be written into a file that everybody may read, and leads to a mirror rather than a disc."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    return "@" not in parts.netloc and parts.scheme not in ("", "cdrom")


def steps(machine: Mapping[str, str], sources: Sequence[Source], offered: int) -> list[Step]:
    """What installs a good runsc. `machine` is os-release's content, `offered` the date of the runsc that apt would install today (0: none).

    Raises StockadeError (`doctor.fix`) where Debian's archive has no good one for this machine, or it cannot be told which of the sources it is.
    """
    install, wanted = programs.install(["runsc"]), programs.install([f"runsc/{BEHIND}-backports"])
    update = Step(programs.as_root("apt-get", "update"))
    if offered >= runsc.OLDEST:
        return [install]
    codename, name = machine.get("VERSION_CODENAME", ""), machine.get("PRETTY_NAME", "this system")
    if machine.get("ID") == "debian" and codename != BEHIND and not offered:  # no lists yet
        return [update, install]
    if machine.get("ID") != "debian" or codename != BEHIND:
        seen = f"is of {offered}, too old" if offered else "is not there"
        raise StockadeError(f"runsc from the packages of {name} {seen}", code="doctor.fix", hint=WITHOUT)
    backports = f"{BEHIND}-backports"
    if any(backports in source.suites for source in sources):
        return [update, wanted]
    main = archive(sources, BEHIND)
    if main is None:
        raise StockadeError(
            f"none of apt's sources here is known to be Debian's main archive of {BEHIND}",
            code="doctor.fix",
            hint=f"Add {backports} to apt's sources, and run this again.",
        )
    stanza = Source(main.uris, (backports,), ("main",), main.options)
    remark = f"Written by `stockade doctor --fix` for gVisor's runsc alone. To undo it: rm {LIST} {PREFERENCES}"
    # 990: also on a machine that has a default release.
    pins = f"Explanation: {remark}\n" + "\n".join(
        f"Package: {package}\nPin: release n={backports}\nPin-Priority: {priority}\n" for package, priority in (("*", -1), ("runsc", 990))
    )
    only = ("-o", f"Dir::Etc::sourcelist={LIST}", "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Get::List-Cleanup=0")
    return [
        programs.write(PREFERENCES, pins),  # first: what the list offers is never there without its bounds
        programs.write(LIST, f"# {remark}\n{written(stanza)}"),
        Step(programs.as_root("apt-get", "update", *only, "-o", "APT::Update::Error-Mode=any")),
        wanted,
    ]


WITHOUT = (
    f"Install gVisor's runsc, {runsc.OLDEST} or later, to {runsc.PROGRAMS[1]} or {runsc.PROGRAMS[0]}: from this distribution, or from the packages and "
    "releases that gVisor publishes itself (its documentation, under Installation, says how)."
)


# ---- looking at this machine ------------------------------------------------------------------------------------------------------


def runsc_steps() -> list[Step]:
    """What installs a good runsc on this machine. Raises StockadeError (`doctor.fix`), as `steps`."""
    _, said = programs.run(["env", "LC_ALL=C", "apt-cache", "policy", "runsc"])
    date = re.search(r"Candidate: \S*?(20\d{6})", said)
    try:
        machine: Mapping[str, str] = platform.freedesktop_os_release()
    except OSError:
        machine = {}
    files = [f"{APT}/sources.list", *sorted(glob.glob(f"{APT}/sources.list.d/*.list") + glob.glob(f"{APT}/sources.list.d/*.sources"))]
    return steps(machine, list(_read(file for file in files if file != LIST)), int(date[1]) if date else 0)


def _read(files: Iterable[str]) -> Iterator[Source]:
    for name in files:
        try:
            with open(name, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        yield from deb822(text) if name.endswith(".sources") else one_line(text)
