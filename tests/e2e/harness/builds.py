"""Builds of images over the raw API: manifests, the stream of a build checked frame by frame, snapshots that are removed again."""

import base64
import json
import uuid

from . import settings
from .client import SMALL, Box, check_error

EVENTS = {"Accept": "text/event-stream"}
NAMES = ("build_log", "error", "result")


class Outcome:
    """What an answer to a build was. `status` and `refusal` of one that was no stream; else its log and how it ended."""

    def __init__(self):
        self.status, self.kind, self.body = 0, "", b""
        self.logs, self.error, self.result = [], None, None
        self.comments = 0

    @property
    def refusal(self):
        return json.loads(self.body).get("error", "")

    @property
    def text(self):
        return "\n".join(each["message"] for each in self.logs)

    def messages(self, *kinds):
        return [each["message"] for each in self.logs if each["type"] in kinds or not kinds]

    def ran(self):
        """Numbers of the steps that were run, by what is said when they are done."""
        return sorted(each["step"] for each in self.logs if each["message"].startswith("Step ") and each["message"].endswith(" completed"))

    def frame(self, raw):
        """One block of the stream: the SDKs read no more than this."""
        text = raw.decode()
        assert "\r" not in text, raw
        lines = text.split("\n")
        if all(line.startswith(":") for line in lines):
            self.comments += 1
            return
        assert self.result is None and self.error is None, f"something follows the end: {raw!r}"
        assert len(lines) == 2 and lines[0].startswith("event: ") and lines[1].startswith("data: "), raw
        name, data = lines[0][7:], json.loads(lines[1][6:])
        assert name in NAMES, raw
        if name == "build_log":
            assert set(data) == {"step", "type", "message"}, data
            assert type(data["step"]) is int and data["step"] >= 0 and type(data["type"]) is str and type(data["message"]) is str, data
            self.logs.append(data)
        elif name == "error":
            check_error(data)
            self.error = data["error"]
        else:
            self.result = data


def post(api, path, body=None, on_log=None, headers=EVENTS, within=300.0, **options):
    """Sends it and reads the answer to its end, whichever kind it is."""
    outcome = Outcome()
    if body is not None:
        options["json"] = body
    with api.http.stream("POST", path, headers=headers, timeout=within * settings.PATIENCE, **options) as answer:
        outcome.status, outcome.kind = answer.status_code, answer.headers.get("content-type", "")
        assert answer.headers.get("x-request-id"), path
        if not outcome.kind.startswith("text/event-stream"):
            outcome.body = answer.read()
            # A registry that does not answer as one is no fault of ours.
            assert answer.status_code < 500 or answer.status_code in (502, 503), outcome.body
            if answer.status_code >= 400:
                check_error(json.loads(outcome.body))
            return outcome
        assert answer.status_code == 200 and "no-cache" in answer.headers.get("cache-control", ""), answer.headers
        left = b""
        for piece in answer.iter_bytes():
            outcome.body += piece
            *frames, left = (left + piece).split(b"\n\n")
            for each in frames:
                seen = len(outcome.logs)
                outcome.frame(each)
                if on_log and len(outcome.logs) > seen:
                    on_log(outcome.logs[-1])
        assert left == b"", f"the stream ends in the middle: {left!r}"
    assert (outcome.result is None) != (outcome.error is None), outcome.body[-2000:]
    return outcome


def step(kind, **args):
    return {"type": kind, "args": args}


def run(*commands):
    return step("run", commands=list(commands))


def env(**variables):
    return step("env", vars=variables)


def add_file(path, content):
    content = content.encode() if isinstance(content, str) else content
    return step("add_file", path=path, content=base64.b64encode(content).decode(), encoding="base64")


def add_dir(path, **files):
    """`files` by relative path."""
    made = [{"relativePath": name, "content": base64.b64encode(content).decode()} for name, content in files.items()]
    return step("add_dir", path=path, files=made)


def manifest(*steps, base="base", **more):
    return {"base": base, "steps": list(steps)} | more


def unique():
    """A step that no other build has."""
    return run(f": {uuid.uuid4()}")


def a_name(start="e2e"):
    return f"{start}-{uuid.uuid4().hex[:10]}"


def create(api, on_log=None, within=300.0, **fields):
    """Creates a sandbox from `image` or `snapshot`; the sandbox, with the outcome as `.outcome`."""
    outcome = post(api, "/api/sandboxes", SMALL | fields, on_log, within=within)
    assert outcome.result, (outcome.status, outcome.error or outcome.body, outcome.text[-1500:])
    box = Box(api, outcome.result)
    box.outcome = outcome
    return box


class Snapshot:
    """A snapshot that was built, removed at the end."""

    def __init__(self, api, image, name=None, on_log=None, within=300.0, **more):
        self.api, self.name = api, name or a_name()
        self.path = path_of(self.name)
        self.outcome = post(api, "/api/snapshots", {"name": self.name, "image": image} | more, on_log, within=within)
        assert self.outcome.result, (self.outcome.status, self.outcome.error or self.outcome.body, self.outcome.text[-1500:])
        self.view = self.outcome.result

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.api.http.delete(self.path)

    def get(self):
        answer = self.api.get(self.path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def create(self, **fields):
        return create(self.api, snapshot=self.name, **fields)


def path_of(name):
    from urllib.parse import quote

    return f"/api/snapshots/{quote(name, safe='@')}"


def build_fails(api, image, says="", within=120.0):
    """The text of the error of a build that must fail."""
    outcome = post(api, "/api/snapshots", {"name": a_name("bad"), "image": image}, within=within)
    said = outcome.refusal if outcome.status != 200 else outcome.error
    assert said, outcome.result
    assert says in said, said
    return outcome
