"""Agent sessions as far as they need no agent: what is refused, what a sandbox without one says, who may see what."""

import pytest

from harness import agents
from harness.client import Box
from harness.waiting import wait_for


def refused(box, body, says, status=400, path="/agent"):
    answer = box.call("POST", path, json=body)
    assert answer.status_code == status, (body, answer.status_code, answer.text)
    assert says in answer.json()["error"], (body, answer.text)


def test_options_that_make_no_sense_are_refused_and_nothing_starts(box):
    for body, says in (
        ({"agent": "gemini"}, 'agent must be claude-code, codex or opencode (got "gemini")'),
        ({"permissionMode": "yolo"}, "permissionMode must be one of default"),
        ({"maxTurns": -1}, "maxTurns must be 1 to 100000"),
        ({"maxTurns": "many"}, "maxTurns: invalid type"),
        ({"maxTurns": 1 << 40}, "maxTurns must be 1 to 100000"),
        ({"cwd": "src"}, "cwd must be an absolute path"),
        ({"cwd": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"model": "-x"}, "model must be"),
        ({"resume": "a b\n"}, "resume must be"),
        ({"allowedTools": "Bash"}, "allowedTools: invalid type"),
        ({"allowedTools": ["Bash", ""]}, "allowedTools must not hold empty names"),
        ({"mcpServers": []}, "mcpServers: invalid type"),
        ({"mcpServers": {"x": "node"}}, 'the server "x" must be an object'),
        ({"mcpServers": {"x": {"command": 1}}}, 'the server "x" needs a command'),
        ({"mcpServers": {"x": {"command": "node", "args": "y"}}}, "list of strings as args"),
        ({"mcpServers": {"a b": {"command": "node"}}}, "must be named with"),
        ({"mcpServers": {"x": {"type": "http", "url": "ftp://x"}}}, "begins with http:// or https://"),
        ({"mcpServers": {f"s{n}": {"command": "x"} for n in range(101)}}, "mcpServers must name at most 100"),
        ({"prompt": "x" * (1 << 20) + "y"}, "the prompt must be at most"),
        ({"systemPrompt": "x" * (1 << 20) + "y"}, "systemPrompt must be at most"),
        ({"endWhenIdle": "yes"}, "endWhenIdle: invalid type"),
        ([], "JSON object"),
    ):
        refused(box, body, says)
    assert box.call("POST", "/agent", content=b"x" * (5 << 20)).status_code == 413
    refused(box, {"prompt": "\x01" * (1 << 20)}, "larger than", 413)
    assert box.call("GET", "/agent").json() == []
    assert box.call("GET", "/exec").json() == []


def test_lines_that_make_no_sense_are_refused(box):
    sleeper = box.start("sleep", "600")
    # A command that is no session is none on these routes.
    for sid in (sleeper, "00000000", "nonsense"):
        for what, body in (("prompt", {"text": "x"}), ("interrupt", None), ("configure", {"model": "x"}), ("kill", None),
                           ("permission", {"id": "x", "behavior": "allow"})):
            refused(box, body, "agent session not found", 404, f"/agent/{sid}/{what}")
    assert box.session(sleeper)["running"]
    session = agents.start(box)
    for what, body, says in (
        ("prompt", {}, "text is required"), ("prompt", {"text": ""}, "text is required"), ("prompt", {"text": 1}, "text: invalid type"),
        ("prompt", {"text": "x", "resume": "-r"}, "resume must be"),
        ("configure", {}, "nothing to configure"), ("configure", {"agent": "codex"}, "cannot be changed"), ("configure", {"prompt": "x"}, "…/prompt"),
        ("configure", {"permissionMode": "x"}, "permissionMode must be one of"),
        ("permission", {}, "id is required"), ("permission", {"id": "x"}, "behavior must be allow or deny"),
        ("permission", {"id": "x", "behavior": "deny", "updatedInput": {}}, "updatedInput goes with"),
        ("kill", {"signal": 99}, "signal must be"),
    ):
        refused(box, body, says, path=f"/agent/{session}/{what}")


@pytest.mark.parametrize("prefix", ["/api", ""])
def test_a_sandbox_without_the_agent_says_what_to_do(box, prefix):
    answer = box.api.post(f"{prefix}/sandboxes/{box.id}/agent")
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert view | {"startedAt": "", "sessionID": ""} == {
        "sessionID": "", "sandboxID": box.id, "running": True, "startedAt": "", "agent": "claude-code"}, view
    with agents.AgentSocket(box, view["sessionID"], path=f"{prefix}/sandboxes/{box.id}/agent/{view['sessionID']}") as session:
        assert session.finish() == 1
        [event] = session.events
        assert event["type"] == "error" and ("warren agent install claude-code" in event["message"] or "Node.js" in event["message"]), event
    ended = wait_for(lambda: not agents.listed(box, session.id)["running"] and agents.listed(box, session.id), "the list knows")
    assert ended["exitCode"] == 1 and "claudeSessionId" not in ended
    refused(box, {"text": "x"}, "has ended", 409, f"/agent/{session.id}/prompt")
    # The wrapper is the user's, like all of /usr/local, and comes back when it is meddled with.
    path = "/usr/local/bin/claude-agent-wrapper"
    assert box.out(f"stat -c %U:%a {path}") == "sandbox:755\n"
    box.out(f"sudo sh -c 'echo exit 7 > {path}; rm -rf /usr/local/lib/warren'")
    with agents.session(box) as session:
        assert session.finish() == 1
    assert box.out(f"stat -c %U:%a {path}") == "sandbox:755\n"


def test_sessions_of_others_are_unknown(box, other):
    session = agents.start(box)
    for prefix in ("/api", ""):
        for method, path, body in (
            ("POST", "", {"prompt": "x"}), ("GET", "", None), ("POST", f"/{session}/prompt", {"text": "x"}), ("POST", f"/{session}/interrupt", None),
            ("POST", f"/{session}/configure", {"model": "x"}), ("POST", f"/{session}/permission", {"id": "x", "behavior": "allow"}),
            ("POST", f"/{session}/kill", None), ("GET", f"/{session}", None),
        ):
            answer = other.call(method, f"{prefix}/sandboxes/{box.id}/agent{path}", json=body)
            expected = 426 if path == f"/{session}" and method == "GET" and answer.status_code == 426 else 404
            assert answer.status_code == expected, (method, path, answer.status_code, answer.text)
    assert len(box.call("GET", "/agent").json()) == 1


ANSWERS = """process.stdout.write(JSON.stringify({ type: 'result', subtype: 'success', session_id: 'one' }) + '\\n')"""


def test_a_session_in_a_virtual_machine_goes_on_after_a_wake(api):
    answer = api.http.post("/api/sandboxes", json={"memoryMB": 1024, "isolation": "vm", "envs": agents.STAND_IN}, timeout=120)
    if answer.status_code == 501:
        pytest.skip(f"the server has no virtual machines: {answer.json()['error']}")
    assert answer.status_code == 201, answer.text
    with Box(api, answer.json()) as box:
        agents.stand_in(box, ANSWERS)
        with agents.session(box, prompt="One.") as session:
            session.until("turn_complete", timeout=60)
        assert box.call("POST", "/hibernate").status_code == 200
        assert box.call("POST", "/wake", json={}).status_code == 200
        assert agents.listed(box, session.id)["running"]
        with agents.AgentSocket(box, session.id) as again:
            again.until("turn_complete")
            assert box.call("POST", f"/agent/{session.id}/prompt", json={"text": "Two."}).status_code == 204
            again.until("turn_complete", timeout=60)
            assert [event["type"] for event in again.events].count("ready") == 1


def test_a_session_in_a_container_ends_with_a_hibernation(api):
    with api.create(envs=agents.STAND_IN, isolation="container") as box:
        agents.stand_in(box, ANSWERS)
        with agents.session(box, prompt="One.") as session:
            session.until("turn_complete")
            assert agents.listed(box, session.id)["claudeSessionId"] == "one"
        assert box.call("POST", "/hibernate").status_code == 200
        assert box.call("POST", "/wake", json={}).status_code == 200
        # What it said is kept, as that of any command that has ended.
        ended = agents.listed(box, session.id)
        assert not ended["running"] and ended["claudeSessionId"] == "one", ended


BURST = """
const line = (n) => JSON.stringify({ type: 'assistant', n, session_id: 'one', text: 'x'.repeat(1000) }) + '\\n'
for (let n = 0; n < 10000; n++) if (!process.stdout.write(line(n))) await new Promise((resolve) => process.stdout.once('drain', resolve))
process.stdout.write(JSON.stringify({ type: 'result', subtype: 'success', session_id: 'one' }) + '\\n')
"""


def test_a_burst_reaches_readers_that_stall_and_readers_that_come_late(api):
    with api.create(envs=agents.STAND_IN) as box:
        agents.stand_in(box, BURST)
        with agents.session(box, prompt="Go.") as stalled:
            stalled.until("ready")
            # It reads nothing while all of it is said; somebody else sees the end meanwhile.
            with agents.AgentSocket(box, stalled.id) as other:
                other.until("turn_complete", timeout=60)
            assert box.call("POST", f"/agent/{stalled.id}/kill").status_code == 204
            stalled.until("turn_complete", timeout=60)
            assert stalled.finish() == 137
            with agents.AgentSocket(box, stalled.id) as late:
                assert late.finish() == 137
            for reader in (stalled, other, late):
                numbers = [event["n"] for event in reader.events if event["type"] == "assistant"]
                assert numbers == list(range(10000)), len(numbers)
