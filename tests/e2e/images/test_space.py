"""Images that nobody uses go when they take too much; nothing that is used or has a name does."""

import uuid

import pytest

from harness import log, oci, rootfs
from harness.builds import Snapshot, create, manifest, run
from harness.server import Server
from harness.waiting import holds_for, wait_for


@pytest.fixture
def tight(open_registry):
    """A server that may keep nothing it does not need."""
    with Server(f"--insecure-registry={open_registry.address}", "--image-budget", "1", "--image-unused-for", "2") as running:
        yield running
        said = running.log()
    unexpected = log.unexpected(said)
    assert not unexpected, "\n".join(unexpected[:20])


def nameless(api):
    return [each for each in api.get("/api/images").json() if "name" not in each and each["status"] == "ready"]


def test_what_is_not_used_goes(tight, open_registry):
    fetched = oci.Image(rootfs.layer(), [oci.entry("own", uuid.uuid4().hex)]).push(open_registry, "team/space", "1")
    with tight.api() as api, Snapshot(api, manifest(run("echo named > ~/f"))) as snapshot:
        image = manifest(run(f"head -c 20000000 /dev/urandom > ~/big # {uuid.uuid4()}"), run("echo last > ~/last"))
        with create(api, image=image) as box, create(api, image=fetched) as other:
            full = api.get("/api/images/usage").json()["usedBytes"]
            wait_for(lambda: not nameless(api), "images without a name are removed", 30, 0.2, instead=lambda: nameless(api))
            # Sandboxes go on, through a hibernation too, and their forks.
            assert box.out("cat ~/last; wc -c < ~/big") == "last\n20000000\n" and other.out("cat /own")
            for each in (box, other):
                each.call("POST", "/hibernate")
            assert box.out("cat ~/last") == "last\n" and other.out("cat /own")
            with api.fork(other.checkpoint("one")) as fork:
                assert fork.out("cat /own") == other.out("cat /own")
            wait_for(lambda: api.get("/api/images/usage").json()["usedBytes"] < full - 15_000_000, "the space of layers is given back", 20, 0.2)
            # What has a name stays.
            holds_for(lambda: snapshot.get()["status"] == "ready", "the snapshot is ready", 3, 0.2)
            with snapshot.create() as made:
                assert made.out("cat ~/f") == "named\n"
        # What is gone is built and fetched again.
        with create(api, image=image) as again, create(api, image=fetched) as fetched_again:
            assert again.outcome.ran() == [1, 2] and again.out("cat ~/last") == "last\n"
            assert fetched_again.out("cat /own")
        wait_for(lambda: not nameless(api), "and removed again", 30, 0.2)


def test_what_a_step_says_is_no_part_of_the_image(api):
    line, length = "x" * 999, 12_000_000
    with Snapshot(api, manifest(run(f"yes {line} | head -c {length}", f"echo {uuid.uuid4()} | tee ~/f"))) as snapshot:
        said = snapshot.outcome.messages("run")
        assert said.count(line) > 1000 and len(said[-2]) == 36, said[-3:]
        assert snapshot.get()["sizeBytes"] < length / 2, snapshot.get()["sizeBytes"]
