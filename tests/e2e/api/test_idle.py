"""Sections 6 and 7: idle time-outs, hibernation, waking."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.client import SMALL
from harness.sockets import REPLAY_END, ExecSocket, PtySocket
from harness.waiting import holds_for, wait_for


def hibernate(box):
    answer = box.call("POST", "/hibernate")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["sandboxID"], answer.json()["status"]) == (box.id, "hibernated")


def test_an_idle_sandbox_hibernates_and_the_next_call_wakes_it(api):
    with api.create(timeout=1, envs={"KEPT": "yes"}, tags={"t": "v"}) as box:
        box.write("/home/sandbox/f", b"kept")
        box.out("sudo sh -c 'echo root > /etc/mine'")
        start = time.monotonic()
        box.wait_status("hibernated", 15)
        assert time.monotonic() - start > 0.5
        view = box.view()
        assert not view.get("token") and view["timeout"] == 1 and view.get("endAt") is None
        assert box.status() == "hibernated", "reading does not wake it"
        assert box.out('cat ~/f /etc/mine; echo "$KEPT"') == "keptroot\nyes\n"
        view = box.view()
        assert view["status"] == "running" and view["timeout"] == 1 and view["token"] and view["tags"] == {"t": "v"}
        box.wait_status("hibernated", 15)


def test_reading_a_sandbox_does_not_keep_it_awake(api):
    with api.create(timeout=1) as box:
        deadline = time.monotonic() + 15
        while box.status() != "hibernated":
            api.get("/api/sandboxes")
            box.call("GET", "/tags")
            assert time.monotonic() < deadline, "asking for its state kept it awake"
            time.sleep(0.1)


def test_using_a_sandbox_keeps_it_awake(api):
    def by_commands(box):
        holds_for(lambda: box.out("echo ok") == "ok\n" and box.view()["generation"] == first(box), "commands keep it awake", 3, 0.4)

    def by_a_long_call(box):
        assert box.out("sleep 3; echo through") == "through\n"
        assert box.view()["generation"] == first(box)

    def by_a_socket(box):
        session = box.start("sh", "-c", "while :; do echo x; sleep 0.3; done")
        with ExecSocket(box, session) as socket:
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                assert socket.next(5), "the socket closed"
        assert box.view()["generation"] == first(box)

    def by_a_terminal(box):
        with PtySocket(box, box.call("POST", "/pty", json={}).json()["sessionID"]) as pty:
            for n in range(8):
                pty.send(f"echo $(({n}+1000))\n")
                pty.until(str(n + 1000))
                time.sleep(0.4)
        assert box.view()["generation"] == first(box)

    def never(box):
        assert box.call("POST", "/timeout", json={"timeout": 0}).status_code == 204
        holds_for(lambda: box.status() == "running", "0 means never", 3, 0.3)

    def first(box):
        return box.created["generation"]

    cases = [by_commands, by_a_long_call, by_a_socket, by_a_terminal, never]
    with ThreadPoolExecutor(len(cases)) as pool:
        for done in [pool.submit(lambda case=case: run_case(api, case)) for case in cases]:
            done.result()


def run_case(api, case):
    with api.create(timeout=1) as box:
        case(box)


def test_a_background_process_alone_does_not_keep_it_awake(api):
    with api.create(timeout=1) as box:
        box.start("sleep", "600")
        box.wait_status("hibernated", 15)


def test_concurrent_calls_share_one_wake(box):
    box.write("/tmp/f", b"x")
    hibernate(box)
    before = box.view()["generation"]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: box.out(f"echo {n}") if n % 2 else box.read("/tmp/f").decode(), range(12)))
    assert answers == [f"{n}\n" if n % 2 else "x" for n in range(12)]
    assert box.view()["generation"] == before + 1, "more than one wake"


@pytest.mark.parametrize("route", ["exec", "run-async", "pty", "read", "read-async-wake", "write", "list", "mkdir", "remove", "stat", "archive", "sessions"])
def test_every_data_plane_call_wakes(api, route):
    with api.create() as box:
        box.write("/tmp/f", b"x")
        hibernate(box)
        call = {
            "exec": lambda: box.call("POST", "/exec", json={"cmd": "true"}),
            "run-async": lambda: box.call("POST", "/exec/run-async", json={"cmd": "true"}),
            "pty": lambda: box.call("POST", "/pty", json={}),
            "read": lambda: box.call("GET", "/files?path=/tmp/f"),
            "read-async-wake": lambda: wait_for(
                lambda: (answer := api.http.get(f"{box.path}/files?path=/tmp/f", headers={"X-OSB-Async-Wake": "1"})).status_code != 503 and answer,
                "the wake is over",
            ),
            "write": lambda: box.call("PUT", "/files?path=/tmp/g", content=b"y"),
            "list": lambda: box.call("GET", "/files/list?path=/tmp"),
            "mkdir": lambda: box.call("POST", "/files/mkdir?path=/tmp/d"),
            "remove": lambda: box.call("DELETE", "/files?path=/tmp/f"),
            "stat": lambda: box.call("GET", "/files/stat?path=/tmp/f"),
            "archive": lambda: box.call("GET", "/files/archive?path=/tmp"),
            "sessions": lambda: box.call("GET", "/exec"),
        }[route]
        answer = call()
        assert answer.status_code < 300, answer.text
        assert box.status() == "running"


def test_explicit_hibernate_and_wake(box):
    box.write("/tmp/f", b"x")
    hibernate(box)
    hibernate(box)
    assert box.status() == "hibernated"
    woken = box.call("POST", "/wake", json={})
    assert woken.status_code == 200
    assert (woken.json()["status"], woken.json()["sandboxID"]) == ("running", box.id)
    assert woken.json()["token"] and woken.json()["connectURL"]
    assert box.call("POST", "/wake").status_code == 200, "waking what runs succeeds, without a body too"
    assert box.read("/tmp/f") == b"x"


def test_a_wake_replaces_the_timeout_only_when_told(api):
    with api.create(timeout=500) as box:
        for body, expected in [({}, 500), (None, 500), ({"timeout": 700}, 700), ({}, 700), ({"timeout": 0}, 0)]:
            hibernate(box)
            answer = box.call("POST", "/wake", **({"json": body} if body is not None else {}))
            assert answer.status_code == 200, answer.text
            assert box.view()["timeout"] == expected, body
        hibernate(box)
        box.out("true")
        assert box.view()["timeout"] == 0, "a wake by use changed the time-out"


def test_the_timeout_can_be_changed(api, other):
    with api.create(timeout=500) as box:
        set_ = lambda value: box.call("POST", "/timeout", json={"timeout": value})
        assert set_(900).status_code == 204 and box.view()["timeout"] == 900
        for bad in (-1, "5", 1.5, None, [], 2**70):
            assert set_(bad).status_code == 400, bad
        assert "non-negative" in set_(-1).json()["error"]
        assert box.call("POST", "/timeout", json={}).status_code == 400
        assert other.post(f"{box.path}/timeout", json={"timeout": 1}).status_code == 404
        assert box.view()["timeout"] == 900
        assert set_(1).status_code == 204
        box.wait_status("hibernated", 15)
        assert set_(300).status_code == 204
        assert box.view()["timeout"] == 300 and box.status() == "hibernated"


def test_a_huge_timeout_is_refused_or_kept(api):
    for timeout in (2**31, 2**32, 2**53, 2**63 - 1):
        answer = api.post("/api/sandboxes", json=SMALL | {"timeout": timeout})
        assert answer.status_code in (201, 400), answer.text
        if answer.status_code == 201:
            view = answer.json()
            api.delete(f"/api/sandboxes/{view['sandboxID']}")
            assert view["timeout"] == timeout, "a time-out was changed silently"


@pytest.mark.containers("their processes are kept")
def test_hibernating_ends_processes_and_says_so(box):
    session = box.start("sleep", "600")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        hibernate(box)
        while socket.next(10):
            pass
        assert socket.exit_code in (None, 137, 143), "an invented exit"
    assert box.out("pgrep -c sleep || true").strip() == "0"


def test_hibernate_and_use_at_once_never_lose_a_write(box):
    """Whatever the order, an acknowledged write is there."""
    for n in range(10):
        with ThreadPoolExecutor(2) as pool:
            slept = pool.submit(lambda: box.call("POST", "/hibernate"))
            wrote = pool.submit(lambda n=n: box.api.http.put(f"{box.path}/files", params={"path": f"/tmp/{n}"}, content=b"x"))
            assert slept.result().status_code in (200, 409)
            assert wrote.result().status_code in (204, 409, 503), wrote.result().text
        if wrote.result().status_code == 204:
            assert box.read(f"/tmp/{n}") == b"x"
