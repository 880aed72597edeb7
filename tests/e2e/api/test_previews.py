"""Section 17, with Warren's additions: share links, streaming, TLS."""

import hashlib
import ssl
import threading
import time

import httpx
import pytest

from harness import settings
from harness.client import Box
from harness.previews import Preview, error_of, memory_mb, serve
from harness.program import BLOCK
from harness.raw import raw_request, read_answer, open_socket
from harness.tls import TlsServer, make_certificate
from harness.waiting import holds_for, wait_for

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def served(api):
    """A sandbox with the test's program on its own address and on all. Sandboxes have no IPv6."""
    with api.create() as box:
        serve(box, "127.0.0.1,8000", "0.0.0.0,8002")
        yield box


@pytest.fixture
def preview(served):
    with Preview(served) as found:
        yield found


def digest_of(length):
    whole, rest = divmod(length, len(BLOCK))
    digest = hashlib.sha256()
    for _ in range(whole):
        digest.update(BLOCK)
    digest.update(BLOCK[:rest])
    return digest.hexdigest()


# Who sees what.


def test_every_port_works_without_registration(served):
    for port in (8000, 8002):
        with Preview(served, port) as preview:
            seen = preview.seen("/a/b?c=%20d&e=", method="POST", content=b"12345")
            assert (seen["method"], seen["target"], seen["length"]) == ("POST", "/a/b?c=%20d&e=", 5)
    assert served.call("GET", "/preview").json() == []


def test_the_program_sees_the_host_and_who_asked(preview):
    assert preview.header("host") == [preview.host]
    assert preview.header("x-forwarded-for") == ["127.0.0.1"]
    assert preview.header("x-forwarded-for", headers={"X-Forwarded-For": "9.9.9.9"}) == ["9.9.9.9, 127.0.0.1"]
    assert preview.header("x-forwarded-host") == [preview.host]
    assert preview.header("x-forwarded-proto") == ["http"]
    assert preview.header("authorization", headers={"Authorization": "Bearer own"}) == ["Bearer own"]
    assert preview.header("x-oc-preview-token", headers={"X-OC-Preview-Token": "x"}) == []


def test_methods_statuses_and_heads_pass(preview):
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert preview.seen(method=method)["method"] == method
    head = preview.http.head("/")
    assert (head.status_code, head.content) == (200, b"") and int(head.headers["content-length"]) > 10
    for status in (201, 204, 304, 404, 418, 500, 503):
        assert preview.get(f"/status?status={status}").status_code == status


def test_any_page_may_ask_without_credentials(preview):
    answer = preview.get("/", headers={"Origin": "https://page.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    wanted = {"Origin": "https://p.example", "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-oc-preview-token"}
    answer = preview.http.options("/", headers=wanted)
    assert answer.status_code == 204 and answer.headers["access-control-allow-headers"] == "x-oc-preview-token"


def test_a_name_leads_to_one_place(preview, served):
    assert preview.get("/api/sandboxes", headers={"X-API-Key": settings.KEY}).json()["target"] == "/api/sandboxes"
    for host, status in {
        preview.host.upper(): 200,
        f"{served.id}-p8000.localhost": 200,
        f"{served.id}-p8000.localhost.": 400,
        f"x@{preview.host}": 400,
        f"{served.id}-p8000.localhost:08000": 400,
        f"{preview.host}, localhost": 400,
        f"a.{preview.host}": 404,
        f"{served.id}-p08000.localhost": 404,
        f"{served.id}-p99999.localhost": 404,
        f"{served.id}.localhost": 404,
        "sb-00000000-p80.localhost": 404,
        "whatever.localhost": 404,
    }.items():
        answer = httpx.get(f"{settings.URL}/healthz", headers={"Host": host})
        assert answer.status_code == status, (host, answer.text)
        assert (status == 200) == ('"target"' in answer.text), (host, answer.text)


def test_two_hosts_in_one_request_are_refused(served):
    host = f"{served.id}-p8000.localhost"
    answer = raw_request("GET", "/healthz", {"X": "1", "host": host})  # beside the Host that raw requests send
    assert answer.status == 400, answer
    answer = raw_request("GET", f"http://{host}/healthz")
    assert answer.status == 400, answer
    with open_socket() as connection:
        # What looks like a second request inside a body stays a body.
        hidden = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
        head = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + b"0\r\n\r\n" + hidden)
        answer = read_answer(connection)
        assert b"/hidden" not in answer.body and (answer.status == 400 or answer.json()["length"] == 0), answer


def test_a_body_that_cannot_be_read_is_the_clients_fault(preview):
    for body in (b"0x3\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nabc\r\n"):
        with open_socket() as connection:
            connection.sendall(f"POST / HTTP/1.1\r\nHost: {preview.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + body)
            answer = read_answer(connection)
        assert answer.status == 400 and "body" in answer.json()["error"], answer


# Streams.


def test_the_first_event_comes_at_once(preview):
    begun = time.monotonic()
    with preview.http.stream("GET", "/events?count=4&every=0.7") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: 0"
        first = time.monotonic() - begun
        assert [line for line in lines if line] == ["data: 1", "data: 2", "data: 3"]
    assert first < 1.8, f"the first event took {first:.2f} s"


def test_much_goes_both_ways_and_the_server_does_not_grow(served, preview, on_host):
    length = 300 * MEGABYTE
    before = memory_mb()
    most = [before]
    stop = threading.Event()

    def watch():
        while not stop.wait(0.05):
            most[0] = max(most[0], memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        digest = hashlib.sha256()
        with preview.http.stream("GET", f"/big?bytes={length}") as answer:
            assert int(answer.headers["content-length"]) == length
            for piece in answer.iter_raw():
                digest.update(piece)
        assert digest.hexdigest() == digest_of(length)
        pieces = (BLOCK for _ in range(length // len(BLOCK)))
        seen = preview.seen("/upload", method="POST", content=pieces)
        assert (seen["length"], seen["sha256"]) == (length, digest_of(length))
    finally:
        stop.set()
        watcher.join()
    assert most[0] - before < 40, f"from {before:.0f} to {most[0]:.0f} MiB"


def test_who_reads_slowly_slows_the_program(served, preview, on_host):
    before = memory_mb()
    with preview.http.stream("GET", f"/big?bytes={2000 * MEGABYTE}") as answer:
        pieces = answer.iter_raw()
        next(pieces)
        time.sleep(2)
        assert memory_mb() - before < 40
        next(pieces)


def test_a_websocket_goes_both_ways(preview):
    with preview.socket() as socket:
        assert socket.recv(timeout=5) == preview.host
        for message in ("text é", b"\x00\xff", "x" * 70_000, b"y" * 3_000_000):
            socket.send(message)
            assert socket.recv(timeout=15) == message
        # Silence for a while is no end.
        time.sleep(1.5)
        socket.send("again")
        assert socket.recv(timeout=5) == "again"


def test_many_at_once(preview):
    def ask(number):
        return preview.seen(f"/{number}")["target"]

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(200))) == [f"/{number}" for number in range(200)]


def test_a_program_that_keeps_no_connection_open(served):
    """Each answer ends with its connection."""
    served.start("python3", "-m", "http.server", "8010", "--bind", "127.0.0.1", "--directory", "/etc")
    with Preview(served, 8010) as preview:
        wait_for(lambda: preview.get("/hostname").status_code == 200, "it listens", 15)
        for _ in range(30):
            assert preview.get("/hostname").text == served.out("cat /etc/hostname")


# What is not there.


def test_nothing_listens(served):
    with Preview(served, 9) as preview:
        answer = preview.get("/")
        assert answer.status_code == 502 and error_of(answer) == f"sandbox {served.id}: upstream unavailable"
        page = preview.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 502 and page.headers["content-type"].startswith("text/html")
        assert "port 9" in page.text and 'http-equiv="refresh"' in page.text and "<script" not in page.text


def test_a_server_that_has_just_been_started_is_waited_for(served):
    served.start("sh", "-c", "sleep 0.4; exec python3 /home/sandbox/program.py 127.0.0.1,8020")
    with Preview(served, 8020) as preview:
        assert preview.get("/").status_code == 200


def test_stopped_and_unknown(api):
    with api.create() as box:
        box.kill()
        with Preview(box) as preview:
            answer = preview.get("/")
            assert (answer.status_code, error_of(answer)) == (410, f"sandbox {box.id} has been stopped")
    box.id = "sb-ffffffff"
    with Preview(box) as preview:
        answer = preview.get("/")
        assert (answer.status_code, error_of(answer)) == (404, "sandbox sb-ffffffff not found")


# Who may.


def test_a_token_is_asked_for_before_waking(api):
    start = ["exec python3 /home/sandbox/program.py 127.0.0.1,8000"]
    with api.create(previewAuth={"scheme": "bearer", "token": "auto"}, startCommands=start) as box:
        token = box.created["previewAuthToken"]
        assert len(token) == 43 and "previewAuthToken" not in box.view()
        serve(box)
        assert box.call("POST", "/hibernate").status_code == 200
        with Preview(box) as preview:
            answer = preview.get("/")
            assert (answer.status_code, error_of(answer)) == (401, "preview URL requires authentication")
            assert answer.headers["www-authenticate"] == 'Bearer realm="preview"'
            for headers in ({"X-OC-Preview-Token": token[:-1]}, {"Authorization": "Bearer x"}, {"X-OC-Preview-Token": "", "Authorization": f"Bearer {token}"}):
                answer = preview.get("/", headers=headers)
                assert (answer.status_code, error_of(answer)) == (401, "invalid preview token")
            assert preview.get(f"/?token={token}").status_code == 401
            assert preview.http.options("/", headers={"Origin": "https://x", "Access-Control-Request-Method": "GET"}).status_code == 204
            assert box.status() == "hibernated"
            assert preview.header("authorization", headers={"Authorization": f"Bearer {token}"}) == []
            assert box.status() == "running"
            assert preview.header("x-oc-preview-token", headers={"X-OC-Preview-Token": token}) == []
            rotated = box.call("POST", "/preview/rotate").json()
            assert rotated["scheme"] == "bearer" and len(rotated["previewAuthToken"]) == 43
            assert preview.get("/", headers={"X-OC-Preview-Token": token}).status_code == 401
            assert preview.get("/", headers={"X-OC-Preview-Token": rotated["previewAuthToken"]}).status_code == 200
            box.checkpoint("c")
        with api.fork(box.checkpoints()[0]["id"]) as fork, Preview(fork) as preview:
            assert "previewAuthToken" not in fork.created
            assert preview.get("/").status_code != 401, "preview auth is not inherited"
        with api.fork(box.checkpoints()[0]["id"], previewAuth={"token": "0123456789abcdef"}) as fork, Preview(fork) as preview:
            assert fork.created["previewAuthToken"] == "0123456789abcdef"
            assert preview.get("/").status_code == 401


@pytest.mark.parametrize("auth", [{"scheme": "basic"}, {"token": "short"}, {"token": "with blanks in it all"}, {"token": 5}, "x"])
def test_what_is_no_preview_auth_is_refused(api, auth):
    assert api.post("/api/sandboxes", json={"previewAuth": auth}).status_code == 400


def test_a_shared_link(api):
    with api.create(previewAuth={}) as box:
        serve(box)
        answer = box.call("POST", "/preview/8000/share", json={"expiresIn": 3})
        assert answer.status_code == 200, answer.text
        url = answer.json()["url"]
        with Preview(box) as preview:
            assert url.startswith(f"http://{preview.host}/?")
            target = url.removeprefix(f"http://{preview.host}")
            opened = preview.get(f"/deep/path{target[1:]}&x=1")
            assert (opened.status_code, opened.headers["location"]) == (303, "/deep/path?x=1")
            cookie = opened.headers["set-cookie"]
            assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Domain" not in cookie
            preview.http.cookies.clear()
            pair = cookie.split(";")[0]
            assert preview.header("cookie", headers={"Cookie": f"a=1; {pair}; b=2"}) == ["a=1; b=2"]
            for other in ({"Origin": "http://evil.localhost"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
                assert preview.get("/", headers={"Cookie": pair} | other).status_code == 401
            assert preview.get("/", headers={"Cookie": pair[:-1]}).status_code == 401
            with open_socket() as connection:
                connection.sendall(f"GET //evil.example/{target[1:]} HTTP/1.1\r\nHost: {preview.host}\r\nConnection: close\r\n\r\n".encode())
                evil = read_answer(connection)
            assert (evil.status, evil.headers["location"]) == (303, "/evil.example/"), "no way to another host"
            with Preview(box, 8001) as other_port:
                assert other_port.get("/", headers={"Cookie": pair}).status_code == 401
            wait_for(lambda: preview.get("/", headers={"Cookie": pair}).status_code == 401, "the cookie expires", 10)
            assert preview.get(target).status_code == 403


# Sleep.


def test_traffic_keeps_it_awake_and_silence_does_not(api):
    with api.create(timeout=2) as box:
        serve(box)
        generation = box.view()["generation"]
        with Preview(box) as preview:
            with preview.socket() as socket:
                socket.recv(timeout=5)

                def talks():
                    socket.send("x")
                    return socket.recv(timeout=5) == "x" and box.view()["generation"] == generation

                holds_for(talks, "a WebSocket with traffic keeps it awake", 4, 0.3)
                box.wait_status("hibernated", 20)


def test_a_request_that_waits_for_its_answer_keeps_it_awake(api):
    with api.create(timeout=2) as box:
        serve(box)
        generation = box.view()["generation"]
        with Preview(box) as preview:
            assert preview.seen("/slow?seconds=6")["target"] == "/slow?seconds=6"
        assert box.view()["generation"] == generation


# TLS.


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "first")
    if not settings.PROGRAM:
        pytest.skip("starts a server of its own")
    with TlsServer(folder) as server:
        yield server


def test_tls_with_http_2_and_a_certificate_that_is_renewed(tls):
    trust = ssl.create_default_context(cafile=str(tls.folder / "cert.pem"))
    answer = httpx.post(f"{tls.url}/api/sandboxes", json={"memoryMB": 1024, "previewAuth": {}}, headers={"X-API-Key": tls.key}, verify=trust)
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert view["connectURL"].startswith("https://")
    with Box(tls.api(), view) as box:
        serve(box)
        token = {"X-OC-Preview-Token": view["previewAuthToken"]}
        for http2 in (False, True):
            with Preview(box, http2=http2, verify=trust, headers=token) as preview:
                answer = preview.get("/x")
                assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
                assert answer.json()["target"] == "/x"
                assert preview.header("x-forwarded-proto") == ["https"] and preview.header("host") == [preview.host]
                assert preview.header("cookie", headers=[("cookie", "a=1"), ("cookie", "b=2")]) == ["a=1; b=2"]
                seen = preview.seen("/up", method="POST", content=(BLOCK for _ in range(200)))
                assert seen["sha256"] == digest_of(200 * len(BLOCK))
                with preview.http.stream("GET", "/events?count=2&every=1.5") as stream:
                    begun = time.monotonic()
                    assert next(stream.iter_lines()) == "data: 0"
                    assert time.monotonic() - begun < 1.4
        link = box.call("POST", "/preview/8000/share").json()["url"]
        assert link.startswith("https://")
        with Preview(box, verify=trust) as preview:
            cookie = preview.get("/" + link.split("/", 3)[3]).headers["set-cookie"]
            assert cookie.startswith("__Host-") and "; Secure" in cookie
    make_certificate(tls.folder, "second")

    def renewed():
        certificate = ssl.get_server_certificate(("127.0.0.1", tls.port))
        return certificate.strip() == (tls.folder / "cert.pem").read_text().strip()

    wait_for(renewed, "the new certificate is served", 30, 0.5)
    (tls.folder / "cert.pem").write_text("broken")
    time.sleep(11)
    assert ssl.get_server_certificate(("127.0.0.1", tls.port)), "the old certificate stays"
    assert "cannot be used; the old one stays" in tls.log()
    # One that the next start can use.
    make_certificate(tls.folder, "third")
