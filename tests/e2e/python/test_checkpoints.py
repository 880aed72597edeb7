"""opencomputer-sdk 1.1.0: checkpoints, forks, patches, restarts, scaling."""

import asyncio

import httpx
import pytest
from opencomputer import Sandbox
from opencomputer.sandbox import ScalingLockedError

from harness import settings

from .test_sandbox import raw, read_until


async def ready(sandbox, checkpoint_id, within=30):
    async with asyncio.timeout(within):
        while True:
            found = next(each for each in await sandbox.list_checkpoints() if each["id"] == checkpoint_id)
            if found["status"] != "processing":
                assert found["status"] == "ready", found
                return found
            await asyncio.sleep(0.02)


async def test_checkpoint_restore_fork_delete(sandbox):
    await sandbox.files.write("/home/sandbox/f", "before")
    assert await sandbox.list_checkpoints() == []
    checkpoint = await sandbox.create_checkpoint("one")
    assert (checkpoint["name"], checkpoint["sandboxId"], checkpoint["status"]) == ("one", sandbox.id, "processing")
    found = await ready(sandbox, checkpoint["id"])
    assert found["sizeBytes"] > 0
    await sandbox.files.write("/home/sandbox/f", "after")

    async with await Sandbox.create_from_checkpoint(checkpoint["id"], timeout=500, envs={"E": "1"}) as fork:
        assert fork.status == "running" and fork.end_at is None
        assert await fork.files.read("/home/sandbox/f") == "before"
        assert (await fork.exec.run('echo "$E"')).stdout == "1\n"
        assert await (await fork.exec.start("sh", args=["-c", "exit 4"])).done == 4
        assert (await raw(fork))["timeout"] == 500

    await sandbox.restore_checkpoint(checkpoint["id"])
    assert await sandbox.files.read("/home/sandbox/f") == "before"
    assert await (await sandbox.exec.start("sh", args=["-c", "exit 5"])).done == 5
    pty = await sandbox.pty.create()
    await pty.send("echo a''gain\n")
    await read_until(pty, "again")
    await pty.close()

    await sandbox.delete_checkpoint(checkpoint["id"])
    await sandbox.delete_checkpoint(checkpoint["id"])
    assert await sandbox.list_checkpoints() == []
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await Sandbox.create_from_checkpoint(checkpoint["id"])
    assert raised.value.response.status_code == 404


async def test_kinds_and_retention(sandbox):
    policy = {"mode": "delete_oldest", "maxCount": 2}
    for n in range(4):
        made = await sandbox.create_checkpoint(f"c{n}", kind="disk_only", promote_to_full=False, retention_policy=policy)
        assert made["kind"] == "disk_only"
        await ready(sandbox, made["id"])
    async with asyncio.timeout(10):
        while [each["name"] for each in await sandbox.list_checkpoints()] != ["c3", "c2"]:
            await asyncio.sleep(0.05)
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await sandbox.create_checkpoint("c3")
    assert raised.value.response.status_code == 409


async def test_a_fork_of_a_checkpoint_still_in_the_making(sandbox):
    await sandbox.files.write("/home/sandbox/f", "x")
    checkpoint = await sandbox.create_checkpoint("one")
    async with await Sandbox.create_from_checkpoint(checkpoint["id"]) as fork:
        assert await fork.files.read("/home/sandbox/f") == "x"


async def test_patches(sandbox):
    checkpoint = await sandbox.create_checkpoint("one")
    await ready(sandbox, checkpoint["id"])
    made = await Sandbox.create_checkpoint_patch(checkpoint["id"], "echo patched > ~/p", "a patch")
    assert made["patch"]["sequence"] == 1
    bad = await Sandbox.create_checkpoint_patch(checkpoint["id"], "exit 3")
    assert [each["sequence"] for each in await Sandbox.list_checkpoint_patches(checkpoint["id"])] == [1, 2]
    async with await Sandbox.create_from_checkpoint(checkpoint["id"]) as fork:
        assert await fork.files.read("/home/sandbox/p") == "patched\n"
        assert "exit code 3" in (await raw(fork))["patchError"]
        await Sandbox.delete_checkpoint_patch(checkpoint["id"], bad["patch"]["id"])
        await Sandbox.delete_checkpoint_patch(checkpoint["id"], bad["patch"]["id"])
        await fork.hibernate()
        await fork.wake()
        assert "patchError" not in await raw(fork)


async def test_reboot_and_power_cycle(sandbox):
    await sandbox.files.write("/home/sandbox/f", "kept")
    await sandbox.exec.start("sleep", args=["600"])
    for restart in (sandbox.reboot, sandbox.power_cycle):
        await restart()
        assert await sandbox.is_running()
        assert await sandbox.files.read("/home/sandbox/f") == "kept"
        assert (await sandbox.exec.run("pgrep -c sleep || true")).stdout.strip() == "0"


@pytest.mark.containers("they cannot grow")
async def test_scaling(sandbox):
    scaled = await sandbox.scale(4096)
    assert (scaled["sandboxID"], scaled["memoryMB"], scaled["cpuPercent"]) == (sandbox.id, 4096, 100)
    assert (await sandbox.get_autoscale())["enabled"] is False
    assert (await sandbox.set_autoscale(enabled=True, min_memory_mb=1024, max_memory_mb=4096))["enabled"] is True
    assert (await sandbox.set_scaling_lock(True))["locked"] is True
    assert (await sandbox.get_scaling_lock())["locked"] is True
    with pytest.raises(ScalingLockedError):
        await sandbox.scale(1024)
    with pytest.raises(ScalingLockedError):
        await sandbox.set_autoscale(enabled=True)
    await sandbox.set_scaling_lock(False)
    await sandbox.scale(1024)
    assert (await sandbox.exec.run("free -m | awk '/Mem/ {print $2}'")).stdout.strip() == "1024"


async def test_a_published_checkpoint(sandbox):
    await sandbox.files.write("/home/sandbox/f", "shared")
    checkpoint = await sandbox.create_checkpoint("one")
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await Sandbox.create_from_checkpoint(checkpoint["id"], api_key=settings.OTHER_KEY)
    assert raised.value.response.status_code == 403
    async with httpx.AsyncClient(headers={"X-API-Key": settings.KEY}) as client:
        answer = await client.post(f"{settings.URL}/api/sandboxes/checkpoints/{checkpoint['id']}/publish")
        assert answer.json()["isPublic"] is True
    async with await Sandbox.create_from_checkpoint(checkpoint["id"], api_key=settings.OTHER_KEY) as fork:
        assert await fork.files.read("/home/sandbox/f") == "shared"
