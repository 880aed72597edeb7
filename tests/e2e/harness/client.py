"""The HTTP API as it is on the wire, with what every answer must be like checked on each of them."""

import time
import uuid

import httpx

from . import settings
from .waiting import wait_for

SMALL = {"memoryMB": 1024}


class Api:
    """Requests of one credential. Refuses to accept a 5xx, an answer without a request id, or an error without words."""

    def __init__(self, url=None, key=None, headers=None, timeout=60.0 * settings.PATIENCE, strict=True):
        self.url = (url or settings.URL).rstrip("/")
        self.key = settings.KEY if key is None else key
        sent = dict(headers or {})
        if self.key:
            sent["X-API-Key"] = self.key
        limits = httpx.Limits(max_connections=300, max_keepalive_connections=100)
        self.http = httpx.Client(base_url=self.url, headers=sent, timeout=timeout, limits=limits)
        self.strict = strict

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def call(self, method, path, **options):
        """Sends a request; `path` starts with `/`."""
        answer = self.http.request(method, path, **options)
        if self.strict:
            check_answer(answer)
        return answer

    def get(self, path, **options):
        return self.call("GET", path, **options)

    def post(self, path, **options):
        return self.call("POST", path, **options)

    def put(self, path, **options):
        return self.call("PUT", path, **options)

    def delete(self, path, **options):
        return self.call("DELETE", path, **options)

    def create(self, **fields):
        """Creates a sandbox of the smallest size that never hibernates, unless `fields` say otherwise."""
        answer = self.post("/api/sandboxes", json=SMALL | fields)
        assert answer.status_code == 201, answer.text
        return Box(self, answer.json())

    def fork(self, checkpoint_id, **fields):
        """Makes a sandbox from a checkpoint."""
        answer = self.post(f"/api/sandboxes/from-checkpoint/{checkpoint_id}", json=fields)
        assert answer.status_code == 201, answer.text
        return Box(self, answer.json())

    def list_all(self, **query):
        """Every sandbox, through all pages."""
        found, cursor = [], None
        while True:
            page = self.get("/api/sandboxes", params=query | ({"cursor": cursor} if cursor else {}))
            assert page.status_code == 200, page.text
            found += page.json()
            cursor = page.headers.get("x-next-cursor")
            if not cursor:
                return found


class Box:
    """One sandbox."""

    def __init__(self, api, view):
        self.api = api
        self.created = view
        self.id = view["sandboxID"]
        self.path = f"/api/sandboxes/{self.id}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.api.http.delete(self.path)

    def view(self):
        answer = self.api.get(self.path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def status(self):
        return self.view()["status"]

    def call(self, method, path, **options):
        return self.api.call(method, f"{self.path}{path}", **options)

    def run(self, command, timeout=60, **fields):
        """Runs a shell command to its end; the answer's body."""
        timeout *= settings.PATIENCE
        body = {"cmd": "sh", "args": ["-c", command], "timeout": int(timeout)} | fields
        answer = self.call("POST", "/exec/run", json=body, timeout=timeout + 30)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert "exitCode" in result, result
        return result

    def out(self, command, **fields):
        """Standard output of a command that must succeed."""
        result = self.run(command, **fields)
        assert result["exitCode"] == 0, result
        return result["stdout"]

    def start(self, cmd, *args, **fields):
        """Starts a session; its id."""
        answer = self.call("POST", "/exec", json={"cmd": cmd, "args": list(args)} | fields)
        assert answer.status_code == 201, answer.text
        return answer.json()["sessionID"]

    def session(self, session_id):
        """The session as the list shows it."""
        sessions = self.call("GET", "/exec").json()
        return next((each for each in sessions if each["sessionID"] == session_id), None)

    def write(self, path, content, **options):
        answer = self.call("PUT", "/files", params={"path": path}, content=content, **options)
        assert answer.status_code == 204, answer.text

    def read(self, path):
        answer = self.call("GET", "/files", params={"path": path})
        assert answer.status_code == 200, answer.text
        return answer.content

    def kill(self):
        answer = self.call("DELETE", "")
        assert answer.status_code == 204, answer.text

    def checkpoint(self, name, ready=True, **fields):
        """Takes a checkpoint, and unless told otherwise waits until it is ready; its id."""
        answer = self.call("POST", "/checkpoints", json={"name": name} | fields)
        assert answer.status_code == 201, answer.text
        checkpoint_id = answer.json()["id"]
        if ready:
            self.wait_checkpoint(checkpoint_id)
        return checkpoint_id

    def checkpoints(self):
        answer = self.call("GET", "/checkpoints")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def find_checkpoint(self, checkpoint_id):
        return next((each for each in self.checkpoints() if each["id"] == checkpoint_id), None)

    def wait_checkpoint(self, checkpoint_id, status="ready", within=30.0):
        def seen():
            found = self.find_checkpoint(checkpoint_id)
            assert found and (found["status"] in ("processing", status)), found
            return found["status"] == status and found

        return wait_for(seen, f"{checkpoint_id} is {status}", within)

    def restore(self, checkpoint_id):
        answer = self.call("POST", f"/checkpoints/{checkpoint_id}/restore")
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"sandboxId": self.id, "checkpointId": checkpoint_id, "status": "restoring"}

    def wait_status(self, status, within=10.0):
        return wait_for(lambda: self.status() == status, f"{self.id} is {status}", within)

    @property
    def keeps_memory(self):
        """Whether its processes outlive a hibernation, and travel with checkpoints."""
        return self.created["hibernationKeeps"] == "memory"

    def is_alive(self, pattern):
        """Whether a process with this text in its arguments runs inside; the pattern hides from itself."""
        return self.run(f"pgrep -f '[{pattern[0]}]{pattern[1:]}'")["exitCode"] == 0


def check_answer(answer):
    request = f"{answer.request.method} {answer.request.url}"
    assert answer.status_code < 500, f"{request}: {answer.status_code} {answer.text[:500]}"
    assert answer.headers.get("x-request-id"), f"{request}: no request id"
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        check_error(answer.json(), request)


def check_error(body, request="the request"):
    """An error is an object with a sentence for people."""
    assert isinstance(body, dict), f"{request}: {body!r}"
    text = body.get("error")
    assert isinstance(text, str) and len(text) >= 8, f"{request}: {body!r}"


def marker():
    """An argument no other process on this machine has: seconds for `sleep`, longer than any test."""
    return f"{5000 + uuid.uuid4().int % 4000}.{uuid.uuid4().int % 10**9:09d}"


def seconds_since(start):
    return time.monotonic() - start
