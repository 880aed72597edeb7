"""Agent sessions as they are on the wire: events out of an exec WebSocket, lines into it."""

import json
import time

from . import settings
from .sockets import EXIT, REPLAY_END, STDERR, STDOUT, ExecSocket


#: In the place of Claude's SDK: a program's lines become messages, taken in as fast as they come, as the real one does.
SDK = """
import { createInterface } from 'node:readline'
export function query({ prompt, options }) {
  const child = options.spawnClaudeCodeProcess({ command: process.execPath, args: [process.env.STAND_IN], cwd: options.cwd, env: options.env })
  const queue = []
  let wake = () => {}
  let ended = false
  createInterface({ input: child.stdout }).on('line', (line) => { queue.push(JSON.parse(line)); wake() }).on('close', () => { ended = true; wake() })
  const all = (async function* () {
    for (;;) {
      while (queue.length) yield queue.shift()
      if (ended) return
      await new Promise((resolve) => (wake = resolve))
    }
  })()
  all.interrupt = async () => child.kill('SIGKILL')
  all.setModel = async () => {}
  all.setPermissionMode = async () => {}
  return all
}
"""
SDK_PACKAGE = json.dumps({"name": "@anthropic-ai/claude-agent-sdk", "type": "module", "exports": "./sdk.mjs"})


def stand_in(box, program):
    """Puts a program of a few lines in the place of Claude's SDK; the sandbox's environment must have STAND_IN and a key."""
    package = "/home/sandbox/node_modules/@anthropic-ai/claude-agent-sdk"
    box.write(f"{package}/package.json", SDK_PACKAGE)
    box.write(f"{package}/sdk.mjs", SDK)
    box.write(STAND_IN["STAND_IN"], program)


STAND_IN = {"STAND_IN": "/home/sandbox/agent.mjs", "ANTHROPIC_API_KEY": "x"}


class AgentSocket:
    """An attached session. Every line of its output must be one JSON object."""

    def __init__(self, box, session_id, **query):
        self.socket = ExecSocket(box, session_id, **query)
        self.socket.__enter__()
        self.box, self.id = box, session_id
        self.events, self.rest, self.errors = [], b"", b""
        self.replayed, self.exit_code = None, None
        self.at = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.__exit__(*_)

    def send(self, **command):
        self.socket.stdin(json.dumps(command) + "\n")

    def raw(self, data):
        self.socket.stdin(data)

    def prompt(self, text, **fields):
        self.send(type="prompt", text=text, **fields)

    def pump(self, timeout):
        """Takes one frame in; false once the socket is closed."""
        frame = self.socket.next_by(time.monotonic() + timeout)
        self.socket.frames.clear()
        if frame is None:
            return False
        kind, payload = frame
        if kind == STDOUT:
            *lines, self.rest = (self.rest + payload).split(b"\n")
            for line in lines:
                event = json.loads(line)
                assert isinstance(event, dict), line
                self.events.append(event | {"_at": time.monotonic()})
        elif kind == STDERR:
            self.errors += payload
        elif kind == REPLAY_END:
            self.replayed = len(self.events)
        elif kind == EXIT:
            self.exit_code = self.socket.exit_code
        return True

    def until(self, kind, timeout=40.0, **fields):
        """The next event of that type, and with those fields, after the one found before."""
        deadline = time.monotonic() + settings.patient(timeout)
        while True:
            while self.at < len(self.events):
                event = self.events[self.at]
                self.at += 1
                if event["type"] == kind and all(event.get(name) == value for name, value in fields.items()):
                    return event
            if not self.pump(max(0.01, deadline - time.monotonic())):
                raise AssertionError(f"closed before {kind}: {self.told()}")

    def turn(self, timeout=60.0):
        """Reads to the end of a turn, however it ends; its events."""
        begun = self.at
        deadline = time.monotonic() + settings.patient(timeout)
        while True:
            while self.at < len(self.events):
                self.at += 1
                if self.events[self.at - 1]["type"] in ("turn_complete", "interrupted", "error"):
                    return self.events[begun:self.at]
            if not self.pump(max(0.01, deadline - time.monotonic())):
                raise AssertionError(f"closed within a turn: {self.told()}")

    def finish(self, timeout=30.0):
        deadline = time.monotonic() + settings.patient(timeout)
        while self.pump(max(0.01, deadline - time.monotonic())):
            pass
        assert self.rest == b"", self.rest
        return self.exit_code

    def told(self):
        return f"{[event['type'] for event in self.events[-8:]]} {self.events[-1:]} {self.errors[-1000:]!r}"


def start(box, **options):
    """Starts a session; its id."""
    answer = box.call("POST", "/agent", json=options)
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert view["running"] and view["sandboxID"] == box.id, view
    return view["sessionID"]


def session(box, **options):
    return AgentSocket(box, start(box, **options))


def listed(box, session_id):
    answer = box.call("GET", "/agent")
    assert answer.status_code == 200, answer.text
    return next((each for each in answer.json() if each["sessionID"] == session_id), None)


def said(events):
    """The words of the agent."""
    return [part["text"] for event in events if event["type"] == "assistant"
            for part in event["message"]["content"] if part["type"] == "text"]


def tools(events):
    return [part for event in events if event["type"] == "assistant" for part in event["message"]["content"] if part["type"] == "tool_use"]


def results(events):
    return [part for event in events if event["type"] == "user" and isinstance(event["message"]["content"], list)
            for part in event["message"]["content"] if part["type"] == "tool_result"]
