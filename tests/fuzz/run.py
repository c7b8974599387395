"""One target under atheris: `python -m fuzz.run TARGET SECONDS`, or `TARGET FILE` to give it one input again. scripts/fuzz installs atheris and calls this.

Coverage of the product and of the parsers below it guides the search. What it learns stays in build/fuzz/TARGET/corpus, what it finds in .../found.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fuzz.harness import TARGETS, load
from house.tree import ROOT

INSTRUMENTED = ["stockade", "dns", "tomllib", "json"]  # the last two only where nothing has imported them before
LONGEST = 8192  # bytes of an input
SLOWEST = 20  # seconds for one input: more is a finding


def main(name: str = "", what: str = "60") -> None:
    if name not in TARGETS:
        print(f"fuzz: {name or 'nothing'} is not a target. Targets: {', '.join(TARGETS)}", file=sys.stderr)
        sys.exit(2)
    try:
        import atheris
    except ImportError:
        print("fuzz: atheris is not installed. Run scripts/fuzz, which installs it for itself.", file=sys.stderr)
        sys.exit(2)
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = load(name)
    place = ROOT / "build/fuzz" / name
    for folder in ("corpus", "kept", "found"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.KEPT.values()):
        (place / f"kept/{number}").write_bytes(data)
    words = place / "words"
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.WORDS if 0 < len(word) <= 64))
    options = [
        f"-dict={words}",
        f"-artifact_prefix={place}/found/",
        f"-timeout={SLOWEST}",
        "-rss_limit_mb=2048",
        f"-max_len={getattr(target, 'LONGEST', LONGEST)}",
    ]
    if Path(what).is_file():
        inputs = [what]
    else:
        options += [f"-max_total_time={what}", "-print_final_stats=1"]
        inputs = [str(place / "corpus"), str(place / "kept")]
    atheris.Setup([sys.argv[0], *options, *inputs], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:3])
