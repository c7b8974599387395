"""`stockade policy sign` and `fetch`: an administrator's policy for many machines."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from stockade.core import places
from stockade.core.errors import StockadeError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def add_parsers(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add both to a command's commands (cli/commands.py)."""
    one = command("sign", "Sign a managed policy, which machines then fetch. Prints the key that they have to pin.")
    one.add_argument("file", metavar="FILE", help="the policy; it has a serial, which grows with every edition")
    one.add_argument(
        "--key", metavar="KEY.pem", required=True, help="an Ed25519 key: openssl genpkey -algorithm ed25519 -aes256 -out KEY.pem"
    )
    one.add_argument("--name", metavar="NAME", default="stockade-policy", help="what the key is called (default: %(default)s)")
    one.add_argument("--output", metavar="FILE", default="", help="where to write what is to be served (default: FILE.signed)")
    one = command(
        "fetch", "Fetch the managed policy, and put it in place if the pinned key has signed it and it is not older than what is in force."
    )
    one.add_argument("url", metavar="URL", help="an https:// address that serves what `sign` has written")
    one.add_argument("--key", metavar="FILE", default=places.PINNED_KEY, help="the pinned key (default: %(default)s)")
    one.add_argument("--output", metavar="FILE", default=places.MANAGED_POLICY, help="where the policy goes (default: %(default)s)")


def sign(options: argparse.Namespace) -> int:
    """Run `stockade policy sign`."""
    import getpass

    from stockade.session import managed

    path = os.path.abspath(options.file)
    found = managed.sign(path, options.key, name=options.name, password=lambda: getpass.getpass(f"Password of {options.key}: "))
    output = options.output or f"{options.file}.signed"
    try:
        with open(output, "wb") as file:
            file.write(found.data)
    except OSError as error:
        hint = "Name another file: --output FILE."
        raise StockadeError(f"cannot write {output}: {error.strerror}", code="policy.unwritable", hint=hint) from error
    if options.json:
        print(json.dumps({"ok": True, "file": output, "serial": found.serial, "key": str(found.verifier)}))
    else:
        print(f"{output}: edition {found.serial}. Machines that shall take it have this line in {places.PINNED_KEY}:\n{found.verifier}")
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Run `stockade policy fetch`. What fails says what stays in force."""
    from stockade.session import managed

    target = os.path.abspath(options.output)
    found = managed.fetch(options.url, pinned=os.path.abspath(options.key), target=target)
    if options.json:
        print(json.dumps({"ok": True, "file": target, "serial": found.serial, "before": found.before, "changed": found.changed}))
    elif found.changed:
        print(f"{target}: edition {found.serial} is in force" + (f", after {found.before}" if found.before else ""))
    elif sys.stdout.isatty():  # a timer has nothing to say
        print(f"{target}: edition {found.serial} is in force already")
    return 0
