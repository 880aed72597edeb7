"""Previews and signed URLs in a real browser."""

import os
import time
from pathlib import Path

import pytest

from harness import settings
from harness.browser import Chromium, find_chromium
from harness.tls import TlsServer, make_certificate
from harness.waiting import wait_for

DEV_SERVER = Path(__file__).parent.parent / "harness/dev_server.py"
PAGE = """<!doctype html><title>Site</title><style>body{{font:20px sans-serif;margin:2em}}</style>
<main><h1>{title}</h1><p>Served from inside a sandbox.</p></main>"""

pytestmark = pytest.mark.skipif(not find_chromium(), reason="no Chromium; on Debian: apt-get install chromium-headless-shell")


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        yield chromium


def serve_site(box, title):
    box.write("/home/sandbox/site/index.html", PAGE.format(title=title).encode())
    box.write("/home/sandbox/dev_server.py", DEV_SERVER.read_bytes())
    box.start("python3", "/home/sandbox/dev_server.py", "5173")


def url_of(box, port=5173):
    return f"http://{box.id}-p{port}.{box.created['sandboxDomain']}/"


def shot(browser, name):
    """Kept when somebody wants to look."""
    if folder := os.environ.get("WARREN_SCREENSHOTS"):
        browser.screenshot(f"{folder}/{name}.png")


def test_an_edit_shows_in_the_open_page_over_its_websocket(api, browser):
    with api.create() as box:
        # Nothing listens yet: the page that says so looks again by itself.
        browser.open(url_of(box))
        assert "Nothing is listening" in browser.evaluate("document.title")
        shot(browser, "nothing")
        serve_site(box, "First")
        browser.until("document.querySelector('h1')?.innerText === 'First'", "the page opens by itself", 30)
        browser.until("document.body.dataset.socket === 'open'", "its WebSocket is open")
        browser.evaluate("window.mark = 42")
        box.write("/home/sandbox/site/index.html", PAGE.format(title="Second").encode())
        begun = time.monotonic()
        browser.until("document.querySelector('h1').innerText === 'Second'", "the edit shows")
        print(f"an edit shows after {(time.monotonic() - begun) * 1000:.0f} ms")
        assert browser.evaluate("window.mark") == 42 and browser.evaluate("window.replaced") == 1, "without a reload"
        shot(browser, "second")
        cookie = next(each for each in browser.cookies() if each["name"] == "own")
        assert cookie["domain"] == f"{box.id}-p5173.localhost", "a program sets cookies for its own host alone"
        # The page of one preview cannot use another with what the browser knows of it, nor read the API.
        assert browser.evaluate(f"fetch('{api.url}/api/sandboxes').then(answer => answer.status)") == 401


def test_a_shared_link_opens_a_private_preview(api, browser):
    with api.create(previewAuth={}) as box:
        serve_site(box, "Private")
        wait_for(lambda: box.run("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 5173))'")["exitCode"] == 0, "it listens", 15)
        browser.open(url_of(box))
        assert "private" in browser.evaluate("document.body.innerText")
        link = box.call("POST", "/preview/5173/share", json={}).json()["url"]
        browser.open(link)
        assert browser.evaluate("document.querySelector('h1').innerText") == "Private"
        assert browser.evaluate("location.href") == url_of(box), "the address is clean"
        browser.until("document.body.dataset.socket === 'open'", "its WebSocket opens with the cookie")
        assert "warren" not in browser.evaluate("document.cookie"), "scripts do not see the cookie"
        browser.open(url_of(box))
        assert browser.evaluate("document.querySelector('h1').innerText") == "Private", "the cookie stays"
        shot(browser, "private")

        # A page of another preview, which is the same site to a browser, gets nothing with that cookie.
        with api.create() as other:
            serve_site(other, "Other")
            browser.open(url_of(other))
            browser.until("document.querySelector('h1')?.innerText === 'Other'", "the other page opens", 30)
            socket = f"new WebSocket('{url_of(box).replace('http', 'ws', 1)}__reload')"
            opened = f"new Promise(done => {{ const s = {socket}; s.onopen = () => done('open'); s.onerror = () => done('refused') }})"
            assert browser.evaluate(opened) == "refused"
            read = f"fetch('{url_of(box)}', {{credentials: 'include'}}).then(answer => answer.text(), () => 'refused')"
            assert browser.evaluate(read) == "refused"

        box.call("POST", "/preview/rotate")
        browser.open(url_of(box))
        assert "private" in browser.evaluate("document.body.innerText"), "rotating takes the cookie back"


def test_a_page_reads_and_writes_files_with_signed_urls(api, browser):
    with api.create() as box:
        serve_site(box, "Files")
        browser.open(url_of(box))
        browser.until("document.querySelector('h1')?.innerText === 'Files'", "the page opens", 30)
        upload = box.call("POST", "/files/upload-url", json={"path": "/tmp/sent"}).json()["url"]
        download = box.call("POST", "/files/download-url", json={"path": "/tmp/sent"}).json()["url"]
        sent = f"fetch('{upload}', {{method: 'PUT', headers: {{'Content-Type': 'text/plain'}}, body: 'from the page'}}).then(answer => answer.status)"
        assert browser.evaluate(sent) == 204
        assert box.read("/tmp/sent") == b"from the page"
        assert browser.evaluate(f"fetch('{download}').then(answer => answer.text())") == "from the page"


def test_previews_over_tls(tmp_path):
    """HTTP/2, and the WebSocket in a stream of it."""
    if not settings.PROGRAM:
        pytest.skip("starts a server of its own")
    make_certificate(tmp_path, "tls")
    with TlsServer(tmp_path) as server, Chromium("--ignore-certificate-errors") as chromium:
        with server.api().create(previewAuth={}) as box:
            serve_site(box, "First")
            link = box.call("POST", "/preview/5173/share").json()["url"]
            chromium.open(link)
            chromium.until("document.querySelector('h1')?.innerText === 'First'", "the page opens", 30)
            assert chromium.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
            cookie = next(each for each in chromium.cookies() if each["name"].startswith("__Host-"))
            assert cookie["secure"] and cookie["httpOnly"] and cookie["sameSite"] == "Lax"
            chromium.until("document.body.dataset.socket === 'open'", "its WebSocket is open")
            box.write("/home/sandbox/site/index.html", PAGE.format(title="Second").encode())
            chromium.until("document.querySelector('h1').innerText === 'Second'", "the edit shows")


def test_a_sleeping_sandbox_wakes_for_a_browser(api, browser):
    start = ["exec python3 /home/sandbox/dev_server.py 5173"]
    with api.create(startCommands=start) as box:
        serve_site(box, "Awake")
        browser.open(url_of(box))
        browser.until("document.querySelector('h1')?.innerText === 'Awake'", "the page opens", 30)
        browser.open("about:blank")
        assert box.call("POST", "/hibernate").status_code == 200
        browser.open(url_of(box))
        browser.until("document.querySelector('h1')?.innerText === 'Awake'", "the page opens again", 60)
        assert box.status() == "running"
