"""Section 13, with Warren's additions: ranges, HEAD, stat, move, chmod, folders as tar."""

import asyncio
import contextlib
import hashlib
import io
import os
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness import settings
from harness.client import check_error
from harness.raw import head, open_socket, raw_request
from harness.waiting import holds_for, wait_for

MEGABYTE = 1024 * 1024


def files(box, method, path, **options):
    params = options.pop("params", {})
    return box.call(method, "/files", params={"path": path} | params, **options)


def listing(box, path):
    answer = box.call("GET", "/files/list", params={"path": path})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stat(box, path):
    answer = box.call("GET", "/files/stat", params={"path": path})
    assert answer.status_code == 200, answer.text
    return answer.json()


# What HTTP can ask for and a file cannot do.


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [("If-None-Match", "*", 400), ("If-Match", '"x"', 400), ("If-Unmodified-Since", "Mon, 01 Jan 2024 00:00:00 GMT", 400),
     ("Content-Range", "bytes 0-1/10", 400), ("Content-Encoding", "gzip", 415)],
)
def test_a_write_is_plain_or_refused(box, header, value, status):
    assert files(box, "PUT", "/tmp/plain", content=b"0123456789", headers={"Content-Encoding": "identity"}).status_code == 204
    for route in ("/files", "/files/archive"):
        answer = box.call("PUT", route, params={"path": "/tmp/plain"}, content=b"x", headers={header: value})
        assert answer.status_code == status
        check_error(answer.json())
    assert files(box, "GET", "/tmp/plain").content == b"0123456789"


def test_a_range_of_another_file_than_there_is_is_not_sent(box):
    files(box, "PUT", "/tmp/resumed", content=b"0123456789")
    answer = files(box, "GET", "/tmp/resumed", headers={"Range": "bytes=5-", "If-Range": '"before"'})
    assert (answer.status_code, answer.content) == (200, b"0123456789")


# Names.


def test_names_that_are_no_text_are_told_and_can_be_asked_for(box):
    box.out(r"mkdir -p /tmp/odd/$(printf 'd\351') && cd /tmp/odd && printf one > $(printf 'a\377') && printf two > $(printf 'a\376')")
    entries = listing(box, "/tmp/odd")
    # What is shown may be the same for two.
    assert [entry["name"] for entry in entries] == ["a\ufffd", "a\ufffd", "d\ufffd"]
    assert [entry["encodedPath"] for entry in entries] == ["/tmp/odd/a%FE", "/tmp/odd/a%FF", "/tmp/odd/d%E9"]
    assert "encodedPath" not in listing(box, "/tmp")[0]

    def call(method, path, route="", **options):
        return box.call(method, f"/files{route}?path={path}", **options)

    assert [call("GET", entry["encodedPath"]).content for entry in entries[:2]] == [b"two", b"one"]
    assert call("PUT", "/tmp/odd/d%e9/%ff%00", content=b"").status_code == 400
    assert call("PUT", "/tmp/odd/d%e9/%ff", content=b"three").status_code == 204
    assert call("GET", "/tmp/odd/d%E9", "/stat").json()["encodedPath"] == "/tmp/odd/d%E9"
    assert [entry["encodedPath"] for entry in call("GET", "/tmp/odd/d%E9", "/list").json()] == ["/tmp/odd/d%E9/%FF"]
    archive = call("GET", "/tmp/odd", "/archive").content
    assert call("PUT", "/tmp/copy", "/archive", content=archive).status_code == 204
    assert box.out("diff -r /tmp/odd /tmp/copy && find /tmp/copy -type f | wc -l") == "3\n"
    assert call("DELETE", "/tmp/odd/a%ff").status_code == 204
    assert box.out("LC_ALL=C ls -b /tmp/odd") == "a\\376\nd\\351\n"


@pytest.mark.parametrize("path", ["/proc/self/exe", "/proc/1/exe", "/proc/self/fd/0", "/dev/stdout", "/tmp/to-exe"])
def test_nothing_is_written_where_a_link_of_the_kernels_reads_as_leading(box, path):
    box.out("ln -sf /proc/self/exe /tmp/to-exe; touch /tmp/mark")
    answer = files(box, "PUT", path, content=b"x")
    assert answer.status_code == 400 and "the kernel makes up" in answer.json()["error"], answer.text
    assert box.out("find / -xdev -newer /tmp/mark -name 'warren-agent*' 2>/dev/null || true") == ""


def test_a_folder_that_changes_meanwhile_gives_a_whole_archive(box):
    # Each file is longer for long enough to be opened, and shorter before all of it can have been read.
    script = """mkdir -p /tmp/busy; cd /tmp/busy; touch begun
        while true; do
            truncate -s 48M a b; sleep 0.02; truncate -s 3 a b
            ln -sf x link; mkdir -p d/e; touch d/e/f; rm -rf link d
        done"""
    box.start("sh", "-c", script)
    wait_for(lambda: box.call("GET", "/files/stat", params={"path": "/tmp/busy/begun"}).status_code == 200, "it is busy")
    said = set()
    for _ in range(12):
        answer = box.call("GET", "/files/archive", params={"path": "/tmp/busy"})
        assert answer.status_code == 200
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            names = [member.name for member in archive.getmembers()]
            said.add(archive.pax_headers.get("comment", ""))
        assert {"a", "b", "begun"} <= set(names), names
    assert any(text.startswith("shorter than when they were opened, filled up with zeros: ") for text in said), said


# Round trips.


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 1000, "é ☃ 𝄞\r\n".encode(), b'{"a": 1}', os.urandom(3 * MEGABYTE + 1)], ids=len)
def test_what_is_written_is_read(box, content):
    for headers in ({}, {"Content-Type": "application/json"}, {"Content-Type": "text/plain;charset=UTF-8"}):
        answer = files(box, "PUT", "/tmp/f", content=content, headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
        answer = files(box, "GET", "/tmp/f")
        assert answer.content == content
        assert answer.headers["content-type"] == "application/octet-stream"
    assert box.out("wc -c < /tmp/f").strip() == str(len(content))


def test_a_body_of_unknown_length_is_accepted(box):
    def chunks():
        for n in range(100):
            yield f"{n}\n".encode()

    answer = files(box, "PUT", "/tmp/chunked", content=chunks())
    assert answer.status_code == 204
    assert box.read("/tmp/chunked") == "".join(f"{n}\n" for n in range(100)).encode()


@pytest.mark.parametrize(
    "name",
    ["a b", "é☃𝄞", "per%20cent", "a+b&c=d", "quo'te\"s", "new\nline", "#hash?query", "tab\t", "-dash", "~", "*", "\\", "a" * 255, "é" * 127, ".hidden"],
    ids=lambda name: ascii(name)[:14],
)
def test_names_of_any_characters(shared, name):
    path = f"/tmp/names/{name}"
    shared.write(path, name.encode())
    assert shared.read(path) == name.encode()
    assert {"name": name, "isDir": False, "size": len(name.encode()), "path": path} in listing(shared, "/tmp/names")
    assert stat(shared, path)["name"] == name
    assert files(shared, "DELETE", path).status_code == 204
    assert files(shared, "GET", path).status_code == 404


def test_a_name_that_is_not_utf_8_is_listed_and_breaks_nothing(box):
    box.out(r"mkdir /tmp/odd && touch /tmp/odd/plain $(printf '/tmp/odd/b\377d')")
    names = [entry["name"] for entry in listing(box, "/tmp/odd")]
    assert "plain" in names and len(names) == 2


def test_large_files_stream_both_ways(box):
    size, block = 100 * MEGABYTE, os.urandom(MEGABYTE)
    expected = hashlib.sha256(block * 100).hexdigest()
    answer = files(box, "PUT", "/tmp/large", content=(block for _ in range(100)))
    assert answer.status_code == 204
    assert box.out("sha256sum < /tmp/large").split()[0] == expected
    seen, count = hashlib.sha256(), 0
    with box.api.http.stream("GET", f"{box.path}/files", params={"path": "/tmp/large"}) as answer:
        assert answer.headers["content-length"] == str(size)
        for chunk in answer.iter_bytes():
            seen.update(chunk)
            count += len(chunk)
    assert (count, seen.hexdigest()) == (size, expected)


def test_reading_a_file_halfway_and_leaving_harms_nothing(box):
    box.out("head -c 200M /dev/zero > /tmp/big")
    for _ in range(10):
        with box.api.http.stream("GET", f"{box.path}/files", params={"path": "/tmp/big"}) as answer:
            next(answer.iter_bytes())
    assert box.out("echo ok") == "ok\n"


def test_head_tells_size_without_content(box):
    box.write("/tmp/h", b"12345")
    answer = files(box, "HEAD", "/tmp/h")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "5", b"")
    assert files(box, "HEAD", "/tmp/none").status_code == 404
    assert files(box, "HEAD", "/tmp").status_code in (200, 400)


@pytest.mark.parametrize(
    ("asked", "status", "content", "range_"),
    [
        ("bytes=0-4", 206, b"01234", "bytes 0-4/10"),
        ("bytes=5-", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
        ("bytes=-100", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=99999999999999999999-", 416, None, None),
        ("bytes=5-2", None, None, None),
        ("bytes=x-y", None, None, None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(shared, asked, status, content, range_):
    shared.write("/tmp/digits", b"0123456789")
    answer = files(shared, "GET", "/tmp/digits", headers={"Range": asked})
    if status is None:  # Not a valid range: ignoring it and refusing it are both right.
        assert answer.status_code in (200, 400, 416)
        return
    assert answer.status_code in ((status, 200) if status == 416 and range_ is None else (status,)), answer.status_code
    if content is not None:
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))
    if range_:
        assert answer.headers["content-range"] == range_


# Whole or not at all.


def test_a_body_that_stops_half_way_changes_nothing(box):
    box.write("/home/sandbox/keep", b"the old content")
    target = f"{box.path}/files?path=/home/sandbox/keep"
    for headers, body in [
        ({"Content-Length": "1000000"}, b"x" * 500_000),
        ({"Transfer-Encoding": "chunked"}, b"7a120\r\n" + b"x" * 500_000 + b"\r\n"),
    ]:
        answer = raw_request("PUT", target, headers, body, half_close=True)
        assert answer is None or answer.status == 400, answer
        with open_socket() as connection:  # And once more with a connection that is cut off.
            connection.sendall(head("PUT", target, headers, settings.KEY) + body)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    answer = raw_request("PUT", target, {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\nno chunk\r\n")
    assert answer.status == 400 and "broke off" in answer.json()["error"], answer
    assert box.read("/home/sandbox/keep") == b"the old content"
    wait_for(
        lambda: {entry["name"] for entry in listing(box, "/home/sandbox")} >= {"keep"}
        and box.out("sudo find / -xdev -newer /home/sandbox/keep -size +100k -type f 2>/dev/null | grep -v '^/proc' | wc -l").strip() == "0",
        "nothing of the broken uploads is left",
        10,
    )


def test_readers_see_the_old_file_or_the_new_never_a_mixture(box):
    contents = [bytes([65 + n]) * (2 * MEGABYTE) for n in range(6)]
    box.write("/tmp/swap", contents[0])
    stop, seen = threading.Event(), set()

    def read():
        while not stop.is_set():
            data = box.read("/tmp/swap")
            assert len(data) == 2 * MEGABYTE
            seen.add(frozenset(data))

    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(read)
        try:
            for content in contents:
                box.write("/tmp/swap", content)
        finally:
            stop.set()
        reader.result()
    assert all(len(letters) == 1 for letters in seen)


def test_replacing_keeps_the_mode_and_writes_through_links(box):
    box.out("printf old > /tmp/script && chmod 0755 /tmp/script && ln -s /tmp/script /tmp/link")
    box.write("/tmp/script", b"#!/bin/sh\necho new\n")
    assert stat(box, "/tmp/script")["mode"] == "0755" and box.out("/tmp/script") == "new\n"
    box.write("/tmp/link", b"#!/bin/sh\necho linked\n")
    assert box.out("/tmp/script; readlink /tmp/link") == "linked\n/tmp/script\n"


def test_writers_at_once_leave_one_whole_file(box):
    contents = [f"{n}".encode() * 100_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: box.write("/tmp/race", content), contents))
    assert box.read("/tmp/race") in contents
    assert [entry["name"] for entry in listing(box, "/tmp") if "race" in entry["name"]] == ["race"]


# Owners.


def test_what_is_made_in_the_home_belongs_to_the_user(box):
    box.write("/home/sandbox/new/deep/f", b"x")
    assert box.call("POST", "/files/mkdir", params={"path": "/home/sandbox/made/too"}).status_code == 204
    assert box.out("cd ~ && stat -c '%U:%G %a' new new/deep new/deep/f made made/too").splitlines() == [
        "sandbox:sandbox 755",
        "sandbox:sandbox 755",
        "sandbox:sandbox 644",
        "sandbox:sandbox 755",
        "sandbox:sandbox 755",
    ]
    box.out("echo more >> ~/new/deep/f && touch ~/made/too/x")


def test_the_workspace_is_the_user_s_too(box):
    box.write("/workspace/crabbox/f", b"x")
    box.out("cd /workspace/crabbox && echo more >> f && mkdir sub")


def test_what_the_user_could_have_made_belongs_to_the_user(box):
    box.write("/tmp/crabbox-sync-aa.tgz", b"x")
    box.write("/tmp/new/deep/f", b"x")
    box.out("sudo mkdir -m 0777 /srv/open && sudo mkdir -m 0700 /srv/closed && sudo mkdir -m 0777 /srv/closed/inner")
    for folder in ("/srv/open", "/srv/closed/inner", "/opt"):
        box.write(f"{folder}/f", b"x")
    box.out("rm -f /tmp/crabbox-sync-aa.tgz && rm -r /tmp/new && test ! -e /tmp/crabbox-sync-aa.tgz")
    assert box.out("stat -c %U /srv/open/f /opt/f; sudo stat -c %U /srv/closed/inner/f").split() == ["sandbox", "root", "root"]


def test_a_path_as_deep_as_they_come_takes_no_time(box):
    start = time.monotonic()
    path = "/tmp" + "/d" * 1900
    assert box.call("POST", "/files/mkdir", params={"path": path}).status_code == 204
    box.write(f"{path}/e/f", b"x")
    assert time.monotonic() - start < 10
    assert files(box, "DELETE", "/tmp/d").status_code == 204


def test_elsewhere_root_may_write_and_read(box):
    box.write("/opt/tool/f", b"x")
    assert box.out("stat -c %U /opt/tool/f").strip() == "root"
    box.out("sudo sh -c 'echo secret > /root/only && chmod 600 /root/only'")
    assert box.read("/root/only") == b"secret\n"


# Listing, folders, removing.


def test_a_file_can_be_written_with_its_permissions(box):
    stat = lambda path: box.call("GET", "/files/stat", params={"path": path}).json()["mode"]
    put = lambda path, **query: box.call("PUT", "/files", params={"path": path} | query, content=b"#!/bin/sh\necho ran\n")
    assert put("/tmp/m/script", mode="755").status_code == 204
    assert stat("/tmp/m/script") == "0755" and box.out("/tmp/m/script") == "ran\n"
    assert put("/tmp/m/script").status_code == 204
    assert stat("/tmp/m/script") == "0755", "without a mode it keeps its own"
    assert put("/tmp/m/script", mode="0600").status_code == 204
    assert stat("/tmp/m/script") == "0600"
    for mode in ("", "9", "77777", "-1", "u+x", "0x1ff"):
        assert put("/tmp/m/new", mode=mode).status_code == 400, mode
    assert box.call("GET", "/files/stat", params={"path": "/tmp/m/new"}).status_code == 404


def test_listing(box):
    box.out("mkdir -p /tmp/l/sub && cd /tmp/l && printf 12345 > f && : > empty && ln -s /nowhere broken && ln -s sub to-sub && mkfifo pipe")
    found = {entry["name"]: entry for entry in listing(box, "/tmp/l")}
    assert set(found) == {"sub", "f", "empty", "broken", "to-sub", "pipe"}
    assert found["f"] == {"name": "f", "isDir": False, "size": 5, "path": "/tmp/l/f"}
    assert found["sub"]["isDir"] is True and found["sub"]["path"] == "/tmp/l/sub"
    assert found["broken"]["isDir"] is False
    assert listing(box, "/tmp/l/sub") == []
    assert {"bin", "etc", "home", "proc"} <= {entry["name"] for entry in box.call("GET", "/files/list").json()}
    assert box.call("GET", "/files/list", params={"path": "/tmp/l/f"}).status_code == 400
    assert box.call("GET", "/files/list", params={"path": "/tmp/none"}).status_code == 404


def test_relative_paths_are_under_the_home(box):
    box.write("rel/f", b"x")
    assert box.out("cat ~/rel/f") == "x"
    assert [entry["path"] for entry in listing(box, "rel")] == ["/home/sandbox/rel/f"]


def test_folders(box):
    mkdir = lambda path: box.call("POST", "/files/mkdir", params={"path": path}).status_code
    assert mkdir("/tmp/d/e/f") == 204 and mkdir("/tmp/d/e/f") == 204
    box.write("/tmp/file", b"x")
    assert mkdir("/tmp/file") == 400 and mkdir("/tmp/file/under") == 400
    box.out("sudo touch /tmp/d/e/f/x && sudo ln -s /etc /tmp/d/etc")
    assert files(box, "DELETE", "/tmp/d").status_code == 204
    assert files(box, "DELETE", "/tmp/d").status_code == 204, "removing what is not there succeeds"
    box.out("test ! -e /tmp/d && test -e /etc/hostname")


def test_a_move_to_another_file_system_says_what_to_do_and_moves_nothing(box):
    box.write("/tmp/f", b"x")
    answer = box.call("POST", "/files/move", json={"from": "/tmp/f", "to": "/dev/shm/f"})
    assert answer.status_code == 409 and "copy it" in answer.json()["error"]
    assert box.read("/tmp/f") == b"x" and files(box, "HEAD", "/dev/shm/f").status_code == 404


@pytest.mark.parametrize("path", ["/", "/.", "/..", "//"])
def test_the_root_is_not_removed(shared, path):
    assert files(shared, "DELETE", path).status_code in (400, 403)
    shared.out("test -x /bin/sh && test -e /etc/passwd")


def fill(box, folder, names):
    """Makes empty files, quicker than a shell."""
    script = f"import os; os.makedirs({folder!r}, exist_ok=True); os.chdir({folder!r})\nfor n in {names}: os.mknod(f'file-{{n:07}}')"
    box.out(f'python3 -c "{script}"')


def test_a_large_folder_is_listed_whole_and_in_order(box):
    fill(box, "/tmp/many", "range(99_999, -1, -1)")
    found = listing(box, "/tmp/many")
    assert [entry["name"] for entry in found] == [f"file-{n:07}" for n in range(100_000)]
    assert found[-1] == {"name": "file-0099999", "path": "/tmp/many/file-0099999", "isDir": False, "size": 0}


def test_a_folder_that_is_too_large_to_list_says_what_to_do(box):
    fill(box, "/tmp/many", "range(250_000)")
    assert len(listing(box, "/tmp/many")) == 250_000
    fill(box, "/tmp/many", "range(250_000, 250_001)")
    answer = box.call("GET", "/files/list", params={"path": "/tmp/many"})
    assert answer.status_code == 413 and "find" in answer.json()["error"]


# What has no content.


def test_what_is_missing_is_404_and_what_is_no_file_400(box):
    assert files(box, "GET", "/tmp/none").status_code == 404
    assert files(box, "GET", "/tmp").status_code == 400
    assert files(box, "GET", "/etc/hostname/x").status_code in (400, 404)
    assert files(box, "PUT", "/tmp", content=b"x").status_code == 400
    assert files(box, "PUT", "/etc/hostname/x", content=b"x").status_code == 400
    # A slash at the end says that a folder is meant.
    assert files(box, "PUT", "/tmp/slash/", content=b"x").status_code == 400
    assert files(box, "GET", "/etc/hostname/").status_code == 400
    box.out("ln -s /etc/hostname /tmp/to-file && ln -s /etc /tmp/to-folder")
    kind = lambda path, **more: box.call("GET", "/files/stat", params={"path": path} | more).json().get("type")
    assert [kind("/tmp/to-file"), kind("/tmp/to-file", follow="true"), kind("/tmp/to-folder/."), kind("/tmp/to-file/.")] == [
        "symlink",
        "file",
        "directory",
        None,
    ]
    # File systems of the kernel's own have no room, and need none.
    assert files(box, "PUT", "/proc/new", content=b"x").status_code == 403
    assert files(box, "GET", "/proc/1/mem").status_code in (400, 403)


@pytest.mark.parametrize("path", ["/tmp/fifo", "/dev/zero", "/dev/random", "/dev/tty", "/tmp/socket"])
def test_pipes_devices_and_sockets_are_not_files(shared, path):
    shared.out("test -p /tmp/fifo || mkfifo /tmp/fifo; python3 -c 'import socket,os; os.path.exists(\"/tmp/socket\") or socket.socket(socket.AF_UNIX).bind(\"/tmp/socket\")'")
    start = time.monotonic()
    for method, content in (("GET", None), ("PUT", b"x")):
        answer = files(shared, method, path, content=content, timeout=10)
        assert answer.status_code == 400, (method, path, answer.status_code)
    assert time.monotonic() - start < 5
    shared.out("test -p /tmp/fifo && test -c /dev/zero && test -S /tmp/socket")


def test_what_the_kernel_makes_up_can_be_read(shared):
    answer = files(shared, "GET", "/proc/version")
    assert answer.status_code == 400 or b"Linux" in answer.content
    # And what it does not give is no failure of the server.
    assert files(shared, "GET", "/proc/self/mem").status_code == 400


@pytest.mark.parametrize("route", ["/files", "/files/list?path=", "/files/stat", "/files/archive"])
def test_a_path_is_required(shared, route):
    if route == "/files/list?path=":
        assert shared.call("GET", route).status_code in (200, 400)
        return
    answer = shared.call("GET", route)
    assert (answer.status_code, answer.json()["error"]) == (400, "path query parameter is required")
    assert shared.call("PUT", "/files", content=b"x").status_code == 400
    assert shared.call("DELETE", "/files").status_code == 400
    assert shared.call("DELETE", "/files?path=").status_code == 400
    assert shared.call("POST", "/files/mkdir").status_code == 400


def test_dots_and_links_stay_inside(box):
    inside = box.out("cat /etc/hostname")
    for path in ("/../../../../etc/hostname", "/tmp/../etc/./hostname", "../../etc/hostname", "/proc/self/root/etc/hostname", "/proc/1/root/etc/hostname"):
        answer = files(box, "GET", path)
        assert answer.status_code in (400, 403, 404) or answer.text == inside, path
    box.out("ln -s /etc /tmp/etc; ln -s ../../../../../../../../etc/hostname /tmp/up; ln -s loop-b /tmp/loop-a; ln -s loop-a /tmp/loop-b")
    assert files(box, "GET", "/tmp/etc/hostname").text == inside
    assert files(box, "GET", "/tmp/up").text == inside
    for method in ("GET", "PUT"):
        assert files(box, method, "/tmp/loop-a", content=b"x" if method == "PUT" else None).status_code in (400, 404)
    assert stat(box, "/tmp/loop-a")["type"] == "symlink"
    assert files(box, "DELETE", "/tmp/loop-a").status_code == 204
    assert files(box, "DELETE", "/tmp/etc").status_code == 204
    box.out("test -e /etc/hostname")


@pytest.mark.parametrize(
    "path",
    ["a" * 256, "/tmp/" + "a" * 4096, "/tmp" + "/a" * 3000, "/tmp/nul\0byte", "/tmp/" + "é" * 200],
    ids=["name-256", "name-4096", "deep", "nul", "name-utf8"],
)
def test_paths_no_system_takes_are_refused(shared, path):
    for method, content in (("GET", None), ("PUT", b"x"), ("DELETE", None)):
        answer = files(shared, method, path, content=content)
        assert answer.status_code in (400, 404, 414), (method, answer.status_code)
        assert method != "PUT" or answer.status_code != 404
    assert shared.call("POST", "/files/mkdir", params={"path": path}).status_code in (400, 414)


def test_more_than_two_gibibytes_are_refused_at_once(box):
    start = time.monotonic()
    answer = raw_request(
        "PUT", f"{box.path}/files?path=/tmp/huge", {"Content-Length": str(2 * 1024**3 + 1), "Expect": "100-continue"}, b"x" * 1000
    )
    assert answer.status == 413, answer
    check_error(answer.json())
    assert time.monotonic() - start < 5
    assert files(box, "HEAD", "/tmp/huge").status_code == 404


def test_an_upload_nobody_finishes_holds_up_nobody(box):
    with open_socket() as connection:
        connection.sendall(head("PUT", f"{box.path}/files?path=/tmp/slow", {"Content-Length": "100000"}, settings.KEY) + b"x")
        holds_for(lambda: box.out("echo ok") == "ok\n", "commands are answered", 0.5)
        box.write("/tmp/other", b"y")
        assert files(box, "HEAD", "/tmp/slow").status_code == 404


def test_an_answer_nobody_reads_holds_up_nobody(box):
    box.out("head -c 300M /dev/zero > /tmp/big")
    with open_socket() as connection:
        connection.sendall(head("GET", f"{box.path}/files?path=/tmp/big", {}, settings.KEY))
        holds_for(lambda: box.out("echo ok") == "ok\n", "commands are answered", 0.5)


# Additions.


def test_stat_describes_the_path_itself(box):
    box.out("printf 123 > /tmp/s && chmod 640 /tmp/s && ln -s /tmp/s /tmp/sl && mkfifo /tmp/sp")
    view = stat(box, "/tmp/s")
    assert (view["type"], view["size"], view["mode"], view["uid"], view["gid"]) == ("file", 3, "0640", 1000, 1000)
    assert view["path"] == "/tmp/s" and view["modifiedAt"].startswith("20")
    link = stat(box, "/tmp/sl")
    assert (link["type"], link["linkTarget"]) == ("symlink", "/tmp/s")
    assert stat(box, "/tmp")["type"] == "directory" and stat(box, "/tmp/sp")["type"] == "other"
    assert box.call("GET", "/files/stat", params={"path": "/tmp/none"}).status_code == 404


def test_move_and_chmod(box):
    post = lambda route, body: box.call("POST", f"/files/{route}", json=body)
    box.write("/tmp/a", b"a")
    box.write("/tmp/b", b"b")
    assert post("move", {"from": "/tmp/a", "to": "/tmp/b"}).status_code in (200, 204)
    assert box.read("/tmp/b") == b"a" and files(box, "GET", "/tmp/a").status_code == 404
    assert post("move", {"from": "/tmp/none", "to": "/tmp/x"}).status_code == 404
    assert post("move", {"from": "/tmp/b"}).status_code == 400
    assert post("move", {"from": "/tmp", "to": "/tmp/inside"}).status_code == 400
    assert post("chmod", {"path": "/tmp/b", "mode": "0700"}).status_code in (200, 204)
    assert stat(box, "/tmp/b")["mode"] == "0700"
    for mode in ("", "888", "-1", "77777", "rwx", 448, None):
        assert post("chmod", {"path": "/tmp/b", "mode": mode}).status_code == 400, mode
    assert post("chmod", {"path": "/tmp/none", "mode": "0700"}).status_code == 404
    assert stat(box, "/tmp/b")["mode"] == "0700"


def test_a_folder_travels_as_tar(box):
    box.out("mkdir -p /tmp/t/sub && cd /tmp/t && printf x > f && chmod 750 f && ln -s f link && printf é > 'sub/n é' && mkdir empty")
    answer = box.call("GET", "/files/archive", params={"path": "/tmp/t"})
    assert answer.status_code == 200
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        members = {member.name.removeprefix("./").rstrip("/"): member for member in tar if member.name.strip("./")}
        assert set(members) == {"f", "link", "sub", "sub/n é", "empty"}
        assert members["f"].mode & 0o777 == 0o750 and members["link"].linkname == "f"
    answer = box.call("PUT", "/files/archive", params={"path": "/home/sandbox/copy"}, content=answer.content)
    assert answer.status_code == 204, answer.text
    assert box.out("cd ~/copy && cat f 'sub/n é' && readlink link && stat -c %a f && test -d empty && touch mine") == "xéf\n750\n"
    assert box.call("GET", "/files/archive", params={"path": "/tmp/none"}).status_code == 404
    assert box.call("GET", "/files/archive", params={"path": "/etc/hostname"}).status_code in (200, 400)


def hostile_tar(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, 0o4777
            data = b"hostile" if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../../escaped", tarfile.REGTYPE, "")],
        [("/escaped", tarfile.REGTYPE, "")],
        [("out", tarfile.SYMTYPE, "/"), ("out/escaped", tarfile.REGTYPE, "")],
        [("hard", tarfile.LNKTYPE, "/etc/passwd")],
        [("device", tarfile.CHRTYPE, "")],
    ],
    ids=["dots", "absolute", "through-link", "hard-link", "device"],
)
def test_a_hostile_tar_writes_only_below_its_folder(box, members):
    answer = box.call("PUT", "/files/archive", params={"path": "/tmp/target"}, content=hostile_tar(*members))
    assert answer.status_code in (204, 400), answer.text
    box.out("test ! -e /escaped && test ! -e /tmp/escaped && test ! -c /tmp/target/device && ! grep -q hostile /etc/passwd")


@pytest.mark.parametrize("content", [b"this is not a tar", b"", os.urandom(5000)], ids=["text", "empty", "noise"])
def test_what_is_no_tar_is_refused(box, content):
    answer = box.call("PUT", "/files/archive", params={"path": "/tmp/target"}, content=content)
    assert answer.status_code in ((400, 204) if content == b"" else (400,)), answer.text


def test_reading_answers_in_whole_or_breaks_off_visibly(box):
    """A file that shrinks while it is read must not end as if it were complete."""
    box.out("head -c 200M /dev/zero > /tmp/shrink")
    with open_socket(timeout=20) as connection:
        connection.sendall(head("GET", f"{box.path}/files?path=/tmp/shrink", {"Connection": "close"}, settings.KEY))
        connection.recv(1000)
        box.out(": > /tmp/shrink")
        answer = read_answer_rest(connection)
    assert answer < 200 * MEGABYTE
    assert box.out("echo ok") == "ok\n"


def read_answer_rest(connection):
    count = 0
    try:
        while chunk := connection.recv(MEGABYTE):
            count += len(chunk)
    except (ConnectionResetError, TimeoutError):
        pass
    return count


@pytest.mark.containers("an upload goes on when they wake")
def test_nothing_is_left_of_an_upload_that_a_hibernation_cuts_off(box):
    begun, end = threading.Event(), threading.Event()

    def content():
        for _ in range(8):
            yield b"x" * 1_000_000
        begun.set()
        end.wait(30 * settings.PATIENCE)

    def upload(path):
        with contextlib.suppress(httpx.HTTPError):
            box.api.http.put(f"{box.path}/files", params={"path": path}, content=content())

    uploading = threading.Thread(target=upload, args=["/home/sandbox/cut/off"])
    uploading.start()
    assert begun.wait(30 * settings.PATIENCE)
    assert box.call("POST", "/hibernate").status_code == 200
    end.set()
    uploading.join()
    assert box.out("sudo find / -xdev -name '.warren-upload-*' -o -path '*/cut/off'") == ""


def test_a_refusal_reaches_who_has_still_much_to_send(box):
    """Most clients read the answer when they have sent all of it."""

    async def put(path):
        async with httpx.AsyncClient(timeout=settings.patient(30)) as client:
            return await client.put(f"{settings.URL}{path}", params={"path": "/tmp"}, content=bytes(8 * MEGABYTE), headers={"X-API-Key": settings.KEY})

    for path, status in (("/api/sandboxes/sb-00000000/files", 404), (f"{box.path}/files", 400)):
        for _ in range(3):
            answer = asyncio.run(put(path))
            assert answer.status_code == status and answer.json()["error"], answer.text
