"""Section 16: names for images, with versions; publishing, patches, templates, cancelling."""

import json
import time
import uuid
from datetime import datetime
from urllib.parse import quote

import pytest

from harness import builds, host
from harness.builds import Snapshot, a_name, build_fails, create, manifest, path_of, post, run, unique
from harness.client import SMALL, marker
from harness.waiting import wait_for


def test_the_object_and_its_answers(api):
    image = manifest(unique(), builds.env(A="1"), builds.step("workdir", path="/srv/w"))
    name = a_name()
    before = datetime.now().astimezone()
    answer = api.post("/api/snapshots", json={"name": name, "image": image}, timeout=60)
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert (view["name"], view["version"], view["status"], view["public"]) == (name, 1, "ready", False)
    assert view["manifest"] == image and view["env"] == {"A": "1"} and view["workdir"] == "/srv/w"
    assert str(uuid.UUID(view["id"])) == view["id"] and str(uuid.UUID(view["checkpointId"])) == view["checkpointId"]
    assert len(view["contentHash"]) == 64 and view["isolation"] in ("container", "vm") and view["orgId"]
    for field in ("createdAt", "lastUsedAt"):
        assert abs((datetime.fromisoformat(view[field]) - before).total_seconds()) < 120, view[field]
    listed = [each for each in api.get("/api/snapshots").json() if each["name"] == name]
    assert [each["id"] for each in listed] == [view["id"]]
    assert api.get(path_of(name)).json()["id"] == view["id"]
    # Its checkpoint is one like any other.
    with api.fork(view["checkpointId"], timeout=77) as fork:
        assert fork.out("pwd; echo $A") == "/srv/w\n1\n" and fork.view()["timeout"] == 77
    with create(api, snapshot=name) as box:
        assert api.delete(path_of(name)).status_code == 204
        assert api.get(path_of(name)).status_code == 404 and api.delete(path_of(name)).status_code == 404
        assert box.out("pwd; echo $A") == "/srv/w\n1\n", "sandboxes outlive their snapshot"
        box.call("POST", "/hibernate")
        assert box.out("echo $A") == "1\n"


def test_a_larger_disk_than_the_snapshot_has(api):
    with Snapshot(api, manifest(unique(), run("echo kept > ~/v"))) as snapshot:
        with create(api, snapshot=snapshot.name, diskMB=40960) as box:
            assert box.created["diskMB"] == 40960
            room = "stat -f -c '%b %S' / | awk '{print int($1 * $2 / 1048576)}'; cat ~/v"
            size, kept = box.out(room).split()
            assert 38000 < int(size) <= 40960 and kept == "kept"
            box.call("POST", "/hibernate")
            assert box.out(room).split() == [size, kept], "it wakes with the disk it has"
            checkpoint = box.checkpoint("large")
            with api.fork(checkpoint) as fork:
                assert fork.out(room).split() == [size, kept], "and so have its forks"
            larger = {"base": f"checkpoint:{checkpoint}", "steps": []}
            refused = api.post("/api/sandboxes", json=SMALL | {"image": larger, "diskMB": 30720}, timeout=60)
            assert refused.status_code == 400 and "cannot become smaller" in refused.json()["error"], refused.text


def test_a_taken_name_and_versions(api):
    one, two = unique(), unique()
    with Snapshot(api, manifest(one, run("echo 1 > ~/v"))) as snapshot:
        for image in (manifest(one, run("echo 1 > ~/v")), manifest(two)):
            outcome = post(api, "/api/snapshots", {"name": snapshot.name, "image": image})
            assert outcome.status == 409 and "already exists" in outcome.refusal, outcome.body
        second = post(api, "/api/snapshots", {"name": snapshot.name, "image": manifest(one, run("echo 2 > ~/v")), "newVersion": True})
        assert second.result["version"] == 2 and second.ran() == [2]
        for name, says in ((snapshot.name, "2"), (f"{snapshot.name}@1", "1"), (f"{snapshot.name}@2", "2")):
            with create(api, snapshot=name) as box:
                assert box.out("cat ~/v").strip() == says, name
            assert api.get(path_of(name)).json()["version"] == int(says)
        for wrong in ("@3", "@0", "@x", "@"):
            outcome = post(api, "/api/sandboxes", SMALL | {"snapshot": snapshot.name + wrong})
            assert (outcome.status in (400, 404)) or outcome.error, outcome.body
            assert api.get(path_of(snapshot.name + wrong)).status_code in (400, 404)
        assert api.delete(path_of(f"{snapshot.name}@2")).status_code == 204
        assert snapshot.get()["version"] == 1, "the newest that is left"
        third = post(api, "/api/snapshots", {"name": snapshot.name, "image": manifest(two), "newVersion": True})
        assert third.result["version"] == 3, "a number stands for one image for ever"
        assert api.delete(snapshot.path).status_code == 204
        assert api.get(path_of(f"{snapshot.name}@1")).status_code == 404


@pytest.mark.parametrize("name", ["data science", "名前-é", "it's \"quoted\"", "a+b&c=d?e#f%g", "x" * 128, ".hidden", "UPPER", "base2", "%41"])
def test_names(api, name):
    name = name[: 128 - 9] + uuid.uuid4().hex[:8] if len(name) > 100 else f"{name} {uuid.uuid4().hex[:8]}"
    with Snapshot(api, manifest(), name=name) as snapshot:
        assert snapshot.get()["name"] == name
        assert api.get(f"/api/snapshots/{quote(name, safe='')}").json()["name"] == name
        assert name in [each["name"] for each in api.get("/api/snapshots").json()]
        with snapshot.create() as box:
            assert box.out("echo hi") == "hi\n"
        assert api.delete(f"/api/snapshots/{quote(name, safe='')}").status_code == 204


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "a\x00b", "x" * 129, ".", "..", "a@1", "é" * 65, None, 7, ["a"]])
def test_names_that_are_none(api, name):
    outcome = post(api, "/api/snapshots", {"name": name, "image": manifest()})
    assert outcome.status == 400, (outcome.status, outcome.body)


def test_a_slash_in_a_path_is_part_of_no_name(api):
    for path in ("/api/snapshots/a%2Fb", "/api/snapshots/..%2F..%2Fsandboxes", "/api/snapshots/%00", "/api/snapshots/%FF"):
        assert api.get(path).status_code in (400, 404), path
        assert api.delete(path).status_code in (400, 404), path


def test_async_builds_are_polled(api):
    name = a_name()
    answer = api.post("/api/snapshots?async=1", json={"name": name, "image": manifest(run(f"sleep 1 # {uuid.uuid4()}"))})
    assert answer.status_code == 202 and answer.json()["status"] == "building" and "checkpointId" not in answer.json(), answer.text
    assert api.post("/api/snapshots", json={"name": name, "image": manifest()}).status_code == 409
    outcome = post(api, "/api/sandboxes", SMALL | {"snapshot": name})
    assert "not ready" in (outcome.error or outcome.refusal) or outcome.result, outcome.body
    ready = wait_for(lambda: (found := api.get(path_of(name)).json())["status"] != "building" and found, "it is built", 30)
    assert ready["status"] == "ready" and ready["checkpointId"]
    api.delete(path_of(name))
    answer = api.post("/api/snapshots?async=1", json={"name": name, "image": manifest(run(f"exit 5 # {uuid.uuid4()}"))})
    assert answer.status_code == 202
    failed = wait_for(lambda: (found := api.get(path_of(name)).json())["status"] != "building" and found, "it has failed", 30)
    assert failed["status"] == "failed" and "step 0 (run) failed (exit 5)" in failed["error"], failed
    # What failed is in nobody's way.
    answer = api.post("/api/snapshots", json={"name": name, "image": manifest()})
    assert answer.status_code == 201 and api.get(path_of(name)).json()["status"] == "ready", answer.text
    api.delete(path_of(name))


def test_deleting_what_is_being_built_cancels_it(api):
    name, mark = a_name(), marker()
    image = manifest(unique(), run(f"sleep {mark}"))
    answer = api.post("/api/snapshots?async=1", json={"name": name, "image": image})
    assert answer.status_code == 202, answer.text
    wait_for(lambda: host.find_process("sleep", mark), "the step runs", 20)
    begun = time.monotonic()
    assert api.delete(path_of(name)).status_code == 204
    wait_for(lambda: not host.find_process("sleep", mark), "the step has ended", 10)
    assert time.monotonic() - begun < 40
    assert api.get(path_of(name)).status_code == 404
    with Snapshot(api, manifest(image["steps"][0], run("true")), name=name) as snapshot:
        assert snapshot.outcome.ran() == [2], "steps that were done are kept"
    # Those of other tests are made meanwhile, and come to run.
    half = lambda: {each["sandboxID"] for each in api.list_all() if each["status"] == "creating"}
    found = half()
    wait_for(lambda: not found & half(), "nothing stays half made", 20)


def test_who_waits_for_a_cancelled_build_is_told(api):
    name, mark = a_name(), marker()
    seen = []

    def cancel(log):
        seen.append(log)
        if log["message"] == "going":
            assert api.delete(path_of(name)).status_code == 204

    outcome = post(api, "/api/snapshots", {"name": name, "image": manifest(run(f"echo going; sleep {mark}"))}, cancel)
    assert outcome.error and "cancel" in outcome.error.lower(), outcome.body[-500:]


def test_publishing(api, other):
    with Snapshot(api, manifest(run("echo shared > ~/f"), unique())) as snapshot:
        answer = api.post(f"{snapshot.path}/publish")
        if answer.status_code == 403:
            pytest.skip("this server lets only the platform's organisation publish")
        assert (answer.status_code, answer.json()) == (200, {"name": snapshot.name, "public": True}), answer.text
        assert snapshot.get()["public"] is True
        with create(other, snapshot=snapshot.name) as box:
            assert box.out("cat ~/f") == "shared\n"
            # It can be used, not changed.
            assert other.delete(snapshot.path).status_code == 404 and other.post(f"{snapshot.path}/unpublish").status_code == 404
            assert other.post(f"{snapshot.path}/patches", json={"script": "true"}).status_code in (403, 404)
            answer = api.post(f"{snapshot.path}/unpublish")
            assert answer.json() == {"name": snapshot.name, "public": False}
            assert box.out("cat ~/f") == "shared\n"
        outcome = post(other, "/api/sandboxes", SMALL | {"snapshot": snapshot.name})
        assert outcome.result is None, "it is not public any more"
        # One's own comes before a stranger's.
        api.post(f"{snapshot.path}/publish")
        with Snapshot(other, manifest(run("echo own > ~/f"), unique()), name=snapshot.name) as own, own.create() as box:
            assert box.out("cat ~/f") == "own\n"


def test_patches(api):
    with Snapshot(api, manifest(unique())) as snapshot:
        path = f"{snapshot.path}/patches"
        assert api.get(path).json() == []
        answer = api.post(path, json={"script": "echo patched > ~/p", "description": "a patch"})
        assert answer.status_code == 201, answer.text
        patch = answer.json()["patch"]
        assert (patch["sequence"], patch["checkpointId"], patch["description"]) == (1, snapshot.view["checkpointId"], "a patch")
        assert api.post(path, json={}).status_code == 400
        bad = api.post(path, json={"script": "exit 3"}).json()["patch"]
        with snapshot.create() as box:
            assert box.out("cat ~/p") == "patched\n" and "exit code 3" in box.view()["patchError"]
        assert api.delete(f"{path}/{bad['id']}").status_code == 204 and api.delete(f"{path}/{bad['id']}").status_code == 404
        by_id = api.get(f"/api/images/{snapshot.view['id']}/patches")
        assert [each["sequence"] for each in by_id.json()] == [1]
        with snapshot.create() as box:
            assert "patchError" not in box.view()


def test_templates_are_the_base_and_the_snapshots(api):
    with Snapshot(api, manifest(run("echo t > ~/t"), unique())) as snapshot:
        listed = {each["name"]: each for each in api.get("/api/templates").json()}
        assert set(listed["base"]) >= {"templateID", "name", "tag", "status"} and listed["base"]["status"] == "ready"
        assert (listed[snapshot.name]["templateID"], listed[snapshot.name]["status"]) == (snapshot.name, "ready")
        assert api.get(f"/api/templates/{snapshot.name}").json() == listed[snapshot.name]
        with api.create(templateID=snapshot.name) as box:
            assert box.out("cat ~/t") == "t\n" and box.view()["templateID"] == snapshot.name
        assert api.delete("/api/templates/base").status_code in (400, 403, 409)
        assert api.delete(f"/api/templates/{snapshot.name}").status_code == 204
        assert api.get(f"/api/templates/{snapshot.name}").status_code == 404
    assert api.post("/api/sandboxes", json=SMALL | {"templateID": "none-such"}).status_code == 404
    for wrong in ({}, {"name": "x"}, {"name": "x", "dockerfile": ""}, {"name": "x", "dockerfile": "FROM debian\nRUN true\n"}, {"name": "a/b", "dockerfile": "FROM base"}):
        answer = api.post("/api/templates", json=wrong)
        assert answer.status_code == 400, (wrong, answer.text)
    assert "archive" in api.post("/api/templates", json={"name": "x", "dockerfile": "FROM debian\nRUN true\n"}).json()["error"]
    name = a_name()
    answer = api.post("/api/templates", json={"name": name, "dockerfile": "# a comment\n\nFROM base\n"}, timeout=60)
    assert answer.status_code in (200, 201) and answer.json()["name"] == name, answer.text
    with api.create(templateID=name) as box:
        assert box.out("echo hi") == "hi\n"
    api.delete(f"/api/templates/{name}")


def test_a_manifest_with_a_name_makes_a_snapshot(api):
    name = a_name()
    with create(api, image=manifest(unique(), name=name)) as box:
        assert box.out("echo hi") == "hi\n" and api.get(path_of(name)).json()["status"] == "ready"
    api.delete(path_of(name))


def test_a_broken_build_leaves_no_snapshot_to_start_from(api):
    name = a_name()
    outcome = post(api, "/api/snapshots", {"name": name, "image": manifest(run("exit 1"))})
    assert outcome.error
    said = post(api, "/api/sandboxes", SMALL | {"snapshot": name})
    assert said.result is None, said.body
    answer = api.get(path_of(name))
    assert answer.status_code == 404 or answer.json()["status"] == "failed"
    api.delete(path_of(name))
    assert json.dumps(api.get("/api/snapshots").json()).count(name) == 0
    build_fails(api, manifest(base="snapshot:none-such"), "not found")
