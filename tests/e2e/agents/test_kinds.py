"""The three agents, as they come from npm into a snapshot, work in sandboxes."""

import pytest

from agents.conftest import KINDS, json_lines

PROGRAM = "def add(a, b):\n    return a - b\n"
TEST = "from sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\ntest_add()\nprint('the tests pass')\n"
COMMANDS = {
    "claude-code": "claude -p {prompt} --output-format stream-json --verbose --dangerously-skip-permissions",
    "codex": "CODEX_API_KEY=$OPENAI_API_KEY codex exec --json --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox {prompt}",
    "opencode": "opencode run --format json --auto --model openai/gpt-5 {prompt}",
}


def task(model):
    """Runs tests, which fail, mends the program, runs them again, and says so."""
    return model.script(
        {"shell": "cd /home/sandbox/work && python3 test_sums.py"},
        {"read": "/home/sandbox/work/sums.py"},
        {"edit": "/home/sandbox/work/sums.py", "old": "a - b", "new": "a + b"},
        {"shell": "cd /home/sandbox/work && python3 test_sums.py > result.txt && cat result.txt"},
        {"text": "The sum was a difference; the tests pass now."},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_mends_a_program_until_its_tests_pass(box, model, keys, kind):
    sandbox = box(kind)
    sandbox.write("/home/sandbox/work/sums.py", PROGRAM)
    sandbox.write("/home/sandbox/work/test_sums.py", TEST)
    mark = task(model)
    said = sandbox.run(f"cd /home/sandbox/work && {COMMANDS[kind].format(prompt=repr('Mend sums.py. ' + mark))} < /dev/null", timeout=80)
    assert said["exitCode"] == 0, said
    assert "The sum was a difference" in said["stdout"], said
    assert json_lines(said["stdout"])
    assert b"a + b" in sandbox.read("/home/sandbox/work/sums.py")
    assert sandbox.read("/home/sandbox/work/result.txt") == b"the tests pass\n"
    assert len(model.asked(mark)) == 5
    assert model.keys(mark) == {keys.of(kind)}
