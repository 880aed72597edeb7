"""Section 13.5: URLs of files that need no other credential."""

import hashlib
import hmac
import time
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from harness import settings
from harness.previews import error_of, memory_mb
from harness.waiting import wait_for

MEGABYTE = 1024 * 1024


def sign(box, path, use="download", **fields):
    answer = box.call("POST", f"/files/{use}-url", json={"path": path} | fields)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"url", "expiresAt"}
    return answer.json()["url"]


def test_read_and_write_without_a_key(shared):
    path = "/tmp/signed/a b+c é.txt"
    upload, download = sign(shared, path, "upload"), sign(shared, path)
    assert "path=%2Ftmp%2Fsigned%2Fa+b%2Bc+%C3%A9.txt&expires=" in download
    assert httpx.put(upload, content=b"0123456789").status_code == 204
    assert shared.read(path) == b"0123456789"
    for _ in range(2):
        answer = httpx.get(download)
        assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''a%20b")
    part = httpx.get(download, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert httpx.get(download, headers={"Range": "bytes=50-"}).status_code == 416
    head = httpx.head(download)
    assert (head.status_code, head.headers["content-length"]) == (200, "10")
    # A relative path is below the home, as everywhere.
    assert httpx.put(sign(shared, "rel.txt", "upload"), content=b"r").status_code == 204
    assert shared.read("/home/sandbox/rel.txt") == b"r"


def test_the_signature_is_the_contracts(shared, on_host):
    import os

    key = Path(os.environ["WARREN_DATA_DIR"], "urls.key").read_bytes()
    parts = urlsplit(sign(shared, "/x y"))
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    text = f"opensandbox-signed-url\n{shared.id}\n/x y\ndownload\n{query['expires']}"
    assert query["signature"] == hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    assert os.stat(Path(os.environ["WARREN_DATA_DIR"], "urls.key")).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("asked, given", [(None, 3600), (0, 3600), (-1, 3600), (5, 5), (86400, 86400), (10**9, 86400)])
def test_how_long_it_is_good_for(shared, asked, given):
    fields = {} if asked is None else {"expiresIn": asked}
    answer = shared.call("POST", "/files/download-url", json={"path": "/x"} | fields).json()
    expires = datetime.strptime(answer["expiresAt"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    assert abs(expires.timestamp() - time.time() - given) < 5
    assert f"expires={int(expires.timestamp())}&" in answer["url"]


def test_it_expires(shared):
    shared.write("/tmp/soon", b"x")
    url = sign(shared, "/tmp/soon", expiresIn=1)
    assert httpx.get(url).status_code == 200
    answer = wait_for(lambda: (found := httpx.get(url)).status_code == 403 and found, "it expires", 5)
    assert error_of(answer) == "signed URL expired"


def test_it_is_bound_to_use_path_and_sandbox(shared, box):
    shared.write("/tmp/mine", b"mine")
    box.write("/tmp/mine", b"other")
    url, upload = sign(shared, "/tmp/mine"), sign(shared, "/tmp/mine", "upload")
    for wrong in (
        url.replace(shared.id, box.id),
        url.replace("mine", "yours"),
        url.replace("signature=", "signature=0")[:-1],
        url.replace("expires=", "expires=1"),
        upload.replace("/files/upload", "/files/download"),
    ):
        answer = httpx.get(wrong)
        assert (answer.status_code, error_of(answer)) == (403, "invalid signature"), wrong
    assert httpx.put(url.replace("/files/download", "/files/upload"), content=b"no").status_code == 403
    assert httpx.put(url, content=b"no").status_code == 405
    assert httpx.get(upload).status_code == 405
    assert error_of(httpx.get(url + "zz")) == "invalid signature encoding"
    assert error_of(httpx.get(url.upper().replace("HTTP://127.0.0.1", "http://127.0.0.1").replace("/API/SANDBOXES/SB-", "/api/sandboxes/sb-"))) is not None
    # A mode is not part of what was signed.
    assert httpx.put(upload + "&mode=0777", content=b"mode").status_code == 204
    assert shared.out("stat -c %a /tmp/mine").strip() == "644"
    assert shared.read("/tmp/mine") == b"mode"


@pytest.mark.parametrize(
    "query",
    ["", "path=/x", "path=/x&expires=9999999999", "path=/x&signature=00", "expires=9999999999&signature=00", "path=&expires=9999999999&signature=00"]
    + [f"path=/x&expires={expires}&signature=00" for expires in ("", "x", "1.5", "-1", "%2B9999999999", "1e9", "9" * 30)],
)
def test_what_is_missing_or_no_number_is_said(shared, query):
    for method, use in (("GET", "download"), ("PUT", "upload")):
        answer = httpx.request(method, f"{settings.URL}{shared.path}/files/{use}?{query}")
        assert answer.status_code == 400 and len(error_of(answer)) > 8, answer.text


def test_who_does_not_own_the_sandbox_gets_none(shared, other, anonymous):
    for use in ("download", "upload"):
        assert other.post(f"{shared.path}/files/{use}-url", json={"path": "/x"}).status_code == 404
        assert anonymous.post(f"{shared.path}/files/{use}-url", json={"path": "/x"}).status_code == 401
        assert shared.call("POST", f"/files/{use}-url", json={}).json()["error"] == "path is required"
        for bad in ({"path": ""}, {"path": 5}, {"path": "a\0b"}, {"path": "x" * 5000}, {"path": "/x", "expiresIn": "1"}):
            assert shared.call("POST", f"/files/{use}-url", json=bad).status_code == 400


def test_pages_of_other_hosts_may_use_it(shared):
    shared.write("/tmp/cors", b"x")
    url = sign(shared, "/tmp/cors", "upload")
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}
    preflight = httpx.options(url, headers=asked)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "*"
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    answer = httpx.get(sign(shared, "/tmp/cors"), headers={"Origin": "https://page.example"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_it_wakes_the_sandbox_and_ends_with_it(api):
    with api.create() as box:
        box.write("/home/sandbox/f", b"kept")
        url = sign(box, "f")
        assert box.call("POST", "/hibernate").status_code == 200
        assert httpx.get(url.replace("signature=", "signature=0")[:-1]).status_code == 403
        assert box.status() == "hibernated"
        assert httpx.get(url, timeout=60).content == b"kept"
        assert box.status() == "running"
        box.kill()
        assert httpx.get(url).status_code == 410
    assert httpx.get(url.replace(box.id, "sb-00000000")).status_code == 403


def test_large_files_stream(box, on_host):
    before = memory_mb()
    block = bytes(range(256)) * 4096
    upload = sign(box, "/tmp/large", "upload")
    assert httpx.put(upload, content=(block for _ in range(200)), timeout=60).status_code == 204
    digest, most = hashlib.sha256(), before
    with httpx.stream("GET", sign(box, "/tmp/large"), timeout=60) as answer:
        for piece in answer.iter_raw():
            digest.update(piece)
            most = max(most, memory_mb())
    expected = hashlib.sha256()
    for _ in range(200):
        expected.update(block)
    assert digest.hexdigest() == expected.hexdigest()
    assert most - before < 40, f"from {before:.0f} to {most:.0f} MiB"
