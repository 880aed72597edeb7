"""Section 21: what a sandbox has logged."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from harness import settings
from harness.client import Api, check_error
from harness.logs import Logs, history, lines
from harness.raw import head, open_socket
from harness.waiting import wait_for


def parse_time(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def ended(row):
    return "exit_code" in row


def wait_history(box, count, **query):
    """The history, once it has so many rows."""
    return wait_for(lambda: len(rows := history(box, **query)) >= count and rows, f"{count} rows", instead=lambda: history(box, **query))


def test_commands_are_logged_line_by_line_with_their_end(box):
    begun = datetime.now(UTC)
    script = "echo one; sleep 0.2; printf 'two\\r\\nné no end'; sleep 0.2; echo oops >&2; exit 3"
    box.run(script)
    rows = history(box)
    assert [(row["source"], row["line"], row.get("exit_code")) for row in rows] == [
        ("exec_stdout", "one", None),
        ("exec_stdout", "two", None),
        ("exec_stderr", "oops", None),
        ("exec_stdout", "né no end", None),
        ("exec_stdout", "exited with code 3", 3),
    ]
    times = [parse_time(row["_time"]) for row in rows]
    assert times == sorted(times)
    assert begun - timedelta(seconds=1) <= times[0] and times[-1] <= datetime.now(UTC) + timedelta(seconds=1)
    assert times[2] - times[0] > timedelta(seconds=0.3), "lines have the time they came at"
    assert {row["sandbox_id"] for row in rows} == {box.id}
    assert {row["exec_id"] for row in rows} == {box.call("GET", "/exec").json()[0]["sessionID"]}
    assert {row["command"] for row in rows} == {"sh"}
    assert all(row["argv"] == ["sh", "-c", script] for row in rows)
    assert all(set(row) <= {"_time", "source", "line", "sandbox_id", "path", "exec_id", "command", "argv", "exit_code"} for row in rows)

    session = box.start("sleep", "600")
    box.call("POST", f"/exec/{session}/kill", json={"signal": 15})
    last = wait_history(box, 6)[-1]
    assert (last["exec_id"], last["exit_code"], last["argv"]) == (session, 143, ["sleep", "600"])
    box.run("sleep 30", timeout=1)
    assert history(box)[-1]["exit_code"] == -1


def test_events_are_exact_to_the_byte(box):
    box.run("echo hi")
    with open_socket(settings.URL) as connection:
        target = f"{box.path}/logs?tail=false"
        connection.sendall(head("GET", target, {"Connection": "close"}, settings.KEY))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    header, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream\r\n" in header.lower() + b"\r\n"
    chunks, text = body, b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        text, chunks = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    first, second, end = text.split(b"\n\n")
    assert end == b""
    for event in (first, second):
        assert event.startswith(b'data: {"_time":"') and b"\n" not in event
        json.loads(event[6:])
    assert b'","source":"exec_stdout","line":"hi","sandbox_id":"' + box.id.encode() in first


def test_files_under_var_log_are_logged(box):
    assert box.out("ls /var/log/wtmp"), "the template has files of its own"
    box.out("sudo sh -c 'echo added >> /var/log/wtmp; printf \"one\\ntwo\\n\" > /var/log/new.log'")
    box.out("sudo sh -c 'mkdir /var/log/app; echo deep > /var/log/app/deep.log; printf \"\\0\\0\\n\" > /var/log/binary'")
    rows = sorted(wait_history(box, 4, source="var_log"), key=lambda row: row["path"])
    assert [(row["path"], row["line"]) for row in rows] == [
        ("/var/log/app/deep.log", "deep"),
        ("/var/log/new.log", "one"),
        ("/var/log/new.log", "two"),
        ("/var/log/wtmp", "added"),
    ]
    assert all("exec_id" not in row and "command" not in row for row in rows)
    box.out("sudo sh -c 'mv /var/log/new.log /var/log/new.log.1; echo fresh > /var/log/new.log; echo tail >> /var/log/new.log.1'")
    rows = wait_history(box, 6, source="var_log")
    assert sorted(lines(rows[4:])) == ["fresh", "tail"], "rotation neither doubles nor loses"


def test_history_is_filtered(box):
    box.run("seq 1 50; echo wrong >&2")
    # How it ended is written down a moment after its answer.
    wait_for(lambda: len(history(box)) == 52, "all of it is in the log", instead=lambda: history(box))
    rows = history(box)
    assert lines(history(box, q="7")) == ["7", "17", "27", "37", "47"]
    assert lines(history(box, q="+ %&=é")) == []
    assert lines(history(box, source="exec_stderr")) == ["wrong"]
    assert len(history(box, source="exec_stdout, exec_stderr")) == 52
    assert history(box, source="agent,var_log") == []
    assert history(box, limit=3) == rows[-3:], "the newest, oldest first"
    assert history(box, limit=10**30) == rows and history(box, limit=10001) == rows
    # As text, one without zeros at its end would be the later one.
    middle = max((row["_time"] for row in rows), key=parse_time)
    time.sleep(0.01)
    box.run("echo later")
    wait_for(lambda: len(history(box)) == 54, "and what came later")
    assert history(box, until=middle) == rows
    after = (parse_time(middle) + timedelta(milliseconds=1)).isoformat()
    assert lines(history(box, since=after)) == ["later", "exited with code 0"]
    assert len(history(box, since="2020-01-01T00:00:00+02:00")) == 54
    assert history(box, until="2020-01-01T00:00:00Z") == []
    assert history(box, since="2090-01-01T00:00:00Z") == []
    assert history(box, q="", source="", limit="", since="", until="") == history(box), "empty is absent"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("since", "yesterday", "time"),
        ("since", "30m", "time"),
        ("until", "2026-13-01T00:00:00Z", "time"),
        ("q", "a\nb", "one line"),
        ("q", "a\0b", "one line"),
        ("q", "a\rb", "one line"),
        ("source", "exec", "exec_stdout"),
        ("source", "agent,nonsense", "nonsense"),
        ("limit", "0", "limit"),
        ("limit", "-5", "limit"),
        ("limit", "ten", "limit"),
        ("limit", "1.5", "limit"),
        ("tail", "maybe", "tail"),
    ],
)
def test_bad_parameters_are_refused_with_what_is_wanted(shared, name, value, says):
    answer = shared.call("GET", "/logs", params={name: value})
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["error"] and says in answer.json()["error"]


def test_logs_are_their_owners(api, other, anonymous, box):
    for answer, status in [
        (other.get(f"{box.path}/logs"), 404),
        (api.get("/api/sandboxes/sb-00000000/logs"), 404),
        (api.get("/api/sandboxes/nonsense/logs"), 404),
        (anonymous.get(f"{box.path}/logs"), 401),
        (anonymous.get(f"{box.path}/logs", headers={"X-API-Key": box.created["token"]}), 403),
        (box.call("POST", "/logs"), 405),
    ]:
        assert answer.status_code == status, answer.text
        check_error(answer.json())
    box.kill()
    assert box.call("GET", "/logs").status_code == 410


def test_live_rows_follow_the_history(box):
    box.run("echo before")
    with Logs(box) as all_rows, Logs(box, source="exec_stderr", limit=1) as errors, Logs(box, q="needle", until="2020-01-01T00:00:00Z") as found:
        assert lines(all_rows.until(ended)) == ["before", "exited with code 0"]
        begun = time.monotonic()
        box.run("echo needle in; echo oops >&2; seq 1 2000")
        seen = all_rows.until(ended)
        assert time.monotonic() - begun < 10, "rows come at once"
        assert len(seen) == 2003
        assert [line for line in lines(seen) if line.isdigit()] == [str(n) for n in range(1, 2001)]
        assert lines(errors.until(lambda row: True)) == ["oops"]
        assert lines(found.until(lambda row: True)) == ["needle in"], "until means nothing while tailing"
    assert len(history(box, limit=5000)) == 2005


def test_nothing_is_lost_or_doubled_between_history_and_live_rows(box):
    session = box.start("sh", "-c", "i=0; while [ $i -lt 4000 ]; do echo $i; i=$((i+1)); [ $((i % 100)) = 0 ] && sleep 0.02; done")
    seen = []

    def follow():
        with Logs(box, limit=10000) as logs:
            seen.append(lines(logs.until(ended)))

    readers = []
    for _ in range(5):
        readers.append(threading.Thread(target=follow))
        readers[-1].start()
        time.sleep(0.1)
    for reader in readers:
        reader.join(30)
    assert box.session(session)["exitCode"] == 0
    expected = [str(n) for n in range(4000)] + ["exited with code 0"]
    assert len(seen) == 5 and all(each == expected for each in seen)


def test_following_neither_wakes_nor_keeps_awake(api):
    with api.create(timeout=1) as box:
        box.run("echo x")
        with Logs(box) as logs:
            rows = list(logs.rows)
            assert lines(rows)[:2] == ["x", "exited with code 0"]
        # The stream ends with the sandbox, and has not kept it awake.
        box.wait_status("hibernated", 2)
        generation = box.view()["generation"]
        for query in ({}, {"tail": "false"}):
            with Logs(box, **query) as logs:
                assert list(logs.rows) == rows, "the same history, and then its end"
        time.sleep(0.5)
        assert box.view()["generation"] == generation and box.status() == "hibernated"


def test_the_log_of_a_hibernated_sandbox_is_whole_and_goes_on_after_the_wake(box):
    box.run("seq 1 3000; sudo sh -c 'echo in file >> /var/log/app.log'")
    session = box.start("sh", "-c", "trap 'echo farewell; exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    wait_for(lambda: "ready" in lines(history(box)), "it is ready")
    before = wait_history(box, 3003, limit=10000)
    assert box.call("POST", "/hibernate").status_code == 200
    asleep = history(box, limit=10000)
    assert asleep[: len(before)] == before
    rest = {(row["line"], row.get("exit_code")) for row in asleep[len(before) :] if row.get("exec_id") == session}
    assert ("farewell", None) in rest and ("exited with code 7", 7) in rest, "what commands say at their end is there"
    assert lines(history(box, q="in file")) == ["in file"]
    assert lines(history(box, source="exec_stdout", limit=2)) == lines([row for row in asleep if row["source"] == "exec_stdout"][-2:])
    assert box.status() == "hibernated"
    box.run("echo awake; sudo sh -c 'echo more >> /var/log/app.log'")
    wait_history(box, 2, source="var_log")
    awake = history(box, limit=10000)
    assert awake[: len(asleep)] == asleep
    assert sorted(lines(awake[len(asleep) :])) == ["awake", "exited with code 0", "more"], "files go on where they were left"


def test_a_sandbox_that_failed_shows_what_it_had_and_says_what_is_missing(box):
    box.run("echo kept")
    assert box.call("POST", "/hibernate").status_code == 200
    box.run("echo lost")
    box.api.http.post(f"{box.path}/exec/run", json={"cmd": "sudo kill -9 $(pgrep -o -P 1)"})
    box.wait_status("error")
    with Logs(box) as logs:
        rows = list(logs.rows)
    assert lines(rows)[:2] == ["kept", "exited with code 0"]
    assert (rows[-1]["source"], len(rows)) == ("agent", 3)
    assert "since it last hibernated" in rows[-1]["line"]


def test_deleting_a_sandbox_ends_its_stream(api):
    with api.create() as box, Logs(box) as logs:
        box.run("echo x")
        logs.until(ended)
        box.kill()
        assert list(logs.rows) == []


def test_a_flood_is_logged_in_part_and_says_so(box):
    total = 200_000_000
    result = box.call("POST", "/exec/run", json={"cmd": f"yes 'a line of the flood' | head -c {total} >&2"}, timeout=60).json()
    assert result["exitCode"] == 0 and len(result["stderr"]) == total, "the command and its output are whole"
    rows = history(box, limit=10000)
    told = [row for row in rows if "bytes of output are not logged here" in row["line"]]
    assert told and told[0]["source"] == "exec_stderr" and told[0]["exec_id"] == rows[-1]["exec_id"]
    assert rows[-1]["exit_code"] == 0
    left_out = sum(int(row["line"].split()[0]) for row in told)
    assert total - 10_000_000 < left_out < total


def test_a_full_disk_drops_rows_and_says_so(box):
    box.run("echo before")
    assert len(history(box)) == 2
    full = "i=10000; while [ $i -gt 0 ]; do fallocate -l ${i}M /home/sandbox/big$i$1 2>/dev/null && set -- $1x || i=$((i / 2)); done"
    box.run(full, timeout=120)
    # The last blocks go byte by byte.
    box.run("cat /dev/zero > /home/sandbox/rest 2>/dev/null; sudo sh -c 'cat /dev/zero > /var/tmp/rest' 2>/dev/null; df /home/sandbox", timeout=120)
    for _ in range(3):
        assert box.run("seq 1 1000")["exitCode"] == 0, "commands do not notice"
        history(box)
    box.run("sudo rm -f /home/sandbox/big* /home/sandbox/rest /var/tmp/rest")
    rows = history(box, limit=10000)
    assert lines(rows)[:2] == ["before", "exited with code 0"]
    told = [row for row in rows if row["source"] == "agent"]
    assert told and "rows were not logged: No space left on device" in told[-1]["line"], lines(rows)[-5:]
    assert rows[-1]["exit_code"] == 0


def test_a_silent_stream_is_kept_alive(box):
    with Logs(box, silence=60) as logs:
        begun = time.monotonic()
        text = next(logs.answer.iter_raw())
        assert text.endswith(b": keepalive\n\n")
        assert 13 < time.monotonic() - begun < 40


def test_many_readers_come_and_go(box):
    for _ in range(80):
        with Logs(box, silence=5) as logs:
            assert logs.answer.status_code == 200
    box.run("echo still here")
    assert "still here" in lines(history(box))
    with Api(timeout=20) as api:
        assert api.get(box.path).status_code == 200
