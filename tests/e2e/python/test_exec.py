"""opencomputer-sdk 1.1.0: commands, sessions, shells."""

import asyncio

import httpx
import pytest
from opencomputer import ShellBusyError, ShellClosedError


class Output:
    """What a session's callbacks were given."""

    def __init__(self):
        self.stdout, self.stderr, self.exits, self.replays = b"", b"", [], 0

    def callbacks(self, replay=True):
        def on_stdout(chunk):
            self.stdout += chunk

        def on_stderr(chunk):
            self.stderr += chunk

        def on_replay():
            self.replays += 1

        found = {"on_stdout": on_stdout, "on_stderr": on_stderr, "on_exit": self.exits.append}
        return found | ({"on_scrollback_end": on_replay} if replay else {})

    async def until(self, text, seconds=10):
        async with asyncio.timeout(seconds):
            while text not in self.stdout:
                await asyncio.sleep(0.01)


async def test_run(sandbox):
    result = await sandbox.exec.run("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    result = await sandbox.commands.run('echo "$A é ☃"; pwd', env={"A": "a b"}, cwd="/tmp")
    assert result.stdout == "a b é ☃\n/tmp\n"
    assert (await sandbox.exec.run("kill -TERM $$")).exit_code == 143


async def test_run_with_a_time_limit(sandbox):
    result = await sandbox.exec.run("echo before; sleep 600", timeout=1)
    assert result.exit_code == -1 and result.stdout == "before\n" and "timed out" in result.stderr


async def test_a_command_longer_than_the_client_s_read_limit(sandbox):
    result = await sandbox.exec.run("sleep 45; echo slept")
    assert (result.exit_code, result.stdout) == (0, "slept\n")


async def test_a_command_longer_than_its_default_limit_is_ended(sandbox):
    result = await sandbox.exec.run("sleep 35; echo slept", timeout=40)
    assert result.stdout == "slept\n"


async def test_large_output(sandbox):
    result = await sandbox.exec.run("seq 1 1000000")
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 1000001))


async def test_commands_at_once(sandbox):
    results = await asyncio.gather(*(sandbox.exec.run(f"sleep 0.1; echo {n}") for n in range(20)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]


async def test_a_session_streams(sandbox):
    output = Output()
    session = await sandbox.exec.start(
        "sh", args=["-c", 'echo "$A" >&2; pwd; cat'], env={"A": "x"}, cwd="/tmp", **output.callbacks()
    )
    await output.until(b"/tmp\n")
    assert output.replays == 1
    await session.send_stdin("to stdin\n")
    await session.send_stdin(b"bytes\n")
    await output.until(b"to stdin\nbytes\n")
    assert output.stderr == b"x\n" and not session.done.done()
    await session.kill(15)
    assert await session.done == 143 and output.exits == [143]
    await session.send_stdin("dropped")
    await session.close()


async def test_background_is_start(sandbox):
    output = Output()
    session = await sandbox.exec.background("sh", args=["-c", "echo bg; exit 4"], **output.callbacks(replay=False))
    assert await session.done == 4 and output.stdout == b"bg\n"


async def test_list_and_attach(sandbox):
    first = await sandbox.exec.start("sh", args=["-c", "echo early; read x; echo late $x; exit 6"])
    second = Output()
    attached = await sandbox.exec.attach(first.session_id, **second.callbacks())
    await second.until(b"early\n")
    info = next(each for each in await sandbox.exec.list() if each.session_id == first.session_id)
    assert (info.sandbox_id, info.command, info.running, info.exit_code, info.attached_clients) == (sandbox.id, "sh", True, None, 2)
    assert info.args[0] == "-c" and info.started_at
    await attached.send_stdin("word\n")
    assert await attached.done == 6 and await first.done == 6
    assert second.stdout == b"early\nlate word\n"
    third = Output()
    again = await sandbox.exec.attach(first.session_id, **third.callbacks())
    assert await again.done == 6 and third.stdout == second.stdout and third.replays == 1
    info = next(each for each in await sandbox.exec.list() if each.session_id == first.session_id)
    assert not info.running and info.exit_code == 6


@pytest.mark.parametrize(("signal", "code"), [(2, 130), (9, 137), (15, 143)])
async def test_kill_reaches_children(sandbox, signal, code):
    session = await sandbox.exec.start("bash", args=["-c", "echo up; sleep 4321 | cat"])
    while (await sandbox.exec.run("pgrep -f '[s]leep 4321'")).exit_code:
        await asyncio.sleep(0.05)
    await sandbox.exec.kill(session.session_id, signal)
    assert await session.done == code
    async with asyncio.timeout(5):
        while not (await sandbox.exec.run("pgrep -f '[s]leep 4321'")).exit_code:
            await asyncio.sleep(0.05)


async def test_a_session_s_time_limit(sandbox):
    session = await sandbox.exec.start("sleep", args=["600"], timeout=1)
    assert await session.done == -1


async def test_a_session_that_outlives_its_client(sandbox):
    session = await sandbox.exec.start("sleep", args=["600"], max_run_after_disconnect=1)
    await session.close()
    async with asyncio.timeout(10):
        while next(each for each in await sandbox.exec.list() if each.session_id == session.session_id).running:
            await asyncio.sleep(0.1)


async def test_what_cannot_start_raises(sandbox):
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await sandbox.exec.start("no-such-program")
    assert raised.value.response.status_code == 400
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await sandbox.exec.kill("00000000")
    assert raised.value.response.status_code == 404


async def test_a_lot_of_output_reaches_a_session_whole(sandbox):
    output = Output()
    session = await sandbox.exec.start("sh", args=["-c", "read go; seq 1 2000000"], **output.callbacks())
    await session.send_stdin("go\n")
    async with asyncio.timeout(60):
        assert await session.done == 0
    lines = output.stdout.split(b"\n")
    assert len(lines) == 2_000_001 and lines[-2] == b"2000000"


# Shells.


async def test_a_shell_keeps_its_state(sandbox):
    shell = await sandbox.exec.shell(cwd="/tmp", env={"FROM": "outside"})
    assert (await shell.run("pwd; echo $FROM")).stdout == "/tmp\noutside\n"
    await shell.run("cd /etc && export X=1; f() { echo f-$1; }")
    result = await shell.run("pwd; echo $X; f 2; echo e >&2; false")
    assert (result.stdout, result.stderr, result.exit_code) == ("/etc\n1\nf-2\n", "e\n", 1)
    assert (await shell.run("")).exit_code == 0
    assert (await shell.run("printf no-newline")).stdout == "no-newline"
    assert (await shell.run("cat <<X\nhere $X\nX")).stdout == "here 1\n"
    await shell.close()
    with pytest.raises(ShellClosedError):
        await shell.run("true")


async def test_a_shell_streams_and_is_exact(sandbox):
    shell = await sandbox.exec.shell()
    seen = []
    result = await shell.run("python3 -c \"print('é☃𝄞' * 100000)\"; seq 1 200000", on_stdout=seen.append)
    expected = "é☃𝄞" * 100000 + "\n" + "".join(f"{n}\n" for n in range(1, 200001))
    assert result.stdout == expected and b"".join(seen).decode() == expected
    for n in range(100):
        assert (await shell.run(f"echo {n}; echo e{n} >&2")).stdout == f"{n}\n"
    await shell.close()


async def test_a_busy_shell_says_so(sandbox):
    shell = await sandbox.exec.shell()
    running = asyncio.create_task(shell.run("sleep 1; echo done"))
    await asyncio.sleep(0)
    with pytest.raises(ShellBusyError):
        await shell.run("true")
    assert (await running).stdout == "done\n"
    await shell.close()


async def test_exit_closes_a_shell(sandbox):
    shell = await sandbox.exec.shell()
    with pytest.raises(ShellClosedError, match="bash exited with code 9"):
        await shell.run("exit 9")
    with pytest.raises(ShellClosedError):
        await shell.run("true")


async def test_a_shell_can_be_taken_up_again(sandbox):
    shell = await sandbox.exec.shell()
    await shell.run("cd /tmp; X=kept; seq 1 300000")
    again = await sandbox.exec.reattach_shell(shell.session_id)
    result = await again.run("pwd; echo $X")
    assert result.stdout == "/tmp\nkept\n"
    await again.close()


async def test_many_shells_open_without_hanging(sandbox):
    async def one(n):
        shell = await sandbox.exec.shell()
        async with asyncio.timeout(20):
            assert (await shell.run(f"echo {n}")).stdout == f"{n}\n"
        await shell.close()

    for batch in range(4):
        await asyncio.gather(*(one(n) for n in range(batch * 10, batch * 10 + 10)))
