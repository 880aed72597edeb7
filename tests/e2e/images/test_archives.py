"""Images that are brought as archives: OCI layouts and what `docker save` writes, over the API and by `warren build`."""

import os
import signal
import subprocess
import uuid

import pytest

from harness import agents, host, oci, rootfs, settings
from harness.builds import EVENTS, a_name, path_of, post
from harness.client import Box, marker
from harness.waiting import wait_for

from .test_registries import image, own

TAR = {"Content-Type": "application/x-tar"}


def bring(api, archive, name=None, headers=EVENTS, **query):
    name = name or a_name("tar")
    return name, post(api, "/api/images/archive", headers=headers | TAR, params={"name": name} | query, content=archive)


def made_from(api, name):
    answer = api.post("/api/sandboxes", json={"snapshot": name, "memoryMB": 1024}, timeout=60)
    assert answer.status_code == 201, answer.text
    return Box(api, answer.json())


def marked(text, **config):
    return image(own(oci.entry("data/v", text)), **config)


@pytest.mark.parametrize("kind", ["archive", "docker_archive"])
def test_both_kinds(api, kind):
    made = marked(kind, User="app", Env=["A=1"])
    name, outcome = bring(api, getattr(made, kind)())
    assert outcome.result and (outcome.result["name"], outcome.result["version"], outcome.result["status"]) == (name, 1, "ready"), outcome.body[-1000:]
    with made_from(api, name) as box:
        assert box.out("cat /data/v; id -u; echo $A") == f"{kind}1234\n1\n"
    # Again it is the same image, and another version only when asked for.
    assert bring(api, getattr(made, kind)(), name)[1].status == 409
    again = bring(api, getattr(made, kind)(), name, newVersion="true")[1]
    assert again.result["version"] == 2 and again.result["contentHash"] == outcome.result["contentHash"]
    answer = api.post("/api/images/archive", params={"name": name, "newVersion": "true"}, content=getattr(marked("other"), kind)(), headers=TAR, timeout=60)
    assert answer.status_code == 201 and answer.json()["version"] == 3, answer.text
    with made_from(api, f"{name}@3") as three, made_from(api, f"{name}@1") as one:
        assert (three.out("cat /data/v"), one.out("cat /data/v")) == ("other", kind)
    assert api.delete(path_of(name)).status_code == 204


def test_an_agent_session_in_an_image_without_node_says_so(api):
    """Also where the image's PATH does not lead to where the server puts programs."""
    name, outcome = bring(api, image(own(), Env=["PATH=/bin"]).archive())
    assert outcome.result, outcome.body
    with made_from(api, name) as box, agents.session(box, prompt="Hello.") as session:
        assert "there is no node in this sandbox" in session.until("error")["message"]
        assert session.finish() == 1
        assert agents.listed(box, session.id)["exitCode"] == 1
    assert api.delete(path_of(name)).status_code == 204


def test_an_archive_is_a_base(api):
    name, outcome = bring(api, marked("base").archive(names=()))
    assert outcome.result, outcome.body
    answer = api.post("/api/sandboxes", json={"image": {"base": f"snapshot:{name}", "steps": [{"type": "run", "args": {"commands": ["cat /data/v > /data/w"]}}]}, "memoryMB": 1024}, timeout=60)
    with Box(api, answer.json()) as box:
        assert box.out("cat /data/w") == "base"
    api.delete(path_of(name))


BROKEN = {
    "nothing": b"",
    "no tar": b"this is no archive" * 1000,
    "an empty tar": b"\0" * 10240,
    "neither kind": oci.packed({"hello": b"x"}),
    "an index of nothing": oci.packed({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": b'{"schemaVersion": 2, "manifests": []}'}),
    "an index that is no JSON": oci.packed({"oci-layout": b"{}", "index.json": b"\xff{"}),
    "a manifest that is not there": oci.packed({k: v for k, v in oci.Image([oci.entry("f", "x")]).layout().items() if k in ("index.json", "oci-layout")}),
    "docker's list of nothing": oci.packed({"manifest.json": b"[]"}),
    "docker's names that escape": oci.packed({"manifest.json": b'[{"Config": "../../etc/passwd", "Layers": ["../../../etc/passwd"]}]'}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_archive(api, what):
    name, outcome = bring(api, BROKEN[what])
    assert (outcome.error or outcome.refusal), outcome.result
    assert api.get(path_of(name)).status_code == 404 or api.get(path_of(name)).json()["status"] == "failed"


def test_cut_off_archives(api):
    whole = marked("cut").archive()
    for part in (100, 5000, len(whole) // 2, len(whole) - 40_000):
        outcome = bring(api, whole[:part])[1]
        assert outcome.error or outcome.refusal, f"{part} of {len(whole)} bytes were taken for the whole"


def test_a_blob_that_is_not_its_digest(api):
    files = marked("digest").layout()
    path = max((name for name in files if name.startswith("blobs/")), key=lambda name: len(files[name]))
    files[path] = files[path][:-30] + bytes(30)
    outcome = bring(api, oci.packed(files))[1]
    assert outcome.error or outcome.refusal, outcome.result
    lies = oci.Image(rootfs.layer(), own(), diff_ids=[oci.digest_of(b"a"), oci.digest_of(b"b")])
    outcome = bring(api, lies.archive())[1]
    assert outcome.error or outcome.refusal, outcome.result


def test_names_are_checked(api):
    archive = oci.Image(own()).archive()
    for query in ({"name": "a/b"}, {"name": "a@1"}, {"name": "x", "isolation": "nonsense"}):
        answer = api.post("/api/images/archive", params=query, content=archive, headers=TAR, timeout=60)
        assert answer.status_code == 400, (query, answer.text)
    # Without one it is an image like those of creates.
    answer = api.post("/api/images/archive", content=archive, headers=TAR, timeout=60)
    assert answer.status_code == 201 and "name" not in answer.json(), answer.text
    assert api.delete(f"/api/images/{answer.json()['id']}").status_code == 204


# --- the program


class Program:
    def __init__(self, server, folder):
        self.folder = folder
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OPENCOMPUTER_API_URL": server.url, "OPENCOMPUTER_API_KEY": server.key}

    def run(self, *words, **options):
        return subprocess.run([settings.PROGRAM, *words], env=self.environment, cwd=self.folder, capture_output=True, timeout=90, check=False, **options)

    def must(self, *words, **options):
        done = self.run(*words, **options)
        assert done.returncode == 0, (words, done)
        return done.stdout.decode().strip(), done.stderr.decode()


@pytest.fixture
def program(server, tmp_path):
    return Program(server, tmp_path)


def test_build_from_everything(api, program, open_registry):
    name = a_name("cli")
    (program.folder / "image.tar").write_bytes(marked("docker").docker_archive())
    for path, data in marked("layout").layout().items():
        place = program.folder / "layout" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    (program.folder / "image.json").write_text('{"base": "base", "steps": [{"type": "run", "args": {"commands": ["sudo mkdir /data; echo manifest | sudo tee /data/v"]}}]}')
    reference = marked("registry").push(open_registry, "team/cli", "1")
    piped = marked("piped").archive()
    builds = [
        (["build", "image.tar"], None, "docker"), (["build", "layout"], None, "layout"), (["build", "image.json"], None, "manifest"),
        (["build", reference], None, "registry"), (["build", "/dev/stdin"], piped, "piped"),
    ]  # fmt: skip
    for version, (words, given, says) in enumerate(builds, 1):
        printed, told = program.must(*words, "--name", name, input=given)
        assert printed == f"{name}@{version}", (printed, told)
        box = program.must("create", "--snapshot", printed, "--memory", "1024")[0]
        assert program.must("exec", box, "--", "cat", "/data/v")[0] == says
        program.must("kill", box)
    listed = program.must("snapshots", "ls")[0]
    assert name in listed
    assert program.must("snapshots", "get", f"{name}@2")[0]
    assert "GiB" in program.must("images", "usage")[0] and program.must("templates", "ls")[0].startswith("TEMPLATE")
    program.must("snapshots", "rm", name)
    box = program.must("create", "--image", reference, "--memory", "1024")[0]
    assert program.must("exec", box, "--", "cat", "/data/v")[0] == "registry"
    program.must("kill", box)


def test_a_failed_build_and_a_login(program, closed_registry):
    (program.folder / "image.json").write_text('{"steps": [{"type": "run", "args": {"commands": ["echo before; echo why >&2; exit 3"]}}]}')
    done = program.run("build", "image.json", "--name", a_name())
    assert done.returncode == 1 and b"step 0 (run) failed (exit 3): why" in done.stderr and b"before" in done.stderr, done
    reference = marked("closed").push(closed_registry, "team/cli-closed", "1")
    name = a_name()
    assert program.run("build", reference, "--name", name).returncode == 3, "refused before anything was built"
    user, password = closed_registry.auth
    program.must("build", reference, "--name", name, "--registry-user", user, "--registry-password-stdin", input=f"{password}\n".encode())
    program.must("snapshots", "rm", name)


def test_an_interrupt_cancels(api, program):
    mark, name = marker(), a_name()
    (program.folder / "image.json").write_text(f'{{"steps": [{{"type": "run", "args": {{"commands": ["sleep {mark} # {uuid.uuid4()}"]}}}}]}}')
    running = subprocess.Popen([settings.PROGRAM, "build", "image.json", "--name", name], env=program.environment, cwd=program.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: host.find_process("sleep", mark), "the step runs", 20)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=20)
    assert running.returncode == 130 and b"cancelled the build" in told, told
    wait_for(lambda: not host.find_process("sleep", mark), "the step has ended")
    assert api.get(path_of(name)).status_code == 404
