"""MCP with real clients: the Python SDK over streamable HTTP and over stdio (`warren mcp`), in both protocols."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time

import anyio
import httpx
import httpx2
import pytest
from harness import settings
from harness.waiting import wait_for
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from api.test_tools import OF_A_SANDBOX, WITH_A_KEY

UNBOUND = {"sandbox_create", "sandbox_list", "sandbox_delete"}
# With `initialize`, and the one in which every request stands by itself.
PROTOCOLS = ["legacy", "2026-07-28"]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


def calling(name, identifier=2, /, **arguments):
    return {"jsonrpc": "2.0", "id": identifier, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


@contextlib.asynccontextmanager
async def over_http(path, mode, headers=None):
    headers = headers or {"Authorization": f"Bearer {settings.KEY}"}
    async with httpx2.AsyncClient(headers=headers, timeout=100) as http:
        async with Client(streamable_http_client(f"{settings.URL}{path}", http_client=http), mode=mode) as client:
            yield client


def program():
    binary = os.environ.get("WARREN_BIN")
    if not binary:
        pytest.skip("WARREN_BIN names no program")
    return binary


def environment():
    return {"OPENCOMPUTER_API_URL": settings.URL, "OPENCOMPUTER_API_KEY": settings.KEY, "PATH": os.environ["PATH"], "HOME": "/nonexistent"}


@contextlib.asynccontextmanager
async def over_stdio(mode, *arguments):
    server = StdioServerParameters(command=program(), args=["mcp", *arguments], env=environment())
    async with Client(server, mode=mode) as client:
        yield client


async def ok(client, name, /, **arguments):
    result = await client.call_tool(f"sandbox_{name}", arguments)
    assert not result.is_error, result
    assert [each.type for each in result.content] == ["text"]
    return result.content[0].text, (result.meta or {})["warren/structured"]


async def use_every_tool(client, **sandbox):
    """Calls every tool of a sandbox; what they do in detail is said in test_tools."""
    text, fields = await ok(client, "exec", command="seq 1 100000; echo hi >&2", max_bytes=1000, **sandbox)
    assert text.endswith("s]") and fields["truncated"]
    text, _ = await ok(client, "read_output", exec_id=fields["exec_id"], offset=0, max_bytes=256, **sandbox)
    assert text.startswith("1\n2\n")
    process = (await ok(client, "start_process", command="cat", **sandbox))[1]["process_id"]
    await ok(client, "process_input", process_id=process, input="line\n", **sandbox)
    text, _ = await ok(client, "process_output", process_id=process, offset=0, wait_seconds=10, **sandbox)
    assert text.startswith("line\n[still running")
    assert process in (await ok(client, "list_processes", **sandbox))[0]
    assert "signal 9" in (await ok(client, "kill_process", process_id=process, **sandbox))[0]
    await ok(client, "write_file", path="m/a.txt", content="one\n", **sandbox)
    await ok(client, "edit_file", path="m/a.txt", old_string="one", new_string="two", **sandbox)
    assert (await ok(client, "read_file", path="m/a.txt", **sandbox))[0] == "     1\ttwo\n"
    assert (await ok(client, "list_files", path="m", **sandbox))[0] == "a.txt  (4 bytes)"
    assert (await ok(client, "search_code", pattern="tw.", path="m", **sandbox))[0] == "m/a.txt:1:two\n"
    assert "-p80." in (await ok(client, "expose_port", port=80, **sandbox))[0]
    checkpoint = (await ok(client, "checkpoint", **sandbox))[1]["checkpoint_id"]
    fork = (await ok(client, "fork", checkpoint=checkpoint, **sandbox))[1]["sandbox_id"]
    await ok(client, "restore", checkpoint=checkpoint, **sandbox)
    return fork


@pytest.mark.parametrize("mode", PROTOCOLS)
def test_a_client_lists_and_calls_every_tool_of_a_sandbox(api, box, mode):
    async def body():
        async with over_http(f"/mcp/{box.id}", mode) as client:
            listed = (await client.list_tools()).tools
            assert {tool.name for tool in listed} == OF_A_SANDBOX | WITH_A_KEY
            assert all(tool.input_schema["additionalProperties"] is False and tool.description for tool in listed)
            assert {tool.name for tool in listed if tool.annotations.read_only_hint} == {
                "sandbox_read_output", "sandbox_process_output", "sandbox_list_processes", "sandbox_read_file",
                "sandbox_list_files", "sandbox_search_code",
            }  # fmt: skip
            return await use_every_tool(client)

    fork = asyncio.run(body())
    assert api.delete(f"/api/sandboxes/{fork}").status_code == 204


@pytest.mark.parametrize("mode", PROTOCOLS)
def test_a_client_makes_its_own_sandboxes_and_works_in_each(api, mode):
    async def body():
        async with over_http("/mcp", mode) as client:
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(listed) == OF_A_SANDBOX | WITH_A_KEY | UNBOUND
            assert "sandbox_id" in listed["sandbox_exec"].input_schema["required"]
            sandbox = (await ok(client, "create", memory_mb=1024, metadata={"by": "mcp"}))[1]["sandbox_id"]
            assert sandbox in (await ok(client, "list"))[0]
            fork = await use_every_tool(client, sandbox_id=sandbox)
            for each in (sandbox, fork):
                await ok(client, "delete", sandbox_id=each)
            gone = await client.call_tool("sandbox_exec", {"command": "true", "sandbox_id": sandbox})
            assert gone.is_error and "has been stopped" in gone.content[0].text
            for absent in ("sb-00000000", "../..", "x"):
                missing = await client.call_tool("sandbox_exec", {"command": "true", "sandbox_id": absent})
                assert missing.is_error and missing.content[0].text == "sandbox not found"
            wrong = await client.call_tool("sandbox_create", {"memory_mb": 7})
            assert wrong.is_error and len(wrong.content[0].text) > 10

    asyncio.run(body())


@pytest.mark.parametrize("mode", PROTOCOLS)
def test_mistakes_are_results_that_a_model_reads(box, mode):
    async def body():
        async with over_http(f"/mcp/{box.id}", mode) as client:
            for name, arguments, says in [
                ("sandbox_exec", {"comand": "ls"}, '"comand" is not a field of sandbox_exec'),
                ("sandbox_exec", {"command": 3}, "command must be a string"),
                ("sandbox_read_file", {"path": "/no/such"}, "/no/such"),
                ("sandbox_delete", {}, "there is no tool"),
            ]:
                result = await client.call_tool(name, arguments)
                assert result.is_error and says in result.content[0].text, result

    asyncio.run(body())


@pytest.mark.parametrize("mode", PROTOCOLS)
@pytest.mark.parametrize("door", ["http", "stdio"])
def test_a_call_that_is_cancelled_ends_its_command(box, mode, door):
    async def body():
        opened = over_http(f"/mcp/{box.id}", mode) if door == "http" else over_stdio(mode, "--sandbox", box.id)
        async with opened as client:
            with anyio.move_on_after(1.5):
                await client.call_tool("sandbox_exec", {"command": "sleep 6161"})
            with anyio.fail_after(20):
                while "gone" not in (await ok(client, "exec", command="pgrep -f 'sleep [6]161' || echo gone"))[0]:
                    await anyio.sleep(0.1)

    asyncio.run(body())


def test_a_client_hears_that_a_long_call_still_runs(box):
    async def body():
        heard = []

        async def progress(done, total, message):
            heard.append((done, message))

        async with over_http(f"/mcp/{box.id}", "legacy") as client:
            result = await client.call_tool("sandbox_exec", {"command": "sleep 6.5"}, progress_callback=progress)
            assert not result.is_error
            assert heard and "running for 5 s" in heard[0][1]

    asyncio.run(body())


def test_stdio_works_in_a_sandbox_that_is_there(api, box):
    async def body(mode):
        async with over_stdio(mode, "--sandbox", box.id) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == OF_A_SANDBOX | WITH_A_KEY
            return await use_every_tool(client)

    for mode in PROTOCOLS:
        fork = asyncio.run(body(mode))
        assert api.delete(f"/api/sandboxes/{fork}").status_code == 204


def test_stdio_can_offer_the_tools_of_all_sandboxes(box):
    async def body():
        async with over_stdio("legacy", "--all") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == OF_A_SANDBOX | WITH_A_KEY | UNBOUND
            assert (await ok(client, "exec", command="echo hi", sandbox_id=box.id))[0].startswith("hi\n")

    asyncio.run(body())


def messages(process, *sent):
    """What the program answers to these messages, in their order of ids."""
    text = "".join(json.dumps(each) + "\n" for each in sent)
    out, err = process.communicate(text, timeout=60 * settings.PATIENCE)
    return [json.loads(line) for line in out.splitlines()], err


def start(*arguments, **options):
    return subprocess.Popen(
        [program(), "mcp", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(), **options,
    )  # fmt: skip


def test_stdio_makes_a_sandbox_at_the_first_call_and_not_before(api):
    before = {each["sandboxID"] for each in api.list_all()}
    answers, err = messages(start("--memory", "1024"), INITIALIZE, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
    assert [each["id"] for each in answers] == [1, 2] and "made sandbox" not in err
    assert {each["name"] for each in answers[1]["result"]["tools"]} == OF_A_SANDBOX | WITH_A_KEY

    calls = [calling("sandbox_exec", number, command=f"echo {number} >> calls; hostname") for number in (3, 4, 5)]
    answers, err = messages(start("--memory", "1024", "--env", "A=b"), INITIALIZE, *calls)
    made = err.split("made sandbox ")[1].split()[0]
    assert made not in before and err.count("made sandbox") == 1, "three calls at once share one"
    assert sorted(each["id"] for each in answers) == [1, 3, 4, 5]
    with contextlib.closing(httpx.Client(headers={"X-API-Key": settings.KEY})) as http:
        read = http.get(f"{settings.URL}/api/sandboxes/{made}/files", params={"path": "calls"})
        assert sorted(read.text.split()) == ["3", "4", "5"], "it is kept"
        assert http.delete(f"{settings.URL}/api/sandboxes/{made}").status_code == 204

    _, err = messages(start("--memory", "1024", "--rm"), INITIALIZE, calling("sandbox_exec", command="true"))
    removed = err.split("made sandbox ")[1].split()[0]
    assert api.get(f"/api/sandboxes/{removed}").json()["status"] == "stopped"


def test_stdio_that_is_asked_to_end_ends_and_removes_its_sandbox(api):
    process = start("--memory", "1024", "--rm")
    process.stdin.write(json.dumps(INITIALIZE) + "\n" + json.dumps(calling("sandbox_exec", command="sleep 7171")) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == 1
    made = process.stderr.readline().split("made sandbox ")[1].split()[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert api.get(f"/api/sandboxes/{made}").json()["status"] == "stopped"
    process.stdin.close()


def test_stdio_leaves_no_sandbox_behind_that_was_being_made(api):
    # Others make theirs meanwhile: these are known by their timeout.
    made = lambda: {each["sandboxID"] for each in api.list_all() if each["timeout"] == 4242}  # noqa: E731
    send = lambda process, *sent: (process.stdin.write("".join(json.dumps(each) + "\n" for each in sent)), process.stdin.flush())  # noqa: E731
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}}

    # How long one takes to be made is not known: some of these are in the middle of it.
    for delay in (0.005, 0.01, 0.02, 0.04, 0.08):
        before = made()
        process = start("--memory", "1024", "--timeout", "4242", "--rm")
        send(process, INITIALIZE)
        assert json.loads(process.stdout.readline())["id"] == 1
        send(process, calling("sandbox_exec", 3, command="true"))
        time.sleep(delay)
        send(process, cancelled)
        answers, err = messages(process, calling("sandbox_exec", 4, command="hostname"))
        assert 4 in {each["id"] for each in answers} and err.count("made sandbox") == 1
        assert len(made() - before) == 1, "the next call works in the one that was being made"

        process = start("--memory", "1024", "--timeout", "4242", "--rm")
        send(process, INITIALIZE)
        assert json.loads(process.stdout.readline())["id"] == 1
        send(process, calling("sandbox_exec", 3, command="true"))
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60 * settings.PATIENCE) == 0
    time.sleep(1)
    assert all(api.get(f"/api/sandboxes/{each}").json()["status"] == "stopped" for each in made())


def test_stdio_ends_soon_after_its_client(box):
    process = start("--sandbox", box.id)
    process.stdin.write(json.dumps(INITIALIZE) + "\n" + json.dumps(calling("sandbox_exec", command="sleep 7272", timeout_seconds=300)) + "\n")
    process.stdin.close()
    assert process.wait(30) == 0
    assert "cancelled" in process.stderr.read()


def test_stdio_answers_what_it_cannot_pass_on(box):
    answers, _ = messages(start("--sandbox", "sb-00000000"), INITIALIZE, calling("sandbox_exec", command="true"))
    assert len(answers) == 2 and all("sandbox not found" in each["error"]["message"] for each in answers)
    process = start("--sandbox", box.id)
    lines = ["{", "[]", "3", '{"id": 7}', "", '{"id": 1, "result": {}}', json.dumps(INITIALIZE), "\ud83d".encode("utf-8", "surrogatepass").decode("latin1")]
    out, _ = process.communicate("\n".join(lines) + "\n", timeout=60)
    answers = [json.loads(line) for line in out.splitlines()]
    assert sorted(each["error"]["code"] for each in answers if "error" in each) == [-32700, -32700, -32600, -32600, -32600]
    assert [each["result"]["serverInfo"]["name"] for each in answers if "result" in each] == ["warren"]
    unreachable = subprocess.run(
        [program(), "mcp", "--sandbox", box.id], input=json.dumps(INITIALIZE) + "\n", capture_output=True, text=True,
        env=environment() | {"OPENCOMPUTER_API_URL": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert "could not reach" in json.loads(unreachable.stdout)["error"]["message"].lower() or "127.0.0.1:9" in unreachable.stdout


# --- the door itself


def post(path, message, key=None, content=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not False:
        headers.setdefault("Authorization", f"Bearer {key or settings.KEY}")
    with httpx.Client(timeout=60) as http:
        body = content if content is not None else json.dumps(message).encode()
        answer = http.post(f"{settings.URL}{path}", content=body, headers=headers)
    assert answer.status_code < 500, answer.text
    assert answer.headers["x-request-id"]
    return answer


def test_who_may_come_in(api, box):
    path = f"/mcp/{box.id}"
    token = box.view()["token"]
    assert post(path, INITIALIZE).status_code == 200
    assert post(path, INITIALIZE, key=False, X_API_Key=settings.KEY).status_code == 200
    for key in (False, "osb_" + "0" * 64, "x", token[:-1] + "!"):
        refused = post(path, INITIALIZE, key=key)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer", key
        assert post("/mcp", INITIALIZE, key=key).status_code == 401
    # The token of a sandbox is for that sandbox, and for what is inside of it.
    assert post(path, INITIALIZE, key=token).status_code == 200
    listed = post(path, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, key=token).json()
    assert {tool["name"] for tool in listed["result"]["tools"]} == OF_A_SANDBOX
    ran = post(path, calling("sandbox_exec", command="echo hi"), key=token).json()
    assert ran["result"]["content"][0]["text"].startswith("hi\n")
    assert post(path, calling("sandbox_fork"), key=token).json()["result"]["isError"]
    assert post("/mcp", INITIALIZE, key=token).status_code == 403
    with api.create() as another:
        assert post(f"/mcp/{another.id}", INITIALIZE, key=token).status_code == 403
    # What is somebody else's is not there.
    for absent in (path, "/mcp/sb-00000000", "/mcp/x"):
        foreign = post(absent, calling("sandbox_exec", command="touch owned"), key=settings.OTHER_KEY)
        assert (foreign.status_code, foreign.json()["error"]) == (404, "sandbox not found")
    through = post("/mcp", calling("sandbox_exec", command="touch owned", sandbox_id=box.id), key=settings.OTHER_KEY).json()
    assert through["result"]["isError"] and through["result"]["content"][0]["text"] == "sandbox not found"
    deleted = post("/mcp", calling("sandbox_delete", sandbox_id=box.id), key=settings.OTHER_KEY).json()
    assert deleted["result"]["isError"]
    assert box.run("test -e owned")["exitCode"] == 1 and box.status() == "running"


def test_pages_of_other_sites_may_not_come_in_and_any_host_name_will_do(box):
    path = f"/mcp/{box.id}"
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "garbage", f"http://{box.id}.example"):
        refused = post(path, INITIALIZE, Origin=origin)
        assert refused.status_code == 403 and "origin" in refused.json()["error"], origin
    # A page that made its own name lead here has that name in both.
    assert post(path, INITIALIZE, Origin="http://evil.example:7070", Host="evil.example:7070").status_code == 403
    for origin in ("http://localhost:6274", "http://127.0.0.1", "http://[::1]:8080"):
        assert post(path, INITIALIZE, Origin=origin).status_code == 200, origin
    for host in ("warren.example", "10.0.0.1:7070", "[::1]:1"):
        assert post(path, INITIALIZE, Host=host).status_code == 200, host


def test_only_versions_are_offered_that_are_served_in_full(box):
    for asked, offered in [("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("2025-11-25", "2025-11-25"), ("2025-03-26", "2024-11-05")]:
        message = INITIALIZE | {"params": INITIALIZE["params"] | {"protocolVersion": asked}}
        assert post(f"/mcp/{box.id}", message).json()["result"]["protocolVersion"] == offered, asked


def test_what_is_no_message_is_refused_with_a_sentence(box):
    path = f"/mcp/{box.id}"
    for content in (b"", b"{", b"[]", b"null", b"3", b"{}", b'{"jsonrpc":"2.0"}', b"\xff", b"[" * 200_000, b'{"jsonrpc":"1.0","id":1,"method":"ping"}'):
        answer = post(path, None, content=content)
        assert 400 <= answer.status_code < 500 or "error" in answer.json(), (content[:20], answer.status_code, answer.text)
        assert answer.json()["error"], answer.text
    big = post(path, None, content=b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * (17 << 20) + b'"}')
    assert big.status_code == 413
    for content in (b"{", b"\xff", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\\ud800"}}'):
        assert post(path, None, content=content).status_code == 400, "it is not JSON"
    for params in (None, {}, {"name": 3}, {"name": "sandbox_exec", "arguments": []}):
        answer = post(path, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        assert answer.json()["error"]["code"] == -32602, (params, answer.text)
    unknown = post(path, {"jsonrpc": "2.0", "id": 1, "method": "resources/unknown"})
    assert unknown.json()["error"]["code"] == -32601
    assert post(path, {"jsonrpc": "2.0", "method": "notifications/initialized"}).status_code == 202
    for wrong in ({"MCP_Protocol_Version": "1999-01-01"},):
        assert post(path, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, **wrong).status_code == 400
    with httpx.Client(headers={"X-API-Key": settings.KEY}) as http:
        for method in ("GET", "PUT", "PATCH"):
            answer = http.request(method, f"{settings.URL}{path}")
            assert answer.status_code == 405 and answer.json()["error"], method
        assert http.delete(f"{settings.URL}{path}").status_code == 204, "there is no session to end"
    assert post("/mcp?tools=all", INITIALIZE).status_code == 400


def test_who_cannot_cancel_what_is_not_theirs(box):
    """A number of a request is no secret; the id of the session it was made in is."""
    session = post(f"/mcp/{box.id}", INITIALIZE).headers["mcp-session-id"]
    other = post(f"/mcp/{box.id}", INITIALIZE).headers["mcp-session-id"]
    assert session != other and len(session) == 32

    async def body():
        headers = {"Authorization": f"Bearer {settings.KEY}", "Mcp-Session-Id": session}
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
        async with httpx.AsyncClient(timeout=60) as http:
            url = f"{settings.URL}/mcp/{box.id}"
            running = asyncio.create_task(http.post(url, json=calling("sandbox_exec", 9, command="sleep 8181"), headers=headers))
            await asyncio.sleep(0.5)
            for wrong in ({}, {"Mcp-Session-Id": other}, {"Mcp-Session-Id": session[:-1]}):
                await http.post(url, json=cancel, headers={"Authorization": headers["Authorization"]} | wrong)
            foreign = await http.post(url, json=cancel, headers=headers | {"Authorization": f"Bearer {settings.OTHER_KEY}"})
            assert foreign.status_code == 404
            await asyncio.sleep(0.5)
            assert not running.done() and box.is_alive("sleep 8181")
            assert (await http.post(url, json=cancel, headers=headers)).status_code == 202
            answer = await asyncio.wait_for(running, 10)
            assert "given up" in answer.json()["error"]["message"]

    asyncio.run(body())
    wait_for(lambda: not box.is_alive("sleep 8181"), "the command has ended", 10)


def test_many_clients_at_once_are_all_answered(box):
    async def body():
        async with over_http(f"/mcp/{box.id}", "legacy") as client:

            async def one(number):
                text, _ = await ok(client, "exec", command=f"echo {number}")
                assert text.startswith(f"{number}\n")

            await asyncio.gather(*(one(number) for number in range(60)))

    asyncio.run(body())
