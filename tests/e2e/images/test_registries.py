"""Images of real registries: every layer as it should be, settings of the image, tags that move, logins."""

import hashlib
import json
import os
import platform
import tarfile
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import host, oci, registry, rootfs
from harness.builds import Snapshot, a_name, build_fails, create, manifest, path_of, post, run, step
from harness.client import SMALL, Api, Box
from harness.sockets import PtySocket

XATTR = r"""perl -e '$b = "\0" x 100; $n = syscall(191, $p = "/data/attributes\0", $a = "user.%s\0", $b, 100); print $n < 0 ? "none: $!" : substr($b, 0, $n)'"""


def image(*layers, **config):
    """Programs, and what the test adds."""
    return oci.Image(rootfs.layer(), *layers, **config)


def own(*more):
    """A layer no other test has, so that the image is new."""
    return [oci.folder("data"), oci.entry("data/own", uuid.uuid4().hex), *more]


@pytest.fixture(scope="session")
def changed(open_registry):
    return image(rootfs.BELOW, rootfs.ABOVE).push(open_registry, "team/changed", "1")


@pytest.fixture(scope="session")
def box(api, changed):
    with create(api, image=changed) as made:
        yield made


def test_layers_are_laid_over_each_other(box):
    names = box.out("cd /data; ls -1A").splitlines()
    assert not [name for name in names if name.startswith(".wh.")] and "gone" not in names and "removed" not in names
    assert box.out("cat /data/kept /data/soft; ls -A /data/opaque; cat /data/opaque/new") == "keptkeptnew\nnew"
    assert box.out("cat /data/was-file/f /data/was-folder /data/was-link") == "now a foldernow a filenow a file"
    assert box.out("stat -c '%F' /data/was-link") == "regular file\n" and box.out("cat /data/kept") == "kept", "what a link pointed to was written to"
    assert box.run("cat /data/dangling")["exitCode"] == 1
    assert box.read("/data/é 'quoted' \n name") == b"odd" and box.out(f"cat /data/{'long' * 60}") == "long"
    assert box.out("cat /other/no/parent; stat -c '%F %a %u' /no/parents/here") == "xdirectory 755 0\n"
    assert box.out("sha256sum < /data/sparse").split()[0] == hashlib.sha256(b"\0" * 300_000).hexdigest()


def test_owners_modes_links_and_attributes(box):
    assert box.out("stat -c '%u:%g %a %h' /data/linked /data/hard") == "1234:5678 640 2\n" * 2
    assert box.out("stat -c %i /data/linked") == box.out("stat -c %i /data/hard")
    # Written to, a name gets a file of its own, as on every engine that lays a disk over an image.
    box.out("echo more >> /data/hard")
    assert box.out("cat /data/hard") == "linkedmore\n"
    assert box.out("stat -c '%u:%g %a' /data/owned /data/sticky /tmp /root") == "1234:5678 4751\n0:0 1777\n0:0 1777\n0:0 700\n"
    assert box.out(XATTR % "one") == "first" and box.out(XATTR % "two") == "é" and box.out(XATTR % "three").startswith("none")
    assert box.out("stat -c %Y /data/kept") == "1700000000\n"
    assert box.out("ls -A /proc/self | head -1") and box.out("stat -c %F /dev/null") == "character special file\n"


def test_root_and_its_home_when_the_image_says_nothing(box):
    assert box.out("id -u; id -g; pwd; echo $HOME") == "0\n0\n/root\n/root\n"
    box.write("/root/f", b"x")
    assert box.out("stat -c %u /root/f") == "0\n"


def test_user_folder_and_variables(api, open_registry):
    reference = image(own(), User="app", WorkingDir="/srv/app", Env=["GREETING=hello world", "PATH=/bin:/own/bin", "EQUALS=a=b"], Entrypoint=["/bin/false"], Cmd=["x"]).push(open_registry, "team/user", "1")
    with create(api, image=reference, envs={"GREETING": "hi"}) as box:
        assert box.out("id -u; id -g; id -G; pwd; echo $HOME; echo $GREETING; echo $PATH; echo $EQUALS") == "1234\n5678\n5678 6000\n/srv/app\n/home/app\nhi\n/bin:/own/bin\na=b\n"
        box.write("/home/app/f", b"x")
        box.write("relative", b"x")
        assert box.out("stat -c '%u:%g' /home/app/f /home/app/relative") == "1234:5678\n" * 2
        with PtySocket(box, pty_of(box)) as pty:
            pty.send('echo "<$(id -u)> $PWD $GREETING"\n')
            pty.until("<1234> /srv/app hi")
        box.call("POST", "/hibernate")
        assert box.out("id -u; pwd") == "1234\n/srv/app\n"
        with api.fork(box.checkpoint("one")) as fork:
            assert fork.out("id -u; pwd; cat ~/f") == "1234\n/srv/app\nx"
    # Steps go on from what the image says.
    steps = [run("id -u > ~/who; pwd >> ~/who; echo $GREETING >> ~/who"), step("env", vars={"GREETING": "step"}), step("workdir", path="/srv/deeper")]
    with create(api, image=manifest(*steps, base=reference)) as box:
        assert box.out("cat ~/who; id -u; pwd; echo $GREETING") == "1234\n/srv/app\nhello world\n1234\n/srv/deeper\nstep\n"


def pty_of(box):
    answer = box.call("POST", "/pty", json={})
    assert answer.status_code == 201, answer.text
    return answer.json()["sessionID"]


@pytest.mark.parametrize("user, shows", [("1234", "1234 5678 /home/app"), ("1234:6000", "1234 6000 /home/app"), ("app:extra", "1234 6000 /home/app"), ("7777", "7777 0"), ("7777:8888", "7777 8888"), ("lost", "4000 4000")])
def test_ways_to_name_a_user(api, open_registry, user, shows):
    reference = image(own(), User=user).push(open_registry, "team/users", user.replace(":", "-"))
    with create(api, image=reference) as box:
        assert box.out("echo $(id -u) $(id -g) $HOME").startswith(shows)
        assert box.out("echo ok > /tmp/f; cat /tmp/f") == "ok\n"


def test_a_user_the_image_does_not_have(api, open_registry):
    reference = image(own(), User="nobody-here").push(open_registry, "team/users", "none")
    build_fails(api, reference, "nobody-here")


def test_the_same_image_is_fetched_once(api, open_registry):
    reference = image(own()).push(open_registry, "team/once", "1")
    with create(api, image=reference) as one, create(api, image=reference) as two:
        assert one.outcome.messages("pull") and not two.outcome.messages("pull"), two.outcome.text
        one.out("echo changed > /data/own")
        assert two.out("cat /data/own") != "changed\n"
    reference = image(own()).push(open_registry, "team/once", "2")
    with ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda _: create(api, image=reference), range(4)))
    try:
        assert len({box.out("cat /data/own") for box in boxes}) == 1
    finally:
        [box.__exit__() for box in boxes]


def test_tags_move_and_digests_do_not(api, open_registry):
    old, new = image(own(oci.entry("data/v", "old"))), image(own(oci.entry("data/v", "new")))
    reference = old.push(open_registry, "team/moving", "1")
    by_digest = f"{open_registry.address}/team/moving@{old.digest}"
    with Snapshot(api, reference) as snapshot:
        new.push(open_registry, "team/moving", "1")
        with create(api, image=reference) as now, snapshot.create() as then, create(api, image=by_digest) as fixed:
            assert (now.out("cat /data/v"), then.out("cat /data/v"), fixed.out("cat /data/v")) == ("new", "old", "old")
    both = f"{open_registry.address}/team/moving:1@{old.digest}"
    with create(api, image=both) as box:
        assert box.out("cat /data/v") == "old", "a digest says more than a tag"
    build_fails(api, f"{open_registry.address}/team/moving@sha256:{'0' * 64}", "not found")
    build_fails(api, f"{open_registry.address}/team/moving:none", "not found")
    build_fails(api, f"{open_registry.address}/team/nothing:1", "not found")


def test_docker_types_and_several_platforms(api, open_registry):
    reference = image(own(oci.entry("data/v", "docker"))).push(open_registry, "team/docker", "1", docker=True)
    with create(api, image=reference) as box:
        assert box.out("cat /data/v") == "docker"
    ours = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    theirs = {"amd64": "arm64", "arm64": "amd64"}[ours]
    parts = {theirs: image(own(oci.entry("data/v", theirs)), architecture=theirs), ours: image(own(oci.entry("data/v", ours)), architecture=ours)}
    with create(api, image=oci.push_index(open_registry, "team/platforms", "1", parts)) as box:
        assert box.out("cat /data/v") == ours
    only = oci.push_index(open_registry, "team/platforms", "2", {theirs: parts[theirs]})
    build_fails(api, only, ours)


def test_layers_of_other_kinds(api, open_registry):
    plain = oci.Layer(own(oci.entry("data/v", "plain")), compression="none")
    empty = oci.Layer([])
    twice = oci.Layer([oci.folder("data"), oci.entry("data/twice", "first"), oci.entry("data/twice", "second")])
    dotted = oci.Layer([oci.folder("./"), oci.folder("./data/"), oci.entry("./data/dotted", "x")])
    old_form = oci.Layer(oci.tar([oci.folder("data"), oci.entry("data/old-form", "x")], tarfile.GNU_FORMAT))
    with create(api, image=image(plain, empty, twice, dotted, old_form, empty).push(open_registry, "team/kinds", "1")) as box:
        assert box.out("cd /data; cat v twice dotted old-form") == "plainsecondxx"


def test_logins(server, api, closed_registry):
    reference = image(own()).push(closed_registry, "team/closed", "1")
    outcome = build_fails(api, reference)
    assert closed_registry.address in outcome.refusal, outcome.body
    for auth in ({"username": registry.USER, "password": "wrong-password-xyz"}, {"username": "nobody", "password": registry.PASSWORD}):
        outcome = post(api, "/api/snapshots", {"name": a_name(), "image": reference, "registryAuth": auth})
        assert outcome.refusal and auth["password"] not in outcome.body.decode(), outcome.body
    auth = {"username": registry.USER, "password": registry.PASSWORD}
    with Snapshot(api, manifest(run("echo built > /data/f"), base=reference), registryAuth=auth) as snapshot:
        assert registry.PASSWORD not in snapshot.outcome.body.decode() and "registryAuth" not in json.dumps(snapshot.get())
        with snapshot.create() as box:
            assert box.out("cat /data/f") == "built\n"
    assert registry.PASSWORD not in server.log() and "wrong-password-xyz" not in server.log()
    for path, _, names in os.walk(server.data_dir):
        for name in names:
            if name.endswith((".db", ".db-wal", ".sqlite", ".sqlite-wal")):
                assert registry.PASSWORD.encode() not in host.read(f"{path}/{name}"), f"the password is kept in {name}"
    # Having been let in once is not being let in for all.
    build_fails(api, manifest(run("true"), base=image(own()).push(closed_registry, "team/closed", "2")))


def test_what_another_organisation_fetched_with_a_login_is_not_open_to_all(server, api, closed_registry):
    made = image(own())
    reference = made.push(closed_registry, "team/secret", "1")
    auth = {"username": registry.USER, "password": registry.PASSWORD}
    with Snapshot(api, reference, registryAuth=auth), Api(server.url, server.other_key) as other:
        build_fails(other, reference)
        build_fails(other, f"{closed_registry.address}/team/secret@{made.digest}")


def test_a_template_from_a_line_of_dockerfile(api, open_registry):
    reference = image(own(oci.entry("data/v", "from"))).push(open_registry, "team/from", "1")
    name = a_name()
    answer = api.post("/api/templates", json={"name": name, "dockerfile": f"# syntax\nFROM {reference}\n"}, timeout=60)
    assert answer.status_code in (200, 201), answer.text
    with api.create(templateID=name) as box:
        assert box.out("cat /data/v") == "from"
    assert api.delete(f"/api/templates/{name}").status_code == 204


def test_packages_of_an_image_that_has_none_of_that(api, changed):
    build_fails(api, manifest(step("apt_install", packages=["curl"]), base=changed), "step 0 (apt_install) failed")
    build_fails(api, manifest(step("pip_install", packages=["numpy"]), base=changed), "step 0 (pip_install) failed")


def test_an_image_without_a_shell(api, open_registry):
    reference = oci.Image(own()).push(open_registry, "team/bare", "1")
    with create(api, image=reference) as box:
        answer = box.call("POST", "/exec/run", json={"cmd": "sh", "args": ["-c", "true"]})
        assert 400 <= answer.status_code < 500 and "cannot start" in answer.json()["error"], answer.text
        assert box.read("/data/own")
        box.write("/data/new", b"x")
        assert box.read("/data/new") == b"x"


@pytest.mark.timeout(300)
def test_on_virtual_machines(api, open_registry):
    """Emulated, this takes most of a minute."""
    reference = image(own(oci.entry("data/v", "machine")), User="app", WorkingDir="/srv/app", Env=["A=1"]).push(open_registry, "team/machine", "1")
    name = a_name()
    outcome = post(api, "/api/snapshots", {"name": name, "image": manifest(run("echo built > ~/f"), base=reference), "isolation": "vm"}, within=200)
    if outcome.status == 400 and "isolation" in outcome.refusal or "vm" in (outcome.error or outcome.refusal if outcome.result is None else ""):
        pytest.skip(f"no virtual machines here: {outcome.error or outcome.refusal}")
    assert outcome.result and outcome.result["isolation"] == "vm", outcome.body[-2000:]
    created = post(api, "/api/sandboxes", SMALL | {"snapshot": name}, within=200)
    assert created.result, created.body[-2000:]
    with Box(api, created.result) as box:
        assert box.created["isolation"] == "vm"
        assert box.out("cat /data/v ~/f; id -u; pwd; echo $A") == "machinebuilt\n1234\n/srv/app\n1\n"
    # One with a larger disk begins anew on it, and makes the file system larger itself.
    created = post(api, "/api/sandboxes", SMALL | {"snapshot": name, "diskMB": 40960}, within=200)
    assert created.result, created.body[-2000:]
    with Box(api, created.result) as box:
        content, blocks, block = box.out("cat ~/f; stat -f -c '%b %S' /").split()
        assert content == "built" and 38000 < int(blocks) * int(block) >> 20 <= 40960
    api.delete(path_of(name))
