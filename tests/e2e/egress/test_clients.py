"""Programs as they are, inside a sandbox, through the gateway, with a secret where their password or key goes.

None of them is told about the gateway: they read the variables every sandbox with secrets has, or trust what the system
trusts.
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import uuid
import zipfile
from pathlib import Path

import pytest

from egress.conftest import Store, blocked, prepared

HOSTS = ["api.test.example", "git.test.example", "pypi.test.example", "npm.test.example"]
LIST = {"mode": "allowlist", "allow": [{"host": host} for host in HOSTS]}
SECURE = "https://api.test.example/secure"


@pytest.fixture(scope="module")
def value(net):
    made = "client" + uuid.uuid4().hex
    net.settings(credential=made)
    return made


@pytest.fixture(scope="module")
def store(api, value):
    made = Store(api)
    made.set("API_KEY", value, HOSTS)
    return made


@pytest.fixture(scope="module")
def box(api, store):
    with prepared(api.create(egress=LIST, secretStore=store.name, memoryMB=4096)) as made:
        made.token = made.out("echo $API_KEY").strip()
        yield made


def used(net, value, since):
    """Whether the servers got the value since then."""
    return [each for each in net.records(since) if value in json.dumps(each)]


def let_in(box, command, **options):
    result = box.run(command, **options)
    assert result["exitCode"] == 0 and "let in" in result["stdout"], result


@pytest.mark.parametrize("how", ["", "--http1.1", "--http2", "--noproxy '*'", "--http1.1 --noproxy '*'", "--tlsv1.2 --tls-max 1.2"])
def test_curl(box, how):
    let_in(box, f"curl -sSf {how} -H \"Authorization: Bearer $API_KEY\" {SECURE}")
    let_in(box, f"curl -sSf {how} -u me:$API_KEY {SECURE}")
    assert box.run(f"curl -sSf {how} -H 'Authorization: Bearer wrong' {SECURE}")["exitCode"] == 22


def test_curl_without_any_variable(box):
    let_in(box, f"env -i curl -sSf -H 'Authorization: Bearer {box.token}' {SECURE}")


def test_wget(box):
    let_in(box, f"wget -qO- --header \"Authorization: Bearer $API_KEY\" {SECURE}")
    let_in(box, f"env -i /usr/bin/wget -qO- --header 'Authorization: Bearer {box.token}' {SECURE}")


def test_openssl_trusts_it(box):
    for more in ("", "-CApath /etc/ssl/certs", "-CAfile /etc/ssl/certs/ca-certificates.crt"):
        said = box.out(f"env -i openssl s_client -connect api.test.example:443 -servername api.test.example -verify_return_error -brief {more} </dev/null 2>&1")
        assert "Verification: OK" in said, said


# --- git


@pytest.fixture(scope="module")
def repository(net):
    bare, work = net.folder / "git" / "repo.git", net.folder / "work"
    git = lambda *words: subprocess.run(["git", "-c", "user.name=e2e", "-c", "user.email=e2e@test.example", "-c", "init.defaultBranch=main", *words], check=True, capture_output=True, timeout=30)
    git("init", "--bare", str(bare))
    git("clone", str(bare), str(work))
    (work / "hello.txt").write_text("hello from the repository\n")
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "-m", "first")
    git("-C", str(work), "push", "origin", "HEAD:main")
    return bare


def test_git(net, box, value, repository):
    since = net.now()
    setup = "export HOME=$(mktemp -d); cd $HOME; git config --global user.name a; git config --global user.email a@b; git config --global init.defaultBranch main; "
    url = "https://me:$API_KEY@git.test.example/git/repo.git"
    script = setup + f"""
set -e
git clone -q {url} one && cat one/hello.txt
cd one && head -c 3000000 /dev/urandom > big && git add big && git commit -qm second && git push -q origin HEAD:main
cd .. && git clone -q --depth 1 {url} two && cmp one/big two/big && echo pushed
git -c credential.helper='!f() {{ echo username=me; echo password=$API_KEY; }}; f' ls-remote https://git.test.example/git/repo.git | head -1
grep -c osb_sealed_ one/.git/config
"""
    result = box.run(script)
    assert result["exitCode"] == 0, result
    lines = result["stdout"].splitlines()
    assert lines[0] == "hello from the repository" and "pushed" in lines and lines[-1] == "1", lines
    log = subprocess.run(["git", "-C", str(repository), "log", "--format=%s", "main"], capture_output=True, text=True, check=True).stdout.split()
    assert log == ["second", "first"]
    assert any(each.get("path", "").startswith("/git/repo.git/git-receive-pack") for each in net.records(since))


def test_git_is_refused_with_another_password(box, repository):
    result = box.run("cd /tmp && GIT_TERMINAL_PROMPT=0 git clone -q https://me:wrong@git.test.example/git/repo.git refused")
    assert result["exitCode"] != 0


# --- pip and npm


def wheel(folder, name, version, text):
    """The smallest package there is."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: e2e\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},," + "\n" for file in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, content)
    return path


@pytest.fixture(scope="module")
def index(net):
    """An index of Python packages behind a password: ours, and requests and httpx when this host can get them."""
    files = net.folder / "private" / "files"
    files.mkdir(parents=True)
    wheel(files, "greeter", "1.0", "def greet():\n    return 'hello from the package'\n")
    download = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", str(files), "--only-binary", ":all:", "--platform", "any", "--implementation", "py", "--python-version", "3.13", "requests", "httpx[http2]"]
    got = subprocess.run(download, capture_output=True, text=True, timeout=90, check=False)
    packages = {}
    for file in files.iterdir():
        packages.setdefault(file.name.split("-")[0].lower().replace("_", "-"), []).append(file.name)
    simple = net.folder / "private" / "simple"
    for name, found in packages.items():
        (simple / name).mkdir(parents=True)
        links = "".join(f'<a href="/private/files/{each}#sha256={hashlib.sha256((files / each).read_bytes()).hexdigest()}">{each}</a>' for each in found)
        (simple / name / "index.html").write_text(f"<!doctype html><html><body>{links}</body></html>")
    return {"packages": packages, "why": got.stderr[-300:]}


PIP = "pip install -q --no-cache-dir --disable-pip-version-check --index-url https://me:$API_KEY@pypi.test.example/private/simple/"


def test_pip(net, box, value, index):
    since = net.now()
    result = box.run(f"python3 -m venv /tmp/v && /tmp/v/bin/{PIP} greeter && /tmp/v/bin/python -c 'import greeter; print(greeter.greet())'", timeout=90)
    assert result["exitCode"] == 0 and "hello from the package" in result["stdout"], result
    assert any("/private/files/greeter" in each.get("path", "") for each in net.records(since))


@pytest.fixture(scope="module")
def clients(box, index):
    missing = {"requests", "httpx"} - set(index["packages"])
    if missing:
        pytest.skip(f"this host could not get {missing}: {index['why']}")
    result = box.run(f"python3 -m venv /tmp/c && /tmp/c/bin/{PIP} requests 'httpx[http2]'", timeout=90)
    assert result["exitCode"] == 0, result
    return "/tmp/c/bin/python"


def test_requests(box, clients):
    program = f"import os, requests; s = requests.Session(); r = s.get({SECURE!r}, headers={{'Authorization': 'Bearer ' + os.environ['API_KEY']}}); print(r.status_code, r.text); print(s.get({SECURE!r}, auth=('me', os.environ['API_KEY'])).text)"
    box.write("/tmp/with_requests.py", program.encode())
    let_in(box, f"{clients} /tmp/with_requests.py")


@pytest.mark.parametrize("http2", [False, True])
def test_httpx(box, clients, http2):
    program = f"import os, httpx\nwith httpx.Client(http2={http2}) as c:\n r = c.get({SECURE!r}, headers={{'Authorization': 'Bearer ' + os.environ['API_KEY']}}); print(r.http_version, r.text)"
    box.write("/tmp/with_httpx.py", program.encode())
    let_in(box, f"{clients} /tmp/with_httpx.py")


def test_urllib(box):
    program = f"import os, urllib.request as u\nq = u.Request({SECURE!r}, headers={{'Authorization': 'Bearer ' + os.environ['API_KEY']}})\nprint(u.urlopen(q).read().decode())\nprint(u.build_opener(u.ProxyHandler({{}})).open(q).read().decode())"
    box.write("/tmp/with_urllib.py", program.encode())
    let_in(box, "python3 /tmp/with_urllib.py")


def test_npm(net, box, value):
    package = {"name": "greeter", "version": "1.0.0", "main": "index.js"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("package/package.json", json.dumps(package)), ("package/index.js", "module.exports = () => 'hello from the package';\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    files = net.folder / "private" / "npm" / "-"
    files.mkdir(parents=True)
    (files / "greeter-1.0.0.tgz").write_bytes(packed.getvalue())
    dist = {"tarball": "https://npm.test.example/private/npm/-/greeter-1.0.0.tgz", "shasum": hashlib.sha1(packed.getvalue()).hexdigest()}
    told = {"name": "greeter", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": package | {"dist": dist}}}
    (files.parent / "greeter").write_text(json.dumps(told))
    since = net.now()
    rc = "registry=https://npm.test.example/private/npm/\n//npm.test.example/private/npm/:_authToken=${API_KEY}\naudit=false\nfund=false\nupdate-notifier=false\n"
    box.out("mkdir -p /tmp/n")
    box.write("/tmp/n/.npmrc", rc.encode())
    result = box.run("cd /tmp/n && npm init -y >/dev/null && npm install --no-progress greeter && node -e 'console.log(require(\"greeter\")())'", timeout=90)
    assert result["exitCode"] == 0 and "hello from the package" in result["stdout"], result
    assert any("greeter-1.0.0.tgz" in each.get("path", "") for each in net.records(since))


@pytest.fixture(scope="module")
def cargo(box):
    """The host's cargo, in the sandbox, with what it needs to know of a compiler."""
    found = shutil.which("rustup") and subprocess.run(["rustup", "which", "cargo"], capture_output=True, text=True, check=False).stdout.strip()
    program = found or shutil.which("cargo")
    if not program:
        pytest.skip("this host has no cargo")
    box.write("/tmp/cargo", Path(program).read_bytes())
    compiler = "rustc 1.85.0 (0000000 2025-01-01)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.85.0\nLLVM version: 19.1.0\n"
    box.write("/tmp/rustc", f"#!/bin/sh\nprintf '%s' '{compiler}'\n".encode())
    box.out("chmod 755 /tmp/cargo /tmp/rustc")
    if box.run("/tmp/cargo --version")["exitCode"] != 0:
        pytest.skip("this host's cargo does not run in a sandbox")
    return "RUSTC=/tmp/rustc CARGO_HOME=/tmp/cargo-home /tmp/cargo"


def test_cargo(net, box, cargo):
    """A sparse registry that asks for a token."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("Cargo.toml", '[package]\nname = "greeter"\nversion = "1.0.0"\nedition = "2021"\n'), ("src/lib.rs", "// hello from the crate\n")):
            member = tarfile.TarInfo(f"greeter-1.0.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    files = net.folder / "private" / "crates"
    (files / "gr" / "ee").mkdir(parents=True)
    (files / "greeter-1.0.0.crate").write_bytes(packed.getvalue())
    told = {"name": "greeter", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False, "cksum": hashlib.sha256(packed.getvalue()).hexdigest()}
    (files / "gr" / "ee" / "greeter").write_text(json.dumps(told) + "\n")
    (files / "config.json").write_text(json.dumps({"dl": "https://npm.test.example/private/crates/{crate}-{version}.crate", "auth-required": True}))
    box.write("/tmp/crate/Cargo.toml", b'[package]\nname = "client"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\ngreeter = { version = "1", registry = "mine" }\n')
    box.write("/tmp/crate/src/lib.rs", b"")
    box.write("/tmp/crate/.cargo/config.toml", b'[registries.mine]\nindex = "sparse+https://npm.test.example/private/crates/"\n[registry]\nglobal-credential-providers = ["cargo:token"]\n')
    since = net.now()
    result = box.run(f"cd /tmp/crate && export CARGO_REGISTRIES_MINE_TOKEN=$API_KEY && {cargo} vendor -q && cat vendor/greeter/src/lib.rs", timeout=60)
    assert result["exitCode"] == 0 and "hello from the crate" in result["stdout"], result
    assert any("greeter-1.0.0.crate" in each.get("path", "") for each in net.records(since))


def test_refusals_are_shown_by_clients(net, box, cargo):
    """Through the proxy and without it."""
    reason = "host not in allowlist"
    for way in ("", "--http1.1", "--http2", f"--noproxy '*' --connect-to ::{net.evil}:443"):
        result = box.run(f"curl -sS {way} https://evil.example/x")
        told = json.loads(result["stdout"])
        assert told["host"] == "evil.example" and told["rule"] == "allowlist" and reason in told["error"], result
    shown = {
        "git": "git clone https://evil.example/x.git /tmp/refused",
        "pip": "pip download --no-cache-dir --disable-pip-version-check -d /tmp/refused --no-deps https://evil.example/x-1.0-py3-none-any.whl",
        "npm": "cd /tmp && npm view --no-update-notifier --registry https://evil.example/ greeter",
        "cargo": f"{cargo} search --registry evil x",
        "urllib": "python3 -c 'import urllib.request as u; u.urlopen(\"https://evil.example/\")'",
        "wget": "wget -S -O- https://evil.example/",
    }
    environment = "CARGO_REGISTRIES_EVIL_INDEX=sparse+https://evil.example/ GIT_TERMINAL_PROMPT=0"
    for name, command in shown.items():
        result = box.run(f"export {environment}; {command}", timeout=60)
        assert result["exitCode"] != 0 and reason in result["stdout"] + result["stderr"], (name, result)


NODE = """
import https from "node:https";
import http2 from "node:http2";
const headers = { authorization: "Bearer " + process.env.API_KEY };
const url = "https://api.test.example/secure";
const said = [];
said.push(await (await fetch(url, { headers })).text());
said.push(await new Promise((done, fail) => https.get(url, { headers }, (r) => { let t = ""; r.on("data", (d) => (t += d)); r.on("end", () => done(t)); }).on("error", fail)));
const session = http2.connect("https://api.test.example");
said.push(await new Promise((done, fail) => { session.on("error", fail); const s = session.request({ ":path": "/secure", ...headers }); let t = ""; s.on("data", (d) => (t += d)); s.on("end", () => done(t)); s.end(); }));
session.close();
const post = await fetch("https://api.test.example/sink", { method: "POST", headers, body: "x".repeat(100000) });
said.push(String((await post.json()).bytes));
console.log(said.join("|"));
"""


def test_node(box):
    box.write("/tmp/client.mjs", NODE.encode())
    assert box.out("node /tmp/client.mjs").strip() == "let in|let in|let in|100000"


def test_all_of_them_only_ever_held_the_token(net, box, value):
    """After everything above: the value is in no file of the sandbox, and the servers had it."""
    assert used(net, value, 0)
    hidden = "".join(f"\\x{ord(letter):02x}" for letter in value)
    result = box.run(f"sudo -n grep -rlaP '{hidden}' /home /tmp /root /var /run /etc /dev/shm 2>/dev/null")
    assert result["stdout"] == "", result
    assert not [each for each in blocked(box) if each["host"] in HOSTS], blocked(box)


# --- what has to be installed first


@pytest.fixture
def online(request, net, api, store):
    """A sandbox that reaches the real internet too, with the secret."""
    if not request.config.getoption("--long"):
        pytest.skip("it has to be installed first, from the internet; --long does that")
    from harness.names import ask_host

    net.names.elsewhere = ask_host
    with prepared(api.create(secretStore=store.name, memoryMB=4096)) as made:
        yield made
    net.names.elsewhere = None


def install(box, command):
    result = box.run(command, timeout=400)
    if result["exitCode"] != 0:
        pytest.skip(f"could not be installed here: {(result['stderr'] or result['stdout'])[-200:]}")


def apt_install(box, package):
    """What the machine's sources do not have cannot be tried; what they have installs."""
    found = box.run(f"sudo -n apt-get update -qq && apt-cache show {package}", timeout=120)
    if found["exitCode"] != 0:
        pytest.skip(f"there is no {package} to install: {found['stderr'][-200:]}")
    command = f"sudo -n env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends {package}"
    result = box.run(command, timeout=400)
    assert result["exitCode"] == 0, (result["stdout"] + result["stderr"])[-2000:]


JAVA = """
import java.net.URI; import java.net.http.*;
public class Client { public static void main(String[] a) throws Exception {
  var request = HttpRequest.newBuilder(URI.create("https://api.test.example/secure")).header("Authorization", "Bearer " + System.getenv("API_KEY")).build();
  System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body()); } }
"""
GO = """
package main
import ("fmt"; "io"; "net/http"; "os")
func main() { q, _ := http.NewRequest("GET", "https://api.test.example/secure", nil); q.Header.Set("Authorization", "Bearer "+os.Getenv("API_KEY"))
  r, err := http.DefaultClient.Do(q); if err != nil { panic(err) }; b, _ := io.ReadAll(r.Body); fmt.Println(string(b), r.Proto) }
"""


@pytest.mark.timeout(600)
def test_java(online):
    apt_install(online, "default-jdk-headless")
    online.write("/tmp/Client.java", JAVA.encode())
    let_in(online, "cd /tmp && java Client.java", timeout=120)


@pytest.mark.timeout(600)
def test_go(online):
    apt_install(online, "golang-go")
    online.write("/tmp/client.go", GO.encode())
    let_in(online, "cd /tmp && go run client.go", timeout=200)


@pytest.mark.timeout(600)
def test_deno(online):
    install(online, "cd /tmp && npm install --no-progress --no-audit deno")
    program = "const r = await fetch('https://api.test.example/secure', {headers: {Authorization: 'Bearer ' + Deno.env.get('API_KEY')}}); console.log(await r.text())"
    online.write("/tmp/client.ts", program.encode())
    let_in(online, "cd /tmp && npx deno run --allow-all client.ts", timeout=120)


@pytest.mark.timeout(600)
def test_cargo_from_the_internet(online):
    apt_install(online, "cargo")
    result = online.run("cd /tmp && cargo new -q client && cd client && cargo add -q itoa && cargo fetch -q && echo fetched", timeout=200)
    assert "fetched" in result["stdout"], result
