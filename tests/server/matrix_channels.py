"""The ways to answer, as whoever uses them does. `prepare` does everything but the last stroke, and gives that: so it can come late, at the same time as another, or never."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from server.matrix_world import PATIENCE, Session, World
from session.supervised import Terminal, offspring
from walls.boxes import until

type Asked = dict[str, Any]
LOOKS = 0.7  # seconds in which the full screen has looked once more
STOCKADE = (sys.executable, "-m", "stockade", "approvals")


class Channel:
    """One way. `kind` is the session's where it is used; `by` and `named` are what the ledger says of its answers; `lives_inside`: it ends only with the session."""

    kind, by, named = "people", "person", ""
    lives_inside = False

    def __init__(self, world: World) -> None:
        self.world = world

    def prepare(self, session: Session, asked: Asked, word: str) -> Callable[[], object]:
        """Get ready to say "once", "session" or "refuse" to just this question."""
        raise NotImplementedError

    def begin(self) -> None:
        """Be there before anything is asked, and show nothing."""

    def look(self, session: Session, asked: Asked) -> None:
        """Wait until it shows this question after another that is over, and would take an answer."""

    def garbage(self, session: Session, asked: Asked) -> bool:
        """Say what is no answer. Whether that must be a refusal; else the question goes on waiting."""
        raise NotImplementedError

    def vanish(self, session: Session, asked: Asked) -> None:
        """Be killed while it is asked."""
        raise NotImplementedError

    def rest(self) -> None:
        """A cell is over."""

    def close(self) -> None:
        """The last one is."""


class InTerminal(Channel):
    kind, named, lives_inside = "terminal", "terminal", True

    def _letters(self, session: Session) -> str:
        assert session.terminal is not None
        letters = session.terminal.expect(r"Type ([a-z]{3}) and Enter to allow it once", PATIENCE)[1].decode()
        time.sleep(0.5)  # what is typed sooner cannot be an answer
        return letters

    def prepare(self, session: Session, asked: Asked, word: str) -> Callable[[], object]:
        typed = {"once": "{}\r", "session": "{}s\r", "refuse": "\r"}[word].format(self._letters(session))
        terminal = session.terminal
        assert terminal is not None
        return lambda: terminal.type(typed)

    def look(self, session: Session, asked: Asked) -> None:
        self._letters(session)

    def garbage(self, session: Session, asked: Asked) -> bool:
        self._letters(session)
        assert session.terminal is not None
        session.terminal.type("y\r")
        time.sleep(0.1)
        session.terminal.type("\x1b[A")
        time.sleep(0.1)
        for word in ("yes\r", "allow\r"):
            session.terminal.type(word)
            time.sleep(0.1)
        return True  # three are enough

    def vanish(self, session: Session, asked: Asked) -> None:
        self._letters(session)
        assert session.terminal is not None
        session.terminal.hang_up()


class FullScreen(Channel):
    named = "inbox"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._screen: Terminal | None = None

    @property
    def screen(self) -> Terminal:
        if self._screen is None:
            self._screen = Terminal(self.world.place, (), words=STOCKADE)
            self._screen.resize(300, 40)
            self._screen.expect("quit", PATIENCE)
        return self._screen

    def begin(self) -> None:
        self.screen.drain()

    def _choose(self, asked: Asked) -> None:
        place = re.escape(asked["key"])
        self.screen.expect(place, PATIENCE)
        for _ in range(20):
            self.screen.type("\x1b[B")  # the first, if none is chosen; what another cell has asked may stand there for a moment
            with suppress(AssertionError):
                self.screen.expect(f"{place}.*?be undone", 2 * LOOKS)
                return
        raise AssertionError(f"it was never chosen: {asked}")

    def prepare(self, session: Session, asked: Asked, word: str) -> Callable[[], object]:
        self._choose(asked)
        if word == "refuse":
            return lambda: self.screen.type("d")
        self.screen.type("a" if word == "once" else "s")
        self.screen.expect(r"Allow this\?", PATIENCE)
        return lambda: self.screen.type("y")

    def look(self, session: Session, asked: Asked) -> None:
        time.sleep(2 * LOOKS)

    def garbage(self, session: Session, asked: Asked) -> bool:
        self.screen.type("yyxa")  # nothing is chosen
        self._choose(asked)
        self.screen.type("y")
        self.screen.type("a")
        self.screen.expect(r"Allow this\?", PATIENCE)
        self.screen.type("x\r")  # Enter leaves it
        return False

    def vanish(self, session: Session, asked: Asked) -> None:
        self.prepare(session, asked, "once")
        self.close()

    def close(self) -> None:
        if self._screen is not None:
            self._screen.close()
            self._screen = None


class Page(Channel):
    named = "web"

    def __init__(self, world: World, browser: Any) -> None:
        super().__init__(world)
        self._browser, self._page, self._served = browser, None, None  # type: Any, Any, subprocess.Popen[str] | None

    @property
    def page(self) -> Any:
        if self._page is None:
            self._served = subprocess.Popen(
                [*STOCKADE, "--web", "--json"], env=self.world.place.env, stdout=subprocess.PIPE, stderr=self.world.log, text=True
            )
            assert self._served.stdout
            link = json.loads(self._served.stdout.readline())["link"]
            self._page = self._browser.new_page()
            self._page.set_default_timeout(PATIENCE * 1000)
            self._page.goto(link)
        return self._page

    def prepare(self, session: Session, asked: Asked, word: str) -> Callable[[], object]:
        from server.test_page import letters

        self._choose(asked)
        if word == "refuse":
            return lambda: self.page.keyboard.press("d")
        self.page.keyboard.press("a" if word == "once" else "s")
        self.page.keyboard.type(letters(self.page))
        return lambda: self.page.keyboard.press("Enter")

    def begin(self) -> None:
        assert self.page

    def _choose(self, asked: Asked) -> None:
        from playwright.sync_api import expect

        self.page.click(f""".row:not(.over):has-text('{asked["key"]}')""")
        expect(self.page.locator("#all .what")).to_have_text("".join((asked["what"], *asked["detail"])))

    def look(self, session: Session, asked: Asked) -> None:
        self.page.wait_for_selector(".row.over")  # the first, which stays in sight
        self.page.wait_for_selector(f""".row:not(.over):has-text('{asked["key"]}')""")

    def garbage(self, session: Session, asked: Asked) -> bool:
        from server.test_page import letters

        self._choose(asked)
        self.page.keyboard.press("y")
        self.page.keyboard.press("a")
        wrong = "zzz" if letters(self.page) != "zzz" else "yyy"
        self.page.keyboard.type(f"{wrong}\n")
        self.page.keyboard.press("Escape")
        return False

    def vanish(self, session: Session, asked: Asked) -> None:
        self.prepare(session, asked, "once")
        assert self._served is not None
        self._served.kill()
        self.page.keyboard.press("Enter")  # to nobody
        self.close()

    def rest(self) -> None:
        if self._page is not None:
            self._page.keyboard.press("Escape")

    def close(self) -> None:
        if self._page is not None:
            self._page.close()
        if self._served is not None:
            self._served.send_signal(signal.SIGINT)
            self._served.communicate(timeout=20)
        self._page = self._served = None


class Command(Channel):
    named = "inbox"

    def _run(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*STOCKADE, *words], env=self.world.place.env, stdout=self.world.log, stderr=self.world.log)

    def prepare(self, session: Session, asked: Asked, word: str) -> Callable[[], object]:
        words = ("deny" if word == "refuse" else "allow", session.id, str(asked["number"]))
        return lambda: self._run(*words, *(["--for-session"] if word == "session" else [])).wait(PATIENCE)

    def garbage(self, session: Session, asked: Asked) -> bool:
        words = (("allow", session.id, "yes"), ("allow", session.id, str(asked["number"] + 1)), ("allow", "s0"))
        assert all(one.wait(PATIENCE) != 0 for one in [self._run(*each) for each in words])
        return False

    def vanish(self, session: Session, asked: Asked) -> None:
        run = self._run("allow", session.id, str(asked["number"]))
        run.kill()
        run.wait()


class Program(Channel):
    kind, named, lives_inside = "program", "program", True

    def prepare(self, session: Session, asked: Asked, word: str) -> Callable[[], object]:
        def say() -> None:
            new = session.say / "new"
            new.write_text(word)
            new.rename(session.say / str(asked["number"]))

        return say

    def garbage(self, session: Session, asked: Asked) -> bool:
        self.prepare(session, asked, "raise" if asked["number"] % 2 else "yes")()
        return True

    def vanish(self, session: Session, asked: Asked) -> None:
        assert session.run is not None
        session.run.kill()


class Rules(Channel):
    kind, by, named = "rules", "reviewer", "rules"


class ByModel(Channel):
    """A model that says what it is told to, when it is told to."""

    kind, by, named = "model", "reviewer", "model"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._asked: list[tuple[str, threading.Event, list[Any]]] = []
        world.judge.answer = self._answer

    def _answer(self, told: dict[str, Any]) -> Any:
        word: list[Any] = []
        done = threading.Event()
        self._asked.append((told["request"], done, word))
        done.wait(PATIENCE * 2)
        return word[0] if word else "person"

    def _thinks(self, asked: Asked) -> Callable[[Any], None]:
        """Wait until it is asked about this; what it says is given later."""
        found: list[tuple[str, threading.Event, list[Any]]] = []

        def there() -> bool:
            found[:] = [one for one in self._asked if one[0] == asked["what"] and not one[1].is_set()]
            return bool(found)

        assert until(there, PATIENCE), (asked, [one[0] for one in self._asked])
        _, done, word = found[-1]

        def say(said: Any) -> None:
            word.append(said)
            done.set()

        return say

    def prepare(self, session: Session, asked: Asked, word: str) -> Callable[[], object]:
        say = self._thinks(asked)
        return lambda: say({"once": "allow", "refuse": "deny"}[word])

    def look(self, session: Session, asked: Asked) -> None:
        self._thinks(asked)

    def garbage(self, session: Session, asked: Asked) -> bool:
        self._thinks(asked)((200, b'{"choices": [{"message": {"content": "{\\"decision\\": \\"ALLOW\\", \\"reason\\": \\"\\"}"}}]}'))
        self._passed_over(session, asked)
        return False

    def vanish(self, session: Session, asked: Asked) -> None:
        self._thinks(asked)
        for pid, line in offspring(session.pid).items():
            if "stockade.session.consult" in line:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._passed_over(session, asked)

    @staticmethod
    def _passed_over(session: Session, asked: Asked) -> None:
        """A person is asked, and it is on record why."""
        assert until(lambda: any(one["ask"] == asked["number"] and one.get("error") for one in session.events("review")), PATIENCE)

    def rest(self) -> None:
        for _, done, _ in self._asked:
            done.set()
        self._asked.clear()


def channels(world: World, browser: Callable[[], Any]) -> dict[str, Callable[[], Channel]]:
    """How each is made, by its name in the table. `browser` starts one."""
    return {
        "terminal": lambda: InTerminal(world),
        "inbox": lambda: FullScreen(world),
        "page": lambda: Page(world, browser()),
        "command": lambda: Command(world),
        "program": lambda: Program(world),
        "rules": lambda: Rules(world),
        "model": lambda: ByModel(world),
    }
