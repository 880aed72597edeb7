"""Section 9.6: the WebSocket of a command, frame by frame."""

import hashlib
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed

from harness import settings
from harness.client import marker, seconds_since
from harness.raw import UPGRADE, head, open_socket
from harness.sockets import EXIT, REPLAY_END, STDERR, STDIN_END, STDOUT, ExecSocket, refused, ws_url
from harness.waiting import holds_for, wait_for


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_the_end_of_the_replay_comes_at_once_though_there_is_none(box):
    session = box.start("sleep", "600")
    start = time.monotonic()
    with ExecSocket(box, session) as socket:
        assert socket.next(2) == (REPLAY_END, b"")
        assert seconds_since(start) < 10


def test_frames_are_as_published(box):
    session = box.start("sh", "-c", "read go; echo hi; printf e >&2; exit 130")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        socket.stdin("go\n")
        assert socket.finish() == 130
        assert socket.bytes_of(STDOUT) == b"hi\n" and socket.bytes_of(STDERR) == b"e"
        assert socket.frames[-1] == (EXIT, b"\x00\x00\x00\x82")


OVER_HTTP_2 = """
const [url, path, key] = process.argv.slice(1)
const client = require('node:http2').connect(url)
client.once('remoteSettings', () => {
    const stream = client.request({':method': 'CONNECT', ':protocol': 'websocket', ':path': path, 'x-api-key': key,
        'sec-websocket-version': '13'})
    stream.once('response', (headers) => { console.log(headers[':status']); client.destroy() })
})
"""


def test_browsers_may_ask_over_http_2(box):
    """On a connection they have already, with CONNECT (RFC 8441)."""
    paths = [f"{box.path}/exec/{box.start('true')}", f"{box.path}/pty/{box.call('POST', '/pty', json={}).json()['sessionID']}"]
    for path in paths:
        asked = subprocess.run(["node", "-e", OVER_HTTP_2, settings.URL, path, settings.KEY], capture_output=True, text=True, timeout=settings.patient(20), check=True)
        assert asked.stdout == "200\n", (path, asked.stdout, asked.stderr)


def test_attaching_after_the_end_replays_and_closes(box):
    session = box.start("sh", "-c", "echo one; echo two >&2; echo three; exit 5")
    wait_for(lambda: not box.session(session)["running"], "it ended")
    for _ in range(3):
        with ExecSocket(box, session) as socket:
            assert socket.finish() == 5
            assert (socket.bytes_of(STDOUT), socket.bytes_of(STDERR)) == (b"one\nthree\n", b"two\n")
            assert [kind for kind, _ in socket.frames][-2:] == [REPLAY_END, EXIT]


def test_exit_minus_one_is_four_bytes_of_ones(box):
    session = box.start("sleep", "600", timeout=1)
    with ExecSocket(box, session) as socket:
        assert socket.finish() == -1
        assert socket.frames[-1] == (EXIT, b"\xff\xff\xff\xff")


def test_two_clients_see_the_same_bytes(box):
    session = box.start("sh", "-c", "read go; seq 1 300000; seq 1 1000 >&2; exit 1")
    with ExecSocket(box, session) as one, ExecSocket(box, session) as two:
        one.until(REPLAY_END)
        two.until(REPLAY_END)
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(socket.finish, 60) for socket in (one, two)]
            one.stdin("go\n")
            assert [end.result() for end in ends] == [1, 1]
        expected = "".join(f"{n}\n" for n in range(1, 300001)).encode()
        assert digest(one.bytes_of(STDOUT)) == digest(two.bytes_of(STDOUT)) == digest(expected)
        assert one.bytes_of(STDERR) == two.bytes_of(STDERR)
        assert digest(one.output()) == digest(two.output()), "the two streams were interleaved differently"


def test_input_of_all_clients_is_merged(box):
    session = box.start("cat")
    with ExecSocket(box, session) as one, ExecSocket(box, session) as two:
        one.stdin("from one\n")
        two.until_text("from one\n")
        two.stdin("from two\n")
        one.until_text("from two\n")


def test_no_byte_is_lost_between_replay_and_live_under_load(box):
    """Clients come while numbers pour out; each must see a run without gaps up to the very last."""
    last = 2_000_000
    session = box.start("sh", "-c", f"read go; seq 1 {last}")

    def watch(delay):
        time.sleep(delay)  # Spreads the arrivals; nothing is assumed about where each of them lands.
        with ExecSocket(box, session) as socket:
            assert socket.finish(90) == 0
            return socket.replayed(), socket.bytes_of(STDOUT)

    with ExecSocket(box, session) as first:
        first.until(REPLAY_END)
        with ThreadPoolExecutor(8) as pool:
            whole = pool.submit(first.finish, 90)
            first.stdin("go\n")
            watchers = [pool.submit(watch, 0.05 * n) for n in range(6)]
            assert whole.result() == 0
            seen = [watcher.result() for watcher in watchers]
    expected = "".join(f"{n}\n" for n in range(1, last + 1)).encode()
    assert digest(first.bytes_of(STDOUT)) == digest(expected), "the client that was there from the start"
    for replay, everything in seen:
        assert len(replay) <= 1024 * 1024
        assert everything and expected.endswith(everything), "a late client saw a gap"


def test_a_slow_reader_loses_nothing_and_holds_up_no_other_command(box):
    size = 40 * 1024 * 1024
    session = box.start("sh", "-c", f"read go; head -c {size} /dev/urandom | tee /tmp/sent")
    with ExecSocket(box, session) as slow:
        slow.until(REPLAY_END)
        slow.stdin("go\n")
        holds_for(lambda: box.out("echo ok") == "ok\n", "another command answers", 1.5)
        assert slow.finish(60) == 0
        assert digest(slow.bytes_of(STDOUT)) == box.out("sha256sum < /tmp/sent").split()[0]


def test_reading_can_be_taken_up_at_an_offset(box):
    session = box.start("sh", "-c", "seq 1 100000; sleep 0.2; seq 100001 100100; exit 3")
    with ExecSocket(box, session, offset=0) as socket:
        assert int(socket.headers.get("x-warren-exec-offset", "0")) == 0
        assert socket.finish() == 3
        whole = socket.output()
    assert whole == "".join(f"{n}\n" for n in range(1, 100101)).encode()
    for offset in (1, 1000, len(whole) - 5, len(whole)):
        with ExecSocket(box, session, offset=offset) as socket:
            assert socket.headers["x-warren-exec-offset"] == str(offset)
            assert socket.finish() == 3
            assert socket.output() == whole[offset:]


@pytest.mark.parametrize("offset", ["-1", "x", "99999999999999999999999", "1.5"])
def test_an_offset_that_is_none_is_refused(shared, api, offset):
    session = shared.start("sleep", "600")
    status, body = refused(ws_url(api, f"{shared.path}/exec/{session}", offset=offset))
    assert status == 400 and body["error"]


def test_an_offset_beyond_the_end_does_not_invent_output(shared, api):
    session = shared.start("sh", "-c", "echo short")
    wait_for(lambda: not shared.session(session)["running"], "it ended")
    try:
        with ExecSocket(shared, session, offset=10**12) as socket:
            assert socket.finish() == 0 and socket.output() == b""
    except Exception as error:  # Refusing it is as good.
        assert getattr(getattr(error, "response", None), "status_code", None) == 400, repr(error)


def test_standard_input_can_end(box):
    session = box.start("sh", "-c", "cat; echo over; exit 4")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        socket.stdin("")
        socket.stdin("data")
        socket.send(STDIN_END)
        assert socket.finish() == 4
        assert socket.bytes_of() == b"dataover\n"


def test_large_input_arrives_whole(box):
    session = box.start("sh", "-c", "sha256sum; exit 0")
    data = bytes(range(256)) * 4096
    with ExecSocket(box, session) as socket:
        for _ in range(8):
            socket.stdin(data)
        socket.send(STDIN_END)
        assert socket.finish(60) == 0
        assert socket.bytes_of().split()[0].decode() == digest(data * 8)


def test_input_for_a_command_that_does_not_read_blocks_nobody(box):
    session = box.start("sleep", "600")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        sender = threading.Thread(target=lambda: pour(socket), daemon=True)
        sender.start()
        holds_for(lambda: box.out("echo ok") == "ok\n", "another command answers", 1)
        assert box.call("POST", f"/exec/{session}/kill", json={}).status_code == 200
        assert socket.finish() == 137


def test_a_client_whose_input_is_stuck_is_still_heard(box):
    """That a client left must be seen though nobody reads what it sent."""
    session = box.start("sleep", "600")
    with open_socket() as connection:
        connection.sendall(head("GET", f"{box.path}/exec/{session}", UPGRADE, settings.KEY))
        connection.recv(4096)
        connection.setblocking(False)
        stdin = b"\x82\xfe\x80\x00\0\0\0\0" + b"\0" * 0x8000
        sent, quiet_since = 0, time.monotonic()
        while sent < 64 * len(stdin) * 64 and seconds_since(quiet_since) < 0.5:
            try:
                sent += connection.send((stdin * 8)[sent % len(stdin) :])
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        assert box.session(session)["attachedClients"] == 1
    wait_for(lambda: box.session(session)["attachedClients"] == 0, "the client is seen to have left", 10)


def test_input_sent_before_leaving_waits_for_the_command(box):
    """Nobody is attached any more, at once; what was sent is there when the command comes to read it."""
    session = box.start("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; sha256sum > /tmp/sum")
    data = bytes(range(256)) * 12 * 1024
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        for at in range(0, len(data), 256 * 1024):
            socket.stdin(data[at : at + 256 * 1024])
        socket.send(STDIN_END)
    wait_for(lambda: box.session(session)["attachedClients"] == 0, "the client is seen to have left", 1)
    assert box.session(session)["running"]
    box.out("touch /tmp/go")
    wait_for(lambda: not box.session(session)["running"], "it has read its input to the end")
    assert box.read("/tmp/sum").split()[0].decode() == digest(data)


def test_output_that_is_not_read_yet_does_not_hold_up_input(box):
    """A client may send all it has before it reads anything."""
    session = box.start("cat")
    data = bytes(range(256)) * 4096
    with open_socket() as connection:
        connection.sendall(head("GET", f"{box.path}/exec/{session}", UPGRADE, settings.KEY))
        message = b"\x82\xff" + (len(data) + 1).to_bytes(8, "big") + b"\0\0\0\0" + b"\0" + data
        for _ in range(48):
            connection.sendall(message)
        connection.sendall(b"\x82\x81\0\0\0\0\x05")
        wait_for(lambda: not box.session(session)["running"], "it has read and written all of it", 20)
    with ExecSocket(box, session, offset=0) as socket:
        assert socket.finish(60) == 0
        assert digest(socket.bytes_of()) == digest(data * 48)


def test_messages_of_several_clients_are_not_mixed(box):
    session = box.start("sh", "-c", "sleep 0.5; cat")
    size = 3_000_000
    with ExecSocket(box, session) as one, ExecSocket(box, session) as two, ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(socket.finish) for socket in (one, two)]

        def send(socket, letter):
            for _ in range(4):
                socket.stdin(letter * size)

        for sent in [pool.submit(send, one, b"a"), pool.submit(send, two, b"b")]:
            sent.result()
        wait_for(lambda: sum(len(payload) for _, payload in one.frames) >= 8 * size, "all of it came back", 20)
        one.send(STDIN_END)
        assert [end.result() for end in ends] == [0, 0]
        text = one.bytes_of()
        assert {text[at : at + size] for at in range(0, len(text), size)} == {b"a" * size, b"b" * size}


def pour(socket):
    try:
        for _ in range(64):
            socket.stdin(b"x" * 512 * 1024)
    except (ConnectionClosed, OSError):
        pass


def test_messages_fit_the_limits_of_published_clients(box):
    """Python's client refuses messages over 1 MiB and would read the close as a lost command."""
    session = box.start("sh", "-c", "read go; head -c 30000000 /dev/zero")
    with ExecSocket(box, session, max_size=2**20) as socket:
        socket.until(REPLAY_END)
        socket.stdin("go\n")
        assert socket.finish(60) == 0
        assert len(socket.bytes_of()) == 30_000_000
    with ExecSocket(box, session, max_size=2**20) as late:
        assert late.finish(60) == 0


def test_characters_are_not_split_between_messages(box):
    """Python's shell() decodes each message by itself."""
    session = box.start("python3", "-c", "import sys; input(); sys.stdout.write('é☃𝄞' * 200000)")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        socket.stdin("go\n")
        assert socket.finish(60) == 0
        assert "".join(payload.decode() for kind, payload in socket.frames if kind == STDOUT) == "é☃𝄞" * 200000


BOTH_STREAMS = """
import os, threading
input()
def write(descriptor, text, size):
    data = text.encode()
    for at in range(0, len(data), size):
        os.write(descriptor, data[at:at + size])
threads = [threading.Thread(target=write, args=each) for each in ((1, "é☃𝄞" * 30000, 1009), (2, "☃é" * 40000, 101))]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_what_a_client_has_counted_is_where_it_goes_on(box):
    """Whole characters in every message, though two streams cut into each other, and every end of a message is an offset."""
    session = box.start("python3", "-c", BOTH_STREAMS)
    with ExecSocket(box, session) as live:
        live.until(REPLAY_END)
        live.stdin("go\n")
        assert live.finish(60) == 0
    pieces = [payload for kind, payload in live.frames if kind in (STDOUT, STDERR)]
    assert all(piece.decode() for piece in pieces)
    assert live.bytes_of(STDOUT).decode() == "é☃𝄞" * 30000 and live.bytes_of(STDERR).decode() == "☃é" * 40000
    whole = live.output()
    offsets = [0]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    for offset in offsets[:: max(1, len(offsets) // 20)]:
        with ExecSocket(box, session, offset=offset) as again:
            assert again.finish(60) == 0
            assert again.output() == whole[offset:], f"from {offset} on"
            assert all(payload.decode() for kind, payload in again.frames if kind in (STDOUT, STDERR))


@pytest.mark.parametrize("before", range(3))
def test_the_newest_output_begins_with_a_whole_character(box, before):
    command = ["python3", "-c", f"print('x' * {before} + '☃' * 900_000, end='')"]
    session = box.start(*command)
    wait_for(lambda: not box.session(session)["running"], "it ended")
    with ExecSocket(box, session) as socket:
        assert socket.finish(60) == 0
    text = "".join(payload.decode() for kind, payload in socket.frames if kind == STDOUT)
    assert set(text) == {"☃"} and 700_000 < len(text.encode()) <= 1024 * 1024
    assert int(socket.headers["x-warren-exec-offset"]) + len(text.encode()) == before + 2_700_000
    progress = box.call("GET", f"/exec/{session}/result").json()
    assert progress["stdout"] == text and progress["truncated"] is True
    assert box.run(f"{command[0]} -c \"{command[2]}\"")["stdout"] == "x" * before + "☃" * 900_000


def test_a_character_that_is_slow_in_coming_is_not_waited_for(box):
    session = box.start("sh", "-c", "read go; printf 'a\\303'; sleep 2; printf '\\251b'; printf '\\360\\237'")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        socket.stdin("go\n")
        start = time.monotonic()
        socket.until_text(b"a\xc3")
        assert seconds_since(start) < 1.8
        assert socket.finish() == 0
        assert socket.bytes_of() == b"a\xc3\xa9b\xf0\x9f"


def test_attached_clients_are_counted_truly(box):
    session = box.start("sleep", "600")
    count = lambda: box.session(session)["attachedClients"]
    assert count() == 0
    with ExecSocket(box, session) as one:
        one.until(REPLAY_END)
        assert count() == 1
        with ExecSocket(box, session) as two:
            two.until(REPLAY_END)
            assert count() == 2
        wait_for(lambda: count() == 1, "one has left")
        one.socket.socket.close()  # A client that vanishes without a word.
    wait_for(lambda: count() == 0, "both have left")


def test_a_command_ends_when_its_last_client_has_been_gone_too_long(box):
    mine = marker()
    session = box.start("sh", "-c", f"setsid sleep {mine} & sleep {mine}", maxRunAfterDisconnect=1)
    running = lambda: box.session(session)["running"]
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        holds_for(running, "it runs while somebody watches", 1.6)
    start = time.monotonic()
    wait_for(lambda: not running(), "it ends after its client left", 10)
    assert seconds_since(start) > 0.5
    wait_for(lambda: not box.is_alive(f"sleep {mine}"), "its children ended", 5)


def test_a_client_that_comes_back_in_time_keeps_the_command(box):
    session = box.start("sleep", "600", maxRunAfterDisconnect=2)
    for _ in range(2):
        with ExecSocket(box, session) as socket:
            socket.until(REPLAY_END)
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        holds_for(lambda: box.session(session)["running"], "it goes on", 2.5)


def test_leaving_does_not_end_a_command(box):
    session = box.start("sh", "-c", "while :; do echo x; sleep 0.01; done")
    for _ in range(5):
        with ExecSocket(box, session) as socket:
            socket.until_text("x")
    holds_for(lambda: box.session(session)["running"], "it goes on", 0.5)


def test_a_session_fed_at_once_gets_its_answer_after_the_replay_end(box):
    """shell() drops what comes before the replay end and hangs: input must not overtake it."""
    for _ in range(30):
        session = box.start("cat")
        with ExecSocket(box, session) as socket:
            socket.stdin("at once\n")
            socket.until_text("at once\n")
            assert socket.replayed() == b""


def test_an_unknown_session_is_404_before_the_upgrade(shared, api):
    for session in ("00000000", "nonsense", "%2e%2e%2f", "a" * 300):
        status, body = refused(ws_url(api, f"{shared.path}/exec/{session}"))
        assert status == 404 and body["error"]


def test_without_an_upgrade_it_is_a_plain_error(shared):
    session = shared.start("sleep", "600")
    assert shared.call("GET", f"/exec/{session}").status_code in (200, 400, 426)


def test_bad_credentials_are_refused_before_the_upgrade(shared, api):
    session = shared.start("sleep", "600")
    for query in ({"api_key": None}, {"api_key": "osb_" + "0" * 64}, {"api_key": None, "token": "a.b.c"}):
        status, body = refused(ws_url(api, f"{shared.path}/exec/{session}", **query))
        assert status in (401, 403) and body["error"]


@pytest.mark.parametrize(
    "message",
    ["text", "\x00text", b"", b"\x09unknown", b"\x01stdout?", b"\x03\0\0\0\0", b"\x04", b"\xff" * 1000, b"\x05payload"],
    ids=["text", "text-stdin", "empty", "unknown", "stdout", "exit", "replay-end", "ff", "end-with-payload"],
)
def test_garbage_on_the_socket_harms_only_its_sender(box, message):
    session = box.start("sh", "-c", "while :; do echo x; sleep 0.02; done")
    with ExecSocket(box, session) as good, ExecSocket(box, session) as bad:
        good.until(REPLAY_END)
        bad.until(REPLAY_END)
        bad.socket.send(message)
        try:
            for _ in range(5):
                if bad.next(5) is None:
                    assert bad.close_code in (1000, 1002, 1003, 1007, 1008), bad.close_code
                    break
        except ConnectionClosed:
            pass
        before = len(good.bytes_of())
        good.until_text("x\n" * (before // 2 + 5), timeout=10)
        assert box.session(session)["running"]


def test_a_message_that_is_too_large_is_refused_with_its_code(box):
    session = box.start("cat")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        try:
            socket.stdin(b"x" * (48 * 1024 * 1024))
            while socket.next(20):
                pass
        except ConnectionClosed:
            socket.close_code = socket.socket.protocol.close_code
        assert socket.close_code in (1009, 1000, 1006), socket.close_code
    assert box.out("echo ok") == "ok\n"
    assert box.session(session)["running"]


def test_deleting_the_sandbox_closes_its_sockets_without_inventing_an_exit(api):
    box = api.create()
    session = box.start("sleep", "600")
    with ExecSocket(box, session) as socket:
        socket.until(REPLAY_END)
        box.kill()
        while socket.next(10):
            pass
        assert socket.exit_code in (None, 137, 143), socket.frames
        assert socket.close_code is not None
