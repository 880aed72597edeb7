"""How fast sessions are: the first event against the same program started directly, and an event on its way to the SDK's callback.

    WARREN_BIN=target/release/warren tests/e2e/.venv/bin/python -m pytest agents/measure_sessions.py -s

from tests/e2e. Prints one line of JSON a figure; asserts nothing.
"""

import asyncio
import json
import statistics
import time

from opencomputer import Sandbox

from harness import agents
from harness.sockets import ExecSocket

ROUNDS = 15
EVENTS = 500
#: Says every 10 ms what time it is.
TICKING = """
let n = 0
const tick = () => {
  if (n === EVENTS) return process.stdout.write(JSON.stringify({ type: 'result', subtype: 'success', session_id: 's' }) + '\\n')
  process.stdout.write(JSON.stringify({ type: 'assistant', n: n++, at: performance.timeOrigin + performance.now(), session_id: 's' }) + '\\n')
  setTimeout(tick, 10)
}
setTimeout(tick, 500)
""".replace("EVENTS", str(EVENTS))


def told(figure, values, **more):
    values = sorted(values)
    print(json.dumps({
        "figure": figure, "n": len(values), "min": round(values[0], 2), "p50": round(statistics.median(values), 2),
        "p95": round(values[int(len(values) * 0.95) - 1], 2), "max": round(values[-1], 2), "unit": "ms"} | more))


def direct(sandbox):
    """Milliseconds until the CLI says who it is."""
    begun = time.monotonic()
    line = "claude -p Hello --output-format stream-json --verbose --dangerously-skip-permissions --model claude-sonnet-4-20250514 </dev/null"
    session = sandbox.start("sh", "-c", line, envs={"IS_SANDBOX": "1"})
    with ExecSocket(sandbox, session) as socket:
        socket.until_text('"subtype":"init"', timeout=60)
        init = (time.monotonic() - begun) * 1000
        socket.finish(60)
    return init


def by_session(sandbox):
    begun = time.monotonic()
    with agents.session(sandbox, prompt="Hello") as session:
        created = (time.monotonic() - begun) * 1000
        ready = (session.until("ready")["_at"] - begun) * 1000
        init = (session.until("system", subtype="init")["_at"] - begun) * 1000
        session.until("turn_complete")
        sandbox.call("POST", f"/agent/{session.id}/kill")
        session.finish()
    return created, ready, init


def test_the_first_event(box):
    sandbox = box("claude-code")
    direct(sandbox), by_session(sandbox)
    straight, sessions = [], []
    for _ in range(ROUNDS):
        straight.append(direct(sandbox))
        sessions.append(by_session(sandbox))
    told("the CLI directly, to system/init", straight)
    for at, what in enumerate(("the answer to POST", "ready", "system/init")):
        told(f"a session, to {what}", [each[at] for each in sessions])
    told("a session's system/init, more than the CLI's", [b[2] - a for a, b in zip(straight, sessions, strict=True)])


async def test_an_event_on_its_way(api, server, monkeypatch):
    monkeypatch.setenv("OPENCOMPUTER_API_URL", server.url)
    monkeypatch.setenv("OPENCOMPUTER_API_KEY", server.key)
    with api.create(envs=agents.STAND_IN) as made:
        agents.stand_in(made, TICKING)
        sandbox = await Sandbox.connect(made.id)
        late, done = [], asyncio.Event()

        def on_event(event):
            if event.type == "assistant":
                late.append(time.time() * 1000 - event["at"])
            elif event.type == "turn_complete":
                done.set()

        session = await sandbox.agent.start(prompt="Go.", on_event=on_event)
        reading = asyncio.create_task(session.wait())
        await asyncio.wait_for(done.wait(), 60)
        await session.kill()
        await reading
    told("an event, from the agent to the SDK's callback", late)
