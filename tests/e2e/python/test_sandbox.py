"""opencomputer-sdk 1.1.0: the life of a sandbox."""

import asyncio

import httpx
import pytest
from opencomputer import Sandbox
from opencomputer.version import __version__

from harness import settings


def test_this_is_the_published_version():
    assert __version__ == "1.1.0"


@pytest.mark.parametrize("suffix", ["", "/", "/api", "/api/"])
async def test_create_run_kill_by_any_spelling_of_the_url(suffix):
    sandbox = await Sandbox.create(api_url=settings.URL + suffix, api_key=settings.KEY, memory_mb=1024)
    try:
        assert sandbox.id.startswith("sb-") and sandbox.status == "running" and sandbox.end_at is None
        assert (await sandbox.exec.run("echo hi")).stdout == "hi\n"
        await sandbox.files.write("/tmp/f", "x")
        assert await sandbox.files.read("/tmp/f") == "x"
        # Terminals and sessions use another address than the rest.
        pty = await sandbox.pty.create()
        await pty.send("echo $((40+2))\n")
        await read_until(pty, "42")
        await pty.close()
        assert await (await sandbox.exec.start("sh", args=["-c", "exit 3"])).done == 3
    finally:
        await sandbox.kill()
        await sandbox.close()
    assert sandbox.status == "stopped"


async def read_until(pty, text, seconds=10):
    seen = ""
    async with asyncio.timeout(seconds):
        while text not in seen:
            seen += (await pty.recv()).decode()
    return seen


async def test_every_option_of_create():
    sandbox = await Sandbox.create(
        template="base", timeout=600, envs={"A": "1"}, metadata={"m": "x"}, disk_mb=20480, memory_mb=8192
    )
    async with sandbox:
        result = await sandbox.exec.run('nproc; echo "$A"')
        assert result.stdout.split()[1] == "1" and int(result.stdout.split()[0]) <= 2
        view = await raw(sandbox)
        assert (view["cpuCount"], view["memoryMB"], view["timeout"], view["metadata"]) == (2, 8192, 600, {"m": "x"})


async def raw(sandbox):
    async with httpx.AsyncClient(headers={"X-API-Key": settings.KEY}) as client:
        return (await client.get(f"{settings.URL}/api/sandboxes/{sandbox.id}")).json()


async def test_options_that_cannot_be_honoured_are_refused():
    for options in ({"preview_auth": {"scheme": "none"}}, {"secret_store": "s"}, {"memory_mb": 2048}):
        with pytest.raises(httpx.HTTPStatusError) as raised:
            await Sandbox.create(**options)
        assert 400 <= raised.value.response.status_code < 500 or raised.value.response.status_code == 501


async def test_connect_finds_what_create_made(sandbox):
    await sandbox.files.write("/tmp/shared", "x")
    again = await Sandbox.connect(sandbox.id)
    assert (again.sandbox_id, again.status, again.template, again.end_at) == (sandbox.id, "running", "base", None)
    assert await again.files.read("/tmp/shared") == "x"
    assert await (await again.exec.start("true")).done == 0
    await again.close()
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await Sandbox.connect("sb-00000000")
    assert raised.value.response.status_code == 404
    with pytest.raises(httpx.HTTPStatusError):
        await Sandbox.connect(sandbox.id, api_key=settings.OTHER_KEY)


async def test_the_context_manager_kills():
    async with await Sandbox.create(memory_mb=1024) as sandbox:
        assert await sandbox.is_running()
    other = await Sandbox.connect(sandbox.id)
    assert other.status == "stopped" and not await other.is_running()
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await other.exec.run("true")
    assert raised.value.response.status_code == 410
    await other.kill()
    await other.close()


async def test_hibernate_and_wake(sandbox):
    await sandbox.files.write("kept", "yes")
    await sandbox.hibernate()
    assert sandbox.status == "hibernated" and not await sandbox.is_running()
    await sandbox.wake()
    assert sandbox.status == "running" and await sandbox.is_running()
    assert await sandbox.files.read("kept") == "yes"
    # Its sessions still connect: the token it was created with lives as long as the sandbox does.
    assert await (await sandbox.exec.start("sh", args=["-c", "exit 5"])).done == 5
    pty = await sandbox.pty.create()
    await pty.send("echo a''wake\n")
    await read_until(pty, "awake")
    await pty.close()
    await sandbox.hibernate()
    await sandbox.wake(timeout=900)
    assert (await raw(sandbox))["timeout"] == 900


@pytest.mark.parametrize("call", ["run", "start", "read", "write", "list", "pty"])
async def test_any_use_wakes(sandbox, call):
    await sandbox.files.write("/tmp/f", "x")
    await sandbox.hibernate()
    match call:
        case "run":
            assert (await sandbox.exec.run("cat /tmp/f")).stdout == "x"
        case "start":
            assert await (await sandbox.exec.start("true")).done == 0
        case "read":
            assert await sandbox.files.read("/tmp/f") == "x"
        case "write":
            await sandbox.files.write("/tmp/g", "y")
        case "list":
            assert "f" in [entry.name for entry in await sandbox.files.list("/tmp")]
        case "pty":
            await (await sandbox.pty.create()).close()
    assert await sandbox.is_running()


async def test_the_timeout_can_be_set(sandbox):
    await sandbox.set_timeout(1)
    async with asyncio.timeout(15):
        while await sandbox.is_running():
            await asyncio.sleep(0.1)
    assert sandbox.status == "hibernated"
    assert (await sandbox.exec.run("echo back")).stdout == "back\n"
    await sandbox.set_timeout(0)
    assert (await raw(sandbox))["timeout"] == 0


async def test_many_sandboxes_at_once():
    sandboxes = await asyncio.gather(*(Sandbox.create(memory_mb=1024, envs={"N": str(n)}) for n in range(10)))
    results = await asyncio.gather(*(sandbox.exec.run('echo "$N"') for sandbox in sandboxes))
    assert [result.stdout.strip() for result in results] == [str(n) for n in range(10)]
    await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))
    await asyncio.gather(*(sandbox.close() for sandbox in sandboxes))
