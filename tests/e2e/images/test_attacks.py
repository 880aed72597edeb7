"""Layers and registries that mean harm: a clear error or a harmless image; nothing outside is touched, nothing half-made stays."""

import os
import tarfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import oci, rootfs
from harness.builds import a_name, build_fails, path_of, post
from harness.client import Box
from harness.waiting import wait_for

from .test_archives import bring, made_from

CANARY = Path("/tmp") / f"e2e-canary-{os.getpid()}"
UP = "../" * 40
deep = "/".join(["d"] * 1000)

#: Each may fail, or give an image in which nothing is where it should not be.
ATTACKS = {
    "an absolute name": [oci.entry(str(CANARY), "pwned")],
    "a name with dots": [oci.entry(f"{UP}{CANARY}", "pwned")],
    "dots in the middle": [oci.folder("a"), oci.entry(f"a/../../../../../../..{CANARY}", "pwned")],
    "a link out, and a file through it": [oci.symlink("out", "/tmp"), oci.entry(f"out/{CANARY.name}", "pwned")],
    "a link up and out": [oci.symlink("out", f"{UP}tmp"), oci.entry(f"out/{CANARY.name}", "pwned")],
    "links in a row": [oci.symlink("a", "b"), oci.symlink("b", "c"), oci.symlink("c", "/tmp"), oci.entry(f"a/{CANARY.name}", "pwned")],
    "links in a circle": [oci.symlink("a", "b"), oci.symlink("b", "a"), oci.entry("a/f", "pwned")],
    "a link that was a folder": [oci.folder("a"), oci.entry("a/f", "x"), oci.symlink("a", "/tmp"), oci.entry(f"a/{CANARY.name}", "pwned")],
    "a link as the file itself": [oci.symlink("f", str(CANARY)), oci.entry("f", "pwned")],
    "a hard link to a file of the host": [oci.hardlink("shadow", "/etc/shadow")],
    "a hard link up and out": [oci.hardlink("shadow", f"{UP}etc/shadow")],
    "a hard link through a link": [oci.symlink("out", "/etc"), oci.hardlink("shadow", "out/shadow")],
    "a hard link to nothing": [oci.hardlink("f", "nothing/there")],
    "a hard link to itself": [oci.hardlink("f", "f")],
    "a hard link to a folder": [oci.folder("d"), oci.hardlink("f", "d")],
    "a whiteout out of the image": [oci.entry(f"{UP}tmp/.wh.{CANARY.name}")],
    "a whiteout through a link": [oci.symlink("out", "/tmp"), oci.entry(f"out/.wh.{CANARY.name}")],
    "a whiteout of dots": [oci.folder("a"), oci.entry("a/.wh..."), oci.entry("a/.wh.."), oci.entry("a/.wh.")],
    "an opaque root": [oci.entry(".wh..wh..opq")],
    "a whiteout with a slash": [oci.entry("a/.wh.b/c")],
    "a name of nothing": [oci.entry("", "pwned")],
    "a name of dots": [oci.folder("."), oci.folder(".."), oci.entry("../", "pwned")],
    "a name with NUL": [oci.entry("a\0b", "pwned")],
    "a name that is no text": [oci.entry("a\udcff\udcfe", "odd")],
    "a very long name": [oci.entry("x" * 5000, "pwned")],
    "a very deep name": [oci.entry(f"{deep}/f", "pwned")],
    "a file as the root": [oci.entry(".", "pwned")],
    "the root as a link": [oci.symlink(".", "/tmp"), oci.entry(CANARY.name, "pwned")],
    "a file below a file": [oci.entry("f", "x"), oci.entry("f/g", "pwned")],
    "a file that claims to be huge": [oci.entry("big", size=1 << 50)],
    "a file of less than nothing": oci.tar([oci.entry("f", "x")]).replace(b"00000000001\0", b"-0000000001\0", 1),
    "a sum that is wrong": oci.tar([oci.entry("f", "x")]).replace(b"ustar\x0000", b"ustar\x0001", 1),
    "an unknown kind": [oci.entry("f", "x", kind=b"Z")],
    "a header that never ends": oci.tar([oci.entry("f", "x", xattrs={"user.x": "y" * 3_000_000})]),
    "attributes of the system": [oci.entry("f", "x", xattrs={"trusted.overlay.opaque": "y", "trusted.overlay.redirect": "/etc", "security.selinux": "x", "system.posix_acl_access": "x"})],
    "an overlay's own marks": [oci.folder("d", xattrs={"trusted.overlay.opaque": "y", "user.overlay.opaque": "y"}), oci.entry("d/f", "x")],
    "an id beyond all": [oci.entry("f", "x", uid=1 << 31, gid=(1 << 32) - 1)],
    "cut off in a file": oci.tar([oci.entry("f", "x" * 100_000)])[:50_000],
    "garbage": os.urandom(100_000),
    "no gzip though it says so": None,
}


@pytest.fixture(scope="module", autouse=True)
def _canary():
    CANARY.write_text("untouched")
    yield
    CANARY.unlink(missing_ok=True)


def layer_of(attack):
    if attack is not None:
        return oci.Layer(attack)
    made = oci.Layer([oci.entry("f", "x")])
    made.blob = made.tar
    made.digest = oci.digest_of(made.blob)
    return made


def files_of(server):
    """What there is of templates and of imports on the volume."""
    templates = os.path.join(server.data_dir, "volume", "templates")
    return {os.path.join(folder, name) for folder, folders, names in os.walk(templates) for name in (*folders, *names)}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_layer(server, api, what):
    before = files_of(server)
    attacked = oci.Image(rootfs.layer(), [oci.folder("data"), oci.entry("data/own", uuid.uuid4().hex)], layer_of(ATTACKS[what]))
    name, outcome = bring(api, attacked.archive())
    assert CANARY.read_text() == "untouched"
    if outcome.result:
        with made_from(api, name) as box:
            for path, may_hold in (("/shadow", ()), ("/out/shadow", ()), (str(CANARY), (b"pwned",))):
                answer = box.call("GET", "/files", params={"path": path})
                assert answer.status_code >= 400 or answer.content in may_hold, f"{path} of the host is in the image"
            # An opaque root has nothing below it, a shell neither.
            box.write("/works", b"it does")
            assert box.read("/works") == b"it does"
        api.delete(path_of(name))
        return
    said = outcome.error or outcome.refusal
    assert 15 < len(said) < 2000 and "\0" not in said, said
    assert "panicked" not in said and server.data_dir not in said, said
    wait_for(lambda: files_of(server) <= before, f"nothing half-made is left of {what}", 10, 0.1, instead=lambda: files_of(server) - before)


def test_devices_and_setuid_files_are_no_way_out(server, api):
    kinds = {"null": tarfile.CHRTYPE, "disk": tarfile.BLKTYPE}
    devices = [oci.folder("d"), *(oci.device(f"d/{name}", kind, 1 if name == "null" else 7, 3 if name == "null" else 0) for name, kind in kinds.items()), oci.device("d/white", major=0, minor=0), oci.entry("d/pipe", kind=tarfile.FIFOTYPE)]
    setuid = [oci.entry("d/root-shell", Path("/bin/sh").resolve().read_bytes(), mode=0o6755), oci.folder("d/setgid", mode=0o2777)]
    name, outcome = bring(api, oci.Image(rootfs.layer(), [*devices, *setuid], User="app").archive())
    if not outcome.result:
        assert "d/" in outcome.error, outcome.error
        return
    with made_from(api, name) as box:
        assert "block special file" not in box.run("stat -c %F /d/disk")["stdout"], "a block device is in the sandbox"
        assert box.run("head -c 1 /d/disk")["exitCode"] != 0, "a disk of the host can be read"
    # On the host, nobody but root gets to such a file.
    folder = Path(server.data_dir)
    assert folder.stat().st_mode & 0o077 == 0, oct(folder.stat().st_mode)
    api.delete(path_of(name))


def test_an_image_of_too_many_layers(api):
    layers = [oci.Layer([oci.entry(f"f{n}", str(n))]) for n in range(200)]
    outcome = bring(api, oci.Image(*layers).archive())[1]
    assert "layers" in (outcome.error or outcome.refusal), outcome.result


#: Repositories of the liar, and words of which one is in the error; `slow` ones end when the registry has been silent too long.
QUICK = [
    "cut-off", "too-short", "too-long", "other-bytes", "other-config", "endless-layer", "endless-manifest", "huge-manifest", "nonsense", "deep-json", "old-schema", "no-layers",
    "many-layers", "negative-size", "absurd-size", "bad-digest", "other-platform", "index-of-itself", "broken", "redirect-to-metadata", "redirect-to-loopback", "redirect-to-a-file",
    "redirect-for-ever", "always-asks", "token-never-suits", "token-from-metadata", "token-from-loopback", "token-is-huge", "basic-for-ever", "garbled-challenge", "busy",
]  # fmt: skip
STALLS = ["stall-at-once", "stall-in-the-manifest", "stall-in-a-layer"]


def lied_to(server, api, liar, how, within):
    auth = {"username": "me", "password": f"secret-{how}"}
    outcome = post(api, "/api/snapshots", {"name": a_name("lie"), "image": f"{liar.address}/{how}:1", "registryAuth": auth}, within=within)
    said = outcome.error or outcome.refusal
    assert 15 < len(said) < 2000 and "\x1b" not in said, said
    assert auth["password"] not in outcome.body.decode() and auth["password"] not in server.log(), "the password is told"
    assert "panicked" not in said and server.data_dir not in said, said
    return said


@pytest.mark.parametrize("how", QUICK)
def test_a_registry_that_lies(server, api, liar, how):
    before, asked = files_of(server), len(liar.requests)
    lied_to(server, api, liar, how, 60)
    assert len(liar.requests) - asked < 40, "it is asked again and again"
    assert not liar.trap.caught, f"somebody came where nobody should: {liar.trap.caught}"
    wait_for(lambda: files_of(server) <= before, "nothing half-made is left", 10, 0.1, instead=lambda: files_of(server) - before)


@pytest.mark.timeout(200)
def test_registries_that_stall(server, api, liar):
    before = files_of(server)
    with ThreadPoolExecutor(len(STALLS)) as pool:
        for said in pool.map(lambda how: lied_to(server, api, liar, how, 100), STALLS):
            assert liar.address in said, said
    wait_for(lambda: files_of(server) <= before, "nothing half-made is left", 10, 0.1, instead=lambda: files_of(server) - before)
    # The liar can also tell the truth.
    outcome = post(api, "/api/snapshots", {"name": a_name(), "image": f"{liar.address}/good:1"})
    assert outcome.result, outcome.body


@pytest.mark.parametrize("reference", ["169.254.169.254/x:1", "127.0.0.1:1/x:1", "127.0.0.1:22/x", "10.0.0.1/x:1", "192.168.0.1:5000/x", "0.0.0.0:80/x:1", "0x7f000001:1/x", "2130706433:80/x:1", "localhost:9/x", "[::1]:80/x:1", "[::ffff:127.0.0.1]:80/x"])
def test_addresses_nobody_may_ask_for(api, reference):
    """Only what the operator has listed is spoken to without TLS, or inside private networks."""
    build_fails(api, reference, within=40)


def test_a_listed_registry_is_no_door_to_others(api, liar, open_registry):
    assert liar.address != open_registry.address
    for reference in (f"{open_registry.address}/../x:1", f"{open_registry.address}/x?y:1", f"user:pw@{open_registry.address}/x:1", f"{open_registry.address}/x#y", f"http://{open_registry.address}/x"):
        build_fails(api, reference)


def test_a_server_that_was_attacked_still_works(api):
    with api.create() as box:
        assert isinstance(box, Box) and box.out("echo hi") == "hi\n"
