"""`warren agent run --outside`: whatever ends an agent on the user's machine, nothing of it is left there and its work is kept.

The agent is a script in the place of Codex: what must be true is about its processes, its output and its terminal.
"""

import json
import os
import signal
import subprocess
import tempfile
import termios
import time
import uuid
from pathlib import Path

import pytest

from harness.agent_runs import CLIENT
from harness.pipes import first_line
from harness.waiting import wait_for

from .run_fixtures import _own_server, api, folder, server  # noqa: F401

RUN = ("agent", "run", "--agent", "codex", "--outside", "--memory", "1024")


@pytest.fixture
def agent(folder, tmp_path):
    """Makes a script the agent: `agent("echo $MARK")`. What it starts is known by its variable MARK."""
    programs, temporary = tmp_path / "programs", tmp_path / "temporary"
    programs.mkdir()
    temporary.mkdir()
    folder.environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(temporary), "OPENAI_API_KEY": "sk-x"}

    class Agent:
        mark = f"mark-{uuid.uuid4().hex}"

        def __call__(self, script):
            (programs / "codex").write_text(f"#!/bin/sh\nexport MARK={self.mark}\n{script}\n")
            (programs / "codex").chmod(0o755)

        def left(self):
            """Processes, and folders with keys in them."""
            found = []
            for path in Path("/proc").glob("[0-9]*/environ"):
                try:
                    if f"MARK={self.mark}".encode() in path.read_bytes():
                        found.append((path.parent / "cmdline").read_bytes())
                except OSError:
                    pass
            return found + list(temporary.iterdir())

    return Agent()


def start(folder, *arguments):
    process = subprocess.Popen(
        [CLIENT, *RUN, "--json", "work", *arguments], cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    event = json.loads(first_line(process.stdout))
    assert event["type"] == "started", event
    return process, event["sandbox"]


def test_daemons_that_hold_its_output_neither_keep_us_nor_outlive_it(folder, agent):
    agent("cat >/dev/null; sleep 300 & setsid sh -c 'trap \"\" TERM HUP; sleep 300; sleep 300' & printf '{\"last\": 1}'")
    begun = time.monotonic()
    done = folder.warren(*RUN, "--json", "work")
    assert time.monotonic() - begun < 40 and agent.left() == []
    # The last line is one without its end as well.
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"type": "output", "stream": "stdout", "event": {"last": 1}} in events


def test_a_time_limit_ends_all_there_is_of_it(folder, agent):
    agent("(setsid sleep 300 &); sleep 300 & wait")
    folder.warren(*RUN, "work", "--timeout", "1s", code=124)
    assert agent.left() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_command_that_started_it(folder, agent, how):
    agent("(setsid sleep 300 &); echo begun; sleep 300 & wait")
    process, _ = start(folder)
    wait_for(lambda: len(agent.left()) >= 3, "it runs")
    process.send_signal(how)
    process.wait(10)
    wait_for(lambda: agent.left() == [], "nothing is left", 8)
    process.communicate()


def test_what_opens_its_tools_is_its_sandboxs_token(folder, agent):
    agent("cat >/dev/null; cat $HOME/.codex/config.toml; env")
    said = folder.warren(*RUN, "--json", "work").stdout
    assert "OPENCOMPUTER_API_KEY" in said and "eyJ" in said, said
    assert folder.environment["OPENCOMPUTER_API_KEY"] not in said


def keeper_of(process):
    """The process between the command and its agent."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def test_it_ends_with_its_keeper_and_the_work_comes_home(folder, agent):
    agent("(setsid sh -c 'trap \"\" TERM HUP; sleep 300; sleep 300' &); echo begun; sleep 300 & wait")
    process, _ = start(folder)
    wait_for(lambda: len(agent.left()) >= 4, "it runs")
    os.kill(keeper_of(process), signal.SIGKILL)
    wait_for(lambda: [each for each in agent.left() if isinstance(each, bytes)] == [], "no process is left", 8)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 137 and json.loads(output.splitlines()[-1])["type"] == "patch", output
    assert agent.left() == []


def test_an_agent_ends_when_its_keeper_and_its_command_are_killed_together(folder, agent):
    agent("trap '' TERM HUP; echo begun; while :; do sleep 0.1; done")
    process, _ = start(folder)
    wait_for(lambda: len(agent.left()) >= 2, "it runs")
    for pid in (process.pid, keeper_of(process)):
        os.kill(pid, signal.SIGSTOP)
    for pid in (keeper_of(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=10)
    wait_for(lambda: [each for each in agent.left() if isinstance(each, bytes)] == [], "no process is left", 8)


def test_a_terminal_is_given_back_as_it_was(folder, agent):
    agent("stty raw -echo; printf '\\033[?1049h\\033[?1000hdrawn'; (setsid sleep 300 &); sleep 300")
    terminal = folder.terminal(*RUN, "--timeout", "2s")
    before = termios.tcgetattr(terminal.master)
    terminal.wait_for("drawn")
    assert termios.tcgetattr(terminal.master)[3] != before[3]
    terminal.wait_for("\x1b[?1049l")
    assert terminal.end() == 124
    assert termios.tcgetattr(terminal.master) == before and b"\x1b[?1000l" in terminal.said
    assert agent.left() == []


def test_its_work_is_kept_when_nobody_reads_its_output(folder, agent):
    agent("echo begun; until [ -e $TMPDIR/../../go ]; do sleep 0.1; done; while echo more; do sleep 0.1; done")
    process, sandbox = start(folder, "--apply")
    folder.warren("exec", sandbox, "--cwd", "/workspace/project", "--shell", "--", "echo more >>README")
    process.stdout.close()
    (Path(folder.environment["TMPDIR"]) / "go").touch()
    process.wait(20)
    assert f"agent patch {sandbox}" in process.stderr.read()
    (Path(folder.environment["TMPDIR"]) / "go").unlink()
    assert agent.left() == []
    folder.warren("agent", "patch", sandbox, "--apply")
    assert folder.read("README") == "hello\nmore\n"


def test_folders_of_runs_that_were_cut_off_are_removed_by_the_next(folder, agent):
    agent("cat >/dev/null")
    left = Path(tempfile.mkdtemp(prefix="warren-agent-", dir=folder.environment["TMPDIR"]))
    (left / "lock").touch()
    (left / "config.toml").write_text("a key")
    folder.warren(*RUN, "work")
    assert agent.left() == []
