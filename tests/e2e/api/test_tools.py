"""Tools: every one of them over plain HTTP, in the styles of models' APIs, and with input that means harm."""

import json
import re
import threading
import time

import httpx
import pytest
from harness import settings
from harness.waiting import wait_for

OF_A_SANDBOX = {
    "sandbox_exec",
    "sandbox_read_output",
    "sandbox_start_process",
    "sandbox_process_output",
    "sandbox_process_input",
    "sandbox_kill_process",
    "sandbox_list_processes",
    "sandbox_read_file",
    "sandbox_write_file",
    "sandbox_edit_file",
    "sandbox_list_files",
    "sandbox_search_code",
}
WITH_A_KEY = {"sandbox_expose_port", "sandbox_checkpoint", "sandbox_restore", "sandbox_fork"}
KIB = 1024


class Tools:
    """The tools of one sandbox."""

    def __init__(self, box):
        self.box = box

    def call(self, name, /, **arguments):
        answer = self.box.call("POST", f"/tools/sandbox_{name}", json=arguments, timeout=120)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert [each["type"] for each in result["content"]] == ["text"], result
        return result

    def ok(self, name, /, **arguments):
        """The text and the fields of a call that must work."""
        result = self.call(name, **arguments)
        assert not result["isError"], result
        return result["content"][0]["text"], result["structured"]

    def says(self, name, /, **arguments):
        """What a call that must fail tells the model."""
        result = self.call(name, **arguments)
        assert result["isError"], result
        text = result["content"][0]["text"]
        assert 10 < len(text) < 1500 and not text.startswith("{"), text
        return text


@pytest.fixture(scope="module")
def tools(shared):
    return Tools(shared)


# --- commands


def test_a_command_says_all_it_wrote_in_order_and_how_it_ended(tools):
    text, fields = tools.ok("exec", command="echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three; exit 7")
    assert re.fullmatch(r"one\ntwo\nthree\n\[exit code 7 after \d\.\d s\]", text), text
    assert fields["exit_code"] == 7 and not fields["timed_out"] and not fields["truncated"]
    assert tools.ok("exec", command="[[ a == a ]] && echo $0")[0].startswith("bash\n"), "bash reads it"
    text, _ = tools.ok("exec", command='echo "$GREETING from $PWD"', env={"GREETING": "hello $HOME"}, cwd="/tmp")
    assert text.startswith("hello $HOME from /tmp\n")
    assert tools.ok("exec", command="kill -9 $$")[0].startswith("[ended by signal 9, exit code 137 after")


def test_a_time_limit_ends_a_command_and_what_it_started(tools):
    begun = time.monotonic()
    text, fields = tools.ok("exec", command="echo begun; sleep 4242 & sleep 4242", timeout_seconds=1)
    assert time.monotonic() - begun < 10 * settings.PATIENCE
    assert text.startswith("begun\n[ended by its time limit after") and fields["timed_out"]
    assert not tools.box.is_alive("sleep 4242")


def test_long_output_shows_its_ends_and_the_rest_can_be_read(tools):
    text, fields = tools.ok("exec", command="seq 1 200000", max_bytes=2 * KIB)
    assert len(text) < 3 * KIB and fields["truncated"]
    assert text.startswith("1\n2\n") and "\n200000\n[exit code 0" in text
    exec_id, at = fields["exec_id"], fields["left_out"]["from"]
    assert f"sandbox_read_output with exec_id {exec_id} and offset {at}" in text
    read, whole = "", "".join(f"{number}\n" for number in range(1, 200001))
    while at < fields["left_out"]["to"]:
        part, about = tools.ok("read_output", exec_id=exec_id, offset=at, max_bytes=256 * KIB)
        read += part[: part.rindex("\n[")]
        assert about["offset"] == at and about["next_offset"] > at
        at = about["next_offset"]
        read += "" if read.endswith("\n") or whole[about["next_offset"] - 1] != "\n" else "\n"
    assert whole[fields["left_out"]["from"] :].startswith(read[: len(read) // 2])
    assert tools.ok("read_output", exec_id=exec_id)[0].rstrip().endswith("the next offset is 1288895]")
    assert "behind the end" in tools.says("read_output", exec_id=exec_id, offset=10**12)
    assert "no command 00000000" in tools.says("read_output", exec_id="00000000")


def test_a_flood_of_output_costs_nobody_but_itself(tools):
    text, fields = tools.ok("exec", command="yes floods | head -c 300000000; echo; echo over", timeout_seconds=100)
    assert len(text) < 40 * KIB
    assert text.startswith("floods\n") and "over\n[exit code 0" in text
    assert fields["total_bytes"] == 300_000_006
    text, _ = tools.ok("exec", command="head -c 100000 /dev/urandom")
    assert len(text) < 80 * KIB and "exit code 0" in text


def test_a_process_is_started_read_fed_and_ended(tools):
    text, fields = tools.ok("start_process", command="while read line; do echo got $line; done; echo ended")
    process = fields["process_id"]
    assert fields["running"] and process in text
    tools.ok("process_input", process_id=process, input="first\n")
    text, about = tools.ok("process_output", process_id=process, offset=0, wait_seconds=10)
    assert text.startswith("got first\n[still running") and about["running"]
    assert any(each["id"] == process for each in tools.ok("list_processes")[1]["processes"])
    tools.ok("process_input", process_id=process, input="second\n", close=True)
    ended = wait_for(
        lambda: (
            (found := tools.ok("process_output", process_id=process, offset=about["next_offset"], wait_seconds=5))[1]["running"]
            is False
            and found
        ),
        "the process has ended",
    )
    assert ended[0].startswith("got second\nended\n[exit code 0"), ended
    assert "takes no input any more" in tools.says("process_input", process_id=process, input="x")

    begun = time.monotonic()
    sleeper = tools.ok("start_process", command="sleep 3131")[1]["process_id"]
    text, about = tools.ok("process_output", process_id=sleeper, wait_seconds=1)
    assert about["running"] and 0.9 < time.monotonic() - begun < 10 * settings.PATIENCE
    assert "ended by signal 15" in tools.ok("kill_process", process_id=sleeper, signal="TERM")[0]
    assert "exit code 143" in tools.ok("kill_process", process_id=sleeper)[0], "once more is fine"
    assert "127" in tools.ok("start_process", command="/no/such/program")[0]
    assert "no command 00000000" in tools.says("kill_process", process_id="00000000")
    assert "8 hexadecimal digits" in tools.says("process_output", process_id="../../x")


# --- files


def test_files_are_written_read_and_edited(tools):
    assert tools.ok("write_file", path="deep/er/a.py", content="one = 1\ntwo = 2\ntwo = 2\n", mode="0755")[1]["bytes"] == 24
    assert tools.box.out("stat -c %a deep/er/a.py").strip() == "755"
    assert tools.ok("read_file", path="deep/er/a.py")[0] == "     1\tone = 1\n     2\ttwo = 2\n     3\ttwo = 2\n"
    text, _ = tools.ok("edit_file", path="deep/er/a.py", old_string="one = 1", new_string="one = 'ä'")
    assert "     1\tone = 'ä'\n" in text
    assert "matches 2 times in deep/er/a.py, at lines 2, 3" in tools.says(
        "edit_file", path="deep/er/a.py", old_string="two = 2", new_string="x"
    )
    assert tools.ok("edit_file", path="deep/er/a.py", old_string="two", new_string="2", replace_all=True)[1]["replaced"] == 2
    assert tools.box.read("deep/er/a.py").decode() == "one = 'ä'\n2 = 2\n2 = 2\n"
    assert tools.box.out("stat -c %a deep/er/a.py").strip() == "755", "an edit keeps the mode"
    assert "is not in deep/er/a.py" in tools.says("edit_file", path="deep/er/a.py", old_string="zzz", new_string="")
    assert "are the same" in tools.says("edit_file", path="deep/er/a.py", old_string="2", new_string="2")
    tools.says("read_file", path="/no/such/file")
    tools.says("read_file", path="/etc")
    tools.says("write_file", path="/etc", content="x")
    assert "octal" in tools.says("write_file", path="x", content="x", mode="rwx")
    assert tools.ok("read_file", path="/dev/../etc/./hostname", numbered=False)[0].strip()


def test_a_long_file_is_read_in_parts(tools):
    tools.box.out("seq 1 100000 > numbers")
    text, about = tools.ok("read_file", path="numbers", limit=10)
    assert text.endswith("    10\t10\n[lines 1 to 10 of numbers, which has 588895 bytes; offset 11 goes on]")
    text, about = tools.ok("read_file", path="numbers", offset=99_999, numbered=False)
    assert text == "99999\n100000\n" and about["next_offset"] is None
    seen, offset = 0, 1
    while offset:
        text, about = tools.ok("read_file", path="numbers", offset=offset, limit=100_000, max_bytes=256 * KIB)
        assert len(text) <= 257 * KIB
        seen, offset = seen + about["lines"], about["next_offset"]
    assert seen == 100_000
    assert "has 100000 lines" in tools.says("read_file", path="numbers", offset=100_001)
    tools.box.out("head -c 3000000 /dev/zero | tr '\\0' x > oneline")
    assert "(a line of 3000000 bytes)" in tools.ok("read_file", path="oneline")[0]
    assert len(tools.ok("read_file", path="oneline", numbered=False)[0]) < 40 * KIB


def test_what_is_binary_or_has_no_end_is_said_and_not_dumped(tools):
    tools.box.out("truncate -s 10G sparse; cp /bin/ls program; printf 'text\\n%.0s' $(seq 5000) > late; printf '\\0' >> late")
    for path, size in [("sparse", 10 * 2**30), ("program", None)]:
        begun = time.monotonic()
        text, about = tools.ok("read_file", path=path)
        assert about["binary"] and "is a binary file of" in text and len(text) < 300
        assert size is None or about["size"] == size
        assert time.monotonic() - begun < 10 * settings.PATIENCE
    assert tools.ok("read_file", path="late", limit=10)[1]["lines"] == 10
    assert tools.ok("read_file", path="late", offset=4990)[1]["binary"]
    for path in ("/dev/zero", "/dev/random"):
        tools.says("read_file", path=path)
    assert "larger than" in tools.says("edit_file", path="sparse", old_string="a", new_string="b")
    assert "not text in UTF-8" in tools.says("edit_file", path="program", old_string="a", new_string="b")
    assert tools.ok("read_file", path="/proc/self/status")[0], "files made up by the kernel have no size"


def test_folders_are_listed_as_deep_as_asked_and_loops_have_an_end(tools):
    tools.box.out("mkdir -p tree/a/b tree/node && touch tree/x.rs tree/a/y.rs tree/a/b/z.py && ln -s .. tree/a/loop && ln -s self tree/self")
    assert tools.ok("list_files", path="tree")[0].split("\n")[0] == "a/"
    names = lambda text: [line.split("  ")[0] for line in text.split("\n")]  # noqa: E731
    assert names(tools.ok("list_files", path="tree", depth=50)[0]) == [
        "a/", "node/", "self", "x.rs", "a/b/", "a/loop", "a/y.rs", "a/b/z.py",
    ]  # fmt: skip
    assert names(tools.ok("list_files", path="tree", glob="*.rs")[0]) == ["x.rs", "a/y.rs"]
    assert names(tools.ok("list_files", path="tree", glob="a/**/*.{py,c}")[0]) == ["a/b/z.py"]
    assert tools.ok("list_files", path="tree", glob="*.none")[0] == "nothing matches"
    assert tools.ok("list_files", path="tree/node")[0] == "the folder is empty"
    tools.says("list_files", path="/no/such")
    tools.says("list_files", path="tree/x.rs")
    tools.box.out("mkdir many && cd many && seq -f 'file-%05.0f' 1 20000 | xargs touch")
    text, about = tools.ok("list_files", path="many")
    assert about["entries"] == 500 and not about["complete"] and "more than 500 entries" in text
    tools.box.out("cd tree/node && touch \"$(printf 'new\\nline')\" \"$(printf 'esc\\033[31m')\"")
    assert names(tools.ok("list_files", path="tree/node")[0]) == ["esc\\u{1b}[31m", "new\\nline"]


@pytest.mark.parametrize("program", ["rg", "grep"])
def test_code_is_searched(tools, program):
    if program == "rg" and tools.box.run("command -v rg")["exitCode"]:
        pytest.skip("the base template has no rg")
    tools.box.out("mkdir -p code/sub && printf 'alpha\\nbeta(1)\\ngamma\\n' > code/a.py && printf 'BETA(2)\\n' > 'code/sub/b c.txt'")
    text, about = tools.ok("search_code", pattern="beta\\([0-9]\\)", path="code", context=1)
    assert text.split("\n") == ["code/a.py-1-alpha", "code/a.py:2:beta(1)", "code/a.py-3-gamma", ""]
    assert about["matches"] == 1 and about["complete"]
    assert tools.ok("search_code", pattern="beta", path="code", ignore_case=True)[1]["matches"] == 2
    assert tools.ok("search_code", pattern="beta", path="code", ignore_case=True, glob="*.txt")[0] == "code/sub/b c.txt:1:BETA(2)\n"
    assert tools.ok("search_code", pattern="zzz", path="code")[0] == "no match"
    assert "the search failed" in tools.says("search_code", pattern="(", path="code")
    tools.says("search_code", pattern="a", path="/no/such/folder")
    # Nothing of it is read by a shell, and nothing is an option.
    for hostile in ["$(touch code/owned)", "`touch code/owned`", "--help", "-rf", "a'; touch code/owned; '"]:
        tools.call("search_code", pattern=hostile, path="code", glob=hostile.replace("/", ""))
        tools.call("search_code", pattern="a", path=hostile)
    assert tools.box.run("test -e code/owned")["exitCode"] == 1
    tools.box.out("yes match | head -n 200000 > code/flood")
    text, about = tools.ok("search_code", pattern="match", path="code", max_results=50)
    assert about["matches"] == 50 and not about["complete"] and "the first 50 matches" in text


def test_a_pattern_that_never_ends_is_ended(tools):
    tools.box.out("mkdir -p slow && head -c 60000000 /dev/zero | tr '\\0' a > slow/a && printf '\\n' >> slow/a")
    begun = time.monotonic()
    # Back-references make grep try everything.
    result = tools.call("search_code", pattern="(a*)*(a*)\\1\\2b", path="slow")
    assert time.monotonic() - begun < 60 * settings.PATIENCE
    assert result["isError"] or "no match" in result["content"][0]["text"] or "ended after 30 s" in result["content"][0]["text"]
    wait_for(lambda: not tools.box.is_alive("grep -r"), "the search has ended")


# --- the sandbox as a whole


def test_checkpoints_are_taken_gone_back_to_and_forked(api, box):
    tools = Tools(box)
    tools.ok("write_file", path="state", content="first")
    text, fields = tools.ok("checkpoint", name="before")
    assert fields["checkpoint_id"] in text and fields["name"] == "before"
    assert "already exists" in tools.says("checkpoint", name="before")
    tools.ok("write_file", path="state", content="second")
    fork = tools.ok("fork")[1]["sandbox_id"]
    old = tools.ok("fork", checkpoint=fields["checkpoint_id"])[1]["sandbox_id"]
    try:
        for sandbox, expected in [(fork, "second"), (old, "first")]:
            answer = api.post(f"/api/sandboxes/{sandbox}/tools/sandbox_read_file", json={"path": "state", "numbered": False})
            assert answer.json()["content"][0]["text"] == expected
    finally:
        for sandbox in (fork, old):
            assert api.delete(f"/api/sandboxes/{sandbox}").status_code == 204
    assert [each["name"] for each in box.checkpoints()] == ["before"], "what a fork was made of has gone"
    tools.ok("restore", checkpoint="before")
    assert tools.ok("read_file", path="state", numbered=False)[0] == "first"
    assert "it has before (" in tools.says("restore", checkpoint="other")


def test_a_port_is_exposed(tools):
    text, fields = tools.ok("expose_port", port=8000)
    assert f"{tools.box.id}-p8000." in fields["url"] and fields["url"] in text
    assert "anybody can open it" in tools.ok("expose_port", port=8000, share_seconds=60)[0]
    assert "port must be a whole number from 1 to 65535" in tools.says("expose_port", port=0)


def test_a_sandbox_that_sleeps_is_woken_and_one_that_is_gone_is_410(api, box):
    tools = Tools(box)
    tools.ok("write_file", path="kept", content="x")
    assert box.call("POST", "/hibernate").status_code == 200
    box.wait_status("hibernated")
    assert "kept" in tools.ok("list_files")[0]
    assert box.status() == "running"
    box.kill()
    for answer in (box.call("GET", "/tools"), box.call("POST", "/tools/sandbox_exec", json={"command": "true"})):
        assert answer.status_code == 410 and "stopped" in answer.json()["error"]


# --- doors


def test_definitions_come_in_every_style(box):
    mcp = box.call("GET", "/tools").json()
    assert {tool["name"] for tool in mcp} == OF_A_SANDBOX | WITH_A_KEY
    for tool in mcp:
        schema = tool["inputSchema"]
        assert schema["type"] == "object" and schema["additionalProperties"] is False and "sandbox_id" not in schema["properties"]
        assert all(field.get("description") or field["type"] for field in schema["properties"].values())
    by_style = {style: box.call("GET", f"/tools?format={style}").json() for style in ("openai", "responses", "anthropic")}
    first = mcp[0]
    assert by_style["anthropic"][0] == {
        "name": first["name"], "description": first["description"], "input_schema": first["inputSchema"],
    }  # fmt: skip
    assert by_style["openai"][0]["function"]["parameters"] == first["inputSchema"] and by_style["openai"][0]["type"] == "function"
    assert by_style["responses"][0]["parameters"] == first["inputSchema"]
    assert "format must be" in box.call("GET", "/tools?format=yaml").json()["error"]


def test_calls_are_made_in_every_style(box):
    def call(body):
        answer = box.call("POST", "/tools", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    openai = {"id": "call_1", "type": "function", "function": {"name": "sandbox_exec", "arguments": json.dumps({"command": "echo hi"})}}
    said = call(openai)
    assert said["role"] == "tool" and said["tool_call_id"] == "call_1" and said["content"].startswith("hi\n[exit code 0")
    anthropic = {"type": "tool_use", "id": "toolu_1", "name": "sandbox_exec", "input": {"command": "echo hi"}}
    said = call(anthropic)
    assert (said["type"], said["tool_use_id"], said["is_error"]) == ("tool_result", "toolu_1", False)
    assert said["content"][0]["text"].startswith("hi\n")
    responses = {"type": "function_call", "call_id": "call_2", "name": "sandbox_exec", "arguments": '{"command": "echo hi"}'}
    assert call(responses)["type"] == "function_call_output"

    broken = openai | {"function": {"name": "sandbox_exec", "arguments": '{"command": '}}
    assert call(broken)["content"].startswith("Error: the arguments are not a JSON object")
    unknown = call(anthropic | {"name": "rm_rf"})
    assert unknown["is_error"] and "there is no tool" in unknown["content"][0]["text"]
    # In their order, so that a later one sees what an earlier one did.
    write = {"type": "tool_use", "id": "a", "name": "sandbox_write_file", "input": {"path": "f", "content": "1"}}
    read = {"type": "tool_use", "id": "b", "name": "sandbox_read_file", "input": {"path": "f"}}
    assert [each["tool_use_id"] for each in call([write, read])] == ["a", "b"]
    assert call([write, read])[1]["content"][0]["text"] == "     1\t1"
    for bad in ({}, [], 3, "x", [1], {"type": "tool_use", "name": "sandbox_exec"}, [anthropic] * 65):
        answer = box.call("POST", "/tools", json=bad)
        assert answer.status_code == (200 if bad == [] else 400), (bad, answer.text)


def test_a_token_is_good_for_its_own_sandbox_and_for_no_more(api, box, other, anonymous):
    token = box.view()["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    listed = anonymous.get(f"{box.path}/tools", headers=bearer)
    assert {tool["name"] for tool in listed.json()} == OF_A_SANDBOX
    ran = anonymous.post(f"{box.path}/tools/sandbox_exec", json={"command": "echo hi"}, headers=bearer)
    assert ran.json()["content"][0]["text"].startswith("hi")
    assert anonymous.post(f"{box.path}/tools/sandbox_fork", json={}, headers=bearer).status_code == 404
    with api.create() as another:
        assert anonymous.get(f"{another.path}/tools", headers=bearer).status_code == 403
    # A key as a bearer is fine here.
    assert anonymous.get(f"{box.path}/tools", headers={"Authorization": f"Bearer {api.key}"}).status_code == 200
    assert anonymous.get(f"{box.path}/tools").status_code == 401
    for method, path, body in [
        ("GET", "/tools", None),
        ("POST", "/tools", {"type": "tool_use", "id": "1", "name": "sandbox_exec", "input": {"command": "touch owned"}}),
        ("POST", "/tools/sandbox_exec", {"command": "touch owned"}),
        ("POST", "/tools/nothing", {}),
    ]:
        answer = other.call(method, f"{box.path}{path}", json=body)
        assert (answer.status_code, answer.json()["error"]) == (404, "sandbox not found")
    assert box.run("test -e owned")["exitCode"] == 1


# --- input that means harm


def test_input_is_held_to_its_schema(tools):
    for name, arguments, says in [
        ("exec", {}, "the field command of sandbox_exec is required"),
        ("exec", {"command": ""}, "command must be a string of 1 to"),
        ("exec", {"command": ["ls"]}, "command must be a string"),
        ("exec", {"command": "ls", "timeout": 5}, '"timeout" is not a field of sandbox_exec; its fields are command, cwd,'),
        ("exec", {"command": "ls", "timeout_seconds": "5"}, "timeout_seconds must be a whole number from 1 to 3600"),
        ("exec", {"command": "ls", "timeout_seconds": 1e99}, "timeout_seconds must be a whole number"),
        ("exec", {"command": "ls", "timeout_seconds": -1}, "timeout_seconds must be a whole number"),
        ("exec", {"command": "ls", "env": {"A": 1}}, "A must be a string"),
        ("exec", {"command": "ls", "env": ["A=1"]}, "env must be an object"),
        ("exec", {"command": "ls\0"}, "NUL"),
        ("exec", {"command": "ls", "env": {"A=B": "c"}}, "must not be empty or contain ="),
        ("exec", {"command": "ls", "cwd": "/no/such"}, "does not exist"),
        ("exec", {"command": "ls", "max_bytes": 10**9}, "max_bytes must be"),
        ("read_file", {"path": "a\0b"}, "NUL"),
        ("read_file", {"path": "a" * 5000}, "path must be a string of 1 to 4096"),
        ("read_file", {"path": "é" * 4000}, "at most 4096 bytes"),
        ("read_file", {"path": "a", "numbered": "false"}, "numbered must be true or false"),
        ("write_file", {"path": "a"}, "the field content of sandbox_write_file is required"),
        ("write_file", {"path": "a", "content": {"a": 1}}, "content must be a string"),
        ("kill_process", {"process_id": "0123abcd", "signal": "STOP"}, "signal must be one of KILL, TERM"),
        ("list_files", {"glob": "{a,b}" * 20}, "alternatives"),
        ("search_code", {"pattern": "a\0"}, "NUL"),
        ("restore", {}, "the field checkpoint of sandbox_restore is required"),
    ]:
        said = tools.says(name, **arguments)
        assert says in said, (name, said)
    assert tools.ok("exec", command="true", cwd=None, env=None), "null is as good as nothing"


def test_bodies_that_are_no_input(tools):
    path = f"{tools.box.path}/tools/sandbox_exec"
    for content in (b"[]", b"{", b"null", b"\xff\xfe", b'"x"', b"[" * 100_000, b'{"command": "ls"} x'):
        answer = tools.box.api.post(path, content=content)
        assert answer.status_code == 400, (content[:10], answer.text)
    big = b'{"command": "' + b"x" * (17 << 20) + b'"}'
    assert tools.box.api.post(path, content=big).status_code == 413
    nested = b'{"command": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    assert tools.box.api.post(path, content=nested).status_code == 400
    answer = tools.box.api.post(f"{tools.box.path}/tools/%00%0a..", json={})
    assert answer.status_code == 404 and "there is no tool" in answer.json()["error"]


def test_hostile_paths_stay_inside(tools):
    for path in ["../../../../../../etc/hostname", "a/../../../tmp/x\ny", "/proc/1/root/etc/hostname", "/tmp/$(id)", "-rf", "~root", "a//b/./c"]:
        written = tools.call("write_file", path=path, content="mine")
        if not written["isError"]:
            assert tools.ok("read_file", path=path, numbered=False)[0] == "mine"
    tools.box.out("ln -sf loop-b loop-a; ln -sf loop-a loop-b; ln -sf / root")
    tools.says("read_file", path="loop-a")
    tools.says("edit_file", path="loop-a", old_string="a", new_string="b")
    assert tools.ok("read_file", path="root/etc/hostname")[0]


def test_many_calls_at_once(tools):
    """Edits of one file do not lose each other, and everything answers."""
    count, failed = 60, []
    tools.ok("write_file", path="shared", content="".join(f"<{number}>\n" for number in range(count)))

    def one(number):
        try:
            tools.ok("edit_file", path="shared", old_string=f"<{number}>", new_string=f"done {number}.")
            assert tools.ok("exec", command=f"echo {number}")[0].startswith(f"{number}\n")
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[:3]
    assert tools.box.read("shared").decode() == "".join(f"done {number}.\n" for number in range(count))


def test_the_command_of_a_client_that_leaves_is_ended(tools):
    url = f"{tools.box.api.url}{tools.box.path}/tools/sandbox_exec"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={"command": "sleep 5151"}, headers={"X-API-Key": tools.box.api.key}, timeout=1.5)
    wait_for(lambda: not tools.box.is_alive("sleep 5151"), "the command has ended", 15)


def test_a_long_call_keeps_its_connection_alive(tools):
    """Blanks come before the answer, which is legal in JSON."""
    url = f"{tools.box.api.url}{tools.box.path}/tools/sandbox_exec"
    with httpx.stream("POST", url, json={"command": "sleep 12; echo done"}, headers={"X-API-Key": tools.box.api.key}, timeout=11.5) as answer:
        body = b"".join(answer.iter_bytes())
    assert body.startswith(b" ") and json.loads(body)["content"][0]["text"].startswith("done\n")
