"""opencomputer-sdk 1.1.0: files."""

import asyncio
import hashlib
import os

import httpx
import pytest


async def test_text_bytes_and_streams(sandbox):
    files = sandbox.files
    await files.write("/tmp/text", "é ☃ 𝄞\r\n")
    assert await files.read("/tmp/text") == "é ☃ 𝄞\r\n"
    data = bytes(range(256)) * 100
    await files.write("/tmp/bytes", data)
    assert await files.read_bytes("/tmp/bytes") == data

    async def chunks():
        for n in range(50):
            yield f"{n},".encode()

    await files.write("/tmp/stream", chunks())
    assert await files.read("/tmp/stream") == "".join(f"{n}," for n in range(50))
    await files.write("/tmp/empty", "")
    assert await files.read_bytes("/tmp/empty") == b""


async def test_a_hundred_megabytes_both_ways(sandbox):
    data = os.urandom(1024 * 1024) * 100
    await sandbox.files.write("/tmp/large", data)
    digest = hashlib.sha256(data).hexdigest()
    assert (await sandbox.exec.run("sha256sum < /tmp/large")).stdout.split()[0] == digest
    assert hashlib.sha256(await sandbox.files.read_bytes("/tmp/large")).hexdigest() == digest


async def test_folders(sandbox):
    files = sandbox.files
    await files.make_dir("/tmp/a/b")
    await files.make_dir("/tmp/a/b")
    await files.write("/tmp/a/é & ☃", "12345")
    entries = {entry.name: entry for entry in await files.list("/tmp/a")}
    assert set(entries) == {"b", "é & ☃"}
    assert entries["b"].is_dir and not entries["é & ☃"].is_dir
    assert (entries["é & ☃"].size, entries["é & ☃"].path) == (5, "/tmp/a/é & ☃")
    assert await files.list("/tmp/a/b") == []
    assert "home" in [entry.name for entry in await files.list()]
    assert await files.exists("/tmp/a/é & ☃") and not await files.exists("/tmp/a/none")
    await files.remove("/tmp/a")
    await files.remove("/tmp/a")
    assert not await files.exists("/tmp/a/é & ☃")


async def test_errors_raise(sandbox):
    for call, status in [
        (sandbox.files.read("/tmp/none"), 404),
        (sandbox.files.list("/tmp/none"), 404),
        (sandbox.files.read("/tmp"), 400),
        (sandbox.files.write("/tmp", "x"), 400),
    ]:
        with pytest.raises(httpx.HTTPStatusError) as raised:
            await call
        assert raised.value.response.status_code == status


async def test_what_is_uploaded_belongs_to_the_user(sandbox):
    await sandbox.files.write("project/main.py", "print(6*7)\n")
    result = await sandbox.exec.run("cd project && echo '# more' >> main.py && python3 main.py && touch new")
    assert (result.exit_code, result.stdout) == (0, "42\n"), result.stderr


async def test_many_files_at_once(sandbox):
    await asyncio.gather(*(sandbox.files.write(f"/tmp/many/{n}", str(n)) for n in range(60)))
    contents = await asyncio.gather(*(sandbox.files.read(f"/tmp/many/{n}") for n in range(60)))
    assert contents == [str(n) for n in range(60)]
