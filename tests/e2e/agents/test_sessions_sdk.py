"""Agent sessions by the two published SDKs, unmodified, with the real Claude Agent SDK in the sandbox."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
from opencomputer import Sandbox

from harness import settings

TYPESCRIPT = Path(__file__).parents[1] / "typescript"


async def within(seconds, future):
    return await asyncio.wait_for(future, seconds * settings.PATIENCE)


class Events:
    def __init__(self):
        self.all, self.errors, self.changed = [], [], asyncio.Event()

    def on_event(self, event):
        self.all.append(event)
        self.changed.set()

    async def until(self, kind, after=0):
        while not any(event.type == kind for event in self.all[after:]):
            self.changed.clear()
            await within(40, self.changed.wait())
        return next(event for event in self.all[after:] if event.type == kind)


@pytest.mark.parametrize("base", ["", "/api"])
async def test_the_python_sdk(box, model, server, monkeypatch, base):
    monkeypatch.setenv("OPENCOMPUTER_API_URL", server.url + base)
    monkeypatch.setenv("OPENCOMPUTER_API_KEY", server.key)
    sandbox = await Sandbox.connect(box("claude-code").id)
    assert await sandbox.agent.list() == []
    mark = model.script({"shell": "echo hello > made.txt"}, {"text": "Made."}, {"text": "Again."})
    seen = Events()
    session = await sandbox.agent.start(
        prompt=f"Make it. {mark}", model="claude-sonnet-4-5", system_prompt="You are terse.", allowed_tools=["Bash"],
        permission_mode="bypassPermissions", max_turns=10, cwd="/home/sandbox", mcp_servers={}, on_event=seen.on_event,
        on_error=seen.errors.append,
    )
    waiting = asyncio.create_task(session.wait())
    end = await seen.until("turn_complete")
    assert [event.type for event in seen.all][:2] == ["ready", "configured"]
    assert (await seen.until("result"))["result"] == "Made."
    assert "You are terse." in json.dumps(model.asked(mark)[0]["body"]["system"])
    assert await within(20, sandbox.files.read("/home/sandbox/made.txt")) == "hello\n"
    [view] = await sandbox.agent.list()
    assert (view.session_id, view.sandbox_id, view.running) == (session.session_id, sandbox.sandbox_id, True) and view.started_at

    # Follow-ups, options and interrupts, over the same socket.
    at = len(seen.all)
    session.configure(model="claude-haiku-4-5", max_turns=5)
    await seen.until("configured", at)
    session.send_prompt("Again.")
    again = await seen.until("turn_complete", at)
    assert again["claude_session_id"] == end["claude_session_id"]
    assert model.asked(mark)[-1]["body"]["model"] == "claude-haiku-4-5"
    at = len(seen.all)
    held = model.script({"text": "Never said.", "hold": f"python{base}"})
    session.send_prompt(f"Wait. {held}")
    await seen.until("system", at)
    session.interrupt()
    await seen.until("interrupted", at)
    model.release(f"python{base}")

    # Somebody else attaches, sees all of it, and sees it end.
    others = Events()
    other = await sandbox.agent.attach(session.session_id, on_event=others.on_event)
    collecting = asyncio.create_task(other.collect_events())
    await others.until("interrupted")
    await session.kill()
    assert await within(10, waiting) == 137
    collected = await within(10, collecting)
    assert [(each.type, each.data) for each in collected] == [(each.type, each.data) for each in seen.all]
    await session.close()
    await other.close()
    [view] = await sandbox.agent.list()
    assert view.running is False
    assert not [error for error in seen.errors if "non-JSON" in error], seen.errors


async def test_collecting_events_of_a_session_that_is_told_to_end(box, model, server, monkeypatch):
    """What the SDK cannot say itself goes by the API; its `attach` does the rest."""
    monkeypatch.setenv("OPENCOMPUTER_API_URL", server.url)
    monkeypatch.setenv("OPENCOMPUTER_API_KEY", server.key)
    made = box("claude-code")
    sandbox = await Sandbox.connect(made.id)
    answer = made.call("POST", "/agent", json={"prompt": "Hello.", "endWhenIdle": True})
    session = await sandbox.agent.attach(answer.json()["sessionID"])
    events = await within(40, session.collect_events())
    assert [event.type for event in events][-1] == "turn_complete" and await session.wait() in (0, -1)


def test_the_typescript_sdk(box, model, server):
    sandbox = box("claude-code")
    mark = model.script({"shell": "echo hello > made.txt"}, {"text": "Made."}, {"text": "Again."}, {"text": "Resumed."})
    held = model.script({"text": "Never said.", "hold": "typescript"})
    done = subprocess.run(
        ["node", "--import", "./setup.mjs", "./agent-sessions.mjs", sandbox.id, mark, held],
        cwd=TYPESCRIPT, capture_output=True, text=True, timeout=90 * settings.PATIENCE, check=False,
        env=os.environ | {"OPENCOMPUTER_API_URL": server.url, "OPENCOMPUTER_API_KEY": server.key},
    )
    model.release("typescript")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all of it", done.stdout
