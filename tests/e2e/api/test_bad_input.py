"""Bad input gets a clear 4xx, never a 5xx, and changes nothing. Requests are written byte by byte."""

import json
import os
import uuid

import pytest

from harness import settings
from harness.client import check_error
from harness.raw import UPGRADE, head, open_socket, raw_request, read_answer
from harness.waiting import wait_for

JSON = {"Content-Type": "application/json"}

IDS = {
    "dots": "..",
    "encoded-dots": "%2e%2e",
    "slash": "sb-00000000%2F..%2Fsb-00000000",
    "nul": "sb-0000000%00",
    "newline": "sb-00000000%0a",
    "unicode": "sb-%E2%98%83%E2%98%83",
    "bad-utf8": "sb-%ff%fe",
    "bad-escape": "sb-%zz",
    "upper": "SB-0A1B2C3D",
    "upper-hex": "sb-0A1B2C3D",
    "short": "sb-1234567",
    "long": "sb-" + "0" * 5000,
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "quote": "sb-'%20OR%20'1'='1",
    "space": "%20",
    "static": "from-checkpoint",
    "star": "*",
}


def refused(answer, statuses=range(400, 500)):
    assert answer is not None, "the server closed without an answer"
    assert answer.status in statuses, answer
    if answer.body:
        try:
            check_error(answer.json())
        except ValueError:
            # What the HTTP parser itself refuses never reaches a handler that could add words.
            assert answer.status in (400, 414, 431), answer
    return answer


@pytest.mark.parametrize("sandbox_id", IDS.values(), ids=IDS.keys())
def test_ids_that_are_none(sandbox_id):
    for method, rest, body in [
        ("GET", "", b""),
        ("DELETE", "", b""),
        ("POST", "/exec/run", b'{"cmd":"true"}'),
        ("POST", "/hibernate", b""),
        ("PUT", "/tags", b"{}"),
        ("GET", "/files?path=/etc/hostname", b""),
        ("GET", "/exec/00000000/result", b""),
        ("DELETE", "/pty/00000000", b""),
    ]:
        for prefix in ("/api/sandboxes/", "/sandboxes/"):
            refused(raw_request(method, f"{prefix}{sandbox_id}{rest}", JSON, body))


def test_addresses_that_are_none(shared):
    for target in [
        "/api/sandboxes/../../etc/passwd",
        "//api//sandboxes",
        "/api/sandboxes//",
        "/api/sandboxes/" + "a" * 60_000,
        f"{shared.path}/files?path=%",
        f"{shared.path}/files?path=%zz",
        f"{shared.path}/files?path=/etc/hostname&path=/etc/passwd",
        f"{shared.path}/files?path[]=x",
        f"{shared.path}/files?path=%ff%fe",
        f"{shared.path}/files?%00=%00&path=",
        b"/api/sandboxes/\xff\xfe",
        f"{shared.path}/exec/../../..",
        "*",
    ]:
        answer = raw_request("GET", target)
        assert answer is None or 200 <= answer.status < 500, (target[:60], answer)


BODIES = {
    "not-json": b"cmd=true",
    "half": b'{"cmd":"touch /tmp/bad',
    "array": b'["cmd"]',
    "string": b'"cmd"',
    "number": b"7",
    "null": b"null",
    "two": b'{"cmd":"touch /tmp/bad"}{"cmd":"touch /tmp/bad"}',
    "not-utf8": b'{"cmd":"\xff\xfe"}',
    "deep": b"[" * 100_000,
    "deep-object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "twice": b'{"cmd":"touch /tmp/bad","cmd":"touch /tmp/bad"}',
    "huge-number": b'{"cmd":"touch /tmp/bad","timeout":1e999}',
    "surrogate": b'{"cmd":"\\ud800"}',
    "bom": b'\xef\xbb\xbf{"cmd":7}',
    "binary": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_no_request(shared, body):
    for route in ("/exec/run", "/exec/run-async", "/exec", "/timeout", "/files/move", "/files/chmod"):
        answer = raw_request("POST", f"{shared.path}{route}", JSON, body)
        refused(answer)
    if not body.startswith(b'{"cmd":"touch /tmp/bad","cmd"'):  # As tags that is a flat map of strings.
        refused(raw_request("PUT", f"{shared.path}/tags", JSON, body))
    shared.out("test ! -e /tmp/bad")


WRONG_TYPES = [
    ("POST", "/exec/run", {"cmd": 7}),
    ("POST", "/exec/run", {"cmd": ["true"]}),
    ("POST", "/exec/run", {"cmd": None}),
    ("POST", "/exec/run", {"cmd": "touch", "args": "/tmp/bad"}),
    ("POST", "/exec/run", {"cmd": "touch", "args": [7]}),
    ("POST", "/exec/run", {"cmd": "touch", "args": {"0": "/tmp/bad"}}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "envs": ["A=1"]}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "envs": {"A": 1}}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "envs": {"A=B": "1"}}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "envs": {"": "1"}}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "envs": {"A\0": "1"}}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "envs": {"A": "1\0"}}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad\0"}),
    ("POST", "/exec/run", {"cmd": "touch", "args": ["/tmp/bad\0"]}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "cwd": 7}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "cwd": "/tmp\0"}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "cwd": "/etc/hostname"}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "timeout": "60"}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "timeout": 1.5}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "timeout": True}),
    ("POST", "/exec/run", {"cmd": "touch /tmp/bad", "timeout": [1]}),
    ("POST", "/exec", {"cmd": "touch", "args": ["/tmp/bad"], "maxRunAfterDisconnect": "1"}),
    ("POST", "/timeout", {"timeout": {}}),
    ("POST", "/wake", {"timeout": "soon"}),
    ("POST", "/wake", {"timeout": -1}),
    ("POST", "/files/move", {"from": 1, "to": 2}),
    ("POST", "/files/chmod", {"path": [], "mode": "0700"}),
]


@pytest.mark.parametrize(("method", "route", "body"), WRONG_TYPES, ids=lambda value: ascii(value)[:50] if isinstance(value, dict) else None)
def test_wrong_types_are_refused_and_nothing_runs(shared, method, route, body):
    answer = shared.call(method, route, json=body)
    assert answer.status_code == 400, (answer.status_code, answer.text)
    shared.out("test ! -e /tmp/bad")


@pytest.mark.parametrize("timeout", [-1, -(2**63), 2**31, 2**63 - 1, 2**64, 10**30])
def test_extreme_time_limits_do_not_wrap_round(shared, timeout):
    answer = shared.call("POST", "/exec/run", json={"cmd": "echo ok", "timeout": timeout})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert answer.json()["stdout"] == "ok\n", "a large limit became a small one"


CREATE_WRONG = [
    {"envs": {"A": 1}},
    {"envs": "A=1"},
    {"envs": {"A\0": "1"}},
    {"envs": {"A=": "1"}},
    {"metadata": ["x"]},
    {"metadata": {"x": 1}},
    {"tags": {"x": 1}},
    {"templateID": 7},
    {"templateID": "../../etc"},
    {"templateID": "a" * 100_000},
    {"timeout": "never"},
    {"timeout": 1.5},
    {"memoryMB": "1024"},
    {"memoryMB": 1024.5},
    {"memoryMB": 2**70},
    {"cpuCount": True},
    {"burst": "yes"},
    {"cellId": 5},
    {"diskMB": "big"},
    {"diskMB": -5},
    {"networkEnabled": "no"},
    {"alias": 5},
]


@pytest.mark.parametrize("fields", CREATE_WRONG, ids=lambda fields: ascii(fields)[:40])
def test_a_create_that_is_refused_makes_nothing(api, fields):
    mark = uuid.uuid4().hex
    body = {"memoryMB": 1024, "metadata": {"m": mark}} | fields
    answer = api.post("/api/sandboxes", json=body)
    assert answer.status_code in (400, 404, 413), (answer.status_code, answer.text)
    assert not api.list_all(**{"metadata.m": mark})


@pytest.mark.parametrize("size", [5 * 1024 * 1024, 40 * 1024 * 1024], ids=["5M", "40M"])
def test_oversized_bodies_are_413(shared, api, size):
    body = json.dumps({"cmd": "true", "args": ["x" * size]}).encode()
    for method, path in (("POST", f"{shared.path}/exec/run"), ("POST", "/api/sandboxes"), ("PUT", f"{shared.path}/tags")):
        answer = raw_request(method, path, JSON, body)
        refused(answer, (400, 413))
        chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        answer = raw_request(method, path, JSON | {"Transfer-Encoding": "chunked"}, chunked)
        refused(answer, (400, 413))
    assert api.get("/health").status_code == 200


def test_a_long_command_line_works_or_is_refused(shared):
    for size in (100_000, 130_000, 1_000_000, 3_000_000):
        answer = shared.call("POST", "/exec/run", json={"cmd": f": {'x' * size}; echo ok"})
        assert answer.status_code in (200, 400, 413), (size, answer.status_code)
        if answer.status_code == 200:
            assert answer.json()["stdout"] == "ok\n"


def test_too_many_arguments_and_variables_are_refused(shared):
    for body in ({"cmd": "true", "args": ["x"] * 1_000_000}, {"cmd": "true", "envs": {f"V{n}": "x" * 10 for n in range(150_000)}}):
        answer = shared.call("POST", "/exec/run", json=body)
        # An answer that is slow to come has begun before it is known.
        refused = answer.status_code in (400, 413) or (answer.status_code == 200 and "exitCode" not in answer.json())
        assert refused and answer.json()["error"], answer.text


def test_bodies_that_stop_half_way_do_nothing(shared, api):
    mark = uuid.uuid4().hex
    body = json.dumps({"memoryMB": 1024, "metadata": {"m": mark}}).encode()
    answer = raw_request("POST", "/api/sandboxes", JSON | {"Content-Length": str(len(body) + 10)}, body, half_close=True)
    assert answer is None or 400 <= answer.status < 500, answer
    run = json.dumps({"cmd": "touch /tmp/half"}).encode()
    answer = raw_request("POST", f"{shared.path}/exec/run", JSON | {"Content-Length": str(len(run) + 5)}, run, half_close=True)
    assert answer is None or 400 <= answer.status < 500, answer
    answer = raw_request("POST", f"{shared.path}/exec/run", JSON | {"Transfer-Encoding": "chunked"}, b"5\r\n{\"cmd", half_close=True)
    assert answer is None or 400 <= answer.status < 500, answer
    assert not api.list_all(**{"metadata.m": mark})
    shared.out("test ! -e /tmp/half")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Length": "-1"}, b""),
        ({"Content-Length": "x"}, b""),
        ({"Content-Length": "99999999999999999999999"}, b"{}"),
        ({"Transfer-Encoding": "chunked"}, b"zz\r\n{}\r\n0\r\n\r\n"),
        ({"Transfer-Encoding": "chunked"}, b"ffffffffffffffff\r\n{}"),
        ({"Transfer-Encoding": "chunked", "Content-Length": "2"}, b"2\r\n{}\r\n0\r\n\r\n"),
        ({"X-Long": "a" * 200_000}, b"{}"),
        ({f"X-{n}": "a" for n in range(2000)}, b"{}"),
        ({"Expect": "nonsense"}, b"{}"),
        ({"Content-Encoding": "gzip"}, b"{}"),
    ],
    ids=["negative", "letters", "huge", "bad-chunk", "huge-chunk", "both", "long-header", "many-headers", "expect", "gzip"],
)
def test_malformed_http_is_refused_or_the_connection_closed(shared, headers, body):
    answer = raw_request("POST", f"{shared.path}/exec/run", JSON | headers, body, half_close=True)
    assert answer is None or 400 <= answer.status < 500, answer


def test_noise_on_the_port_is_survived(api):
    for noise in (os.urandom(1000), b"\x16\x03\x01" + os.urandom(200), b"GET", b"\r\n\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(100)):
        with open_socket() as connection:
            connection.settimeout(0.5)
            connection.sendall(noise)
            try:
                connection.recv(1000)
            except (TimeoutError, ConnectionResetError):
                pass
    assert api.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "change",
    [{"Sec-WebSocket-Key": None}, {"Sec-WebSocket-Version": "7"}, {"Upgrade": "h2c"}, {"Connection": "close"}],
    ids=["key", "version", "protocol", "connection"],
)
def test_bad_upgrades_are_refused(shared, change):
    session = shared.start("sleep", "600")
    headers = {name: value for name, value in (UPGRADE | change).items() if value is not None}
    answer = raw_request("GET", f"{shared.path}/exec/{session}", headers)
    assert answer is not None and (400 <= answer.status < 500 or answer.status == 200), answer
    assert answer.status != 101


@pytest.mark.parametrize(
    "frame",
    [
        os.urandom(4000),
        b"\x82\x05hello",
        b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
        b"\x83\x80\0\0\0\0",
        b"\xf2\x80\0\0\0\0",
        b"\x81\x82\0\0\0\0\xff\xfe",
        b"\x02\x81\0\0\0\0x" * 200,
        b"\x89\xfe\x00\xff\0\0\0\0" + b"x" * 255,
    ],
    ids=["noise", "unmasked", "huge-length", "reserved-opcode", "reserved-bits", "bad-text", "unfinished-fragments", "large-ping"],
)
def test_broken_websocket_frames_end_only_their_connection(shared, frame):
    session = shared.start("cat")
    for kind in ("exec", "pty"):
        target = session if kind == "exec" else shared.call("POST", "/pty", json={}).json()["sessionID"]
        with open_socket(timeout=5) as connection:
            connection.sendall(head("GET", f"{shared.path}/{kind}/{target}", UPGRADE, settings.KEY))
            answer = read_until_head(connection)
            assert answer.startswith(b"HTTP/1.1 101"), answer
            try:
                connection.sendall(frame)
                connection.settimeout(0.3)
                while connection.recv(65536):
                    pass
            except (TimeoutError, ConnectionResetError, BrokenPipeError):
                pass
    wait_for(lambda: shared.session(session)["attachedClients"] == 0, "the broken client is gone")
    assert shared.session(session)["running"]
    shared.call("POST", f"/exec/{session}/kill", json={})


def read_until_head(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(1)
        if not chunk:
            break
        data += chunk
    return data


def test_sockets_that_say_nothing_hold_up_nobody(shared, api):
    session = shared.start("sleep", "600")
    connections = []
    try:
        for _ in range(50):
            connection = open_socket()
            connections.append(connection)
            connection.sendall(head("GET", f"{shared.path}/exec/{session}", UPGRADE, settings.KEY))
        for _ in range(50):
            connections.append(open_socket())
        assert shared.out("echo ok") == "ok\n"
        wait_for(lambda: shared.session(session)["attachedClients"] == 50, "all are attached")
    finally:
        for connection in connections:
            connection.close()
    wait_for(lambda: shared.session(session)["attachedClients"] == 0, "all are gone")


def test_keep_alive_survives_a_refusal(shared):
    """A refused request leaves the connection usable or closes it; it never answers the next request wrongly."""
    with open_socket() as connection:
        body = b"[1,2"
        connection.sendall(head("POST", f"{shared.path}/exec/run", JSON | {"Content-Length": str(len(body))}, settings.KEY) + body)
        assert read_answer(connection).status == 400
        try:
            connection.sendall(head("GET", "/health", {"Connection": "close"}))
            answer = read_answer(connection)
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        assert answer is None or answer.json() == {"status": "ok"}


@pytest.mark.parametrize("key", ["", None], ids=["no-credential", "unknown-sandbox"])
def test_a_refusal_before_the_body_came_says_whether_the_connection_goes_on(key):
    """Clients keep connections. One that is closed without having been announced breaks their next request."""
    with open_socket(timeout=5) as connection:
        target = "/api/sandboxes/sb-00000000/files?path=/tmp/x"
        connection.sendall(head("PUT", target, {"Content-Length": "2"}, settings.KEY if key is None else key))
        answer = read_answer(connection)
        assert answer.status in (401, 404)
        if answer.headers.get("connection", "").lower() == "close":
            return
        connection.sendall(b"{}" + head("GET", "/health", {"Connection": "close"}))
        answer = read_answer(connection)
        assert answer is not None and answer.json() == {"status": "ok"}


def test_after_all_this_the_sandbox_is_well(shared):
    assert shared.out("echo well") == "well\n" and shared.status() == "running"
