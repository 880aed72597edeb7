"""Section 1: credentials, errors, request ids, CORS, health; and who is asking."""

import json
import os
import re
import subprocess

import pytest

from harness import settings
from harness.client import Api, check_error
from harness.sockets import ExecSocket, PtySocket, refused, ws_url

UNKNOWN_KEY = "osb_" + "0" * 64


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": UNKNOWN_KEY},
        {"X-API-Key": ""},
        {"X-API-Key": "nonsense"},
        {"X-API-Key": "a.b.c"},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Basic " + "YTpi"},
        {"X-API-Key": "osb_" + "é" * 64},
    ],
    ids=["none", "unknown", "empty", "nonsense", "jwt-shaped", "bearer", "basic", "not-ascii"],
)
def test_without_a_good_credential_every_route_answers_401(anonymous, shared, headers):
    headers = {name: value.encode() for name, value in headers.items()}
    for method, path in [
        ("GET", "/api/sandboxes"),
        ("POST", "/api/sandboxes"),
        ("GET", shared.path),
        ("DELETE", shared.path),
        ("POST", f"{shared.path}/exec/run"),
        ("GET", f"{shared.path}/files?path=/etc/hostname"),
        ("POST", f"{shared.path}/pty"),
        ("GET", "/api/tags"),
        ("GET", "/api/whoami"),
    ]:
        answer = anonymous.call(method, path, headers=headers)
        assert answer.status_code == 401, (method, path, answer.text)
    assert shared.status() == "running"


def test_a_key_is_accepted_in_header_and_query(anonymous, api):
    by_query = anonymous.get("/api/whoami", params={"api_key": api.key})
    by_header = api.get("/api/whoami")
    assert by_header.status_code == 200
    if by_query.status_code != 401:  # Other than WebSockets a server may refuse keys in addresses.
        assert by_query.json() == by_header.json()


def test_keys_have_the_published_format(api):
    assert re.fullmatch(r"osb_[0-9a-f]{64}", api.key)


def test_whoami_names_the_organisation(api, other):
    ours, theirs = api.get("/api/whoami").json(), other.get("/api/whoami").json()
    assert ours["org_id"] and theirs["org_id"] and ours["org_id"] != theirs["org_id"]
    assert isinstance(ours["user_id"], str)
    assert "email" in ours and "org_name" in ours


@pytest.mark.parametrize(("path", "body"), [("/health", {"status": "ok"}), ("/healthz", {"status": "alive"})])
def test_health_needs_no_credential(anonymous, path, body):
    answer = anonymous.get(path)
    assert (answer.status_code, answer.json()) == (200, body)


def test_a_server_that_serves_is_ready(anonymous):
    assert anonymous.get("/readyz").status_code == 200


def test_unknown_routes_and_methods_answer_in_json(api):
    for method, path, expected in [
        ("GET", "/api/nothing-here", 404),
        ("GET", "/nothing-here", 404),
        ("GET", "/api", 404),
        ("PATCH", "/api/sandboxes", 405),
        ("DELETE", "/api/sandboxes", 405),
    ]:
        answer = api.call(method, path)
        assert answer.status_code in (expected, 404), (method, path, answer.status_code)
        check_error(answer.json(), path)


def test_request_ids_are_unique(api):
    seen = {api.get("/health").headers["x-request-id"] for _ in range(20)}
    assert len(seen) == 20


def test_browsers_may_call_from_anywhere_without_cookies(anonymous, api):
    answer = anonymous.call(
        "OPTIONS",
        "/api/sandboxes",
        headers={
            "Origin": "https://example.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key,content-type,idempotency-key",
        },
    )
    assert answer.status_code in (200, 204), answer.text
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert allowed == "*" or all(name in allowed for name in ("x-api-key", "content-type", "idempotency-key"))
    plain = api.get("/api/sandboxes", headers={"Origin": "https://example.com"})
    assert plain.headers["access-control-allow-origin"] == "*"
    refusal = anonymous.get("/api/sandboxes", headers={"Origin": "https://example.com"})
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == "*"


def openapi(anonymous):
    for path in ("/api/openapi.json", "/openapi.json"):
        answer = anonymous.get(path)
        if answer.status_code == 200:
            return answer.json()
    raise AssertionError("no OpenAPI document is served")


def test_the_openapi_document_lists_the_routes(anonymous):
    document = openapi(anonymous)
    assert document["openapi"].startswith("3.")
    served = {
        (method, re.sub(r"\{[^}]+\}", "{}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    for method, path in [
        ("post", "/api/sandboxes"),
        ("get", "/api/sandboxes"),
        ("get", "/api/sandboxes/{}"),
        ("delete", "/api/sandboxes/{}"),
        ("post", "/api/sandboxes/{}/timeout"),
        ("post", "/api/sandboxes/{}/hibernate"),
        ("post", "/api/sandboxes/{}/wake"),
        ("post", "/api/sandboxes/{}/exec/run"),
        ("post", "/api/sandboxes/{}/exec/run-async"),
        ("get", "/api/sandboxes/{}/exec/{}/result"),
        ("post", "/api/sandboxes/{}/exec"),
        ("get", "/api/sandboxes/{}/exec"),
        ("get", "/api/sandboxes/{}/exec/{}"),
        ("post", "/api/sandboxes/{}/exec/{}/kill"),
        ("post", "/api/sandboxes/{}/pty"),
        ("get", "/api/sandboxes/{}/pty/{}"),
        ("post", "/api/sandboxes/{}/pty/{}/resize"),
        ("delete", "/api/sandboxes/{}/pty/{}"),
        ("get", "/api/sandboxes/{}/files"),
        ("put", "/api/sandboxes/{}/files"),
        ("delete", "/api/sandboxes/{}/files"),
        ("get", "/api/sandboxes/{}/files/list"),
        ("post", "/api/sandboxes/{}/files/mkdir"),
        ("get", "/api/sandboxes/{}/tags"),
        ("put", "/api/sandboxes/{}/tags"),
        ("get", "/api/tags"),
        ("get", "/api/whoami"),
    ]:
        assert (method, path) in served, f"{method} {path} is not in the OpenAPI document"


# Section 1.3: the sandbox's own token.


def with_token(token):
    return Api(key="", headers={"Authorization": f"Bearer {token}"})


def test_connect_url_is_the_address_the_client_used(api, shared):
    for view in (shared.created, shared.view(), shared.call("POST", "/wake", json={}).json()):
        assert view["connectURL"] == f"{settings.URL}/api"
        assert view["token"].count(".") == 2
    elsewhere = api.get(shared.path, headers={"Host": "warren.example:8443"}).json()
    assert elsewhere["connectURL"] in ("http://warren.example:8443/api", f"{settings.URL}/api")


def test_a_token_opens_its_sandbox_in_every_place_the_clients_put_it(anonymous, shared):
    token = shared.created["token"]
    run = {"cmd": "echo hi"}
    for options in [
        {"headers": {"Authorization": f"Bearer {token}"}},
        {"headers": {"X-API-Key": token}},
        {"params": {"token": token}},
        {"params": {"api_key": token}},
    ]:
        for prefix in ("/api", ""):
            answer = anonymous.post(f"{prefix}/sandboxes/{shared.id}/exec/run", json=run, **options)
            assert (answer.status_code, answer.json().get("stdout")) == (200, "hi\n"), (options, answer.text)
    with with_token(token) as client:
        assert client.get(f"{shared.path}/files", params={"path": "/etc/hostname"}).status_code == 200
        assert client.post(f"{shared.path}/pty", json={}).status_code == 201
    session = shared.start("cat")
    for path in (f"/api/sandboxes/{shared.id}/exec/{session}", f"/sandboxes/{shared.id}/exec/{session}"):
        for query in ({"api_key": None, "token": token}, {"api_key": token}):
            with ExecSocket(shared, session, path, **query) as socket:
                socket.until(4)


def test_a_token_opens_nothing_else(api, shared):
    token = shared.created["token"]
    with api.create() as neighbour, with_token(token) as client:
        for method, path in [
            ("GET", "/api/sandboxes"),
            ("POST", "/api/sandboxes"),
            ("GET", "/api/tags"),
            ("POST", f"{neighbour.path}/exec/run"),
            ("GET", f"{neighbour.path}/files?path=/etc/hostname"),
            ("POST", f"{neighbour.path}/pty"),
            ("DELETE", neighbour.path),
            ("GET", neighbour.path),
            ("DELETE", shared.path),
        ]:
            answer = client.call(method, path, json={} if method == "POST" else None)
            assert answer.status_code in (401, 403, 404), (method, path, answer.status_code)
        session = neighbour.start("sleep", "60")
        status, _ = refused(ws_url(api, f"{neighbour.path}/exec/{session}", api_key=None, token=token))
        assert status in (401, 403, 404)
        assert neighbour.status() == shared.status() == "running"


def test_a_token_that_was_tampered_with_is_refused(anonymous, shared):
    head, claims, signature = shared.created["token"].split(".")
    flipped = "A" if signature[0] != "A" else "B"
    for token in (f"{head}.{claims}.{flipped}{signature[1:]}", f"{head}.{claims}.", f"eyJhbGciOiJub25lIn0.{claims}."):
        answer = anonymous.post(f"{shared.path}/exec/run", json={"cmd": "true"}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code in (401, 403), answer.text


def test_a_token_ends_with_its_sandbox(api):
    box = api.create()
    box.kill()
    with with_token(box.created["token"]) as client:
        assert client.post(f"{box.path}/exec/run", json={"cmd": "true"}).status_code in (401, 403, 404, 410)
    view = box.view()
    assert view["status"] == "stopped" and "token" not in view


def test_the_data_plane_is_served_at_the_root_too(api, shared):
    root = f"/sandboxes/{shared.id}"
    assert api.post(f"{root}/exec/run", json={"cmd": "echo root"}).json()["stdout"] == "root\n"
    assert api.put(f"{root}/files", params={"path": "/tmp/at-root"}, content=b"x").status_code == 204
    assert api.get(f"{root}/files", params={"path": "/tmp/at-root"}).content == b"x"
    session = api.post(f"{root}/pty", json={}).json()["sessionID"]
    with PtySocket(shared, session, f"{root}/pty/{session}") as pty:
        pty.send("echo $((6*7))\n")
        pty.until("42")
    assert api.delete(f"{root}/pty/{session}").status_code == 204


@pytest.mark.skipif(not settings.SERVER_PID, reason="it looks at this machine, and the server is on another")
def test_doctor_finds_nothing_wrong_where_a_server_runs():
    command = [settings.PROGRAM, "doctor", "--json", "--data-dir", os.environ["WARREN_DATA_DIR"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    checks = json.loads(done.stdout)
    checks = checks if isinstance(checks, list) else checks["checks"]
    assert done.returncode == 0 and not [each for each in checks if each["status"] == "fail"], done.stdout
