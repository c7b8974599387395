"""Where programs come from that a release has too old: apt's sources are read in both formats, and only the main archive's own mirror is taken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.errors import StockadeError
from stockade.walls import debian
from stockade.walls.debian import Source

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MAIN = Source(("http://mirror.test/debian",), ("bookworm", "bookworm-updates"), ("main",), (("Signed-By", KEYRING),))
SECURITY = Source(("http://mirror.test/debian-security",), ("bookworm-security",), ("main",), (("Signed-By", KEYRING),))
BOOKWORM = {"ID": "debian", "VERSION_CODENAME": "bookworm", "PRETTY_NAME": "Debian GNU/Linux 12"}


@pytest.fixture(autouse=True)
def a_debian(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that are only looked for."""
    tools = tmp_path_factory.mktemp("tools")
    for name in ("apt-get", "sudo"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))


# ---- reading ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("deb http://mirror.test/debian bookworm main", Source(("http://mirror.test/debian",), ("bookworm",), ("main",))),
        ("  deb\thttp://m.test/d  bookworm  main contrib # mine", Source(("http://m.test/d",), ("bookworm",), ("main", "contrib"))),
        (
            f"deb [signed-by={KEYRING} arch=amd64,arm64 lang=en] http://m.test/d bookworm main",
            Source(("http://m.test/d",), ("bookworm",), ("main",), (("Signed-By", KEYRING), ("Architectures", "amd64 arm64"))),
        ),
        (
            "deb [ trusted=yes ] http://m.test/d bookworm main",
            Source(("http://m.test/d",), ("bookworm",), ("main",), (("Trusted", "yes"),)),
        ),
        ("deb [trusted=yes]http://m.test/d ./", Source(("http://m.test/d",), ("./",), (), (("Trusted", "yes"),))),
        (
            "deb cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official amd64 #1]/ bookworm main",
            Source(("cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official amd64 #1]/",), ("bookworm",), ("main",)),
        ),
        ("# deb http://mirror.test/debian bookworm main", None),
        ("deb-src http://mirror.test/debian bookworm main", None),
        ("deb http://mirror.test/debian", None),
        ("deb # http://mirror.test/debian bookworm main", None),
        ("deb [arch=amd64 http://mirror.test/debian bookworm main", None),
        ("rpm http://mirror.test/debian bookworm main", None),
        ("", None),
    ],
)
def test_entries_of_one_line(line: str, found: Source | None) -> None:
    assert debian.one_line(f"# a comment\n{line}\n") == ([found] if found else [])


STANZAS = f"""# Debian
Types: deb deb-src
URIs: http://mirror.test/debian
# http://snapshot.test/archive
  http://second.test/debian
suites: bookworm
 bookworm-updates
Components: main
Signed-By: {KEYRING}

Types: deb
URIs: http://mirror.test/off
Suites: bookworm
Components: main
Enabled: no


Types: deb-src
URIs: http://mirror.test/source
Suites: bookworm
Components: main

stray line
Types: deb
URIs: http://mirror.test/own
Suites: ./
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_stanzas() -> None:
    first, own = debian.deb822(STANZAS)
    assert first.uris == ("http://mirror.test/debian", "http://second.test/debian") and first.suites == ("bookworm", "bookworm-updates")
    assert first.options == (("Signed-By", KEYRING),)
    ((name, key),) = own.options
    assert name == "Signed-By" and key.startswith("\n -----BEGIN") and "\n .\n" in key and own.components == ()
    assert debian.deb822(debian.written(own)) == [own]


@settings(deadline=None)
@given(st.text() | st.text("deb [=]\n\t#:URIsuTypeSEnabled.\"/'-", max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for source in (*debian.one_line(text), *debian.deb822(text)):
        assert source.uris and source.suites
        debian.archive([source], "bookworm")


words = st.text("abcdefghijklmnopqrstuvwxyz0123456789:/.-_", min_size=1, max_size=20)
tuples = st.lists(words, min_size=1, max_size=3).map(tuple)
options = st.lists(st.sampled_from(sorted(debian.KEPT.values())), unique=True).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(name), words) for name in names))
)


@settings(deadline=None)
@given(tuples, tuples, tuples, options)
def test_what_is_written_reads_as_what_was_meant(
    uris: tuple[str, ...], suites: tuple[str, ...], components: tuple[str, ...], options: tuple[tuple[str, str], ...]
) -> None:
    source = Source(uris, suites, components, options)
    (found,) = debian.deb822(f"# remark\n{debian.written(source)}\n\n")
    assert (found.uris, found.suites, found.components, sorted(found.options)) == (uris, suites, components, sorted(options))


# ---- deciding ---------------------------------------------------------------------------------------------------------------------


def other(uri: str, *suites: str, key: str = "", components: tuple[str, ...] = ("main",)) -> Source:
    return Source((uri,), suites, components, (("Signed-By", key),) if key else ())


@pytest.mark.parametrize(
    ("sources", "taken"),
    [
        ([SECURITY, MAIN], MAIN),
        ([other("http://tools.test/linux/debian", "bookworm", key="/etc/apt/keyrings/tools.gpg"), MAIN], MAIN),
        ([other("http://vendor.test/debian", "bookworm", components=("stable",)), MAIN], MAIN),
        # A mirror with a path of its own, signed by the admin: known by the updates beside it.
        ([mine := other("file:/srv/m", "bookworm", key="/etc/m.gpg"), other("file:/srv/m/", "bookworm-updates", key="/etc/m.gpg")], mine),
        ([bare := other("http://mirror.test/debian/", "bookworm")], bare),
        ([other("http://vendor.test/stable", "bookworm"), bare], bare),
        ([other("http://vendor.test/stable", "bookworm")], None),
        ([other("http://vendor.test/debian", "bookworm", key="/etc/apt/keyrings/vendor.gpg")], None),
        ([other("http://me:secret@mirror.test/debian", "bookworm", "bookworm-updates")], None),
        ([other("cdrom:[Debian]/", "bookworm", key=KEYRING)], None),
        ([other("http://[mirror.test/debian", "bookworm")], None),
        ([SECURITY], None),
        ([other("http://mirror.test/debian", "trixie", key=KEYRING)], None),
        ([], None),
    ],
)
def test_only_the_main_archive_is_taken(sources: list[Source], taken: Source | None) -> None:
    assert debian.archive(sources, "bookworm") == taken


def commands(steps: list[debian.Step]) -> list[str]:
    return [" ".join(step.command).removeprefix("sudo ") for step in steps]


INSTALL = "apt-get install -y --no-install-recommends "


def test_on_bookworm_one_package_of_its_backports_is_let_in() -> None:
    pins, source, update, install = debian.steps(debian.RUNSC, BOOKWORM, [SECURITY, MAIN], (20221219,))
    assert source.file == debian.RUNSC.list and source.content.splitlines()[1:] == [
        "Types: deb",
        "URIs: http://mirror.test/debian",
        "Suites: bookworm-backports",
        "Components: main",
        f"Signed-By: {KEYRING}",
    ]
    assert pins.file == debian.RUNSC.preferences and pins.content.count("Pin: release n=bookworm-backports") == 2
    assert debian.RUNSC.list in " ".join(update.command) and "APT::Get::List-Cleanup=0" in update.command
    assert commands([install]) == [INSTALL + "runsc/bookworm-backports"]


def test_a_machine_that_has_backports_already_keeps_them_as_they_are() -> None:
    mine = other("http://mirror.test/debian", "bookworm-backports", key=KEYRING)
    assert commands(debian.steps(debian.RUNSC, BOOKWORM, [MAIN, mine], (20221219,))) == [
        "apt-get update",
        INSTALL + "runsc/bookworm-backports",
    ]


@pytest.mark.parametrize(
    "machine", [{"ID": "debian", "VERSION_CODENAME": "trixie"}, {"ID": "ubuntu", "VERSION_CODENAME": "plucky"}, BOOKWORM, {}]
)
def test_a_good_package_of_the_machines_own_is_simply_installed(machine: dict[str, str]) -> None:
    assert commands(debian.steps(debian.RUNSC, machine, [], (20240729,))) == [INSTALL + "runsc"]


def test_without_package_lists_they_are_fetched_first() -> None:
    assert commands(debian.steps(debian.RUNSC, {"ID": "debian", "VERSION_CODENAME": "trixie"}, [MAIN], ())) == [
        "apt-get update",
        INSTALL + "runsc",
    ]


@pytest.mark.parametrize(
    ("machine", "sources", "offered", "said"),
    [
        ({"ID": "ubuntu", "VERSION_CODENAME": "jammy", "PRETTY_NAME": "Ubuntu 22.04"}, [MAIN], (), "Ubuntu 22.04 is not there"),
        ({"ID": "debian", "VERSION_CODENAME": "bullseye"}, [MAIN], (20201208,), "20201208, too old"),
        ({}, [], (), "is not there"),
        (BOOKWORM, [SECURITY], (20221219,), "main archive"),
    ],
)
def test_where_there_is_no_way_it_says_what_to_do(
    machine: dict[str, str], sources: list[Source], offered: tuple[int, ...], said: str
) -> None:
    with pytest.raises(StockadeError) as caught:
        debian.steps(debian.RUNSC, machine, sources, offered)
    assert said in caught.value.message and caught.value.code == "doctor.fix" and caught.value.hint


# ---- another program, whose parts have to be of one release ---------------------------------------------------------------------------

PARTS = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")


def test_qemu_comes_from_backports_with_its_parts_and_nothing_else() -> None:
    pins, source, update, install = debian.steps(debian.QEMU, BOOKWORM, [SECURITY, MAIN], debian.QEMU.numbers("1:7.2+dfsg-7+deb12u18"))
    assert pins.file == "/etc/apt/preferences.d/stockade-qemu-system-x86"
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in pins.content.strip().split("\n\n")]
    assert [(block["Package"], block["Pin-Priority"]) for block in blocks] == [("*", "-1"), *((part, "990") for part in PARTS)]
    assert {block["Pin"] for block in blocks} == {"release n=bookworm-backports"}
    assert source.file == debian.QEMU.list and f"Dir::Etc::sourcelist={debian.QEMU.list}" in update.command
    assert commands([install]) == [INSTALL + " ".join(f"{part}/bookworm-backports" for part in PARTS)]


def test_a_list_that_was_written_for_another_program_is_used_and_each_has_its_own_bounds() -> None:
    steps = debian.steps(debian.QEMU, BOOKWORM, [MAIN], (7, 2), debian.RUNSC.list)
    assert [step.file for step in steps] == [debian.QEMU.preferences, "", ""]
    assert f"Dir::Etc::sourcelist={debian.RUNSC.list}" in steps[1].command and "Package: seabios\n" in steps[0].content


@pytest.mark.parametrize(
    ("wanted", "version", "numbers", "good"),
    [
        (debian.QEMU, "1:10.0.2+ds-2+deb13u1~bpo12+1", (10, 0), True),
        (debian.QEMU, "1:8.2.0+ds-1", (8, 2), True),
        (debian.QEMU, "1:7.2+dfsg-7+deb12u18+b3", (7, 2), False),
        (debian.QEMU, "1:8.0.4+dfsg-1", (8, 0), False),
        (debian.QEMU, "(none)", (), False),
        (debian.RUNSC, "0.0~20240729.0-5", (20240729,), True),
        (debian.RUNSC, "0.0~20221219.0-2+b3", (20221219,), False),
    ],
)
def test_versions_are_compared_as_numbers(wanted: debian.Wanted, version: str, numbers: tuple[int, ...], good: bool) -> None:
    assert wanted.numbers(version) == numbers and (numbers >= wanted.oldest) is good
    assert (commands(debian.steps(wanted, BOOKWORM, [MAIN], numbers)) == [INSTALL + wanted.package]) is good
