"""`stockade image`: pull images of the OCI, and see, show and remove those that are here."""

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

    from stockade.walls.images import Image

_NAMED = "registry/name@sha256:..., the digest or the beginning of it, or the name if one image has it"


def build_parser() -> argparse.ArgumentParser:
    """`stockade image`'s own parser."""
    parser, command = commands(
        prog="stockade image",
        description="Pull images of the OCI for [root] in a policy (gVisor and vm walls), and show and remove those that are here. A session never pulls by itself.",
    )

    pull = command("pull", "Fetch and unpack an image, and print the line for a policy, which names it by its digest.")
    pull.add_argument(
        "image", metavar="IMAGE", help="registry/name:tag or registry/name@sha256:...; on this machine (localhost) also without TLS"
    )
    pull.add_argument(
        "--authfile", metavar="FILE", default="", help="credentials for the registry, as `skopeo login --authfile FILE` writes them"
    )
    pull.add_argument("--max-size", metavar="SIZE", default="", help="how large it may be, unpacked (default: 10 GiB)")
    command("list", "Show the images that are here.")
    command("show", "Show one of them.").add_argument("image", metavar="IMAGE", help=_NAMED)
    remove = command("remove", "Remove images that no session uses, and the layers that no other image has.")
    remove.add_argument("image", metavar="IMAGE", nargs="+", help=_NAMED)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade image` with `argv` (without "image"). 0: done, 125: it could not be."""
    options = build_parser().parse_args(argv)
    run: Callable[[Any], int] = {"pull": _pull, "list": _list, "show": _show, "remove": _remove}[options.command]
    try:
        return run(options)
    except BrokenPipeError:  # the reader of our output left
        raise
    except OSError as error:  # a full disk, a directory that cannot be written to
        hint = "Look at the disk that holds stockade's cache. Nothing that is not whole was kept."
        raise StockadeError(f"cannot keep images: {error}", code="image.store", hint=hint) from error


def _pull(options: argparse.Namespace) -> int:
    from stockade.policy.units import size
    from stockade.walls import pulling, registry

    wanted = registry.reference(options.image)
    try:
        most = size(options.max_size) if options.max_size else pulling.MOST
    except ValueError as error:
        raise StockadeError(f"--max-size: {error}", code="cli.usage", hint='Such as "20 GiB".') from error
    if options.authfile and not os.access(options.authfile, os.R_OK):
        raise StockadeError(
            f"cannot read {options.authfile}", code="image.authfile", hint="skopeo login --authfile FILE REGISTRY writes one."
        )
    shown = _Progress()
    try:
        image = pulling.pull(wanted, authfile=options.authfile, most=most or 1 << 62, progress=shown)
    finally:
        shown.end()
    line = f"{wanted.name}@{image.digest}"
    if options.json:
        print(json.dumps({"ok": True, "reference": line, **plain(image)}))
        return 0
    print(f'[root]\nimage = "{line}"')
    sys.stderr.write(
        f'{_size(image.size)} in {image.files} files. Those lines, and wall = "gvisor" or "vm", go into a policy; or: stockade run --wall gvisor --image {line} -- COMMAND\n'
    )
    return 0


def _list(options: argparse.Namespace) -> int:
    from stockade.walls import images

    found = list(images.images())
    if options.json:
        print(json.dumps([plain(image) for image in found], indent=2))
        return 0
    if not found:
        print("No image is here. stockade image pull IMAGE fetches one.")
    for image in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.pulled))
        print(f"{image.digest[:19]}  {when}  {_size(image.size):>10}  {', '.join(image.names)}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from stockade.walls import images

    image = images.find(options.image)
    if options.json:
        print(json.dumps({**plain(image), "references": image.references, "tree": f"{images.root_of(image.digest)}/tree"}, indent=2))
        return 0
    for line in _lines(image):
        print("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line))
    return 0


def _lines(image: Image) -> list[str]:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.pulled))
    ignored = {"entrypoint": image.entrypoint, "command": image.command, "user": (image.user,), "folder": (image.folder,)}
    said = ", ".join(f"{name} {json.dumps(' '.join(value))}" for name, value in ignored.items() if any(value))
    return [
        *(f"image      {one}" for one in image.references),
        f"platform   {image.platform}",
        f"pulled     {when}, {_size(image.size)} in {image.files} files, {len(image.blobs)} layers",
        *(f"variable   {entry}" for entry in image.environment),
        *([f"not obeyed {said}"] if said else []),
    ]


def _remove(options: argparse.Namespace) -> int:
    from stockade.walls import images

    removed = []
    for named in options.image:
        image = images.find(named)
        images.remove(image)
        removed.append(image)
        if not options.json:
            print(f"Removed {', '.join(image.references)}")
    if options.json:
        print(json.dumps({"ok": True, "removed": [plain(image) for image in removed]}))
    return 0


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


class _Progress:
    """One line on a terminal, written over again and again; nothing anywhere else."""

    def __init__(self) -> None:
        self._there, self._last = sys.stderr.isatty(), ""

    def __call__(self, what: str, done: int, total: int) -> None:
        text = f"{what}: {_size(done)}{f' of {_size(total)}' if total else ''}" if done or total else what
        if self._there and text != self._last:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._last = text

    def end(self) -> None:
        if self._last:
            sys.stderr.write("\r\x1b[K")
