"""Agent sessions with the real agents: one vocabulary of events, interrupts and options that act, permissions, conversations."""

import pytest

from agents.conftest import KINDS
from harness import agents
from harness.waiting import wait_for

#: What the sandbox tells OpenCode to use; the others have a default that the model knows.
MODELS = {"claude-code": {}, "codex": {}, "opencode": {"model": "openai/gpt-5"}}


def options(kind, **fields):
    return ({} if kind == "claude-code" else {"agent": kind}) | MODELS[kind] | fields


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_says_what_its_agent_does(box, model, keys, kind):
    sandbox = box(kind)
    mark = model.script({"shell": "echo one > /home/sandbox/made.txt; echo two"}, {"text": "It is made."})
    with agents.session(sandbox, **options(kind, prompt=f"Make it. {mark}")) as session:
        events = session.turn()
        assert [event["type"] for event in events if event["type"] in ("ready", "configured")] == (
            ["ready"] if kind != "opencode" else ["ready", "configured"])
        [init] = [event for event in events if event["type"] == "system" and event["subtype"] == "init"]
        assert init["cwd"] == "/home/sandbox" and init["permissionMode"] == "bypassPermissions" and init["model"]
        [use] = agents.tools(events)
        assert use["name"] == "Bash" and "made.txt" in use["input"]["command"], use
        [result] = agents.results(events)
        assert result["tool_use_id"] == use["id"] and "two" in str(result["content"]) and not result.get("is_error"), result
        assert agents.said(events) == ["It is made."]
        [end] = [event for event in events if event["type"] == "result"]
        assert end["subtype"] == "success" and end["is_error"] is False and end["result"] == "It is made."
        assert end["session_id"] == init["session_id"] and end["num_turns"] >= 1 and end["duration_ms"] > 0
        assert events[-1]["type"] == "turn_complete" and events[-1]["claude_session_id"] == init["session_id"]
        view = agents.listed(sandbox, session.id)
        assert view["running"] and view["claudeSessionId"] == init["session_id"] and view["agent"] == kind, view
    assert sandbox.read("/home/sandbox/made.txt") == b"one\n"
    assert model.keys(mark) == {keys.of(kind)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_acts_at_once_and_the_conversation_goes_on(box, model, kind):
    sandbox = box(kind)
    # Some agents note an interrupt as something that was said.
    mark = model.script({"shell": "python3 -c 'import time; time.sleep(297)'"}, *[{"text": "I was interrupted, and go on."}] * 2)
    with agents.session(sandbox, **options(kind, prompt=f"Wait. {mark}")) as session:
        session.until("assistant")
        runs = "pgrep -f '[t]ime.sleep.297'"
        wait_for(lambda: sandbox.run(runs)["exitCode"] == 0, "the agent's command runs")
        begun = len(session.events)
        answer = sandbox.call("POST", f"/agent/{session.id}/interrupt")
        assert answer.status_code == 204, answer.text
        session.until("interrupted", timeout=2)
        # The next prompt need not wait for anything.
        answer = sandbox.call("POST", f"/agent/{session.id}/prompt", json={"text": "Go on."})
        assert answer.status_code == 204, answer.text
        events = session.turn()
        assert agents.said(events) == ["I was interrupted, and go on."], session.told()
        assert events[-1]["type"] == "turn_complete"
        # Nothing of the turn that was stopped came after `interrupted`.
        assert [event["type"] for event in session.events[begun:]].count("result") == 1
        assert sandbox.run(runs)["exitCode"] == 1, "the command that was interrupted still runs"
        # Interrupting what does nothing is answered too.
        session.send(type="interrupt")
        session.until("interrupted", timeout=2)
        assert agents.listed(sandbox, session.id)["running"]


def test_options_change_within_a_turn(box, model):
    sandbox = box("claude-code")
    mark = model.script({"shell": "echo one", "hold": "options"}, {"text": "Done."})
    with agents.session(sandbox, prompt=f"Go. {mark}", model="claude-sonnet-4-5") as session:
        wait_for(lambda: model.held("options"), "the model is asked")
        answer = sandbox.call("POST", f"/agent/{session.id}/configure", json={"model": "claude-haiku-4-5", "maxTurns": 3})
        assert answer.status_code == 204, answer.text
        session.until("configured")
        told = session.until("configured")
        assert told["applied"] == ["model"] and told["next_prompt"] == ["maxTurns"], told
        model.release("options")
        assert agents.said(session.turn()) == ["Done."]
        assert [each["body"]["model"] for each in model.asked(mark)] == ["claude-sonnet-4-5", "claude-haiku-4-5"]
        # Between turns there is nothing to say about it.
        session.send(type="configure", maxTurns=1)
        assert {name for name in session.until("configured") if name != "_at"} == {"type"}
        more = model.script({"shell": "echo one"}, {"shell": "echo two"}, {"text": "Not reached."})
        session.prompt(f"More. {more}")
        assert session.until("result")["subtype"] == "error_max_turns"


@pytest.mark.parametrize("kind", KINDS)
def test_permissions_are_asked_for_and_the_first_answer_counts(box, model, kind):
    sandbox = box(kind)
    mark = model.script({"shell": "touch /home/sandbox/allowed"}, {"text": "Made."}, {"shell": "touch /home/sandbox/denied"}, {"text": "Not made."})
    with agents.session(sandbox, **options(kind, prompt=f"Make it. {mark}", permissionMode="default")) as session, \
            agents.AgentSocket(sandbox, session.id) as other:
        asked = session.until("permission_request")
        assert asked["tool_name"] == "Bash" and "allowed" in asked["input"]["command"], asked
        assert other.until("permission_request")["id"] == asked["id"]
        assert sandbox.run("test -e /home/sandbox/allowed")["exitCode"] == 1
        answer = {"id": asked["id"], "behavior": "allow"}
        assert sandbox.call("POST", f"/agent/{session.id}/permission", json=answer).status_code == 204
        assert session.until("permission_resolved")["behavior"] == "allow"
        other.send(type="permission_response", id=asked["id"], behavior="deny")
        assert "no permission request" in other.until("error")["message"]
        session.until("turn_complete")
        assert sandbox.run("test -e /home/sandbox/allowed")["exitCode"] == 0
        session.prompt("And the other.")
        asked = session.until("permission_request")
        session.send(type="permission_response", id=asked["id"], behavior="deny", message="not that one")
        session.until("turn_complete")
        assert sandbox.run("test -e /home/sandbox/denied")["exitCode"] == 1
        # A request of a turn that is interrupted is withdrawn.
        again = model.script({"shell": "touch /home/sandbox/denied"}, {"text": "Not made."})
        session.prompt(f"Again. {again}")
        asked = session.until("permission_request")
        session.send(type="interrupt")
        assert session.until("permission_resolved", id=asked["id"])["behavior"] == "deny"
        assert sandbox.run("test -e /home/sandbox/denied")["exitCode"] == 1


@pytest.mark.parametrize("kind", ["claude-code", "opencode"])
def test_lists_say_which_tools_are_used_without_asking_and_which_are_not_there(box, model, kind):
    sandbox = box(kind)
    mark = model.script({"shell": "touch /home/sandbox/allowed"}, {"shell": "rm /home/sandbox/allowed"}, {"text": "It is there."})
    fields = {"permissionMode": "default", "allowedTools": ["Bash(touch:*)"], "disallowedTools": ["WebFetch"]}
    with agents.session(sandbox, **options(kind, prompt=f"Make it, remove it. {mark}", **fields)) as session:
        asked = session.until("permission_request")
        assert "rm " in asked["input"]["command"], asked
        session.send(type="permission_response", id=asked["id"], behavior="deny", message="leave it")
        session.until("turn_complete")
        assert sandbox.run("test -e /home/sandbox/allowed")["exitCode"] == 0
        offered = {(tool.get("function") or tool)["name"].lower() for tool in model.asked(mark)[0]["body"]["tools"]}
        assert "bash" in offered and "webfetch" not in offered, offered


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_resumed_after_its_processes_are_gone(box, model, kind):
    sandbox = box(kind)
    mark = model.script({"text": "I have heard it."}, {"text": "I remember it."})
    with agents.session(sandbox, **options(kind, prompt=f"The word is swordfish. {mark}", endWhenIdle=True)) as session:
        conversation = session.until("turn_complete")["claude_session_id"]
        assert session.finish() == 0
    assert sandbox.call("POST", "/hibernate").status_code == 200
    assert sandbox.call("POST", "/wake", json={}).status_code == 200
    with agents.session(sandbox, **options(kind, resume=conversation, prompt="Which word?", endWhenIdle=True)) as session:
        assert agents.said(session.turn()) == ["I remember it."], session.told()
        assert session.events[-1].get("claude_session_id") == conversation or session.finish() == 0
    assert "swordfish" in str(model.asked(mark)[-1]["body"])
    # Of what is not there the session says so, and begins anew.
    unknown = {"opencode": "ses_00000000000000000000000000"}.get(kind, "01a22c35-0000-4c11-aae1-15a0dbfd1ccc")
    with agents.session(sandbox, **options(kind, resume=unknown, prompt="Which word?")) as session:
        failed = session.until("resume_failed")
        assert failed["claude_session_id"] == unknown and "a new one begins" in failed["message"], failed
        end = session.until("turn_complete")
        assert end["claude_session_id"] not in (unknown, conversation, None)


def test_a_session_ends_when_idle_only_if_told_to(box, model):
    sandbox = box("claude-code")
    with agents.session(sandbox, prompt="Hello.", endWhenIdle=True) as session:
        assert session.finish() == 0
        assert [event["type"] for event in session.events][-1] == "turn_complete"
    view = agents.listed(sandbox, session.id)
    assert view["running"] is False and view["exitCode"] == 0 and view["claudeSessionId"], view
    assert sandbox.call("POST", f"/agent/{session.id}/prompt", json={"text": "More."}).status_code == 409
    assert sandbox.call("POST", f"/agent/{session.id}/kill").status_code == 204
    mark = model.script({"text": "x", "behave": 400, "times": "always"})
    with agents.session(sandbox, prompt=f"Hello. {mark}", endWhenIdle=True) as session:
        assert session.finish() == 1
        assert session.events[-1]["type"] == "error"
    with agents.session(sandbox, prompt="Hello.") as session:
        session.turn()
        assert agents.listed(sandbox, session.id)["running"]
        assert sandbox.call("POST", f"/agent/{session.id}/kill", json={"signal": 15}).status_code == 204
        assert session.finish() == 143


def test_bad_luck_is_told_and_the_session_goes_on(box, model):
    sandbox = box("claude-code")
    with agents.session(sandbox) as session:
        session.until("ready")
        for line, says in (
            (b"garbage\n", "invalid JSON"), (b"[1]\n", "invalid JSON"), (b"\xff\xfe\n", "invalid JSON"), (b'{"type":"prompt"}\n', "prompt text is required"),
            (b'{"type":"nonsense"}\n', "unknown command type: nonsense"), (b'{"type":"configure","maxTurns":"many"}\n', "maxTurns cannot be"),
            (b'{"type":"permission_response","id":"x","behavior":"allow"}\n', "no permission request x"),
            (b'{"type":"' + b"x" * (3 << 20) + b'"}\n', "unknown command type: xxx"),
        ):
            session.raw(line)
            assert says in session.until("error")["message"]
        # Half a line of somebody who left does not take the next one with it.
        session.raw(b'{"type":"prompt","te')
        answer = sandbox.call("POST", f"/agent/{session.id}/prompt", json={"text": "Hello."})
        assert answer.status_code == 204
        assert session.until("error")["message"] == "invalid JSON input"
        assert agents.said(session.turn()) == [model.plain]
        # The model stalls, refuses, breaks off.
        stall = model.script({"text": "x", "behave": "stall", "times": "always"})
        session.prompt(f"Go. {stall}")
        wait_for(lambda: model.asked(stall), "the model is asked")
        session.send(type="interrupt")
        session.until("interrupted", timeout=2)
        for wrong in (429, 500, "cut", "garbage"):
            mark = model.script({"text": f"After {wrong}.", "behave": wrong})
            session.prompt(f"Go. {mark}")
            assert agents.said(session.turn()) == [f"After {wrong}."], session.told()
        # The agent itself is killed; what comes next is the same conversation.
        mark = model.script({"shell": "python3 -c 'import time; time.sleep(297)'"}, *[{"text": "I am back."}] * 2)
        session.prompt(f"Go. {mark}")
        session.until("assistant")
        sandbox.run("pkill -9 -f '[c]laude-agent-sdk-linux-x64/claude'")
        assert "SIGKILL" in session.until("error")["message"]
        session.prompt("Are you there?")
        assert agents.said(session.turn())[-1:] == ["I am back."], session.told()
        # The wrapper itself is.
        sandbox.run("pkill -9 -f '[a]gent-wrapper-.*/main.mjs'")
        assert session.finish() == 137


def test_what_is_missing_is_told(box, api):
    sandbox = box("claude-code", secretStore=None)
    with agents.session(sandbox, prompt="Hello.") as session:
        assert session.finish() == 1
        assert session.events[-1]["message"] == "ANTHROPIC_API_KEY environment variable is not set"
    with agents.session(sandbox, agent="codex") as session:
        assert session.finish() == 1
        assert "warren agent install codex" in session.events[-1]["message"]


def test_attaching_replays_the_whole_transcript(box, model):
    sandbox = box("claude-code")
    mark = model.script(*[{"shell": f"head -c 25000 /dev/zero | tr '\\0' {letter}"} for letter in "abcdefghijklmnopqrstuvwxyz"] * 2, {"text": "Done."})
    with agents.session(sandbox, prompt=f"Go. {mark}", maxTurns=100) as session:
        events = session.turn(timeout=90)
        assert len(agents.results(events)) == 52
        size = sum(len(str(event)) for event in events)
        assert size > 2 << 20, size
    for path in (None, f"{sandbox.path}/agent/{session.id}"):
        with agents.AgentSocket(sandbox, session.id, path=path) as again:
            again.until("turn_complete")
            assert [event | {"_at": 0} for event in again.events] == [event | {"_at": 0} for event in session.events]


MCP = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        version = asked.get("params", {}).get("protocolVersion")
        answers = {
            "initialize": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "calc", "version": "1"}},
            "tools/list": {"tools": [{"name": "add", "description": "Adds.", "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}}}}]},
            "tools/call": {"content": [{"type": "text", "text": "the sum is " + os.environ["SUM"]}]},
        }
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answers.get(asked["method"], {})}), flush=True)
"""


@pytest.mark.parametrize(("kind", "tool"), [("claude-code", "mcp__calc__add"), ("opencode", "calc_add")])
def test_mcp_servers_and_the_other_options_reach_the_agent(box, model, kind, tool):
    sandbox = box(kind)
    sandbox.write("/home/sandbox/mcp.py", MCP)
    sandbox.run("mkdir /home/sandbox/there")
    mark = model.script({"tool": tool, "input": {"a": 1}}, {"shell": "pwd"}, {"text": "Done."})
    server = {"command": "python3", "args": ["/home/sandbox/mcp.py"], "env": {"SUM": "forty-two"}}
    with agents.session(sandbox, **options(kind, prompt=f"Add. {mark}", mcpServers={"calc": server}, cwd="/home/sandbox/there")) as session:
        events = session.turn()
        added, where = agents.results(events)
        assert "the sum is forty-two" in str(added["content"]), added
        assert "/home/sandbox/there" in str(where["content"]), where
        assert agents.tools(events)[0]["name"] == tool
    # What is said of a server stays off command lines, which logs and other users see.
    assert sandbox.run("grep -l forty-tw[o] /proc/[0-9]*/cmdline")["stdout"] == ""
