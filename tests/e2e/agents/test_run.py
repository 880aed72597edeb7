"""`warren agent run`: a folder goes in, a program works on it, what it changed comes back."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from harness import settings
from harness.agent_runs import CLIENT, interrupt
from harness.pipes import first_line
from harness.waiting import wait_for

from .run_fixtures import _own_server, api, folder, make, server  # noqa: F401


def test_a_diff_is_shown_and_nothing_is_written(folder):
    before = folder.state()
    done = folder.run("ls -A; git log --oneline | wc -l; echo more >>README; rm src/b.txt; mkdir new; echo n >new/n; chmod +x new/n; echo x >build/x; echo y >y.log")
    assert "build" not in done.stdout.split(), "ignored files do not go in"
    assert re.search(r"^1$", done.stdout, re.M), "history does"
    for part in ("+more", "deleted file mode 100644", "new file mode 100755", "+++ b/new/n"):
        assert part in done.stdout
    assert "b/build/x" not in done.stdout and "y.log" not in done.stdout
    assert folder.state() == before
    # It can still be written, though the sandbox has gone.
    [(sandbox, agent)] = folder.agents().items()
    assert agent["status"] == "gone"
    folder.warren("agent", "patch", sandbox, "--apply")
    assert folder.read("README") == "hello\nmore\n"
    assert "src/b.txt" not in folder.state() and folder.state()["new/n"] == (b"n\n", True)


def test_changes_are_written_with_modes_links_renames_and_deletions(folder):
    folder.run(
        "mv src/a.txt moved.txt; rm src/b.txt; chmod +x README; ln -s README link; printf '\\0\\1' >picture; printf end >'a name'; mkdir -p d/e; echo f >d/e/f",
        "--apply",
    )
    state = folder.state()
    assert state["moved.txt"] == (b"1\n2\n3\n4\n5\n", False) and not (folder.path / "src").exists()
    assert state["README"][1] and state["link"] == "README" and state["picture"][0] == b"\0\1"
    assert state["a name"][0] == b"end" and state["d/e/f"][0] == b"f\n"
    assert state["build/out"][0] == b"built\n", "what is ignored here stays"
    assert not folder.agents(), "nothing is left to be known"


def test_git_apply_takes_the_patch_file(folder):
    command = (
        "mv src/a.txt 'src/new name.txt'; rm src/b.txt; chmod +x README; ln -s README link; head -c 3000 /dev/urandom >picture; printf end >'a \"q\" name';"
        "head -c 100 /dev/urandom >new.bin; : >empty; printf 'x\\ry\\r' >returns; echo é >é"
    )
    patch = folder.path.parent / "the.patch"
    folder.run(command, "--patch-file", str(patch), "--apply")
    wanted = folder.state()
    folder.git("stash", "-qu")
    folder.git("apply", str(patch))
    assert folder.state() == wanted
    folder.git("apply", "-R", str(patch))
    assert folder.git("status", "--short") == ""


def test_the_next_run_sends_only_what_changed(folder, api):
    big = os.urandom(3 << 20)
    folder.put({"big": big, "gone/x": "x", "kind": "file"})
    first = folder.run("true")
    assert "went in" in first.stderr
    (folder.path / "gone/x").unlink()
    (folder.path / "gone").rmdir()
    (folder.path / "kind").unlink()
    folder.put({"src/b.txt": "other\n", "kind/inside": "k", "added": "a"})
    second = folder.run("cat src/b.txt added kind/inside; ls gone; sha256sum big; echo c >>src/b.txt", "--apply")
    assert "went in" not in second.stderr, second.stderr
    assert "other\nak" in second.stdout and "No such file" in second.stderr
    assert folder.read("src/b.txt") == "other\nc\n"
    # Another machine is another tree; so is the same without its history.
    assert "went in" in folder.run("ls -A", "--no-git").stderr


def test_a_checkpoint_that_is_gone_is_made_again(folder, api):
    folder.run("true")
    [tree] = (folder.home / ".cache/warren/trees").glob("*/tree.json")
    known = json.loads(tree.read_text())
    assert api.delete(f"/api/sandboxes/{known['sandbox']}/checkpoints/{known['checkpoint']}").status_code == 204
    folder.put({"README": "again\n"})
    again = folder.run("cat README")
    assert "went in" in again.stderr and "again" in again.stdout
    # And nonsense in the cache is as good as nothing.
    tree.write_text("{")
    assert "went in" in folder.run("true").stderr
    # Only one is kept.
    checkpoint = json.loads(tree.read_text())["checkpoint"]
    folder.run("true", "--fresh")
    assert json.loads(tree.read_text())["checkpoint"] != checkpoint
    assert api.post(f"/api/sandboxes/from-checkpoint/{checkpoint}", json={}).status_code == 404


def test_what_changed_here_meanwhile_is_merged_or_a_conflict(folder):
    process, _ = folder.start("touch started; until [ -e /tmp/go ]; do sleep 0.1; done; sed -i s/5/five/ src/a.txt; echo there >src/b.txt; rm README", "--apply")
    folder.put({"src/a.txt": "one\n2\n3\n4\n5\n", "src/b.txt": "here\n", "README": "here\n"})
    sandbox = next(iter(folder.agents()))
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    patch = [event for event in map(json.loads, said.splitlines()) if event["type"] == "patch"][0]
    assert patch["applied"]["merged"] == ["src/a.txt"]
    assert {conflict["name"] for conflict in patch["applied"]["conflicts"]} == {"README", "src/b.txt"}
    assert folder.read("src/a.txt") == "one\n2\n3\n4\nfive\n"
    assert folder.read("src/b.txt") == folder.read("README") == "here\n"
    # What was not written is still to be had.
    shown = folder.warren("agent", "patch", sandbox, code=None).stdout
    assert "there" in shown


def test_the_exit_code_is_the_programs(folder):
    assert folder.run("exit 7", code=7)
    assert folder.events("exit 3", code=3)["ended"]["exitCode"] == 3
    folder.warren("agent", "run", "--command", "cat >/dev/null", "--timeout", "5s", "the prompt", code=None)
    assert "the prompt" in folder.warren("agent", "run", "the prompt", "--command", "echo").stdout
    assert folder.warren("agent", "run", "--agent", "nobody", "x", code=2).stderr


def test_a_time_limit_holds_and_the_work_so_far_is_kept(folder):
    begun = time.monotonic()
    done = folder.run("echo so far >work; trap '' TERM INT HUP; sleep 100 & wait; sleep 100", "--timeout", "2s", "--apply", code=124)
    assert time.monotonic() - begun < 40
    assert "its time was up" in done.stderr and folder.read("work") == "so far\n"


@pytest.mark.parametrize("stubborn", [False, True])
def test_ctrl_c_once_stops_the_agent_and_brings_its_work(folder, stubborn):
    trap = "trap '' INT TERM;" if stubborn else ""
    process, _ = folder.start(f"{trap} echo w >work; while :; do sleep 1; done", "--apply")
    wait_for(lambda: "work" in folder.warren("agent", "patch", next(iter(folder.agents())), code=None).stdout, "it worked")
    interrupt(process)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert folder.read("work") == "w\n"


def test_ctrl_c_twice_leaves_and_it_can_be_gone_on_with(folder, api):
    process, sandbox = folder.start("trap '' INT TERM; echo begun; echo w >work; until [ -e /tmp/go ]; do sleep 0.1; done; echo done", "--apply")
    interrupt(process)
    time.sleep(0.5)
    interrupt(process)
    assert process.wait(3) == 130
    assert f"agent attach {sandbox}" in process.stderr.read()
    agent = folder.agents()[sandbox]
    assert (agent["status"], agent["state"]) == ("running", "working")
    assert "+w" in folder.warren("agent", "patch", sandbox).stdout


def test_a_left_agent_is_attached_to_and_ends_in_order(folder):
    process, sandbox = folder.start("echo begun; until [ -e /tmp/go ]; do sleep 0.1; done; echo w >work; exit 5")
    process.send_signal(signal.SIGHUP)
    assert process.wait(5) == 129
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    done = folder.warren("agent", "attach", sandbox, "--apply", code=5)
    assert done.stdout.startswith("begun\n") and folder.read("work") == "w\n"
    assert not folder.agents()


def test_a_program_on_a_terminal_gets_keys_and_its_work_comes_back(folder):
    terminal = folder.terminal("agent", "run", "--memory", "1024", "--command", "stty size; pwd; sh", "--apply")
    terminal.wait_for("/workspace/project")
    terminal.type("echo ty''ped; echo t >typed; exit 6\n")
    terminal.wait_for("typed")
    assert terminal.end() == 6
    assert folder.read("typed") == "t\n"


def test_a_terminal_that_closes_leaves_the_agent_and_two_can_watch_it(folder):
    terminal = folder.terminal("agent", "run", "--memory", "1024", "--command", "echo be''gun; echo w >work; cat; echo over; exit 3")
    terminal.wait_for("begun")
    terminal.close()
    [(sandbox, agent)] = folder.agents().items()
    assert agent["status"] == "running"
    assert "+w" in folder.warren("agent", "patch", sandbox).stdout
    first, second = (folder.terminal("agent", "attach", sandbox) for _ in range(2))
    for one in (first, second):
        one.wait_for("begun")
    first.type("to both\n")
    second.wait_for("to both")
    second.close()
    first.type("\x04")
    assert first.end() == 3
    assert b"+w" in first.said.replace(b"\x1b[32m", b"")


def test_the_time_limit_of_a_terminal_holds_when_nobody_watches(folder):
    terminal = folder.terminal("agent", "run", "--memory", "1024", "--timeout", "3s", "--command", "echo be''gun; echo w >work; sleep 200")
    terminal.wait_for("begun")
    terminal.close()
    [sandbox] = folder.agents()
    time.sleep(4)
    done = folder.warren("agent", "attach", sandbox, code=124)
    assert "+w" in done.stdout


def test_a_program_that_its_limit_ends_does_not_keep_the_terminal(folder):
    terminal = folder.terminal("agent", "run", "--memory", "1024", "--timeout", "1s", "--command", "printf '\\033[?1049hdrawn'; sleep 200")
    terminal.wait_for("drawn")
    assert terminal.end() == 124
    assert b"\x1b[?1049l" in terminal.said


def test_a_key_stays_outside_and_its_store_goes(folder, api):
    folder.environment["MY_KEY"] = "sk-secret-0123456789"
    process, sandbox = folder.start("env; grep -rs sk-secret /proc/self/environ /tmp /workspace; until [ -e /tmp/go ]; do sleep 0.1; done", "--key", "MY_KEY=api.example.com")
    stores = [store for store in api.get("/api/secret-stores").json() if store["name"].startswith("agent-run-")]
    assert len(stores) == 1
    [entry] = api.get(f"/api/secret-stores/{stores[0]['id']}/secrets").json()
    assert entry["name"] == "MY_KEY" and entry["allowedHosts"] == ["api.example.com"]
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    said, _ = process.communicate(timeout=60)
    assert "sk-secret" not in said and "MY_KEY=osb_sealed_" in said
    assert not [store for store in api.get("/api/secret-stores").json() if store["name"].startswith("agent-run-")]
    for path in (folder.home / ".cache", folder.home / ".local"):
        for file in path.rglob("*"):
            assert not file.is_file() or b"sk-secret" not in file.read_bytes()
    assert "say which hosts" in folder.run("true", "--key", "OTHER", code=2).stderr
    assert "no variable OPENAI_API_KEY" in folder.run("true", "--key", "OPENAI_API_KEY", code=2).stderr


def test_a_run_that_was_killed_leaves_what_can_be_found_and_removed(folder, api):
    folder.environment["MY_KEY"] = "sk-secret-0123456789"
    process, sandbox = folder.start("echo w >work; sleep 100", "--key", "MY_KEY=api.example.com")
    process.kill()
    process.wait(5)
    assert folder.agents()[sandbox]["status"] == "running"
    folder.warren("agent", "rm", sandbox)
    assert not folder.agents()
    assert not [store for store in api.get("/api/secret-stores").json() if store["name"].startswith("agent-run-")]
    assert api.get(f"/api/sandboxes/{sandbox}").json()["status"] == "stopped"


def test_pause_resume_and_keep(folder):
    done = folder.run("echo w >work", "--keep")
    [(sandbox, agent)] = folder.agents().items()
    assert sandbox in done.stderr and agent["status"] == "hibernated"
    folder.warren("agent", "resume", sandbox)
    assert folder.agents()[sandbox]["status"] == "running"
    folder.warren("agent", "pause", sandbox)
    assert folder.agents()[sandbox]["status"] == "hibernated"
    assert "+w" in folder.warren("agent", "patch", sandbox).stdout
    assert "no agent's sandbox" in folder.warren("agent", "pause", "sb-00000000", code=1).stderr


def test_who_follows_a_paused_agent_neither_wakes_nor_ends_it(folder):
    process, sandbox = folder.start("echo w >work; sleep 100", "--apply")
    wait_for(lambda: "work" in folder.warren("agent", "patch", sandbox, code=None).stdout, "it worked")
    folder.warren("agent", "pause", sandbox)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and f"agent resume {sandbox}" in said, said
    assert folder.agents()[sandbox]["status"] == "hibernated" and not (folder.path / "work").exists()
    # To look wakes it, and leaves it as it was.
    assert "+w" in folder.warren("agent", "patch", sandbox).stdout
    assert folder.agents()[sandbox]["status"] == "hibernated"
    folder.warren("agent", "resume", sandbox)
    # A container keeps no processes: what ran was asked to end.
    done = folder.warren("agent", "attach", sandbox, "--apply", code=143)
    assert "it ended with 143" in done.stderr
    assert folder.read("work") == "w\n" and not folder.agents()


def test_two_who_follow_one_bring_its_work_home_once(folder):
    process, sandbox = folder.start("until [ -e /tmp/go ]; do sleep 0.1; done; seq 300 | xargs touch; exit 5", "--apply")
    others = [
        subprocess.Popen([CLIENT, "agent", "attach", sandbox, "--apply"], cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    said = [one.communicate(timeout=60)[1] for one in (process, *others)]
    assert [one.returncode for one in (process, *others)] == [5, 5, 5], said
    assert (folder.path / "300").exists()
    assert sum(f"brought its work home: what it changed was written to {folder.path}" in text for text in said) == 2, said
    assert "conflict" not in "".join(said)
    assert not folder.agents()


def test_the_second_of_two_gets_what_the_first_only_showed(folder):
    process, sandbox = folder.start("until [ -e /tmp/go ]; do sleep 0.1; done; echo w >work")
    other = subprocess.Popen([CLIENT, "agent", "attach", sandbox, "--apply"], cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL)
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    process.communicate(timeout=60)
    assert other.wait(60) == 0 and process.returncode == 0
    assert folder.read("work") == "w\n"


def test_who_follows_one_that_is_removed_says_so(folder):
    process, sandbox = folder.start("sleep 100")
    folder.warren("agent", "rm", sandbox)
    said = process.communicate(timeout=20)[1]
    assert "it was removed with `warren agent rm`" in said and "left running" not in said, said


def test_a_large_file_that_was_changed_here_is_not_taken_for_the_agents_change(folder):
    with (folder.path / "large").open("wb") as file:
        file.truncate(65 << 20)
    folder.run("true")
    with (folder.path / "large").open("r+b") as file:
        file.write(b"x")
    folder.run("true")


def test_tracked_files_that_a_rule_ignores_go_in_whoever_owns_the_folder(folder):
    folder.put({".gitignore": "*.gen\n", "x.gen": "x\n"})
    folder.git("add", "-Af")
    folder.git("commit", "-qm", "two")
    for path in (folder.path, *folder.path.rglob("*")):
        os.chown(path, 12345, 12345)
    done = folder.run("cat x.gen; git status --short")
    assert done.stdout == "x\n", done.stdout


def test_forks_begin_where_the_agent_is(folder):
    process, sandbox = folder.start("echo $$ >>count; until [ -e /tmp/go ]; do sleep 0.1; done; echo w >work")
    wait_for(lambda: "count" in folder.warren("agent", "patch", sandbox, code=None).stdout, "it worked")
    forks = json.loads(folder.warren("agent", "fork", sandbox, "-n", "3", "--json").stdout)
    assert len(set(forks)) == 3
    for fork in forks:
        folder.warren("exec", fork, "--", "touch", "/tmp/go")
        assert "+w" in folder.warren("agent", "attach", fork).stdout
    process.kill()
    process.wait(5)
    assert folder.agents()[sandbox]["status"] == "running", "the one they began from is not touched"


def test_forks_that_begin_anew_do_so_with_their_task(folder, tmp_path):
    agent = '#!/bin/sh\ntask=$(cat)\n[ "$task" ] || exit 7\nuntil [ -e /tmp/go ]; do sleep 0.1; done\necho "$task" >work\n'
    manifest = tmp_path / "reads.json"
    step = f"cat >/usr/local/bin/codex <<'END'\n{agent}END\nchmod 755 /usr/local/bin/codex"
    manifest.write_text(json.dumps({"base": "base", "steps": [{"type": "run", "args": {"commands": [step]}}]}))
    folder.warren("build", str(manifest), "--name", "reads")
    folder.environment["OPENAI_API_KEY"] = "sk-x"
    process = subprocess.Popen(
        [CLIENT, "agent", "run", "--agent", "codex", "--snapshot", "reads", "--memory", "1024", "--json", "make it so"],
        cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    sandbox = json.loads(first_line(process.stdout))["sandbox"]
    forks = json.loads(folder.warren("agent", "fork", sandbox, "-n", "2", "--json").stdout)
    # And one of a fork.
    forks += json.loads(folder.warren("agent", "fork", forks[0], "--json").stdout)
    for fork in forks:
        folder.warren("exec", fork, "--", "touch", "/tmp/go")
        assert "+make it so" in folder.warren("agent", "attach", fork).stdout
    process.kill()
    process.wait(5)
    records = list(folder.home.rglob("record.json"))
    assert records and all(path.stat().st_mode & 0o077 == 0 for path in records), "a task may be nobody else's business"


def test_tasks_run_side_by_side_with_patches_in_a_folder(folder):
    tasks = folder.path.parent / "tasks.toml"
    tasks.write_text("".join(f'[[task]]\nname = "{name}"\nprompt = "{name}"\n{more}\n' for name, more in [("one", ""), ("two", ""), ("bad", ""), ("slow", 'timeout = "2s"')]))
    out = folder.path.parent / "out"
    before = folder.state()
    command = "work() { echo $1 >work-$1; case $1 in bad) exit 3;; slow) sleep 100;; esac; }; work"
    done = folder.run(command, "--tasks", str(tasks), "--parallel", "3", "--retries", "1", "--out", str(out), "--json", code=1)
    events = {event["task"]: event for event in map(json.loads, done.stdout.splitlines()) if event["type"] == "task"}
    assert {name: (event["success"], event["exitCode"], event["attempts"]) for name, event in events.items()} == {
        "one": (True, 0, 1), "two": (True, 0, 1), "bad": (False, 3, 2), "slow": (False, 124, 2),
    }
    assert events["slow"]["timedOut"] and events["one"]["files"] == 1
    for name in events:
        assert f"+{name}" in (out / f"{name}.patch").read_text()
        assert events[name]["patch"] == str(out / f"{name}.patch") and (out / f"{name}.log").exists()
    assert folder.state() == before
    folder.git("apply", str(out / "two.patch"))
    assert folder.read("work-two") == "two\n"


def test_a_task_whose_work_cannot_be_kept_here_is_kept_there_by_name(folder):
    tasks, out = folder.path.parent / "tasks.txt", folder.path.parent / "out"
    tasks.write_text("a\n")
    (out / "task-1.patch").mkdir(parents=True)
    done = folder.run("echo w >work; :", "--tasks", str(tasks), "--retries", "1", "--out", str(out), "--json", code=1)
    [event] = [event for event in map(json.loads, done.stdout.splitlines()) if event["type"] == "task"]
    [(sandbox, agent)] = folder.agents().items()
    assert (event["sandbox"], event["attempts"], agent["status"]) == (sandbox, 1, "hibernated")
    assert f"agent patch {sandbox}" in event["error"]
    assert "+w" in folder.warren("agent", "patch", sandbox).stdout


def test_a_budget_of_time_ends_tasks_and_ctrl_c_keeps_their_work(folder):
    tasks = folder.path.parent / "tasks.txt"
    tasks.write_text("# three\na\nb\nc\n")
    out = folder.path.parent / "out"
    command = 'work() { echo $1 >work; sleep 100; }; work'
    done = folder.run(command, "--tasks", str(tasks), "--parallel", "2", "--budget", "3s", "--out", str(out), code=1)
    assert "the time is used up" in done.stderr and "+a" in (out / "task-1.patch").read_text()
    assert not (out / "task-3.patch").exists()
    process = subprocess.Popen(
        [CLIENT, "agent", "run", "--memory", "1024", "--command", command, "--tasks", str(tasks), "--out", str(out / "2")],
        cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    wait_for(lambda: (out / "2/task-2.log").exists(), "the second task runs")
    time.sleep(1)
    interrupt(process)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "not begun: stopped" in errors, errors
    assert "+b" in (out / "2/task-2.patch").read_text()


def test_ctrl_c_while_tasks_are_being_begun_begins_none(folder, api):
    folder.run("true")
    folder.put({"big": os.urandom(64 << 20)})
    tasks, out = folder.path.parent / "tasks.txt", folder.path.parent / "out"
    tasks.write_text("a\nb\nc\n")
    running = lambda: {sandbox["sandboxID"] for sandbox in api.get("/api/sandboxes?status=running,creating").json()}  # noqa: E731
    before = running()
    process = subprocess.Popen(
        [CLIENT, "agent", "run", "--memory", "1024", "--command", "sleep 2; echo >work", "--tasks", str(tasks), "--out", str(out), "--json"],
        cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(out.exists, "the tree is there and is sent to the first two", every=0.02)
    interrupt(process)
    told, errors = process.communicate(timeout=settings.patient(60))
    events = [event for event in map(json.loads, told.splitlines()) if event["type"] == "task"]
    assert process.returncode == 1 and len(events) == 3, errors
    assert {(event["error"], event["patch"], event["sandbox"]) for event in events} == {("not begun: stopped", None, "")}
    assert not list(out.iterdir()) and not folder.agents() and running() == before


def test_another_image_and_a_folder_without_git(server, tmp_path):
    folder = make(server, tmp_path / "some tree", OTHER="x")
    subprocess.run(["rm", "-rf", folder.path / ".git"], check=True)
    done = folder.run("pwd; ls -A; echo $GIVEN; echo x >>README", "--env", "GIVEN=given", "--apply")
    assert "/some-tree" in done.stdout and "given" in done.stdout and "build" not in done.stdout.split()
    assert folder.read("README") == "hello\nx\n"


def test_what_is_interrupted_before_it_begins_is_taken_back(folder, api):
    folder.environment["MY_KEY"] = "sk-secret-0123456789"
    folder.put({"big": os.urandom(200 << 20)})
    before = {sandbox["sandboxID"] for sandbox in api.get("/api/sandboxes?status=running,creating").json()}
    process = subprocess.Popen(
        [CLIENT, "agent", "run", "--memory", "1024", "--command", "true", "--key", "MY_KEY=api.example.com"],
        cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    running = lambda: {sandbox["sandboxID"] for sandbox in api.get("/api/sandboxes?status=running,creating").json()} - before  # noqa: E731
    wait_for(running, "the folder is being sent")
    interrupt(process)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 130, errors
    assert not running() and not folder.agents()
    assert not [store for store in api.get("/api/secret-stores").json() if store["name"].startswith("agent-run-")]


def test_two_runs_on_one_folder_wait_for_each_other_and_share_what_was_sent(folder):
    runs = [
        subprocess.Popen(
            [CLIENT, "agent", "run", "--memory", "1024", "--command", f"echo {number} >n{number}", "--apply"],
            cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert sum("went in" in text for text in said) == 1
    assert [folder.read(f"n{number}") for number in range(3)] == ["0\n", "1\n", "2\n"]


def test_a_snapshot_that_lacks_the_agent_is_said(folder, tmp_path):
    manifest = tmp_path / "plain.json"
    manifest.write_text('{"base": "base", "steps": [{"type": "env", "args": {"vars": {"PLAIN": "1"}}}]}')
    folder.warren("build", str(manifest), "--name", "plain")
    folder.environment["OPENAI_API_KEY"] = "sk-x"
    done = folder.warren("agent", "run", "--agent", "codex", "--snapshot", "plain", "--memory", "1024", "work", code=3)
    assert 'cannot start "codex"' in done.stderr and "warren agent install" in done.stderr, done.stderr
    assert folder.agents() == {}


def test_what_was_written_while_it_worked_does_not_conflict_with_its_end(folder):
    process, sandbox = folder.start(
        "echo one >new; echo was >back; sed -i s/3/three/ src/a.txt; touch /tmp/half; until [ -e /tmp/go ]; do sleep .1; done;"
        "echo two >>new; rm back; sed -i s/three/THREE/ src/a.txt",
        "--apply",
    )
    folder.warren("exec", sandbox, "--", "sh", "-c", "until [ -e /tmp/half ]; do sleep .1; done")
    folder.warren("agent", "patch", sandbox, "--apply")
    assert folder.read("new") == "one\n" and folder.read("src/a.txt") == "1\n2\nthree\n4\n5\n"
    folder.put({"src/a.txt": "1\n2\nthree\n4\nfive\n"})
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert folder.read("new") == "one\ntwo\n" and folder.read("src/a.txt") == "1\n2\nTHREE\n4\nfive\n"
    assert not (folder.path / "back").exists()


def test_a_folder_that_was_moved_away_loses_no_work(folder):
    process, sandbox = folder.start("until [ -e /tmp/go ]; do sleep .1; done; echo more >>README; mkdir build; echo x >build/x", "--apply")
    elsewhere = folder.path.parent / "elsewhere"
    folder.path.rename(elsewhere)
    # Only to be somewhere.
    path, folder.path = folder.path, folder.path.parent
    folder.warren("exec", sandbox, "--", "touch", "/tmp/go")
    _, said = process.communicate(timeout=60)
    assert process.returncode not in (0, None) and "--patch-file" in said, said
    shown = folder.warren("agent", "patch", sandbox)
    assert "+more" in shown.stdout and "build/x" not in shown.stdout, shown.stdout
    elsewhere.rename(path)
    folder.path = path
    folder.warren("agent", "patch", sandbox, "--apply")
    assert folder.read("README") == "hello\nmore\n"


def test_a_patch_file_that_cannot_be_written_ends_it_before_it_begins(folder):
    done = folder.run("true", "--patch-file", str(folder.path.parent / "none/x"), code=None)
    assert done.returncode != 0 and "could not write" in done.stderr
    assert not folder.agents(), "nothing was begun"
