"""Images that nobody should send: a clear refusal before anything begins, or an error that names the step; nothing half-made."""

import base64
import json
import uuid

import pytest

from harness.builds import a_name, add_file, build_fails, create, env, manifest, post, run, step
from harness.client import SMALL
from harness.raw import raw_request

TEXT = base64.b64encode(b"x").decode()

#: Refused with 400 before a build begins, with a word that says what is wrong.
WRONG = {
    "image is a number": (7, "image"),
    "image is a list": ([], "image"),
    "steps are no list": ({"base": "base", "steps": {}}, "steps"),
    "a step is no object": ({"base": "base", "steps": ["run"]}, "steps"),
    "a step without a type": (manifest({"args": {}}), "step 0"),
    "an unknown type": (manifest(step("teleport")), "step 0 (teleport): unknown step type"),
    "the second step is wrong": (manifest(run("true"), step("run")), "step 1 (run)"),
    "commands are text": (manifest(step("run", commands="true")), "commands"),
    "a command is a number": (manifest(step("run", commands=[1])), "commands"),
    "packages are text": (manifest(step("apt_install", packages="curl")), "packages"),
    "a package is an option": (manifest(step("apt_install", packages=["--allow-unauthenticated"])), "packages"),
    "a package is an option of pip": (manifest(step("pip_install", packages=["-r", "/etc/passwd"])), "packages"),
    "an empty package": (manifest(step("apt_install", packages=[""])), "packages"),
    "vars are a list": (manifest(step("env", vars=["A=1"])), "vars"),
    "a variable with = in its name": (manifest(env(**{"A=B": "1"})), "A=B"),
    "a variable without a name": (manifest(env(**{"": "1"})), "env"),
    "a variable with NUL": (manifest(env(A="a\0b")), "env"),
    "a variable is a number": (manifest(step("env", vars={"A": 1})), "vars"),
    "a folder that is relative": (manifest(step("workdir", path="srv")), "path"),
    "a folder with dots": (manifest(step("workdir", path="/srv/../etc")), "path"),
    "a file that is relative": (manifest(add_file("a", "x")), "path"),
    "a file with dots": (manifest(add_file("/srv/../../etc/passwd", "x")), "path"),
    "a file with NUL": (manifest(add_file("/srv/a\0b", "x")), "path"),
    "a file that is a folder": (manifest(add_file("/srv/", "x")), "path"),
    "a file that is no base64": (manifest(step("add_file", path="/a", content="%%%", encoding="base64")), "content"),
    "a file in another encoding": (manifest(step("add_file", path="/a", content=TEXT, encoding="rot13")), "encoding"),
    "files that escape": (manifest(step("add_dir", path="/srv", files=[{"relativePath": "../x", "content": TEXT}])), "relativePath"),
    "files that are absolute": (manifest(step("add_dir", path="/srv", files=[{"relativePath": "/x", "content": TEXT}])), "relativePath"),
    "a file twice": (manifest(step("add_dir", path="/srv", files=[{"relativePath": "x", "content": TEXT}] * 2)), "x"),
    "an argument nobody knows": (manifest(step("run", commands=["true"], user="root")), "user"),
    "less memory than none": (manifest(builderMemoryMB=-1), "builderMemoryMB"),
    "too much memory": (manifest(runtimeMemoryMB=1 << 40), "runtimeMemoryMB"),
    "a base with blanks": (manifest(base="node 22"), "base"),
    "a base of nothing": (manifest(base="snapshot:"), ""),
    "a checkpoint that is none": (manifest(base="checkpoint:x"), "checkpoint"),
    "a base that is a command": (manifest(base="$(id)"), ""),
    "a base that is a path": (manifest(base="../../etc"), ""),
    "a base that is a URL": (manifest(base="http://127.0.0.1/x"), ""),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused_before_it_begins(api, what):
    image, says = WRONG[what]
    for path, body in (("/api/sandboxes", SMALL | {"image": image}), ("/api/snapshots", {"name": a_name("bad"), "image": image})):
        outcome = post(api, path, body)
        assert outcome.status == 400 and says in outcome.refusal, (outcome.status, outcome.body, outcome.text)


def test_a_checkpoint_or_snapshot_nobody_has(api):
    for base in ("checkpoint:01234567-89ab-4def-8123-456789abcdef", "snapshot:none-such", "snapshot:none@4"):
        build_fails(api, manifest(base=base), "not found")
    outcome = post(api, "/api/sandboxes", SMALL | {"snapshot": "none-such"})
    said = outcome.error or outcome.refusal
    assert 'snapshot "none-such" not found' in said, said


def test_too_many_steps_and_too_large_manifests_are_413(api):
    for count in (129, 1000):
        outcome = post(api, "/api/snapshots", {"name": a_name(), "image": manifest(*[run("true")] * count)})
        assert outcome.status == 413 and "128" in outcome.refusal, outcome.body
    body = json.dumps({"name": a_name(), "image": manifest(add_file("/srv/big", b"\0" * (49 << 20)))}).encode()
    assert len(body) > 64 << 20
    answer = raw_request("POST", "/api/snapshots", {"Content-Type": "application/json"}, body, timeout=60)
    assert answer is None or answer.status == 413, answer


def test_many_small_steps_are_allowed(api):
    """Those that only change the configuration cost nothing."""
    steps = [env(**{f"V{n}": str(n)}) for n in range(127)]
    with create(api, image=manifest(*steps, run("echo $V0 $V126"))) as box:
        assert box.out("echo $V0 $V64 $V126") == "0 64 126\n"


def test_a_large_file_fits(api):
    with create(api, image=manifest(add_file("/srv/big", b"\xff" * (24 << 20)))) as box:
        assert box.out("wc -c < /srv/big").strip() == str(24 << 20)


def test_bytes_that_are_no_text(api):
    for body in (
        b'{"name": "x", "image": {"base": "base", "steps": [{"type": "run", "args": {"commands": ["\xff\xfe"]}}]}}',
        b'{"name": "x\xc3", "image": {"base": "base", "steps": []}}',
        b'{"name": "x", "image": {"base": "base", "steps": [',
        b"[" * 100_000,
        b"",
    ):
        answer = raw_request("POST", "/api/snapshots", {"Content-Type": "application/json"}, body)
        assert answer and answer.status == 400, answer
    # Half a pair of code units is no text either; in JSON it can be written.
    answer = raw_request("POST", "/api/snapshots", {"Content-Type": "application/json"}, b'{"name": "\\ud800", "image": {"base": "base", "steps": []}}')
    assert answer.status == 400, answer


#: Texts that mean something to a shell, to apt, to pip, to a log.
NASTY = ["'; touch /srv/pwned; '", '"; touch /srv/pwned; "', "$(touch /srv/pwned)", "`touch /srv/pwned`", "a\ntouch /srv/pwned\n", "&& touch /srv/pwned", "\x1b[2J", "a\tb", "é ☃ 𝄞", "%s%n", "\\", "a'b"]


def test_nothing_is_spliced_into_a_shell(api):
    """Quotes, newlines and all in each field that is data."""
    steps = [env(**{f"V{n}": text for n, text in enumerate(NASTY)})]
    steps += [step("workdir", path=f"/srv/w/{text}") for text in NASTY]
    steps += [add_file(f"/srv/f/{text}/{text}", text) for text in NASTY]
    steps.append(step("add_dir", path="/srv/d'\"$(x)", files=[{"relativePath": f"{n}/{text}", "content": base64.b64encode(text.encode()).decode()} for n, text in enumerate(NASTY)]))
    with create(api, image=manifest(*steps)) as box:
        assert box.run("test -e /srv/pwned")["exitCode"] == 1
        for n, text in enumerate(NASTY):
            assert box.out(f'printf %s "$V{n}"') == text
            assert box.read(f"/srv/f/{text}/{text}").decode() == text == box.read(f"/srv/d'\"$(x)/{n}/{text}").decode()
        assert box.out("pwd") == f"/srv/w/{NASTY[-1]}\n"


@pytest.mark.parametrize("kind", ["apt_install", "pip_install"])
def test_packages_are_names_and_nothing_more(api, kind):
    whole = [text for text in NASTY if text.isprintable()]
    for packages in (whole, *([text] for text in NASTY if text not in whole)):
        outcome = build_fails(api, manifest(run("sudo rm -f /srv/pwned"), step(kind, packages=packages)), within=60)
        assert outcome.status == 400 or f"step 1 ({kind}) failed" in outcome.error, (packages, outcome.error)
    with create(api, image=manifest(run("sudo rm -f /srv/pwned"))) as box:
        assert box.run("test -e /srv/pwned")["exitCode"] == 1


def test_a_package_that_does_not_exist(api):
    mark = f"none-such-{uuid.uuid4().hex[:6]}"
    outcome = build_fails(api, manifest(step("apt_install", packages=[mark])), "step 0 (apt_install) failed (exit 100)")
    assert mark in outcome.error, outcome.error


def test_the_key_is_asked_for_first(anonymous):
    for method, path in (("POST", "/api/snapshots"), ("GET", "/api/snapshots"), ("GET", "/api/images"), ("GET", "/api/images/usage"), ("POST", "/api/images/archive"), ("GET", "/api/templates")):
        assert anonymous.call(method, path).status_code == 401, path
