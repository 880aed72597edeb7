"""Reads a server's log and says what nobody expected in it.

    python -m harness.log FILE      prints lines of WARN and above that `expected-log-lines` does not list
"""

import re
import sys
from pathlib import Path

EXPECTED = Path(__file__).parent.parent / "expected-log-lines"
LEVEL = re.compile(r"^\S+\s+(WARN|ERROR)\b|panicked at|^thread '")


def expected_patterns():
    lines = EXPECTED.read_text().splitlines()
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def unexpected(text):
    patterns = expected_patterns()
    lines = (line for line in text.splitlines() if LEVEL.search(line))
    return [line for line in lines if not any(pattern.search(line) for pattern in patterns)]


if __name__ == "__main__":
    found = unexpected(Path(sys.argv[1]).read_text(errors="replace"))
    for line in found[:40]:
        print(f"unexpected in the log: {line}")
    sys.exit(1 if found else 0)
