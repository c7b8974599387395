"""`stockade approvals inbox`: the same questions on a full screen, as they come (Textual)."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Header, Label, OptionList, Static
from textual.widgets.option_list import Option

from stockade.cli.approvals import COLOURS, told
from stockade.core.asks import safe
from stockade.core.errors import StockadeError
from stockade.session import inbox
from stockade.session.inbox import Waiting

EVERY = 0.5  # seconds between two looks

_COLOURS = {"+": "green", "-": "red", "@": "dim"}

type Row = tuple[Waiting, dict[str, Any] | None, str]  # a question, or the key of something that was approved


class Confirm(ModalScreen[bool]):
    """Says again what would be allowed, all of it; only `y` allows it, and only once its end was in sight."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "allow", "allow"),
        Binding("n,escape,enter", "dismiss(False)", "leave it"),
    ]
    CSS = "Confirm { align: center middle; } #asked { width: 80%; height: auto; border: heavy $warning; padding: 1 2; background: $panel; }"

    def __init__(self, text: Text) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(self._text, id="asked")

    def action_allow(self) -> None:
        """Yes; or show more of it first."""
        laid_out = self.query_one("#asked").size.height > 0  # before that it has no end that could be in sight
        if laid_out and self.scroll_offset.y >= self.max_scroll_y:
            self.dismiss(True)
        else:
            self.scroll_page_down(animate=False)


def difference(asked: dict[str, Any]) -> Text:
    """What is changed by what is asked, if that is a file."""
    lines = [Text(f"{safe(line)}\n", _COLOURS.get(line[:1], "")) for line in asked["detail"]]
    return Text.assemble(*lines, "\n" if lines else "")


class Inbox(App[None]):
    """Questions and standing approvals on the left, all of the chosen one on the right."""

    TITLE = "stockade approvals"
    CSS = "OptionList { width: 45%; } #all { padding: 1 2; } #none { padding: 1 2; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "allow('once')", "allow once"),
        Binding("s", "allow('session')", "for the session"),
        Binding("d", "deny", "deny"),
        Binding("D", "deny_like", "deny all like it"),
        Binding("r", "revoke", "take back"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Row] = {}

    def compose(self) -> ComposeResult:
        yield Header()
        with Horizontal():
            yield OptionList(id="rows", markup=False)
            with VerticalScroll():
                yield Static("", id="all", markup=False)
        yield Label("", id="none")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()
        self.look()
        self.set_interval(EVERY, self.look)

    @work(thread=True, exclusive=True, group="look")
    def look(self) -> None:
        """Ask all sessions, in a thread: one that does not answer holds up nothing here."""
        found: dict[str, Row] = {}
        for one in inbox.waiting():
            for asked in one.asks:
                found[f"{one.session}/{asked['number']}"] = (one, asked, "")
            for key in one.standing:
                found[f"{one.session}/={key}"] = (one, None, key)
        self.call_from_thread(self.show, found)

    def show(self, found: dict[str, Row]) -> None:
        """Put up what there is, and stay on what was chosen as long as it is there. INVARIANT: what is chosen never becomes another question by itself."""
        listed = self.query_one(OptionList)
        chosen = self.chosen_name
        self.rows = found
        if [option.id for option in listed.options] != list(found):
            listed.clear_options()
            listed.add_options([Option(self._line(row), id=name) for name, row in found.items()])
            listed.highlighted = list(found).index(chosen) if chosen in found else None
        self.query_one("#none", Label).update("" if found else "Nothing waits for an answer.")
        self._detail()

    @property
    def chosen_name(self) -> str:
        """The id of the chosen row, "" if none is."""
        listed = self.query_one(OptionList)
        if listed.highlighted is None:
            return ""
        return listed.get_option_at_index(listed.highlighted).id or ""

    @property
    def chosen(self) -> Row | None:
        """The chosen row."""
        return self.rows.get(self.chosen_name)

    def on_option_list_option_highlighted(self) -> None:
        self._detail()

    def _line(self, row: Row) -> Text:
        one, asked, key = row
        if asked is None:
            return Text.assemble(("approved ", "dim"), safe(key))
        return Text.assemble((f"{asked['risk']} ", COLOURS[asked["risk"]]), safe(asked["key"]), (f"  {one.session[:8]}", "dim"))

    def _detail(self) -> None:
        row = self.chosen
        self.query_one("#all", Static).update(Text("") if row is None else self._all(row))

    def _all(self, row: Row) -> Text:
        one, asked, key = row
        head = Text.assemble(("session ", "dim"), f"{one.session}\n", ("workspace ", "dim"), f"{safe(one.workspace)}\n\n")
        if asked is None:
            return Text.assemble(head, f"{safe(key)}\n\n", ("approved until the session ends; r takes it back", "dim"))
        left = max(0, round(asked["expires"] - time.time()))
        return Text.assemble(
            head,
            (f"{safe(asked['what'])}\n\n", "bold"),
            difference(asked),
            ("risk ", "dim"), (asked["risk"], COLOURS[asked["risk"]]), "\n",
            ("asked by ", "dim"), f"{safe(asked['rule'])}\n",
            ("can be undone " if asked["reversible"] else "cannot be undone", "dim"), "\n",
            ("something secret was read\n" if asked["tainted"] else "", "bold red"),
            (f"{safe(asked['review'])}\n" if asked["review"] else "", "dim"),
            ("for the session ", "dim"), "no: once at a time\n" if asked["people"] else f"{safe(asked['also'])}\n",
            ("left ", "dim"), f"{left // 60}:{left % 60:02}",
        )  # fmt: skip

    def action_allow(self, scope: str) -> None:
        """Allow the chosen question, after it was said again."""
        question = self._question()
        if question is None:
            return
        one, asked = question
        extra = "" if scope == "once" else f"\n\nfor {safe(asked['also'])}"
        whole = (safe(asked["what"]), "\n\n" if asked["detail"] else "", difference(asked))
        text = Text.assemble(("Allow this?\n\n", "bold"), *whole, extra, ("\n\ny allows it, Enter leaves it", "dim"))

        def sure(yes: bool | None) -> None:
            if yes:
                self._answer(one, asked, True, scope)

        self.push_screen(Confirm(text), sure)

    def action_deny(self) -> None:
        """Refuse the chosen question."""
        if question := self._question():
            self._answer(*question, False, "once")

    def action_deny_like(self) -> None:
        """Refuse every question of that session with the same key."""
        if question := self._question():
            for one, asked, _ in [*self.rows.values()]:
                if asked is not None and one.session == question[0].session and asked["key"] == question[1]["key"]:
                    self._answer(one, asked, False, "once")

    def _question(self) -> tuple[Waiting, dict[str, Any]] | None:
        """What is chosen, if it is a question."""
        row = self.chosen
        return (row[0], row[1]) if row is not None and row[1] is not None else None

    def action_revoke(self) -> None:
        """Take the chosen approval back."""
        row = self.chosen
        if row is not None and row[1] is None:
            try:
                inbox.revoke(row[0], row[2])
            except StockadeError as error:
                self.notify(error.message, severity="error", markup=False)
            self.look()

    def _answer(self, one: Waiting, asked: dict[str, Any], allow: bool, scope: str) -> None:
        try:
            done = inbox.answer(one, asked, allow, channel="inbox", scope=scope)
        except StockadeError as error:
            self.notify(error.message, severity="error", markup=False)
        else:
            if done["outcome"] == "canary":
                self.notify(told(done), title="A test", severity="warning", timeout=20, markup=False)
            elif done["failed"]:
                self.notify(safe(done["failed"]), title="It was not done", severity="error", timeout=20, markup=False)
        self.look()
