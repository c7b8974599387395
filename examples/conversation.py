"""Talks with an interpreter that runs in a sandbox: python examples/conversation.py"""

from __future__ import annotations

import asyncio
import tempfile

from stockade.core.values import Policy
from stockade.session.live import open_session


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_session(Policy(), cwd=folder) as session, await session.start(["/bin/sh"], stdin=True) as shell:
            assert shell.stdin is not None
            for line in ("echo hello from $STOCKADE_SESSION", "ls -a ~ | wc -l"):
                await shell.stdin.write(line.encode() + b"\n")
                piece = await anext(shell)
                print(f"{line}\n  {piece.stream}: {piece.data.decode().strip()}")
            shell.stdin.close()
            print("exit code", await shell.wait())


if __name__ == "__main__":
    asyncio.run(main())
