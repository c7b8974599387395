"""Sizes and times as people write them."""

from __future__ import annotations

import re

_SIZES = {"b": 1, "byte": 1, "bytes": 1}
for _power, _letter in enumerate("kmgt", 1):
    _SIZES |= {f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power}
_TIMES = {"s": 1, "sec": 1, "second": 1, "seconds": 1, "m": 60, "min": 60, "minute": 60, "minutes": 60}
_TIMES |= {"h": 3600, "hour": 3600, "hours": 3600, "d": 86400, "day": 86400, "days": 86400}
_NUMBER = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)", re.ASCII)
_RATE = re.compile(r"([0-9]{1,9}) per ([0-9]{1,9})?\s*([A-Za-z]+)", re.ASCII)
MOST = 1 << 60
MOST_REQUESTS = 100_000


def size(value: object) -> int:
    """Bytes of "8 GiB", "500 MB", "none" (0 = no limit) or a whole number of bytes. Raises ValueError with a sentence for people."""
    return _parse(value, _SIZES, "a size", '"512 MiB", "8 GiB" or "none"')


def duration(value: object) -> int:
    """Seconds of "90 s", "30 min", "2 h", "1 day", "none" (0 = no limit) or a whole number of seconds. Raises ValueError."""
    return _parse(value, _TIMES, "a time", '"90 s", "30 min", "2 h" or "none"')


def rate(value: object) -> tuple[int, int]:
    """(requests, seconds) of "60 per min" or "5 per 10 s". Raises ValueError with a sentence for people."""
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{str(value)[:40]!r} is not a rate; write "60 per min" or "5 per 10 s"')
    count, number, unit = match.groups()
    if not 1 <= int(count) <= MOST_REQUESTS:
        raise ValueError(f"a rate is of 1 to {MOST_REQUESTS} requests; for none at all leave the rule out")
    return int(count), duration(f"{number or 1} {unit}")


def _parse(value: object, units: dict[str, int], what: str, examples: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= MOST:
            return value
        raise ValueError(f"{value} is out of range for {what}; write {examples}")
    if not isinstance(value, str):
        raise ValueError(f"must be {what}, such as {examples}")
    if value.strip().lower() in ("none", "0"):
        return 0
    match = _NUMBER.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value[:40]!r} is not {what}; write {examples}")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"{value[:40]!r} has no unit; write {examples}")
    if unit.lower() not in units:
        raise ValueError(f"{unit!r} is not a unit of {what[2:]}; write {examples}")
    found = (float(number) if "." in number else int(number)) * units[unit.lower()]
    if found > MOST:
        raise ValueError(f"{value[:40]!r} is out of range for {what}; write {examples}")
    if found < 1:
        raise ValueError(f'{value[:40]!r} is nothing; write "none" for no limit')
    return int(found)


def show_size(value: int) -> str:
    """Bytes as a policy file would say them."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value and value % 1024**power == 0:
            return f"{value // 1024**power} {unit}"
    return f"{value} B" if value else "none"


def show_duration(value: int) -> str:
    """Seconds as a policy file would say them."""
    for seconds, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if value and value % seconds == 0:
            return f"{value // seconds} {unit}"
    return f"{value} s" if value else "none"
