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


def task(model, folder="/home/sandbox/work"):
    """Runs tests, which fail, mends the program, runs them again, and says so."""
    return model.script(
        {"shell": f"cd {folder} && python3 test_sums.py"},
        {"read": f"{folder}/sums.py"},
        {"edit": f"{folder}/sums.py", "old": "a - b", "new": "a + b"},
        {"shell": f"cd {folder} && python3 test_sums.py > result.txt && cat result.txt"},
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


@pytest.mark.parametrize("kind", KINDS)
def test_agent_run_brings_home_what_an_agent_did(snapshot, warren, model, keys, tmp_path, kind):
    snapshot(kind)
    project = tmp_path / "sums"
    project.mkdir()
    (project / "sums.py").write_text(PROGRAM)
    (project / "test_sums.py").write_text(TEST)
    mark = task(model, "/workspace/sums")
    arguments = ["--agent", kind, "--apply", "--secret-store", keys.store.name]
    if kind == "opencode":
        arguments += ["--model", "openai/gpt-5"]
    done = warren("agent", "run", f"Mend sums.py. {mark}", *arguments, cwd=project, within=90)
    assert (project / "sums.py").read_text() == PROGRAM.replace("a - b", "a + b")
    assert (project / "result.txt").read_text() == "the tests pass\n"
    lines = done.stdout.splitlines()
    assert "The sum was a difference; the tests pass now." in lines, done
    assert len([line for line in lines if line.startswith("→ ")]) == 4, done
    assert any("tokens in" in line for line in lines), done
    assert model.keys(mark) == {keys.of(kind)}
    assert keys.of(kind) not in done.stdout + done.stderr


def test_a_model_that_behaves_badly_is_survived(box, model):
    """It refuses, cuts its answer off and talks nonsense; the agent asks again and finishes."""
    sandbox = box("claude-code")
    mark = model.script({"shell": "echo one", "behave": 429}, {"shell": "echo two", "behave": 500}, {"text": "Done all the same.", "behave": "cut"})
    said = sandbox.run(f"mkdir -p ~/work && cd ~/work && {COMMANDS['claude-code'].format(prompt=repr('Go. ' + mark))} < /dev/null", timeout=80)
    assert said["exitCode"] == 0 and "Done all the same." in said["stdout"], said
    assert len(model.asked(mark)) == 6
