"""The calls of Crabbox's `run`, `status` and `stop`, in their order and as its Go client sends them."""

import gzip
import io
import json
import math
import secrets
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness import host, settings
from harness.client import marker
from harness.raw import raw_request
from harness.waiting import wait_for

GO = {"X-API-Key": settings.KEY, "User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}
SCOPE = f"endpoint-sha256:{'d' * 64}/ownership:{'0' * 32}"
WORKDIR = "/workspace/crabbox"
LONG = "nested/" + "a-folder-of-a-name-that-no-ustar-header-holds/" * 4 + "grüße.txt"


class Crabbox:
    """Its client: no retries, statuses by class, and the types that Go's decoder insists on."""

    def __init__(self, url=None, key=settings.KEY):
        self.http = httpx.Client(base_url=url or settings.URL, headers=GO | {"X-API-Key": key}, timeout=settings.patient(60))

    def call(self, method, path, body=None, status=200, **options):
        answer = self.http.request(method, path, json=body, **options)
        assert answer.status_code == status, answer.text
        if answer.is_error:
            assert isinstance(answer.json()["error"], str), answer.text
        return answer

    def create(self, **fields):
        answer = self.call("POST", "/api/sandboxes", {"metadata": {"crabbox": "true", "crabbox-name": "crabbox-repo-0a1b2c"}} | fields, 201)
        sandbox = answer.json()["sandboxID"]
        assert sandbox.startswith("sb-") and sandbox[3:].isalnum() and sandbox == sandbox.lower()
        self.call("PUT", f"/api/sandboxes/{sandbox}/tags", {"crabbox.claim": SCOPE})
        return sandbox

    def claim(self, sandbox):
        return self.call("GET", f"/api/sandboxes/{sandbox}/tags").json()["tags"].get("crabbox.claim")

    def upload(self, sandbox, path, content, chunk=32 * 1024):
        """As Go sends an open file: in chunks, without a length."""
        chunks = (content[at : at + chunk] for at in range(0, len(content), chunk))
        headers = {"Content-Type": "application/octet-stream"}
        self.call("PUT", f"/api/sandboxes/{sandbox}/files?path={path}", status=204, content=chunks, headers=headers)

    def exec(self, sandbox, cmd, *args, **fields):
        body = {"cmd": cmd} | ({"args": list(args)} if args else {}) | {"timeout": 3600} | fields
        result = self.call("POST", f"/api/sandboxes/{sandbox}/exec/run", body).json()
        assert isinstance(result["exitCode"], int) and isinstance(result["stdout"], str) and isinstance(result["stderr"], str)
        return result

    def script(self, sandbox, script):
        result = self.exec(sandbox, "bash", "-lc", script)
        assert result["exitCode"] == 0, result
        assert result["stdout"] == "", "a login shell prints nothing of its own"

    def sync(self, sandbox, archive):
        """Section 5.3: what was in the work directory goes."""
        path, staging = f"/tmp/crabbox-sync-{secrets.token_hex(3)}.tgz", f"/workspace/.crabbox.crabbox-sync-{secrets.token_hex(3)}"
        self.upload(sandbox, path, archive)
        self.script(sandbox, f"rm -rf '{staging}' && mkdir -p '{staging}'")
        self.script(sandbox, f"tar -xzf '{path}' -C '{staging}'")
        swap = (
            f"rm -rf '{staging}.previous'\nif [ -e '{WORKDIR}' ]; then mv '{WORKDIR}' '{staging}.previous' || exit $?; fi\n"
            f"if mv '{staging}' '{WORKDIR}'; then exit 0; fi\ncode=$?; mv '{staging}.previous' '{WORKDIR}'; exit $code"
        )
        self.script(sandbox, swap)
        self.script(sandbox, f"rm -rf '{staging}.previous'")
        self.script(sandbox, f"rm -f '{path}'; rm -rf '{staging}'")
        left = self.exec(sandbox, "ls", "-A", "/tmp", "/workspace")["stdout"]
        assert "crabbox-sync" not in left, left


def archive(files, links=()):
    """Of a developer whose ids the sandbox does not know; no entries for folders."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o755 if name.endswith(".sh") else 0o644, 1_750_000_000
            entry.uid, entry.gid, entry.uname, entry.gname = 501, 20, "dev", "staff"
            tar.addfile(entry, io.BytesIO(content))
        for name, target in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            tar.addfile(entry)
    return gzip.compress(held.getvalue())


@pytest.fixture(scope="module")
def crabbox():
    return Crabbox()


@pytest.fixture
def sandbox(crabbox):
    made = crabbox.create(cpuCount=1)
    yield made
    crabbox.http.delete(f"/api/sandboxes/{made}")


def test_a_run_from_its_first_call_to_its_last(crabbox):
    sandbox = crabbox.create(timeout=600, burst=True)
    big = secrets.token_bytes(3 << 20)
    crabbox.sync(sandbox, archive({"run.sh": b"#!/bin/sh\necho ran $A in $(pwd)\n", LONG: b"x", "big": big}, [("link", "run.sh")]))
    names = {"CRABBOX_LEASE_ID": "", "CRABBOX_RUN_ID": "run_0a1b2c3d4e5f", "CRABBOX_SLUG": "", "A": "b c"}
    done = crabbox.exec(sandbox, "./link", cwd=WORKDIR, envs=names)
    assert done == done | {"exitCode": 0, "stdout": f"ran b c in {WORKDIR}\n", "stderr": ""}
    assert crabbox.exec(sandbox, "env", cwd=WORKDIR, envs=names)["stdout"].count("CRABBOX_LEASE_ID=\n") == 1
    seen = crabbox.exec(sandbox, "bash", "-lc", f"stat -c %U:%a:%Y run.sh; cat '{LONG}'; wc -c <big; id -un; echo $HOME", cwd=WORKDIR)["stdout"]
    assert seen == f"sandbox:755:1750000000\nx{len(big)}\nsandbox\n/home/sandbox\n", seen
    # The next run throws away what the archive does not have.
    crabbox.exec(sandbox, "touch", "built", cwd=WORKDIR)
    crabbox.sync(sandbox, archive({}))
    assert crabbox.exec(sandbox, "ls", "-A", cwd=WORKDIR)["stdout"] == ""
    crabbox.call("DELETE", f"/api/sandboxes/{sandbox}", status=204)


def test_it_is_found_again_whatever_state_it_is_in(crabbox, sandbox):
    crabbox.script(sandbox, f"mkdir -p '{WORKDIR}' && echo kept > {WORKDIR}/f")
    crabbox.call("POST", f"/api/sandboxes/{sandbox}/hibernate")
    assert crabbox.call("GET", f"/api/sandboxes/{sandbox}").json()["status"] == "hibernated"
    assert crabbox.claim(sandbox) == SCOPE
    # `run --id` looks at no status: an upload is the first thing it does.
    crabbox.upload(sandbox, "/tmp/crabbox-sync-0a1b2c.tgz", archive({"g": b"new"}))
    crabbox.script(sandbox, f"tar -xzf /tmp/crabbox-sync-0a1b2c.tgz -C '{WORKDIR}'")
    assert crabbox.exec(sandbox, "cat", "f", "g", cwd=WORKDIR)["stdout"] == "kept\nnew"
    crabbox.call("DELETE", f"/api/sandboxes/{sandbox}", status=204)
    gone = crabbox.http.get(f"/api/sandboxes/{sandbox}")
    assert gone.status_code == 404 or gone.json()["status"] == "stopped", gone.text
    assert crabbox.http.delete(f"/api/sandboxes/{sandbox}").status_code in (204, 404)


def test_what_its_users_see_of_ends(crabbox, sandbox):
    killed = crabbox.exec(sandbox, "bash", "-lc", "echo out; echo err >&2; sleep 300", timeout=math.ceil(settings.PATIENCE))
    assert (killed["exitCode"], killed["stdout"]) == (-1, "out\n") and killed["stderr"].startswith("err\n") and "timed out" in killed["stderr"]
    assert crabbox.exec(sandbox, "bash", "-lc", "exit 7")["exitCode"] == 7
    assert crabbox.exec(sandbox, "printf", r"a\377b")["stdout"] == "a\ufffdb"
    for fields in ({"cmd": "no-such-program", "args": ["x"]}, {"cmd": "true", "cwd": "/no/such/folder"}):
        answer = crabbox.http.post(f"/api/sandboxes/{sandbox}/exec/run", json=fields)
        assert answer.status_code == 400 and isinstance(answer.json()["error"], str), answer.text
    long = crabbox.exec(sandbox, "bash", "-c", "yes 0123456789 | head -c 900000; yes e | head -c 100000 >&2")
    assert (len(long["stdout"]), len(long["stderr"])) == (900000, 100000)


@pytest.mark.parametrize("key", ["osb_" + "0" * 64, "osb_wrong", "no key at all"])
def test_a_key_that_is_none_is_called_so(key):
    answer = Crabbox(key=key).http.get("/api/sandboxes")
    assert answer.status_code in (401, 403), answer.text
    words = answer.json()["error"].lower()
    assert key not in words, "it is not repeated"
    # `doctor` takes the first of these for what is wrong.
    assert not any(word in words for word in ("timeout", "timed out", "deadline", "no such file", "missing", "required", "not configured")), words
    assert any(word in words for word in ("unauthorized", "api key", "credential", "token", "401", "403")), words


def test_ctrl_c_drops_the_command_and_deletes_at_once(crabbox, sandbox):
    mark = marker()
    with ThreadPoolExecutor(1) as pool:
        interrupted = Crabbox()
        running = pool.submit(lambda: interrupted.exec(sandbox, "sleep", mark))
        wait_for(lambda: host.find_process("sleep", mark), "it runs")
        begun = time.monotonic()
        crabbox.call("DELETE", f"/api/sandboxes/{sandbox}", status=204)
        assert time.monotonic() - begun < 15
        interrupted.http.close()
        with pytest.raises(Exception):  # noqa: B017 whatever it is told: its command is over
            running.result(60)
    wait_for(lambda: not host.find_process("sleep", mark), "nothing of it is left")


def test_an_upload_that_is_refused_says_why(crabbox, sandbox):
    """Go shows a broken pipe in the place of the message when the body is not taken."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for path, status in (("/proc/none/f", 404), ("/a%00b", 400)):
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/octet-stream"}
        answer = raw_request("PUT", f"/api/sandboxes/{sandbox}/files?path={path}", headers, chunk * 64 + b"0\r\n\r\n")
        assert answer and answer.status == status, answer
        assert isinstance(json.loads(answer.body)["error"], str)


def test_sandboxes_and_commands_do_not_wait_for_each_other(crabbox):
    mark = marker()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: crabbox.create(cpuCount=1), range(3)))
        try:
            slow = [pool.submit(crabbox.exec, each, "sleep", mark, timeout=20) for each in made]
            wait_for(lambda: len(host.find_process("sleep", mark)) >= 3, "all of them run")
            assert [crabbox.exec(each, "echo", each)["stdout"] for each in made * 3] == [f"{each}\n" for each in made * 3]
            assert not any(each.done() for each in slow)
        finally:
            for each in made:
                crabbox.call("DELETE", f"/api/sandboxes/{each}", status=204)
