"""Sections 3 to 5 and 20.1: create, get, list, delete, tags."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from harness.waiting import wait_for

# Create.


def test_a_new_sandbox_is_complete_and_usable_at_once(api):
    fields = {"envs": {"A": "1 & 2"}, "metadata": {"job": "x"}, "timeout": 3600, "alias": "mine", "tags": {"t": "v"}}
    with api.create(**fields) as box:
        view = box.created
        assert re.fullmatch(r"sb-[0-9a-f]{8}", view["sandboxID"])
        assert view["status"] == "running" and view["templateID"] == "base"
        assert (view["cpuCount"], view["memoryMB"], view["diskMB"]) == (1, 1024, 20480)
        assert view["metadata"] == {"job": "x"} and view["tags"] == {"t": "v"}
        assert view["timeout"] == 3600 and view["alias"] == "mine"
        assert isinstance(view["region"], str) and view["workerID"]
        assert view.get("endAt") is None
        assert view["isolation"] in ("container", "vm")
        started = datetime.fromisoformat(view["startedAt"])
        assert abs((datetime.now(started.tzinfo) - started).total_seconds()) < 60
        assert box.out('printf %s "$A"') == "1 & 2"
        stable = ("sandboxID", "status", "metadata", "tags", "startedAt", "cpuCount", "timeout", "generation")
        again = box.view()
        assert {key: again[key] for key in stable} == {key: view[key] for key in stable}


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (1, 4096)),
        ({"memoryMB": 1024}, (1, 1024)),
        ({"memoryMB": 8192}, (2, 8192)),
        ({"memoryMB": 16384}, (4, 16384)),
        ({"cpuCount": 1}, (1, 1024)),
        ({"cpuCount": 2}, (2, 8192)),
        ({"cpuCount": 4}, (4, 16384)),
        ({"cpuCount": 1, "memoryMB": 4096}, (1, 4096)),
    ],
)
def test_sizes_come_in_tiers(api, fields, size):
    answer = api.post("/api/sandboxes", json=fields)
    assert answer.status_code == 201, answer.text
    view = answer.json()
    api.delete(f"/api/sandboxes/{view['sandboxID']}")
    assert (view["cpuCount"], view["memoryMB"]) == size


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"memoryMB": 2048}, 400, "memoryMB must be one of: 1024, 4096, 8192, 16384 (got 2048)"),
        ({"memoryMB": 65536}, 400, "exceeds the largest self-serve tier (16384 MB)"),
        ({"memoryMB": -1}, 400, "must be one of"),
        ({"cpuCount": 3}, 400, "cpuCount must be one of: 1, 2, 4 (got 3)"),
        ({"cpuCount": 8}, 400, "exceeds the largest self-serve tier (4 vCPU)"),
        ({"cpuCount": 2, "memoryMB": 1024}, 400, "do not match an allowed tier"),
        ({"diskMB": 1024}, 400, "diskMB must be at least 20480 (20GB)"),
        ({"diskMB": 300000}, 400, "diskMB cannot exceed 262144 (256GB)"),
        ({"templateID": "no-such"}, 404, "no-such"),
        ({"template": "no-such"}, 404, "no-such"),
        ({"tags": {"oc:x": "1"}}, 400, "reserved"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(api, fields, status, says):
    answer = api.post("/api/sandboxes", json=fields)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"previewAuth": {"scheme": "none"}},
        {"webhooks": [{"url": "https://example.com"}]},
        {"egress": []},
        {"previewAuth": []},
        {"registryAuth": ["me", "secret"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_protect_are_refused_by_name_never_ignored(api, fields):
    marker = str(uuid.uuid4())
    answer = api.post("/api/sandboxes", json=fields | {"metadata": {"m": marker}})
    if answer.status_code == 201:
        pytest.fail(f"{fields} was accepted by a server that cannot honour it")
    assert answer.status_code in (400, 404, 501) and next(iter(fields)) in answer.json()["error"]
    assert not api.list_all(**{"metadata.m": marker})


def test_unknown_and_null_fields_are_ignored(api):
    answer = api.post("/api/sandboxes", json={"memoryMB": 1024, "burst": None, "envs": None, "brandNew": {"x": [1]}})
    assert answer.status_code == 201, answer.text
    api.delete(f"/api/sandboxes/{answer.json()['sandboxID']}")


def test_a_negative_timeout_counts_as_never(api):
    with api.create(timeout=-5) as box:
        assert box.created["timeout"] == 0


def test_an_empty_body_makes_a_default_sandbox(api):
    answer = api.post("/api/sandboxes", headers={"Content-Type": "application/json"})
    assert answer.status_code == 201, answer.text
    api.delete(f"/api/sandboxes/{answer.json()['sandboxID']}")


def test_a_larger_disk_is_there(api):
    with api.create(diskMB=30720) as box:
        megabytes = int(box.out("df -BM --output=size / | tail -1").strip().rstrip("M"))
        assert 28000 < megabytes <= 30720


def test_no_network_means_no_network(api):
    with api.create(networkEnabled=False) as box:
        routes = box.out("cat /proc/net/route | tail -n +2")
        assert box.run("timeout 3 bash -c 'echo > /dev/tcp/1.1.1.1/53'")["exitCode"] != 0
        assert box.out("echo ok") == "ok\n", routes


# Idempotency.


def create_with(api, key, body):
    return api.post("/api/sandboxes", json=body, headers={"Idempotency-Key": key})


def test_the_same_key_and_body_give_the_same_sandbox(api):
    key, tag = str(uuid.uuid4()), {"tags": {"once": uuid.uuid4().hex}, "memoryMB": 1024}
    first, second = create_with(api, key, tag), create_with(api, key, tag)
    assert first.status_code == 201 and second.status_code in (200, 201), second.text
    assert first.json()["sandboxID"] == second.json()["sandboxID"]
    assert len(api.list_all(**{"tag.once": tag["tags"]["once"]})) == 1
    clash = create_with(api, key, tag | {"timeout": 77})
    assert clash.status_code == 409, clash.text
    api.delete(f"/api/sandboxes/{first.json()['sandboxID']}")


def test_the_same_key_at_once_makes_one_sandbox(api):
    key, tag = str(uuid.uuid4()), uuid.uuid4().hex
    body = {"tags": {"once": tag}, "memoryMB": 1024}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: create_with(api, key, body), range(12)))
    assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]
    assert len({answer.json()["sandboxID"] for answer in answers}) == 1
    assert len(api.list_all(**{"tag.once": tag})) == 1
    api.delete(f"/api/sandboxes/{answers[0].json()['sandboxID']}")


def test_keys_belong_to_an_organisation(api, other):
    key, body = str(uuid.uuid4()), {"memoryMB": 1024}
    ours, theirs = create_with(api, key, body).json(), create_with(other, key, body).json()
    assert ours["sandboxID"] != theirs["sandboxID"]
    api.delete(f"/api/sandboxes/{ours['sandboxID']}")
    other.delete(f"/api/sandboxes/{theirs['sandboxID']}")


@pytest.mark.parametrize("key", ["", "k" * 10_000], ids=["empty", "long"])
def test_senseless_keys_are_refused_or_mean_none(api, key):
    answer = create_with(api, key, {"memoryMB": 1024})
    assert answer.status_code in (201, 400, 431)
    if answer.status_code == 201:
        api.delete(f"/api/sandboxes/{answer.json()['sandboxID']}")


def test_many_creates_at_once_all_succeed_and_differ(api):
    with ThreadPoolExecutor(16) as pool:
        boxes = list(pool.map(lambda n: api.create(metadata={"n": str(n)}), range(16)))
        assert len({box.id for box in boxes}) == 16
        assert list(pool.map(lambda box: box.out("hostname && echo $$ > ~/own && ls ~"), boxes)) == ["sandbox\nown\n"] * 16
        list(pool.map(lambda box: box.kill(), boxes))


# Delete.


def test_a_deleted_sandbox_is_stopped_for_good(api, other):
    box = api.create()
    session = box.start("sleep", "600")
    assert other.delete(box.path).status_code == 404
    box.kill()
    view = box.view()
    assert view["status"] == "stopped" and view["endAt"] and "token" not in view
    box.kill()
    for method, path, body in [
        ("POST", "/exec/run", {"cmd": "true"}),
        ("POST", "/exec/run-async", {"cmd": "true"}),
        ("POST", "/exec", {"cmd": "true"}),
        ("GET", "/exec", None),
        ("GET", f"/exec/{session}/result", None),
        ("POST", "/pty", {}),
        ("GET", "/files?path=/etc/hostname", None),
        ("PUT", "/files?path=/tmp/x", {}),
        ("GET", "/files/list", None),
    ]:
        answer = box.call(method, path, json=body)
        assert answer.status_code == 410, (method, path, answer.status_code, answer.text)
    assert box.call("POST", "/wake", json={}).status_code in (400, 404, 409, 410)
    assert box.view()["status"] == "stopped"


def test_delete_takes_the_query_of_the_sdks(api):
    box = api.create()
    assert box.call("DELETE", "?deleteSecretStore=true").status_code == 204


def test_delete_ends_a_command_under_way(api):
    box = api.create()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: api.http.post(f"{box.path}/exec/run", json={"cmd": "sleep 60"}, timeout=30))
        wait_for(lambda: box.is_alive("sleep 60"), "the command runs")
        box.kill()
        answer = running.result(timeout=20)
    # No invented success: an error status, or an error in the body when the header was already out.
    assert answer.status_code >= 400 or "error" in answer.json() or answer.json()["exitCode"] not in (0,), answer.text


# List.


@pytest.fixture(scope="module")
def five(api):
    group = uuid.uuid4().hex
    boxes = [api.create(tags={"group": group, "n": str(n)}, metadata={"n": str(n), "odd": str(n % 2)}) for n in range(5)]
    boxes[1].call("POST", "/hibernate")
    boxes[2].kill()
    yield group, boxes
    for box in boxes:
        api.delete(box.path)


def ids(views):
    return [view["sandboxID"] for view in views]


def test_the_list_is_an_array_of_every_status_newest_first(api, five):
    group, boxes = five
    answer = api.get("/api/sandboxes")
    assert isinstance(answer.json(), list)
    mine = [view for view in api.list_all() if view["tags"].get("group") == group]
    assert ids(mine) == [box.id for box in reversed(boxes)]
    assert [view["status"] for view in mine] == ["running", "running", "stopped", "hibernated", "running"]
    assert mine[0]["metadata"] == {"n": "4", "odd": "0"}
    assert "token" not in mine[3] or not mine[3]["token"]


def test_filters_choose(api, five):
    group, boxes = five
    by = lambda **query: ids(api.list_all(**{"tag.group": group} | query))
    assert by(status="running") == [boxes[4].id, boxes[3].id, boxes[0].id]
    assert by(status="hibernated,stopped") == [boxes[2].id, boxes[1].id]
    assert by(**{"metadata.odd": "1"}) == [boxes[3].id, boxes[1].id]
    assert by(**{"tag.n": "4"}) == [boxes[4].id]
    assert by(**{"tag.n": "4", "metadata.odd": "1"}) == []
    assert by(**{"metadata.nothing": "x' OR '1'='1"}) == []


def test_pages_hold_everything_once_also_while_sandboxes_are_made(api, five):
    group, boxes = five
    query = {"tag.group": group, "limit": 2}
    first = api.get("/api/sandboxes", params=query)
    assert len(first.json()) == 2 and first.headers["x-next-cursor"]
    with api.create(tags={"group": group}):
        rest, cursor = [], first.headers["x-next-cursor"]
        while cursor:
            page = api.get("/api/sandboxes", params=query | {"cursor": cursor})
            rest += ids(page.json())
            cursor = page.headers.get("x-next-cursor")
    assert ids(first.json()) + rest == [box.id for box in reversed(boxes)]


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "-1"}, {"limit": "many"}, {"limit": "100000"}, {"cursor": "nonsense"}, {"cursor": "é\0"}, {"status": "sleeping"}],
    ids=str,
)
def test_senseless_queries_are_refused(api, query):
    answer = api.get("/api/sandboxes", params=query)
    assert answer.status_code == 400, answer.text


# Tags.


def put_tags(box, tags):
    return box.call("PUT", "/tags", json=tags)


def test_tags_are_replaced_as_a_whole(api, box):
    empty = box.call("GET", "/tags").json()
    assert empty == {"tags": {}, "tagsLastUpdatedAt": None}
    first = put_tags(box, {"crabbox.claim": "a", "team": "x"}).json()
    assert first["tags"] == {"crabbox.claim": "a", "team": "x"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["tagsLastUpdatedAt"])
    assert put_tags(box, {"team": "y"}).json()["tags"] == {"team": "y"}
    assert box.call("GET", "/tags").json()["tags"] == {"team": "y"}
    assert box.view()["tags"] == {"team": "y"}
    assert put_tags(box, {}).json()["tags"] == {}
    assert put_tags(box, {"k" * 128: "v" * 256}).status_code == 200
    assert put_tags(box, {f"k{n}": "" for n in range(50)}).status_code == 200


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({f"k{n}": "" for n in range(51)}, "50"),
        ({"k" * 129: "v"}, "128"),
        ({"k": "v" * 257}, "256"),
        ({"k": "é" * 129}, "256"),
        ({"": "v"}, "key"),
        ({"oc:x": "v"}, "reserved"),
        ({"sp ace": "v"}, "key"),
        ({"ключ": "v"}, "key"),
        ({"k": 1}, "string"),
        ({"k": None}, "string"),
        ({"k": {"x": "y"}}, "string"),
        ([], ""),
        ("x", ""),
        (None, ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_tags_change_nothing(shared, tags, says):
    assert put_tags(shared, {"keep": "me"}).status_code == 200
    answer = put_tags(shared, tags) if tags is not None else shared.call("PUT", "/tags", content=b"null", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]
    assert shared.call("GET", "/tags").json()["tags"] == {"keep": "me"}


def test_tags_work_in_every_state_and_wake_nothing(api):
    box = api.create()
    assert box.call("POST", "/hibernate").status_code == 200
    assert put_tags(box, {"a": "1"}).status_code == 200
    assert box.status() == "hibernated"
    box.kill()
    assert put_tags(box, {"a": "2"}).json()["tags"] == {"a": "2"}
    assert box.call("GET", "/tags").json()["tags"] == {"a": "2"}


def test_concurrent_replacements_leave_one_whole_set(box):
    sets = [{f"a{n}": str(n), f"b{n}": str(n)} for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tags: put_tags(box, tags), sets))
    assert box.call("GET", "/tags").json()["tags"] in sets


def test_tag_keys_are_counted(api, box, shared):
    key = f"count-{uuid.uuid4().hex[:8]}"
    put_tags(box, {key: "1"})
    put_tags(shared, {key: "2"})
    entry = next(each for each in api.get("/api/tags").json()["keys"] if each["key"] == key)
    assert entry == {"key": key, "sandboxCount": 2, "valueCount": 2}


def test_each_sandbox_is_a_machine_of_its_own(api, box):
    identity = lambda each: each.out("cat /etc/machine-id").strip()
    mine = identity(box)
    assert re.fullmatch(r"[0-9a-f]{32}", mine)
    box.call("POST", "/hibernate")
    assert identity(box) == mine, "a hibernation keeps it"
    with api.fork(box.checkpoint("a fork of it")) as fork, api.create() as other:
        assert len({mine, identity(fork), identity(other)}) == 3
    assert identity(box) == mine
