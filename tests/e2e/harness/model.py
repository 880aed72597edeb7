"""A model that says what a script tells it to, for real agents: what they ask of Anthropic and OpenAI, and how it answers.

| path | what |
| --- | --- |
| `POST /v1/messages`, `/v1/messages/count_tokens` | Anthropic, as a stream and as JSON |
| `POST /v1/responses` | OpenAI's responses, likewise |
| `POST /v1/chat/completions` | OpenAI's chat, likewise |
| `GET /v1/models`, `HEAD /` | what clients look for first |
| `PUT /control/scripts/NAME`, `POST /control/release/NAME`, `GET /control/requests` | for tests in other languages; only where it says so |

A **script** is a list of turns. The prompt says which: `[[model:NAME]]`, as set with `Model.script`, or `[[turns:BASE64]]` with the
list itself (`inline`). The newest mark of a conversation counts, and the model's turn is found by how often it has spoken since; so
retries, resumed sessions and copies of them get what they should without anything being remembered. What has no mark gets `plain`.

| of a turn | what |
| --- | --- |
| `text` | it says that; alone it ends the agent's turn |
| `tool`, `input` | it calls the tool of that exact name |
| `shell: COMMAND`, `write: PATH, content`, `edit: PATH, old, new`, `read: PATH`, `list: PATH`, `search: PATTERN` | it calls what of this kind the agent offers, whatever it is called there |
| `calls: [turns]` | several tools at once |
| `pieces`, `every` | the text in so many pieces, with so many seconds between them |
| `hold: NAME` | it waits for `release(NAME)` before it goes on; `held(NAME)` says whether it does |
| `behave`, `times` | so many times (once, or `"always"`), before it answers well: `429`, `500`, `529` (any status), `"stall"` (accepts and says nothing), `"cut"` (ends the connection within the answer), `"garbage"` (what is no event), `"huge"` (an event of 4 MB) |
"""

import argparse
import base64
import json
import re
import socket
import socketserver
import ssl
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler

from . import model_tools
from .model_formats import FORMATS

MARK = re.compile(r"\[\[(model|turns):([A-Za-z0-9_.+/=-]+)\]\]")
#: What it charges for, to be seen in sums of costs.
USAGE = (1000, 100)
MAX_BODY = 64 << 20


def inline(turns):
    """A mark that carries its script."""
    return f"[[turns:{base64.b64encode(json.dumps(turns).encode()).decode()}]]"


class Model:
    """Serves on the listeners it is given until closed; tests talk to it directly."""

    def __init__(self, control=False):
        self.control = control
        self.scripts = {}
        #: Said to what has no mark.
        self.plain = "This is the scripted model; the prompt has no mark."
        self.lock = threading.Lock()
        self.all = []
        self.attempts = {}
        self.holds, self.holding = {}, set()
        self.closed = threading.Event()
        self.servers = []

    def listen(self, listener, context=None):
        """Serves on a socket that listens, over TLS with a context."""
        server = Listening(self, listener, context)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        self.servers.append(server)
        return server

    def close(self):
        self.closed.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- what tests say

    def script(self, *turns, name=None):
        """Sets a script and gives its mark, to stand in the prompt."""
        name = name or "s" + uuid.uuid4().hex[:12]
        self.scripts[name] = list(turns)
        return f"[[model:{name}]]"

    def release(self, name):
        self.holds.setdefault(name, threading.Event()).set()

    def held(self, name):
        """Whether a turn waits for `release`."""
        return name in self.holding

    def requests(self, text=None, after=0):
        """What arrived, in order; only what holds the text in path, headers or body. A mark finds its conversation."""
        with self.lock:
            found = self.all[after:]
        return [each for each in found if text is None or text in each["searched"]]

    def asked(self, text=None, after=0):
        """Of those, the ones for an answer with tools: the turns of an agent."""
        return [each for each in self.requests(text, after) if each.get("tools")]

    def keys(self, text=None, after=0):
        """Every key that arrived."""
        return {each["key"] for each in self.requests(text, after) if each["key"]}

    # --- what it does

    def record(self, entry):
        with self.lock:
            self.all.append(entry | {"n": len(self.all) + 1, "at": time.time()})
            return self.all[-1]

    def turn(self, conversation):
        """The turn of the script this conversation is at, how often it was asked for, and its script's name."""
        mark = conversation.mark
        if mark is None or not conversation.tools:
            # Titles and summaries, which agents ask for on the side, must not use turns up.
            return {"text": self.plain if mark is None else "Scripted work"}, 1
        kind, name = mark
        turns = self.scripts.get(name) if kind == "model" else json.loads(base64.b64decode(name))
        if turns is None:
            return {"text": f"there is no script {name}"}, 1
        at = conversation.spoken
        with self.lock:
            key = (name, at)
            self.attempts[key] = self.attempts.get(key, 0) + 1
            attempt = self.attempts[key]
        return (turns[at] if at < len(turns) else {"text": "The script is over."}), attempt

    def wait_for(self, name, is_gone):
        """Until it is released, or nobody listens any more."""
        released = self.holds.setdefault(name, threading.Event())
        self.holding.add(name)
        try:
            while not released.wait(0.05):
                if is_gone() or self.closed.is_set():
                    return
        finally:
            self.holding.discard(name)


def misbehaves(turn, attempt):
    """How it is to go wrong this time, or None."""
    times = turn.get("times", 1)
    return turn["behave"] if "behave" in turn and (times == "always" or attempt <= times) else None


class Listening(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, model, listener, context):
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.model, self.context = model, context
        self.server_address = listener.getsockname()

    def finish_request(self, request, address):
        """In the connection's own thread: who opens one and says nothing holds up nobody."""
        request.settimeout(300)
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.context:
                request = self.context.wrap_socket(request, server_side=True)
            Handler(request, address, self)
        except (OSError, ssl.SSLError):
            pass

    def handle_error(self, request, address):
        error = sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handle_error(request, address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.take(b"")
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self):
        path = self.path.split("?")[0]
        if self.server.model.control and path == "/control/requests":
            return self.json(200, self.server.model.requests())
        self.take(b"")
        if self.headers.get("upgrade"):
            # Codex tries WebSockets first; this sends it to the streams at once.
            return self.json(426, {"error": {"message": "the scripted model speaks no WebSocket"}})
        if path.endswith("/models"):
            names = ["claude-sonnet-4-5", "claude-haiku-4-5", "gpt-5", "gpt-5-codex", "gpt-4.1"]
            return self.json(200, {"object": "list", "data": [{"id": name, "object": "model", "type": "model"} for name in names]})
        return self.json(404, {"error": {"type": "not_found_error", "message": f"the scripted model has no {path}"}})

    def do_PUT(self):
        body = self.body()
        if self.server.model.control and self.path.startswith("/control/scripts/"):
            self.server.model.scripts[self.path.rsplit("/", 1)[1]] = json.loads(body)
            return self.json(200, {})
        return self.json(404, {"error": {"message": "no"}})

    def do_POST(self):
        body, path, model = self.body(), self.path.split("?")[0], self.server.model
        if model.control and path.startswith("/control/release/"):
            model.release(path.rsplit("/", 1)[1])
            return self.json(200, {})
        entry = self.take(body)
        if path.endswith("/messages/count_tokens"):
            return self.json(200, {"input_tokens": USAGE[0]})
        known = next((each for end, each in FORMATS.items() if path.endswith(end)), None)
        if not known or not isinstance(entry["body"], dict):
            return self.json(404, {"error": {"type": "not_found_error", "message": f"the scripted model has no {path}"}})
        conversation = known(entry["body"], MARK)
        entry["tools"] = [tool.shown for tool in conversation.tools]
        entry["turn"], entry["attempt"] = turn, attempt = model.turn(conversation)
        return self.answer(conversation, turn, attempt)

    # --- how it answers

    def answer(self, conversation, turn, attempt):
        wrong = misbehaves(turn, attempt)
        if isinstance(wrong, int):
            return self.json(wrong, {"type": "error", "error": {"type": "scripted", "message": f"scripted {wrong}"}},
                             {"retry-after": "0"} if wrong == 429 else {})
        if wrong == "stall":
            return self.server.model.wait_for(f"stall-{uuid.uuid4().hex}", self.is_gone)
        if turn.get("hold"):
            self.server.model.wait_for(turn["hold"], self.is_gone)
        calls = []
        for each in turn.get("calls", [turn]):
            call = model_tools.call(each, conversation.tools)
            if call:
                calls.append(call)
        answer = {"text": turn.get("text"), "calls": calls, "pieces": turn.get("pieces", 1), "usage": USAGE}
        if not conversation.body.get("stream"):
            return self.json(200, conversation.whole(answer))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        events = list(conversation.events(answer))
        for number, event in enumerate(events):
            if wrong and number == len(events) // 2:
                if wrong == "garbage":
                    self.chunk(b"data: {\"half\": \n\nevent: \x00\xff\ndata: [1,2\n\n<html>502</html>\n\n")
                elif wrong == "huge":
                    self.chunk(b": " + b"x" * (4 << 20) + b"\n\n")
                elif wrong == "cut":
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    raise ValueError(f"a script says behave: {wrong}")
            self.chunk(event)
            if turn.get("every") and self.is_gone(turn["every"]):
                return None
        return self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def json(self, status, value, headers=None):
        body = json.dumps(value, default=str).encode()
        self.send_response(status)
        for name, each in ({"content-type": "application/json", "content-length": str(len(body))} | (headers or {})).items():
            self.send_header(name, each)
        self.end_headers()
        self.wfile.write(body)

    def is_gone(self, within=0.0):
        """Whether the client has gone, which is looked for that long."""
        self.connection.settimeout(within or 0.001)
        try:
            # TLS cannot peek; a client that waits for an answer says nothing.
            return self.connection.recv(1) == b""
        except (TimeoutError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(300)

    # --- what it was asked

    def body(self):
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return self.unpacked(b"".join(parts))
        return self.unpacked(self.rfile.read(min(int(self.headers.get("content-length") or 0), MAX_BODY)))

    def unpacked(self, body):
        encoding = self.headers.get("content-encoding", "").lower()
        if encoding == "gzip":
            import gzip

            return gzip.decompress(body)
        return body

    def take(self, body):
        headers = {name.lower(): value for name, value in self.headers.items()}
        text = body.decode(errors="replace")
        try:
            parsed = json.loads(body) if body else None
        except ValueError:
            parsed = text
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        return self.server.model.record({
            "method": self.command,
            "path": self.path,
            "host": headers.get("host"),
            "headers": headers,
            "key": headers.get("x-api-key") or bearer or None,
            "body": parsed,
            "searched": f"{self.command} {self.path} {json.dumps(headers)} {text}",
        })


def main():
    """On loopback, for trying by hand and for tests in other languages: `python -m harness.model --listen 127.0.0.1:9100`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0")
    host, port = parser.parse_args().listen.rsplit(":", 1)
    model = Model(control=True)
    listener = socket.create_server((host, int(port)))
    print(f"ready http://{host}:{listener.getsockname()[1]}", flush=True)
    with model:
        model.listen(listener)
        threading.Event().wait()


if __name__ == "__main__":
    main()
