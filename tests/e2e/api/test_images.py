"""Sections 4.5 and 16: images are built step by step, kept layer by layer, and sandboxes start from them."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import builds, host
from harness.builds import Snapshot, a_name, add_dir, add_file, build_fails, create, env, manifest, post, run, step, unique
from harness.client import SMALL, Box, marker
from harness.sockets import PtySocket
from harness.waiting import wait_for

from .test_pty import open_pty


def test_a_build_is_told_frame_by_frame_and_the_second_finds_it(api):
    image = manifest(unique(), run("echo to stdout; echo to stderr >&2; printf unended", "echo more"), env(A="1"))
    with create(api, image=image) as box:
        logs = box.outcome.logs
        assert (0, "Building image with 3 steps") in [(each["step"], each["message"]) for each in logs if each["type"] == "build"]
        assert box.outcome.ran() == [1, 2, 3]
        begun = next(n for n, each in enumerate(logs) if each["message"].startswith("Step 2/3: "))
        ended = next(n for n, each in enumerate(logs) if each["message"] == "Step 2/3 completed")
        between = logs[begun + 1 : ended]
        assert {(each["step"], each["type"]) for each in between} == {(2, "run")}, between
        assert sorted(each["message"] for each in between) == ["to stderr", "to stdout", "unendedmore"], between
        assert all(each["step"] == 4 for each in logs if each["type"] == "checkpoint") and box.outcome.messages("checkpoint")
        assert box.view()["status"] == "running" and box.out("echo $A") == "1\n"
        assert "connectURL" in box.outcome.result and "token" in box.outcome.result
    begun = time.monotonic()
    with create(api, image=image) as again:
        took = time.monotonic() - begun
        assert again.outcome.messages("cache_hit") and again.outcome.ran() == [], again.outcome.text
        assert again.out("echo $A") == "1\n" and took < 10, took


def test_output_comes_while_the_step_runs(api):
    seen = {}
    image = manifest(run(f"echo early; sleep 2; echo late # {uuid.uuid4()}"))
    with create(api, on_log=lambda log: seen.setdefault(log["message"], time.monotonic()), image=image):
        assert seen["late"] - seen["early"] > 1.2, "the lines came together"


def test_what_is_accepted_decides_the_answer(api):
    image = manifest()
    for accept in ("text/event-stream, application/json", "application/json", "*/*", "TEXT/event-stream; q=1"):
        outcome = post(api, "/api/sandboxes", SMALL | {"image": image}, headers={"Accept": accept})
        assert (outcome.status, outcome.kind.split(";")[0]) == (201, "application/json"), (accept, outcome.body)
        with Box(api, json.loads(outcome.body)) as box:
            assert box.out("echo hi") == "hi\n"
    for fields in ({}, {"image": None}, {"snapshot": ""}):
        outcome = post(api, "/api/sandboxes", SMALL | fields)
        assert (outcome.status, outcome.kind.split(";")[0]) == (201, "application/json"), "without an image the header means nothing"
        api.delete(f"/api/sandboxes/{json.loads(outcome.body)['sandboxID']}")
    # What is wrong before anything begins is an ordinary error.
    outcome = post(api, "/api/sandboxes", SMALL | {"image": manifest(), "snapshot": "x"})
    assert outcome.status == 400 and outcome.kind.startswith("application/json"), outcome.body


def test_a_layer_for_each_step_and_only_what_changed_runs(api):
    stamp = f"date +%s%N > ~/one # {uuid.uuid4()}"
    first = run(stamp)
    with create(api, image=manifest(first, run("cp ~/one ~/two"), run("echo a > ~/three"))) as a, create(
        api, image=manifest(first, run("cp ~/one ~/two"), run("echo b > ~/three"))
    ) as b:
        assert a.outcome.ran() == [1, 2, 3]
        assert b.outcome.ran() == [3] and b.outcome.messages("cache_hit"), b.outcome.text
        assert a.out("cat ~/one ~/two") == b.out("cat ~/one ~/two")
        assert (a.out("cat ~/three"), b.out("cat ~/three")) == ("a\n", "b\n")
        # Sandboxes of one image do not see each other.
        a.out("echo mine > ~/one")
        assert b.out("cat ~/one") != "mine\n"
    # A shorter image is there already, a longer one goes on from the longest that is.
    with create(api, image=manifest(first, run("cp ~/one ~/two"))) as short:
        assert short.outcome.ran() == []
        assert short.run("test -e ~/three")["exitCode"] == 1
    with create(api, image=manifest(first, run("cp ~/one ~/two"), run("echo a > ~/three"), run("echo 4 > ~/four"))) as longer:
        assert longer.outcome.ran() == [4] and longer.out("cat ~/three ~/four") == "a\n4\n"
    # In another order it is another image.
    with create(api, image=manifest(run("echo a > ~/three"), first)) as turned:
        assert turned.outcome.ran() == [1, 2]


def test_key_order_and_memory_are_not_content(api):
    one = {"base": "base", "steps": [{"type": "env", "args": {"vars": {"B": "2", "A": "é & <x>"}}}, unique()]}
    two = {"steps": [{"args": {"vars": {"A": "é & <x>", "B": "2"}}, "type": "env"}, one["steps"][1]], "base": "ubuntu", "builderMemoryMB": 8192}
    flat = {"base": "", "steps": [{"type": "env", "vars": {"A": "é & <x>", "B": "2"}}, {"type": "run", "commands": one["steps"][1]["args"]["commands"]}]}
    with Snapshot(api, one) as first, Snapshot(api, two) as second, Snapshot(api, flat) as third:
        assert first.view["contentHash"] == second.view["contentHash"] == third.view["contentHash"]
        assert second.outcome.ran() == third.outcome.ran() == []


def test_variables_and_the_folder_hold_for_everything(api):
    image = manifest(
        run("echo \"[$LATE]\" > ~/before"),
        env(B="2", A="1", LATE="one", QUOTED="it's \"$HOME\" `id`\nsecond \\ line"),
        step("workdir", path="/srv/my work/é"),
        run("pwd > here; echo \"$A$B $LATE\" > seen"),
        env(LATE="two"),
    )
    with create(api, image=image, envs={"B": "3", "MORE": "m"}) as box:
        assert box.out("cat ~/before; cat here seen") == "[]\n/srv/my work/é\n12 one\n"
        assert box.out('pwd; echo "$A $B $LATE $MORE"; printf %s "$QUOTED"') == "/srv/my work/é\n1 3 two m\nit's \"$HOME\" `id`\nsecond \\ line"
        assert box.out("pwd", cwd="/tmp") == "/tmp\n" and box.out("echo $A", envs={"A": "own"}) == "own\n"
        assert box.out("stat -c '%U %a' '/srv/my work/é'; id -un; echo $HOME") == "sandbox 755\nsandbox\n/home/sandbox\n"
        with PtySocket(box, open_pty(box)) as pty:
            pty.send('echo "<$PWD> $A $LATE"\n')
            pty.until("</srv/my work/é> 1 two")
        # Wakes and forks keep them.
        box.call("POST", "/hibernate")
        assert box.out('pwd; echo "$LATE $B"') == "/srv/my work/é\ntwo 3\n"
        with api.fork(box.checkpoint("one"), envs={"LATE": "three"}) as fork:
            assert fork.out('pwd; echo "$A $LATE"') == "/srv/my work/é\n1 three\n"


def test_a_folder_that_is_gone_does_not_stop_commands(api):
    with create(api, image=manifest(step("workdir", path="/srv/gone"), run("true"))) as box:
        box.out("sudo rmdir /srv/gone", cwd="/")
        assert box.out("pwd") == "/home/sandbox\n"


def test_files_are_as_they_were_sent(api):
    blob = bytes(range(256)) * 5000
    image = manifest(
        add_file("/srv/new/é'\"\n x", "text\n"),
        add_file("/home/sandbox/blob", blob),
        add_dir("/srv/tree", **{"a": b"1", "b/c/d": b"2", "b/é 'q'": b"", "blob": blob}),
    )
    with create(api, image=image) as box:
        assert box.read("/srv/new/é'\"\n x") == b"text\n"
        assert box.read("/home/sandbox/blob") == blob == box.read("/srv/tree/blob")
        assert box.out("cd /srv/tree; find . -type f | LC_ALL=C sort") == "./a\n./b/c/d\n./b/é 'q'\n./blob\n"
        # As files that are written over the API: the user's in its home, else of who has the folder.
        assert box.out("stat -c '%U:%G %a' /home/sandbox/blob /srv/tree/b/c/d") == "sandbox:sandbox 644\nroot:root 644\n"


def test_files_replace_files_and_clash_with_folders(api):
    with create(api, image=manifest(add_file("/srv/f", "old"), add_file("/srv/f", "new"), add_dir("/srv", f=b"newest", g=b"x"))) as box:
        assert box.out("cat /srv/f") == "newest"
    for wrong in (
        [add_file("/srv/d/f", "x"), add_file("/srv/d", "file over a folder")],
        [add_file("/srv/d", "x"), add_file("/srv/d/f", "below a file")],
        [add_dir("/srv/d", **{"a": b"1", "a/b": b"2"})],
    ):
        outcome = build_fails(api, manifest(*wrong))
        assert outcome.status == 400 or outcome.error.startswith(f"step {len(wrong) - 1} (add_"), (outcome.status, outcome.error)


def test_a_failing_step_says_so_and_a_retry_runs_it_again(api):
    flag = a_name()
    first = run(f"echo first # {flag}")
    failing = run(f"echo out; i=0; while [ $i -lt 100 ]; do echo \"err $i é\" >&2; i=$((i+1)); done; exit 3 # {flag}")
    for attempt in range(2):
        outcome = build_fails(api, manifest(first, failing, run("true")))
        head = "step 1 (run) failed (exit 3): "
        assert outcome.error.startswith(head + "err 0 é\n"), outcome.error
        told, rest = outcome.error[len(head) :].split("\nThe command was `")
        assert 300 < len(told) <= 500, len(told)
        assert rest.startswith("echo out; i=0; ") and rest.endswith("\n  err 98 é\n  err 99 é"), rest
        assert outcome.ran() == ([1] if attempt == 0 else []), outcome.text
        assert "out" in outcome.messages("run") and "err 99 é" in outcome.messages("run"), "all of the output is in the log"
    with create(api, image=manifest(first, run("true"))) as box:
        assert box.outcome.ran() == [2], "what worked is not run again"
    answer = post(api, "/api/sandboxes", SMALL | {"image": manifest(run("exit 7"))}, headers={})
    assert 400 <= answer.status < 500 and answer.refusal == "step 0 (run) failed (exit 7): `exit 7` wrote nothing", answer.body
    outcome = build_fails(api, manifest(run("kill -9 $$")))
    assert outcome.error.startswith("step 0 (run) failed ("), outcome.error


def test_commands_of_a_step_stop_at_the_first_that_fails(api):
    outcome = build_fails(api, manifest(run("echo one", "false", "echo two")), "step 0 (run) failed (exit 1)")
    assert "one" in outcome.messages("run") and "two" not in outcome.messages("run")


def test_nothing_of_a_step_stays_when_it_is_over(api):
    mark = marker()
    begun = time.monotonic()
    with create(api, image=manifest(run(f"sleep {mark} & sudo -n sh -c 'sleep {mark} &'; echo started"))) as box:
        assert time.monotonic() - begun < 60, "a step waits for what it left in the background"
        assert not box.is_alive(mark)
    wait_for(lambda: not host.find_process("sleep", mark), "processes of the build are gone")


def test_a_step_may_write_as_much_as_it_likes(api):
    noisy = run("seq 1 200000", "head -c 3000000 /dev/zero | tr '\\0' x", "printf '\\377\\376 no text\\n'")
    with create(api, image=manifest(noisy, unique())) as box:
        messages = box.outcome.messages("run")
        assert box.outcome.ran() == [1, 2] and "200000" in messages[-50:] or "200000" in messages
        assert max(map(len, messages)) <= 1 << 20 and any("no text" in each for each in messages)


def test_identical_builds_at_once_are_one(api):
    image = manifest(run(f"date +%s%N > ~/when; sleep 2 # {uuid.uuid4()}"), run("cat /proc/sys/kernel/random/uuid > ~/which"))
    with ThreadPoolExecutor(5) as pool:
        boxes = list(pool.map(lambda _: create(api, image=image), range(5)))
    try:
        assert len({box.out("cat ~/when ~/which") for box in boxes}) == 1, "steps were run more than once"
        for box in boxes:
            assert box.outcome.ran() == [1, 2], "everybody sees the whole log"
    finally:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(Box.__exit__, boxes))


def test_builds_at_once_that_share_their_first_steps(api):
    """Each keeps a layer of the same name, and the one that is replaced is what another is about to end in."""
    for _ in range(3):
        shared = run(f"head -c 120000000 /dev/urandom > ~/f # {uuid.uuid4()}")
        images = [manifest(shared), manifest(shared, run("echo more > ~/g")), manifest(shared, run("sleep 0.1")), manifest(shared, run("echo a", "echo b"))]
        with ThreadPoolExecutor(4) as pool:
            boxes = list(pool.map(lambda image: create(api, image=image), images))
            assert {box.out("wc -c < ~/f") for box in boxes} == {"120000000\n"}
            list(pool.map(Box.__exit__, boxes))


def test_one_of_two_leaves_and_the_build_goes_on(api):
    image = manifest(run(f"sleep 2; echo done > ~/f # {uuid.uuid4()}"))
    with ThreadPoolExecutor(1) as pool:
        with api.http.stream("POST", "/api/sandboxes", json=SMALL | {"image": image}, headers=builds.EVENTS, timeout=60) as answer:
            next(answer.iter_bytes())
            other = pool.submit(create, api, image=image)
            wait_for(lambda: not other.done(), "it waits", 1)
        with other.result(60) as box:
            assert box.out("cat ~/f") == "done\n"


def test_another_organisation_builds_for_itself(api, other):
    image = manifest(run(f"cat /proc/sys/kernel/random/uuid > ~/which # {uuid.uuid4()}"))
    with create(api, image=image) as ours, create(other, image=image) as theirs:
        assert theirs.outcome.ran() == [1], "it could tell what others have built"
        assert ours.out("cat ~/which") != theirs.out("cat ~/which")


def test_every_field_of_a_create_is_honoured(api):
    with Snapshot(api, manifest(env(A="image", B="image"), unique(), runtimeMemoryMB=1024)) as snapshot:
        store = a_name("store")
        store_id = api.post("/api/secret-stores", json={"name": store}).json()["id"]
        api.put(f"/api/secret-stores/{store_id}/secrets/TOKEN", json={"value": "a-secret-value", "allowedHosts": ["api.example.com"]})
        fields = {
            "envs": {"A": "own"}, "metadata": {"m": "x"}, "timeout": 900, "secretStore": store, "memoryMB": 4096, "tags": {"t": "v"},
            "alias": "an alias", "previewAuth": {"scheme": "bearer", "token": "auto"}, "startCommands": ["sleep 3000 & echo up > ~/started"],
        }  # fmt: skip
        with snapshot.create(**fields) as box:
            view = box.view()
            assert (view["metadata"], view["timeout"], view["tags"], view["alias"]) == ({"m": "x"}, 900, {"t": "v"}, "an alias")
            assert view["memoryMB"] == 4096 and box.outcome.result["memoryMB"] == 4096
            assert box.outcome.result["previewAuthToken"]
            assert box.out("echo $A $B") == "own image\n" and box.out("echo $TOKEN").startswith("osb_sealed_")
            wait_for(lambda: box.run("cat ~/started")["stdout"] == "up\n", "its start commands are started")
        api.delete(f"/api/secret-stores/{store_id}")
        for wrong, says in (
            ({"secretStore": "none-such"}, "secret store not found"),
            ({"cpuCount": 3}, "cpuCount"),
            ({"previewAuth": {"scheme": "basic"}}, "previewAuth"),
        ):
            outcome = post(api, "/api/sandboxes", SMALL | {"snapshot": snapshot.name} | wrong)
            assert outcome.status == 400 and says in outcome.refusal, (wrong, outcome.body)


def test_memory_is_at_least_the_images(api):
    with Snapshot(api, manifest(unique(), runtimeMemoryMB=4096)) as snapshot, snapshot.create(memoryMB=1024) as box:
        assert box.view()["memoryMB"] == 4096


def test_no_network_holds_for_sandboxes_not_for_builds(api):
    with create(api, image=manifest(unique()), networkEnabled=False) as box:
        assert box.run("timeout 3 bash -c '</dev/tcp/1.1.1.1/53'")["exitCode"] != 0


def test_the_same_key_gives_the_same_sandbox(api):
    body = SMALL | {"image": manifest(unique())}
    key = {"Idempotency-Key": uuid.uuid4().hex} | builds.EVENTS
    one, two = post(api, "/api/sandboxes", body, headers=key), post(api, "/api/sandboxes", body, headers=key)
    first = one.result
    second = two.result or json.loads(two.body)
    with Box(api, first):
        assert first["sandboxID"] == second["sandboxID"]


def test_an_image_is_a_base(api):
    with Snapshot(api, manifest(run(f"echo base > ~/f # {uuid.uuid4()}"), env(FROM="base"), step("workdir", path="/srv/w"))) as base:
        again = manifest(run("cat ~/f > ~/g; pwd >> ~/g; echo $FROM >> ~/g"), base=f"snapshot:{base.name}")
        with create(api, image=again) as box:
            assert box.outcome.ran() == [1] and box.out("cat ~/g; pwd") == "base\n/srv/w\nbase\n/srv/w\n"
        with create(api, image=manifest(base=f"snapshot:{base.name}@1")) as box:
            assert box.out("cat ~/f") == "base\n"
        build_fails(api, manifest(base=f"snapshot:{base.name}@7"), "")
    with api.create() as box:
        box.out("echo saved > ~/f; sudo touch /srv/root")
        one = box.checkpoint("one")
        with create(api, image=manifest(run("cat ~/f > ~/g"), base=f"checkpoint:{one}")) as made:
            assert made.out("cat ~/g; stat -c %U /srv/root") == "saved\nroot\n"


def test_lists_usage_and_deletion(api):
    before = api.get("/api/images/usage").json()
    assert {"usedBytes", "budgetBytes", "volumeBytes", "freeBytes"} <= set(before)
    image = manifest(run(f"head -c 30000000 /dev/urandom > ~/big # {uuid.uuid4()}"))
    with create(api, image=image) as box:
        listed = [each for each in api.get("/api/images").json() if each["manifest"]["steps"] == image["steps"]]
        assert len(listed) == 1 and listed[0]["status"] == "ready" and "name" not in listed[0], listed
        assert listed[0]["sizeBytes"] >= 30_000_000
        after = api.get("/api/images/usage").json()
        assert 25_000_000 < after["usedBytes"] - before["usedBytes"] < 300_000_000, (before, after)
        path = f"/api/images/{listed[0]['id']}"
        assert api.get(path).json()["contentHash"] == listed[0]["contentHash"]
        assert api.delete(path).status_code == 204
        assert api.get(path).status_code == 404
        assert box.out("wc -c < ~/big").strip() == "30000000", "sandboxes outlive their image"
    with create(api, image=image) as box:
        assert box.out("wc -c < ~/big").strip() == "30000000"


@pytest.mark.parametrize("suite", ["ours", "theirs"])
def test_lists_are_owned(api, other, suite):
    who, stranger = (api, other) if suite == "ours" else (other, api)
    with Snapshot(who, manifest(unique())) as snapshot:
        image_id = snapshot.view["id"]
        assert image_id in [each["id"] for each in who.get("/api/images").json()]
        assert image_id not in [each["id"] for each in stranger.get("/api/images").json()]
        assert snapshot.name not in [each["name"] for each in stranger.get("/api/snapshots").json()]
        assert snapshot.name not in [each["name"] for each in stranger.get("/api/templates").json()]
        for answer in (
            stranger.get(snapshot.path), stranger.delete(snapshot.path), stranger.post(f"{snapshot.path}/publish"), stranger.post(f"{snapshot.path}/unpublish"),
            stranger.get(f"{snapshot.path}/patches"), stranger.post(f"{snapshot.path}/patches", json={"script": "true"}), stranger.get(f"/api/templates/{snapshot.name}"),
            stranger.delete(f"/api/templates/{snapshot.name}"), stranger.get(f"/api/images/{image_id}"), stranger.delete(f"/api/images/{image_id}"),
        ):  # fmt: skip
            assert answer.status_code == 404, (answer.request.url, answer.text)
        outcome = post(stranger, "/api/sandboxes", SMALL | {"snapshot": snapshot.name})
        assert outcome.status in (400, 404) and "not found" in outcome.refusal or "not found" in (outcome.error or ""), outcome.body
        build_fails(stranger, manifest(base=f"snapshot:{snapshot.name}"), "not found")
        answer = stranger.post(f"/api/sandboxes/from-checkpoint/{snapshot.view['checkpointId']}", json={})
        assert answer.status_code in (403, 404), answer.text
        assert snapshot.get()["status"] == "ready"
