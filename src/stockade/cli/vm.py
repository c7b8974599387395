"""`stockade vm`: build images for machines, and see, choose and remove those that are here."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from stockade.cli.commands import commands
from stockade.core.errors import StockadeError
from stockade.core.frozen import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.walls.vm.image import Image, Manifest

_NAMED = "the digest, or the beginning of it"
_SYSTEM = "for all users of this machine (needs root); each user's own comes first"


def build_parser() -> argparse.ArgumentParser:
    """`stockade vm`'s own parser."""
    parser, command = commands(
        prog="stockade vm",
        description="Build the image that machines are started from (vm wall), out of Debian's packages, and show, choose and remove those that are here.",
    )
    build = command("build", "Build an image, sign it, and use it from now on. Takes about two minutes, and 200 MiB in the end.")
    build.add_argument("--suite", metavar="NAME", default="", help="the release of Debian (default: this machine's)")
    build.add_argument("--include", metavar="PACKAGE", nargs="+", action="extend", default=[], help="more Debian packages")
    build.add_argument("--mirror", metavar="URL", default="", help="where packages come from, as of a date (default: apt's sources here)")
    build.add_argument("--sources", metavar="FILE", default="", help="the same, as a file of apt's sources (sources.list(5))")
    build.add_argument(
        "--date", metavar="ISO", default="", help="of all files; with the same packages it gives the same image (default: today)"
    )
    build.add_argument("--system", action="store_true", help=_SYSTEM)
    build.add_argument(
        "--if-needed", action="store_true", help="build nothing if the image in use was made in this way, of whatever versions"
    )
    command("list", "Show the images that are here; * is in use.")
    command("show", "Show what is in one of them, checked (default: the one in use).").add_argument(
        "image", metavar="IMAGE", nargs="?", help=_NAMED
    )
    command("use", "Use another one of them.").add_argument("image", metavar="IMAGE", help=_NAMED)
    command("remove", "Remove images that no machine uses.").add_argument("image", metavar="IMAGE", nargs="+", help=_NAMED)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade vm` with `argv` (without "vm"). 0: done, 125: it could not be."""
    options = build_parser().parse_args(argv)
    run: Callable[[Any], int] = {"build": _build, "list": _list, "show": _show, "use": _use, "remove": _remove}[options.command]
    try:
        return run(options)
    except BrokenPipeError:  # the reader of our output left
        raise
    except OSError as error:  # a full disk, a place that is root's
        hint = "Look at the disk, and at whose the place is (--system is root's). Nothing that is not whole was kept."
        raise StockadeError(f"cannot keep images: {error}", code="vm.store", hint=hint) from error


def _build(options: argparse.Namespace) -> int:
    from stockade.walls.vm import build, image

    if options.mirror and options.sources:
        raise StockadeError("--mirror and --sources say the same thing", code="cli.usage", hint="Leave one of them out.")
    if options.system and os.geteuid():
        raise StockadeError(
            "--system needs root", code="cli.usage", hint=f"Without it the image is yours alone; or: sudo {image.BUILD} --system"
        )
    place = image.system() if options.system else image.own()
    wanted = build.recipe(options.suite, options.include, mirror=options.mirror, sources=options.sources, date=options.date)
    digest = image.current(place) if options.if_needed else ""
    found = image.checked(place, digest) if digest else None
    if found is None or found.manifest.recipe != wanted.digest:
        began = time.monotonic()
        shown = _Progress(quiet=options.json)
        try:
            found = build.build(wanted, place, shown)
        finally:
            shown.end()
        if not options.json:
            sys.stderr.write(f"Built in {time.monotonic() - began:.0f} s, {_size(found.manifest.size)} in {place.path(found.digest)}\n")
    if options.json:
        print(json.dumps({"ok": True, "digest": found.digest, "path": place.path(found.digest), **plain(found.manifest)}))
    else:
        print(found.digest)
    return 0


def _list(options: argparse.Namespace) -> int:
    from stockade.walls.vm import image

    found = []
    used = False
    for place in (image.own(), image.system()):
        current = image.current(place)
        for digest in image.digests(place):
            try:
                manifest, wrong = image.checked(place, digest).manifest, ""
            except StockadeError as error:
                manifest, wrong = None, error.message
            found.append((place, digest, manifest, wrong, digest == current and not used))
        used = used or bool(current)
    if options.json:
        rows = [
            {"digest": digest, "path": place.path(digest), "used": inuse, "error": wrong, "manifest": plain(manifest)}
            for place, digest, manifest, wrong, inuse in found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    if not found:
        print(f"No image is here. {image.BUILD} builds one.")
    for place, digest, manifest, wrong, inuse in found:
        what = wrong if manifest is None else f"{_size(manifest.size):>10}  {_summary(manifest)}"
        print(f"{'*' if inuse else ' '} {digest[:16]}  {'system' if place == image.system() else 'own':<6}  {what}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from stockade.walls.vm import image

    found = image.checked(*image.named(options.image)) if options.image else image.find()
    if options.json:
        print(json.dumps({"digest": found.digest, "path": found.place.path(found.digest), **plain(found.manifest)}, indent=2))
        return 0
    for line in _lines(found):
        print("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line))
    return 0


def _lines(found: Image) -> list[str]:
    manifest = found.manifest
    return [
        f"image      {found.digest}",
        f"path       {found.place.path(found.digest)}",
        f"made of    {_summary(manifest)}",
        f"made with  {', '.join(manifest.tools)}",
        *(f"file       {file.name:<12}{_size(file.size):>10}  {file.sha256}" for file in manifest.files),
        *(f"package    {package.replace('=', ' ', 1)}" for package in manifest.packages),
    ]


def _summary(manifest: Manifest) -> str:
    date = time.strftime("%Y-%m-%d", time.gmtime(manifest.source_date))
    return f"Debian {manifest.suite} of {date}, {len(manifest.packages)} packages, Linux {manifest.kernel}"


def _use(options: argparse.Namespace) -> int:
    from stockade.walls.vm import image, store

    found = store.use(*image.named(options.image))
    print(json.dumps({"ok": True, "digest": found.digest}) if options.json else found.digest)
    return 0


def _remove(options: argparse.Namespace) -> int:
    from stockade.walls.vm import image, store

    removed = []
    for named in options.image:
        place, digest = image.named(named)
        store.remove(place, digest)
        removed.append(digest)
        if not options.json:
            print(f"Removed {digest}")
    if options.json:
        print(json.dumps({"ok": True, "removed": removed}))
    return 0


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


class _Progress:
    """What is done now: a line that is written over on a terminal, a line each elsewhere, nothing if `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._there, self._last, self._began = quiet, sys.stderr.isatty(), "", time.monotonic()

    def __call__(self, what: str) -> None:
        if self._quiet or what == self._last:
            return
        passed = f"{time.monotonic() - self._began:4.0f} s  {what}"
        sys.stderr.write(f"\r\x1b[K{passed}" if self._there else f"{passed}\n")
        sys.stderr.flush()
        self._last = what

    def end(self) -> None:
        if self._there and self._last:
            sys.stderr.write("\r\x1b[K")
