"""The wrapper by itself, on this machine: bursts, readers that stall, and agents that misbehave in ways the real ones seldom do.

What stands in for an agent here is a program of a few lines; everything else of the suite has the real ones.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.agents import SDK, SDK_PACKAGE
from harness.waiting import wait_for

WRAPPER = Path(__file__).parents[3] / "crates/control/agent-wrapper/main.mjs"
MEGABYTE = 1 << 20
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is needed to run the wrapper on this machine")

class Wrapper:
    def __init__(self, folder, *arguments, reads=True, **env):
        self.home = folder
        variables = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder), "ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "x"}
        self.process = subprocess.Popen(
            ["node", "--no-warnings", str(WRAPPER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=variables | {name: str(value) for name, value in env.items()}, cwd=folder,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def send(self, **command):
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def next(self):
        line = self.process.stdout.readline()
        assert line.endswith(b"\n"), (line[-200:], self.process.stderr.read()[-2000:])
        return json.loads(line)

    def until(self, kind):
        while (event := self.next())["type"] != kind:
            pass
        return event

    def memory(self, what="VmHWM"):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{what}:")[1].split()[0]) * 1024


def sdk(folder, program):
    package = folder / "node_modules/@anthropic-ai/claude-agent-sdk"
    package.mkdir(parents=True)
    (package / "package.json").write_text(SDK_PACKAGE)
    (package / "sdk.mjs").write_text(SDK)
    (folder / "agent.mjs").write_text(program)
    return {"STAND_IN": folder / "agent.mjs"}


def codex(folder, program):
    """In the place of Codex: Python that is given `say`, and `lines` of what it is asked."""
    (folder / "bin").mkdir()
    path = folder / "bin/codex"
    path.write_text(
        "#!/usr/bin/env python3\nimport json, sys, os, time\n"
        "def say(**message):\n    print(json.dumps(message), flush=True)\n"
        "def answer(line):\n"
        "    asked = json.loads(line)\n"
        "    results = {'initialize': {'userAgent': 'x'}, 'thread/start': {'thread': {'id': 't1'}, 'model': 'm'}, 'turn/start': {'turn': {'id': 'u1'}}}\n"
        "    if 'id' in asked: say(id=asked['id'], result=results.get(asked['method'], {}))\n"
        "    return asked.get('method')\n"
        f"{program}\n"
    )
    path.chmod(0o755)


def test_a_burst_is_whole_and_memory_flat_while_the_reader_stalls(tmp_path):
    burst = """
    const line = (n) => JSON.stringify({ type: 'assistant', n, session_id: 's', message: { role: 'assistant', content: [{ type: 'text', text: 'x'.repeat(10000) }] } }) + '\\n'
    for (let n = 0; n < 10000; n++) if (!process.stdout.write(line(n))) await new Promise((resolve) => process.stdout.once('drain', resolve))
    process.stdout.write(JSON.stringify({ type: 'result', subtype: 'success', session_id: 's' }) + '\\n')
    """
    with Wrapper(tmp_path, **sdk(tmp_path, burst)) as wrapper:
        wrapper.send(type="prompt", text="Go.")
        wrapper.until("ready")
        first = wrapper.until("assistant")
        before = wrapper.memory("VmRSS")
        # 100 MB want to come; nobody reads.
        time.sleep(3)
        stalled = wrapper.memory("VmRSS")
        numbers = [first["n"]]
        while (event := wrapper.next())["type"] == "assistant":
            numbers.append(event["n"])
        assert numbers == list(range(10000))
        assert wrapper.until("turn_complete")["claude_session_id"] == "s"
        assert stalled - before < 16 * MEGABYTE, (before, stalled)
        assert wrapper.memory() < before + 96 * MEGABYTE, (before, wrapper.memory())


def test_an_interrupt_acts_while_the_reader_stalls(tmp_path):
    endless = """
    const line = JSON.stringify({ type: 'assistant', session_id: 's', text: 'x'.repeat(10000) }) + '\\n'
    for (;;) if (!process.stdout.write(line)) await new Promise((resolve) => process.stdout.once('drain', resolve))
    """
    with Wrapper(tmp_path, **sdk(tmp_path, endless)) as wrapper:
        wrapper.send(type="prompt", text="Go.")
        wrapper.until("assistant")
        time.sleep(1)
        wrapper.send(type="interrupt")
        running = f"pgrep -f {tmp_path}/agent.mjs"
        wait_for(lambda: subprocess.run(running.split(), capture_output=True, check=False).returncode == 1, "the agent is stopped")
        wrapper.until("interrupted")
        wrapper.process.stdin.close()
        assert wrapper.process.wait(10) == 130


def test_what_an_agent_prints_that_is_no_message_is_left_out(tmp_path):
    codex(tmp_path, """
for line in sys.stdin:
    print('Welcome to \\x1b[1mcodex\\x1b[0m'); print('{"half": '); print('[1, 2]'); print('x' * 3000000); print('"text"'); print('null')
    sys.stdout.buffer.write(b'\\xff\\xfe\\x00\\n'); sys.stdout.flush()
    if answer(line) == 'turn/start':
        say(method='turn/started', params={'threadId': 't1', 'turn': {'id': 'u1'}})
        say(method='item/completed', params={'threadId': 't1', 'turnId': 'u1', 'item': {'type': 'unheard of', 'id': 'i1'}})
        say(method='item/completed', params={'threadId': 't1', 'turnId': 'u1'})
        say(method='item/completed', params={'threadId': 't1', 'turnId': 'u1', 'item': {'type': 'agentMessage', 'id': 'i1', 'text': 'y' * 3000000}})
        say(id=99, result={}); say(id=7, method='unheard/of', params={})
        say(method='turn/completed', params={'threadId': 't1', 'turn': {'id': 'u1', 'status': 'completed'}})
""")
    with Wrapper(tmp_path, "--agent", "codex") as wrapper:
        wrapper.send(type="prompt", text="Go.")
        assert wrapper.until("agent_event")["event"]["params"]["item"]["type"] == "unheard of"
        assert len(wrapper.until("assistant")["message"]["content"][0]["text"]) == 3000000
        assert wrapper.until("turn_complete")["claude_session_id"] == "t1"


@pytest.mark.parametrize(("program", "says"), [
    ("sys.exit(3)", "ended with code 3"),
    ("print('cannot', file=sys.stderr); sys.exit(1)", "cannot"),
    ("print('Error: no space left on device\\n    at write\\n  params:', file=sys.stderr); sys.exit(1)", "no space left on device"),
    ("for line in sys.stdin:\n    if answer(line) == 'turn/start': os.kill(os.getpid(), 9)", "SIGKILL"),
])
def test_an_agent_that_dies_is_an_error_and_the_session_goes_on(tmp_path, program, says):
    codex(tmp_path, program)
    with Wrapper(tmp_path, "--agent", "codex") as wrapper:
        for _ in range(2):
            wrapper.send(type="prompt", text="Go.")
            assert says in wrapper.until("error")["message"]
        wrapper.process.stdin.close()
        assert wrapper.process.wait(10) == 1


def test_sigterm_ends_what_ignores_it_and_what_has_gone_its_own_way(tmp_path):
    codex(tmp_path, f"""
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(['sh', '-c', 'trap "" TERM; echo $$ > {tmp_path}/daemon; exec sleep 293'], start_new_session=True)
for line in sys.stdin:
    answer(line)
""")
    with Wrapper(tmp_path, "--agent", "codex") as wrapper:
        wrapper.send(type="prompt", text="Go.")
        wait_for(lambda: (tmp_path / "daemon").exists() and (tmp_path / "daemon").read_text(), "the daemon runs")
        wrapper.until("system")
        wrapper.process.send_signal(signal.SIGTERM)
        assert wrapper.process.wait(5) == 143
    for pid in [int((tmp_path / "daemon").read_text())]:
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), "the daemon has ended")


def test_input_that_ends_lets_what_was_asked_for_be_done(tmp_path):
    program = """
    process.stdout.write(JSON.stringify({ type: 'result', subtype: 'success', session_id: 's' }) + '\\n')
    """
    with Wrapper(tmp_path, **sdk(tmp_path, program)) as wrapper:
        wrapper.send(type="prompt", text="One.")
        wrapper.process.stdin.write(b'{"type":"prompt","text":"Two."}')
        wrapper.process.stdin.close()
        assert wrapper.process.wait(20) == 0
        assert [json.loads(line)["type"] for line in wrapper.process.stdout].count("turn_complete") == 2


def program(folder, name, text):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env node\n{text}")
    path.chmod(0o755)


def test_codex_is_told_no_lists_of_tools(tmp_path):
    program(tmp_path, "codex", "")
    with Wrapper(tmp_path, "--agent", "codex") as wrapper:
        wrapper.until("ready")
        for option in ("allowedTools", "disallowedTools"):
            wrapper.send(type="configure", model="m", **{option: ["Bash"]})
            said = wrapper.next()
            assert said["type"] == "error" and said["message"].startswith(f"{option}: codex has no list"), said
        wrapper.send(type="configure", model="m", allowedTools=[])
        assert wrapper.next() == {"type": "configured"}


#: Asks for leave before it has said what for, and says what it was started with.
ASKING = """
import { createInterface } from 'node:readline'
import { writeFileSync } from 'node:fs'
writeFileSync('configured.json', process.env.OPENCODE_CONFIG_CONTENT)
const say = (message) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', ...message }) + '\\n')
let asked
createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, method, result } = JSON.parse(line)
  if (method === 'session/prompt') {
    asked = id
    const toolCall = { toolCallId: 't', kind: 'execute', title: 'rm -r everything', rawInput: { cwd: '/' } }
    const update = { sessionUpdate: 'tool_call', ...toolCall, status: 'pending' }
    say({ method: 'session/update', params: { sessionId: 's', update } })
    say({ id: 1, method: 'session/request_permission', params: { sessionId: 's', toolCall, options: [{ kind: 'reject_once', optionId: 'no' }] } })
  } else if (method === undefined) say({ id: asked, result: { stopReason: result.outcome.optionId === 'no' ? 'end_turn' : 'refusal' } })
  else say({ id, result: method === 'session/new' ? { sessionId: 's' } : {} })
})
"""


def test_opencode_is_told_lists_of_tools_and_shows_what_it_asks_for(tmp_path):
    program(tmp_path, "opencode", "import('./asking.mjs')")
    (tmp_path / "bin/asking.mjs").write_text(ASKING)
    with Wrapper(tmp_path, "--agent", "opencode") as wrapper:
        lists = {"allowedTools": ["Bash(git log:*)", "mcp__calc__add"], "disallowedTools": ["WebFetch", "Bash(rm *)"]}
        wrapper.send(type="configure", permissionMode="default", **lists)
        wrapper.send(type="prompt", text="Go.")
        asked = wrapper.until("permission_request")
        assert asked["input"] == {"cwd": "/", "command": "rm -r everything"}, asked
        wrapper.send(type="permission_response", id=asked["id"], behavior="deny")
        wrapper.until("turn_complete")
    rules = json.loads((tmp_path / "configured.json").read_text())["permission"]
    assert list(rules["bash"].items()) == [("*", "ask"), ("git log*", "allow"), ("rm *", "deny")]
    assert (rules["calc_add"], rules["webfetch"], rules["edit"]) == ("allow", "deny", "ask")


#: A library that begins and then does not end by any means, the first time.
STUCK = """
let first = true
export function query() {
  const never = () => new Promise(() => {})
  if (!first) return (async function* () { yield { type: 'result', subtype: 'success', session_id: 's' } })()
  first = false
  const begun = [Promise.resolve({ value: { type: 'system', subtype: 'init' } })]
  return { [Symbol.asyncIterator]: () => ({ next: () => begun.pop() ?? never(), return: never }), interrupt: never }
}
"""


def test_a_turn_that_does_not_end_by_any_means_does_not_keep_the_next_one(tmp_path):
    with Wrapper(tmp_path, **sdk(tmp_path, "")) as wrapper:
        (tmp_path / "node_modules/@anthropic-ai/claude-agent-sdk/sdk.mjs").write_text(STUCK)
        wrapper.send(type="prompt", text="Go.")
        wrapper.send(type="prompt", text="And this.")
        wrapper.until("system")
        wrapper.send(type="interrupt")
        wrapper.until("interrupted")
        assert wrapper.until("turn_complete")["claude_session_id"] == "s"
