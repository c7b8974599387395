"""Runs a few commands in a sandbox on a throwaway folder: python examples/commands.py"""

from __future__ import annotations

import asyncio
import tempfile

from stockade.core.values import Limits, Policy
from stockade.session.live import open_session


async def main() -> None:
    # No grants: nothing leaves. The folder is writable, the rest of the home invisible.
    policy = Policy(limits=Limits(memory=1 << 30, processes=100, wall_time=60))
    with tempfile.TemporaryDirectory() as folder:
        async with open_session(policy, cwd=folder) as session:
            await session.write("numbers.txt", b"3\n1\n2\n")
            result = await session.exec(["sort", "numbers.txt"], timeout=10)
            print(f"sort: exit code {result.exit_code}, said {result.stdout!r}")

            result = await session.exec(["cat", "/etc/shadow"])
            print(f"a secret: exit code {result.exit_code}, {result.stderr.decode().strip()}")

            result = await session.exec(["sleep", "60"], timeout=0.2)
            print(f"sleep: {'timed out' if result.timed_out else 'ended'}, exit code {result.exit_code}")

            both = await asyncio.gather(session.exec(["uname"]), session.exec(["id", "-un"]))
            print(f"two at once: {[one.stdout.decode().strip() for one in both]}")


if __name__ == "__main__":
    asyncio.run(main())
