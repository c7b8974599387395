"""One event as one line of JSON, and back. HOT, except `parse`.

What a hostile program named (hosts, paths, errors) lands in events, so encoding is total for plain data: a line is always exactly one JSON
object (RFC 8259) of printable ASCII, without a newline, at most MAX_LINE bytes. Control characters and everything beyond ASCII are escaped,
lone surrogates (bytes that were not UTF-8) are spelled out as the text `\\udcXX`, since I-JSON (RFC 7493, section 2.1) forbids them.
"""

from __future__ import annotations

from stockade.core.errors import StockadeError, Tampered

try:
    from _json import encode_basestring_ascii as _quote  # the C half of json; `import json` costs 6 ms
except ImportError:
    from json.encoder import encode_basestring_ascii as _quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_LINE = 1 << 16  # bytes, without the newline
OWN_KEYS = ("index", "time", "cut")  # written by the ledger, never by an event

# Characters a string, items a container, levels of nesting: each row is tried in turn until the line fits.
# INVARIANT: the last row always fits. 32 keys and values of 48 characters, at 12 bytes a character escaped, are 38 KB.
_LIMITS = ((16384, 1024, 16), (1024, 128, 8), (48, 32, 1))
_LARGEST_INTEGER = 1 << 63
_LATEST = 1 << 37  # Unix seconds; later ones are no dates to Python


class _TooLong(Exception):
    pass


def encode(index: int, time: float, event: dict[str, object]) -> bytes:
    """The line of `event`, without its newline: `index` and `time` (Unix seconds) first, and "cut" (how many values were shortened) last, if any.

    A value that was shortened says so at its end. Raises StockadeError (`ledger.event`) for what is not plain data: the caller's mistake.
    """
    for key in OWN_KEYS:
        if key in event:
            raise StockadeError(f"an event may not hold {key!r}: the ledger writes it", code="ledger.event")
    for text, items, depth in _LIMITS:
        writer = _Writer(text, items, depth)
        try:
            writer.members(event, 0)
        except _TooLong:
            continue
        parts = [f'{{"index":{index},"time":{time:.6f}']
        if writer.out:
            parts.append("".join(writer.out))
        if writer.cut:
            parts.append(f'"cut":{writer.cut}')
        return (",".join(parts) + "}").encode("ascii")
    raise StockadeError("an event does not fit into a line", code="ledger.event")  # unreachable while the invariant holds


class _Writer:
    """Collects the JSON of one event. Stops with _TooLong when a line could not hold it."""

    def __init__(self, text: int, items: int, depth: int) -> None:
        self.text, self.items, self.depth = text, items, depth
        self.out: list[str] = []
        self.room = MAX_LINE - 128  # for index, time, cut and the braces
        self.cut = 0

    def put(self, piece: str) -> None:
        self.room -= len(piece)
        if self.room < 0:
            raise _TooLong
        self.out.append(piece)

    def string(self, value: str) -> str:
        if len(value) > self.text:
            self.cut += 1
            value = f"{value[: self.text]}...[cut, {len(value)} characters]"
        if not value.isascii():
            value = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return str(_quote(value))

    def members(self, value: dict[Any, object], depth: int) -> None:
        seen: set[str] = set()
        for number, (key, item) in enumerate(value.items()):
            if number:
                self.put(",")
            if number == self.items:
                self.cut += 1
                self.put(_unused('"..."', seen) + f':"[cut, {len(value)} items]"')
                return
            if not isinstance(key, str):
                raise StockadeError(f"an event's keys are strings, not {type(key).__name__}", code="ledger.event")
            name = _unused(self.string(key), seen)
            seen.add(name)
            self.put(name + ":")
            self.value(item, depth + 1)

    def value(self, value: object, depth: int) -> None:
        if isinstance(value, str):
            self.put(self.string(value))
        elif value is None:
            self.put("null")
        elif isinstance(value, bool):
            self.put("true" if value else "false")
        elif isinstance(value, int):
            self.put(int.__repr__(value) if -_LARGEST_INTEGER <= value < _LARGEST_INTEGER else self.string(f"{value:#x}"))
        elif isinstance(value, float):
            finite = value - value == 0
            self.put(float.__repr__(value) if finite else f'"{float.__repr__(value)}"')
        elif isinstance(value, bytes | bytearray):
            self.put(self.string(value.decode("utf-8", "backslashreplace")))
        elif isinstance(value, dict | list | tuple):
            self.container(value, depth)
        else:
            raise StockadeError(f"an event holds plain data, not {type(value).__name__}", code="ledger.event")

    def container(self, value: dict[Any, object] | list[object] | tuple[object, ...], depth: int) -> None:
        if depth > self.depth or (depth == self.depth and value):
            self.cut += 1
            self.put(f'"[cut, {len(value)} items]"')
        elif isinstance(value, dict):
            self.put("{")
            self.members(value, depth)
            self.put("}")
        else:
            self.put("[")
            for number, item in enumerate(value):
                if number:
                    self.put(",")
                if number == self.items:
                    self.cut += 1
                    self.put(f'"[cut, {len(value)} items]"')
                    break
                self.value(item, depth + 1)
            self.put("]")


def _unused(name: str, seen: set[str]) -> str:
    """`name` (quoted), or a variation of it: two keys can become the same one by cutting or escaping."""
    while name in seen:
        name = name[:-1] + '#"'
    return name


def parse(line: bytes, index: int) -> dict[str, Any]:
    """The event on `line` (no newline), which has to be entry number `index`.

    Raises Tampered (`ledger.line`) when it is not one JSON object with an index and a time, (`ledger.index`) when it is another entry.
    """
    import json

    def refuse(why: str) -> Tampered:
        return Tampered(f"entry {index} is not an entry that stockade wrote: {why}", code="ledger.line")

    if len(line) > MAX_LINE:
        raise refuse(f"it is longer than {MAX_LINE} bytes")
    try:
        event = json.loads(line.decode("ascii"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise refuse("it is not JSON in ASCII") from error
    if not isinstance(event, dict):
        raise refuse("it is not a JSON object")
    found = event.get("index")
    if type(found) is not int:
        raise refuse("it has no index")
    time = event.get("time")
    if type(time) is not float or not 0 <= time < _LATEST:
        raise refuse("it has no time")
    if found != index:
        raise Tampered(f"entry {index} is missing or was moved: entry {found} stands in its place", code="ledger.index")
    return event


def _no_constant(name: str) -> float:
    raise ValueError(name)
