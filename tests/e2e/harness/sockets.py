"""WebSockets of commands and terminals, frame by frame."""

import json
import struct
import time
from urllib.parse import quote, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from . import settings

STDIN, STDOUT, STDERR, EXIT, REPLAY_END, STDIN_END = range(6)
LARGEST_MESSAGE = 64 * 1024 * 1024


def ws_url(api, path, **query):
    """The address of a WebSocket with the key in the query, as the SDKs write it."""
    parts = urlsplit(api.url)
    query.setdefault("api_key", api.key)
    text = "&".join(f"{key}={quote(str(value))}" for key, value in query.items() if value is not None)
    return f"ws://{parts.netloc}{path}{'?' + text if text else ''}"


def refused(url, **options):
    """Status and body of a WebSocket that must be refused before the upgrade."""
    try:
        with connect(url, **options) as socket:
            socket.close()
    except InvalidStatus as error:
        body = bytes(error.response.body or b"")
        return error.response.status_code, json.loads(body) if body else None
    raise AssertionError(f"{url.split('?')[0]} was upgraded")


class ExecSocket:
    """An attached command. Remembers what came before and after the end of the replay."""

    def __init__(self, box, session_id, path=None, max_size=LARGEST_MESSAGE, **query):
        path = path or f"{box.path}/exec/{session_id}"
        self.opened = connect(ws_url(box.api, path, **query), max_size=max_size, compression=None)
        self.socket = self.opened.__enter__()
        self.headers = self.socket.response.headers
        self.frames = []
        self.exit_code = None
        self.close_code = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.__exit__(None, None, None)

    def send(self, kind, payload=b""):
        self.socket.send(bytes([kind]) + payload)

    def stdin(self, text):
        self.send(STDIN, text.encode() if isinstance(text, str) else text)

    def next(self, timeout=10.0):
        """The next frame that is not a keep-alive, or None once closed."""
        return self.next_by(time.monotonic() + settings.patient(timeout))

    def next_by(self, deadline):
        """The same, with the time at which it is too late."""
        while True:
            try:
                message = self.socket.recv(timeout=max(0.01, deadline - time.monotonic()))
            except ConnectionClosed:
                self.close_code = self.socket.protocol.close_code
                return None
            assert isinstance(message, bytes), f"a text message: {message!r}"
            if not message:
                continue
            frame = (message[0], message[1:])
            assert frame[0] in (STDOUT, STDERR, EXIT, REPLAY_END), f"unknown frame {frame!r}"
            self.frames.append(frame)
            if frame[0] == EXIT:
                assert len(frame[1]) == 4, frame
                self.exit_code = struct.unpack(">i", frame[1])[0]
            return frame

    def until(self, kind, timeout=10.0):
        """Reads frames up to and including the first of `kind`."""
        deadline = time.monotonic() + settings.patient(timeout)
        while frame := self.next_by(deadline):
            if frame[0] == kind:
                return frame
        raise AssertionError(f"closed ({self.close_code}) before a frame of kind {kind}: {self.frames[-3:]!r}")

    def until_text(self, text, kind=STDOUT, timeout=10.0):
        wanted = text.encode() if isinstance(text, str) else text
        deadline = time.monotonic() + settings.patient(timeout)
        while wanted not in self.bytes_of(kind):
            assert self.next_by(deadline), f"closed before {text!r}: {self.bytes_of(kind)[-200:]!r}"

    def finish(self, timeout=30.0):
        """Reads to the close; the exit code. Checks that the exit frame is single and last, and the close clean."""
        deadline = time.monotonic() + settings.patient(timeout)
        while self.next_by(deadline):
            pass
        kinds = [kind for kind, _ in self.frames]
        assert kinds.count(REPLAY_END) == 1, f"{kinds.count(REPLAY_END)} replay ends"
        assert kinds.count(EXIT) == 1 and kinds[-1] == EXIT, f"exit frames: {kinds.count(EXIT)}, last {kinds[-5:]}"
        assert self.close_code == 1000, self.close_code
        return self.exit_code

    def bytes_of(self, kind=STDOUT):
        return b"".join(payload for each, payload in self.frames if each == kind)

    def output(self):
        """All output in the order in which it came."""
        return b"".join(payload for kind, payload in self.frames if kind in (STDOUT, STDERR))

    def replayed(self):
        """Output that came before the end of the replay."""
        found = b""
        for kind, payload in self.frames:
            if kind == REPLAY_END:
                return found
            if kind in (STDOUT, STDERR):
                found += payload
        raise AssertionError("the replay has not ended")


class PtySocket:
    """An attached terminal."""

    def __init__(self, box, session_id, path=None, **query):
        url = ws_url(box.api, path or f"{box.path}/pty/{session_id}", **query)
        self.opened = connect(url, max_size=LARGEST_MESSAGE, compression=None)
        self.socket = self.opened.__enter__()
        self.seen = b""
        self.messages = []
        self.close_code = None
        self.close_reason = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.__exit__(None, None, None)

    def send(self, data):
        self.socket.send(data)

    def pump(self, timeout):
        """Reads one message; false once closed."""
        try:
            message = self.socket.recv(timeout=timeout)
        except ConnectionClosed:
            self.close_code = self.socket.protocol.close_code
            self.close_reason = self.socket.protocol.close_reason
            return False
        assert isinstance(message, bytes), f"a text message: {message!r}"
        self.messages.append(message)
        self.seen += message
        return True

    def until(self, text, timeout=10.0):
        wanted = text.encode() if isinstance(text, str) else text
        deadline = time.monotonic() + settings.patient(timeout)
        while wanted not in self.seen:
            try:
                assert self.pump(max(0.01, deadline - time.monotonic())), f"closed ({self.close_code}): {self.seen[-300:]!r}"
            except TimeoutError:
                raise AssertionError(f"no {text!r} within {timeout} s in {self.seen[-500:]!r}") from None

    def until_closed(self, timeout=10.0):
        deadline = time.monotonic() + settings.patient(timeout)
        while self.pump(max(0.01, deadline - time.monotonic())):
            pass
        return self.close_code
