"""The full screen: what it shows of a change to a file, and what it says when that could not be done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.pages import Questions
from stockade.cli import inbox
from stockade.core.frozen import plain, replace


async def choose(app: inbox.Inbox, pilot: Any) -> None:
    """The first question, once it is there."""
    for _ in range(200):
        await pilot.pause(0.05)
        if app.rows:
            break
    await pilot.press("down")
    await pilot.pause()


def test_a_change_to_a_file_is_shown_with_every_line_and_what_failed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Questions()
    lines = ("@@ -1 +1 @@", "-old", "+new \\x1b[2J")
    questions.ask("file ci.yml", what="change the file ci.yml: 1 lines more", detail=lines, people=True)
    answer = questions.answer

    def failing(*words: Any, **more: Any) -> dict[str, Any]:
        answer(*words, **more)
        return plain(replace(questions.answered[-1], failed="ci.yml was changed meanwhile"))

    monkeypatch.setattr(inbox.inbox, "waiting", questions.waiting)
    monkeypatch.setattr(inbox.inbox, "answer", failing)

    async def whole() -> None:
        app = inbox.Inbox()
        said: list[str] = []
        async with app.run_test(size=(120, 40)) as pilot:
            monkeypatch.setattr(app, "notify", lambda text, **_: said.append(text))
            await choose(app, pilot)
            shown = str(app._all(next(iter(app.rows.values()))))
            assert all(line in shown for line in lines) and "no: once at a time" in shown
            await pilot.press("a")
            await pilot.pause(0.2)
            await pilot.press("y")
            for _ in range(200):
                await pilot.pause(0.05)
                if said:
                    break
        assert said == ["ci.yml was changed meanwhile"] and questions.answered[-1].allow

    asyncio.run(whole())


def test_what_is_longer_than_the_screen_is_allowed_once_its_end_was_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Questions()
    monkeypatch.setattr(inbox.inbox, "waiting", questions.waiting)
    monkeypatch.setattr(inbox.inbox, "answer", questions.answer)
    questions.ask("file ci.yml", what="change the file ci.yml: 90 lines more", detail=tuple(f"+line {n}" for n in range(90)), people=True)

    async def whole() -> None:
        app = inbox.Inbox()
        async with app.run_test(size=(80, 24)) as pilot:
            await choose(app, pilot)
            await pilot.press("a")
            pages = 0
            while isinstance(app.screen, inbox.Confirm) and pages < 50:
                await pilot.pause(0.1)
                at_the_end = app.screen.scroll_offset.y >= app.screen.max_scroll_y > 0
                assert not questions.answered
                await pilot.press("y")
                pages += 1
            assert at_the_end and 4 < pages < 50
            for _ in range(200):
                await pilot.pause(0.05)
                if questions.answered:
                    break
        assert questions.answered[-1].allow

    asyncio.run(whole())
