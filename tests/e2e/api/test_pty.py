"""Section 12: terminals."""

import os
import subprocess
import time

import pytest

from harness import settings
from harness.client import marker
from harness.sockets import PtySocket, refused, ws_url
from harness.waiting import wait_for


def open_pty(box, **fields):
    answer = box.call("POST", "/pty", json=fields)
    assert answer.status_code == 201, answer.text
    assert answer.json()["sandboxID"] == box.id
    return answer.json()["sessionID"]


def test_a_terminal_is_a_login_user_s_bash(api):
    with api.create(envs={"FROM_BOX": "yes"}) as box:
        with PtySocket(box, open_pty(box, cols=100, rows=40)) as pty:
            pty.send('echo "[$(tput cols)x$(tput lines)] $TERM $COLUMNS $LINES $(id -un) $PWD ${BASH_VERSION:0:1} $FROM_BOX"; tty\n')
            pty.until("[100x40] xterm-256color 100 40 sandbox /home/sandbox 5 yes")
            pty.until("/dev/pts/")


def test_text_and_bytes_both_reach_the_shell(shared):
    with PtySocket(shared, open_pty(shared)) as pty:
        pty.send("echo te''xt\n")
        pty.until("text\r\n")
        pty.send(b"echo by''tes\n")
        pty.until("bytes\r\n")


def test_control_characters_do_what_they_do(shared):
    with PtySocket(shared, open_pty(shared)) as pty:
        # The terminal echoes what is typed before the shell has read it; only the shell itself can say that it has.
        long = marker()
        pty.send(f"echo re''ady; sleep {long}\n")
        pty.until("ready")
        # A shell gives its terminal to a command a moment after it has started it; what comes before that is the shell's.
        wait_for(lambda: shared.is_alive(f"sleep {long}"), "it sleeps")
        time.sleep(0.2)
        pty.send(b"\x03")
        pty.send("echo $?-after\n")
        pty.until("130-after")
        pty.send("exit 3\n")
        assert (pty.until_closed(), pty.close_reason) == (1000, "exit 3")


@pytest.mark.parametrize("typed, code", [("exit 3", 3), ("kill -9 $$", 137), ("false; exit", 1), ("true; exit", 0)])
def test_the_cli_ends_as_the_shell_has(shared, typed, code):
    env = {"OPENCOMPUTER_API_URL": settings.URL, "OPENCOMPUTER_API_KEY": settings.KEY, "PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    shell = subprocess.run([settings.PROGRAM, "shell", shared.id], input=f"{typed}\n", env=env, capture_output=True, text=True, timeout=settings.patient(20), check=False)
    assert shell.returncode == code, (shell.stdout[-300:], shell.stderr)


def test_resizing_reaches_the_program(shared):
    session = open_pty(shared, cols=80, rows=24)
    with PtySocket(shared, session) as pty:
        pty.send("trap 'stty size' WINCH; echo re''ady\n")
        pty.until("ready")
        answer = shared.call("POST", f"/pty/{session}/resize", json={"cols": 132, "rows": 50})
        assert (answer.status_code, answer.content) == (200, b"")
        pty.send("\n")
        pty.until("50 132")


@pytest.mark.parametrize("size", [{"cols": -1}, {"cols": 100000}, {"rows": "a"}, {"rows": 1.5}, {"cols": 2**40}, {"shell": 7}, {"shell": "/no/such"}, {"shell": "a\0b"}])
def test_senseless_terminals_are_refused(shared, size):
    assert shared.call("POST", "/pty", json=size).status_code == 400


@pytest.mark.parametrize("size", [{}, {"cols": 0, "rows": 5}, {"cols": -4, "rows": 5}, {"cols": 5, "rows": 10**6}, {"cols": "a", "rows": 1}, []])
def test_senseless_sizes_are_refused(shared, size):
    session = open_pty(shared)
    assert shared.call("POST", f"/pty/{session}/resize", json=size).status_code == 400
    assert shared.call("DELETE", f"/pty/{session}").status_code == 204


def test_zero_and_absent_sizes_mean_80_by_24(shared):
    for fields in ({}, {"cols": 0, "rows": 0}):
        with PtySocket(shared, open_pty(shared, **fields)) as pty:
            pty.send("stty size\n")
            pty.until("24 80")


def test_another_shell_can_be_asked_for(shared):
    with PtySocket(shared, open_pty(shared, shell="/bin/sh")) as pty:
        pty.send("echo $0-$((2+3))\n")
        pty.until("sh-5")


def test_characters_are_never_split(shared):
    with PtySocket(shared, open_pty(shared)) as pty:
        pty.send("stty -echo; python3 -c \"print('é☃𝄞' * 60000); print('do' + 'ne')\"\n")
        pty.until("done", timeout=30)
    for message in pty.messages:
        message.decode()  # Raises on half a character.
    assert pty.seen.decode().count("𝄞") >= 60000


def test_output_is_kept_for_who_comes_back(shared):
    session = open_pty(shared)
    with PtySocket(shared, session) as pty:
        pty.send("echo before-lea''ving; cd /tmp\n")
        pty.until("before-leaving")
    with PtySocket(shared, session) as pty:
        pty.until("before-leaving")
        pty.send("pwd; echo he''re\n")
        pty.until("/tmp\r\nhere")


def test_two_clients_share_one_terminal(shared):
    session = open_pty(shared)
    with PtySocket(shared, session) as one, PtySocket(shared, session) as two:
        one.send("echo sha''red\n")
        one.until("shared\r\n")
        two.until("shared\r\n")


def test_leaving_does_not_end_the_shell_and_deleting_does(shared):
    session, child = open_pty(shared), marker()
    with PtySocket(shared, session) as pty:
        pty.send(f"sleep {child}\n")
        pty.until(f"sleep {child}")
    wait_for(lambda: shared.is_alive(f"sleep {child}"), "it goes on without a client")
    assert shared.call("DELETE", f"/pty/{session}").status_code == 204
    wait_for(lambda: not shared.is_alive(f"sleep {child}"), "it ended with its terminal", 5)
    assert shared.call("DELETE", f"/pty/{session}").status_code == 404
    assert shared.call("POST", f"/pty/{session}/resize", json={"cols": 10, "rows": 10}).status_code == 404


def test_an_unknown_terminal_is_404_before_the_upgrade(shared, api):
    for session in ("00000000", "nonsense", "%2e%2e"):
        status, body = refused(ws_url(api, f"{shared.path}/pty/{session}"))
        assert status == 404 and body["error"]


def test_a_flood_of_output_keeps_the_terminal_usable(shared):
    with PtySocket(shared, open_pty(shared)) as pty:
        pty.send("yes\n")
        pty.until("y\r\n" * 1000)
        pty.send(b"\x03")
        pty.send("echo st''ill\n")
        pty.until("still\r\n", timeout=20)
