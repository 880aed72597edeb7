"""The log of a sandbox: a stream of server-sent events, read as they come."""

import json

import httpx


class Logs:
    """An open log; closes it when left."""

    def __init__(self, box, silence=20.0, **query):
        self.opened = box.api.http.stream(
            "GET", f"{box.path}/logs", params=query, timeout=httpx.Timeout(20, read=silence)
        )

    def __enter__(self):
        self.answer = self.opened.__enter__()
        if self.answer.status_code == 200:
            assert self.answer.headers["content-type"] == "text/event-stream"
            assert self.answer.headers["x-request-id"]
        self.rows = self.events()
        return self

    def __exit__(self, *stopped):
        self.opened.__exit__(*stopped)

    def events(self):
        """The data of every event; every line of the stream is checked to be one that may be there."""
        for line in self.answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])
            else:
                assert line in ("", ": keepalive"), line

    def until(self, condition):
        """Rows up to and including the first one that fulfils a condition."""
        seen = []
        for row in self.rows:
            seen.append(row)
            if condition(row):
                return seen
        raise AssertionError(f"the log ended before: {seen}")


def history(box, **query):
    """The rows there are now, oldest first."""
    with Logs(box, tail="false", **query) as logs:
        assert logs.answer.status_code == 200, logs.answer.read()
        return list(logs.rows)


def lines(rows):
    return [row["line"] for row in rows]
