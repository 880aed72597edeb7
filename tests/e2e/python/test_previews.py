"""opencomputer-sdk 1.1.0: previews and signed URLs."""

import httpx
import pytest
from opencomputer import Sandbox

from harness import settings
from harness.previews import PROGRAM

#: Stands for a name server: a browser knows where these hosts are.
ADDRESS = httpx.URL(settings.URL)


async def ask(host, path="/", **headers):
    async with httpx.AsyncClient() as client:
        return await client.get(f"{settings.URL}{path}", headers={"Host": host} | headers)


async def serve(sandbox, port=8000):
    await sandbox.files.write("/home/sandbox/program.py", PROGRAM)
    await sandbox.exec.start("python3", args=["/home/sandbox/program.py", f"127.0.0.1,{port}"])
    wait = f"until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))' 2>/dev/null; do sleep 0.05; done"
    assert (await sandbox.exec.run(wait, timeout=20)).exit_code == 0


async def test_a_port_opens_and_is_listed(sandbox):
    await serve(sandbox)
    made = await sandbox.create_preview_url(8000)
    assert made["port"] == 8000 and made["sandboxId"] == sandbox.sandbox_id and made["sslStatus"] == "active"
    assert made["hostname"] == f"{sandbox.sandbox_id}-p8000.localhost:{ADDRESS.port}"
    assert (await sandbox.create_preview_url(8000)) == made
    await sandbox.create_preview_url(80, auth_config={})
    assert [each["port"] for each in await sandbox.list_preview_urls()] == [80, 8000]
    answer = await ask(made["hostname"], "/from/python")
    assert answer.status_code == 200 and answer.json()["target"] == "/from/python"
    await sandbox.delete_preview_url(80)
    await sandbox.delete_preview_url(80)
    assert [each["port"] for each in await sandbox.list_preview_urls()] == [8000]
    for refused in ({"domain": "x.example.com"}, {"auth_config": {"public": False}}):
        with pytest.raises(httpx.HTTPStatusError) as error:
            await sandbox.create_preview_url(81, **refused)
        assert error.value.response.status_code == 400


async def test_preview_auth():
    async with await Sandbox.create(memory_mb=1024, preview_auth={}) as sandbox:
        first = sandbox.preview_auth_token
        assert len(first) == 43
        await serve(sandbox)
        host = (await sandbox.create_preview_url(8000))["hostname"]
        assert (await ask(host)).status_code == 401
        assert (await ask(host, Authorization=f"Bearer {first}")).status_code == 200
        second = await sandbox.rotate_preview_auth_token()
        assert second == sandbox.preview_auth_token != first
        assert (await ask(host, **{"X-OC-Preview-Token": first})).status_code == 401
        assert (await ask(host, **{"X-OC-Preview-Token": second})).status_code == 200
    async with await Sandbox.create(memory_mb=1024, preview_auth={"token": "0123456789abcdef"}) as sandbox:
        assert sandbox.preview_auth_token == "0123456789abcdef"
    async with await Sandbox.create(memory_mb=1024) as sandbox:
        assert sandbox.preview_auth_token == ""


async def test_signed_urls(sandbox):
    upload = await sandbox.upload_url("/tmp/from a browser", expires_in=60)
    async with httpx.AsyncClient() as browser:
        assert (await browser.put(upload, content=b"sent")).status_code == 204
        assert await sandbox.files.read("/tmp/from a browser") == "sent"
        download = await sandbox.download_url("/tmp/from a browser")
        assert (await browser.get(download)).content == b"sent"
        assert (await browser.get(download + "0")).status_code == 403
