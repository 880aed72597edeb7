"""Reads what a test runner's log says it did.

    python -m harness.counts LOG CODE      prints `passed failed skipped`; a runner that broke counts as a failure
"""

import re
import sys
from pathlib import Path

NODE = re.compile(r"^(?:#|ℹ) (pass|fail|skipped|cancelled|todo) (\d+)$", re.MULTILINE)
PYTEST = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)")


def counts(text, code):
    node = dict(NODE.findall(text))
    if node:
        take = lambda *names: sum(int(node.get(name, 0)) for name in names)
        passed, failed, skipped = take("pass"), take("fail", "cancelled"), take("skipped", "todo")
    else:
        lines = [line for line in text.splitlines() if re.search(r" in \d+(\.\d+)?s", line)]
        found = {word: int(number) for number, word in PYTEST.findall(lines[-1] if lines else "")}
        take = lambda *names: sum(found.get(name, 0) for name in names)
        passed, failed, skipped = take("passed", "xpassed"), take("failed", "error", "errors"), take("skipped", "xfailed")
    if code and not failed:
        failed = 1
    return passed, failed, skipped


if __name__ == "__main__":
    print(*counts(Path(sys.argv[1]).read_text(errors="replace"), int(sys.argv[2])))
