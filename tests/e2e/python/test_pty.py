"""opencomputer-sdk 1.1.0: terminals."""

import asyncio

import httpx

from harness import settings


class Screen:
    def __init__(self):
        self.chunks = []

    @property
    def text(self):
        return b"".join(self.chunks).decode(errors="replace")

    async def until(self, text, seconds=10):
        async with asyncio.timeout(seconds):
            while text not in self.text:
                await asyncio.sleep(0.01)


async def test_a_terminal_echoes_and_answers(sandbox):
    screen = Screen()
    pty = await sandbox.pty.create(cols=120, rows=30, on_output=screen.chunks.append)
    await pty.send("stty size; echo $TERM\n")
    await screen.until("30 120")
    await screen.until("xterm-256color")
    await pty.send("echo 'é ☃ 𝄞''!'\n".encode())
    await screen.until("é ☃ 𝄞!")
    await pty.close()


async def test_it_can_be_resized(sandbox):
    screen = Screen()
    pty = await sandbox.pty.create(on_output=screen.chunks.append)
    await pty.send("stty size\n")
    await screen.until("24 80")
    async with httpx.AsyncClient(headers={"X-API-Key": settings.KEY}) as client:
        url = f"{settings.URL}/api/sandboxes/{sandbox.id}/pty/{pty.session_id}"
        assert (await client.post(f"{url}/resize", json={"cols": 101, "rows": 33})).status_code == 200
        await pty.send("stty size\n")
        await screen.until("33 101")
        assert (await client.delete(url)).status_code == 204
    await pty.close()


async def test_characters_are_whole_in_every_message(sandbox):
    screen = Screen()
    pty = await sandbox.pty.create(on_output=screen.chunks.append)
    await pty.send("stty -echo; python3 -c \"print('é☃𝄞' * 50000); print('do' + 'ne')\"\n")
    await screen.until("done", 30)
    for chunk in screen.chunks:
        chunk.decode()
    await pty.close()


async def test_recv_without_a_callback(sandbox):
    pty = await sandbox.pty.create()
    await pty.send("echo $((6*7))\n")
    seen = b""
    async with asyncio.timeout(10):
        while b"42" not in seen:
            seen += await pty.recv()
    await pty.close()
