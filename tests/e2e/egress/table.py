"""The attacks as a table: what each is, what is tried, and what stops it."""

from dataclasses import dataclass


@dataclass
class Attack:
    name: str
    group: str
    tries: str
    stops: str
    run: object


#: In the order they are told in.
ALL = []


def attack(name, tries, stops):
    """Makes a function of a world a case. It fails when the attack has any success; what it returns is what was seen."""

    def add(run):
        assert all(each.name != name for each in ALL), name
        ALL.append(Attack(name, run.__module__.rsplit(".", 1)[-1], tries, stops, run))
        return run

    return add


def show(reporter):
    """What the passed cases of this run were stopped by."""
    seen = {}
    for report in reporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "seen":
                seen[report.nodeid.partition("[")[2].rstrip("]")] = value
    if not seen:
        return
    reporter.section("attacks: what was tried, and what was seen of what stopped it")
    for each in (each for each in ALL if each.name in seen):
        reporter.line(f"{each.name:42} {each.tries}")
        reporter.line(f"{'':42}   → {' '.join(seen[each.name].split())[:160]}")


TITLES = {
    "ways": "Ways around the gateway",
    "names": "Names",
    "handshakes": "TLS",
    "requests": "Requests",
    "secrets": "Secrets on the way out",
    "echoes": "Secrets on the way back",
    "control": "The API",
}


def write(path):
    lines = [
        "# Attacks on the egress gateway",
        "",
        f"{len(ALL)} cases, each a test against the real gateway with real servers behind it: `tests/e2e/run egress -k attacks`. A case",
        "looks at what the servers received, what the resolver was asked and what the program inside saw, and fails when the",
        "attack has any success. `tests/e2e/run egress --attacks-table=../../docs/egress-attacks.md` writes this page.",
        "[egress.md](egress.md) says what the gateway does and what it cannot see.",
    ]
    for group, title in TITLES.items():
        cases = [each for each in ALL if each.group == group]
        if cases:
            lines += ["", f"## {title}", "", "| attack | what is tried | what stops it |", "| --- | --- | --- |"]
            lines += [f"| `{each.name}` | {each.tries} | {each.stops} |" for each in cases]
    path.write_text("\n".join(lines) + "\n")
