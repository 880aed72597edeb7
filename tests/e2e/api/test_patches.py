"""Section 15.6: patches of a checkpoint run in what is made from it, once each, on every transition to running."""

from harness.waiting import wait_for

from .test_checkpoints import NOBODYS, refusal


def patch(api, checkpoint_id, script, **fields):
    answer = api.post(f"/api/sandboxes/checkpoints/{checkpoint_id}/patches", json={"script": script} | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["patch"]


def patches(api, checkpoint_id):
    answer = api.get(f"/api/sandboxes/checkpoints/{checkpoint_id}/patches")
    assert answer.status_code == 200, answer.text
    return answer.json()


def runs(box):
    answer = box.call("GET", "/patches")
    assert answer.status_code == 200, answer.text
    return [(run["sequence"], run.get("exitCode"), run["stdout"]) for run in answer.json()]


def test_patches_run_in_order_once_and_before_anybody_gets_in(api, box):
    one = box.checkpoint("one")
    assert patches(api, one) == []
    first = patch(api, one, "id -un; pwd; echo one >> ~/log", description="the first")
    assert (first["sequence"], first["checkpointId"], first["strategy"], first["description"]) == (1, one, "on_wake", "the first")
    patch(api, one, "sleep 1; echo two >> ~/log")
    assert [each["sequence"] for each in patches(api, one)] == [1, 2]
    with api.fork(one) as fork:
        assert fork.out("cat ~/log") == "one\ntwo\n", "patches were not over when the fork was answered"
        assert runs(fork) == [(1, 0, "sandbox\n/home/sandbox\n"), (2, 0, "")]
        assert "patchError" not in fork.view()
        fork.call("POST", "/hibernate")
        assert fork.out("cat ~/log") == "one\ntwo\n", "a patch ran twice"
        # A new one runs on the next transition to running, however that comes.
        patch(api, one, "echo three >> ~/log")
        assert fork.out("cat ~/log") == "one\ntwo\n"
        fork.call("POST", "/hibernate")
        assert fork.out("cat ~/log") == "one\ntwo\nthree\n", "not on a wake by use"
        patch(api, one, "echo four >> ~/log")
        fork.call("POST", "/reboot")
        assert fork.out("cat ~/log") == "one\ntwo\nthree\nfour\n"
    assert box.run("cat ~/log")["exitCode"] != 0, "the checkpointed sandbox is not made from its checkpoint"


def test_the_first_failure_stops_the_rest_and_the_next_start_tries_again(api, box):
    one = box.checkpoint("one")
    patch(api, one, "echo one >> ~/log")
    bad = patch(api, one, "echo said; echo complained >&2; test -e ~/repaired")
    patch(api, one, "echo three >> ~/log")
    with api.fork(one) as fork:
        assert fork.created["patchError"] and fork.out("cat ~/log") == "one\n"
        error = fork.view()["patchError"]
        assert "patch 2 failed" in error and "exit code 1" in error and "complained" in error
        assert runs(fork)[1] == (2, 1, "said\n")
        fork.call("POST", "/hibernate")
        fork.out("touch ~/repaired")
        assert fork.view()["patchError"] and len(runs(fork)) == 3, "it was tried again"
        fork.call("POST", "/hibernate")
        assert fork.call("POST", "/wake", json={}).status_code == 200
        assert "patchError" not in fork.view() and fork.out("cat ~/log") == "one\nthree\n"
        assert [run[0] for run in runs(fork)] == [1, 2, 2, 2, 3]
    # Without the bad one a fork gets the others.
    assert api.delete(f"/api/sandboxes/checkpoints/{one}/patches/{bad['id']}").status_code == 204
    with api.fork(one) as fork:
        assert "patchError" not in fork.view() and fork.out("cat ~/log") == "one\nthree\n"
    assert patch(api, one, "true")["sequence"] == 4, "a number was used again"


def test_a_fork_under_patches_can_be_looked_at_and_deleted(api, box):
    one = box.checkpoint("one")
    patch(api, one, "sleep 250")
    with api.fork(box.checkpoint("other")) as fork:
        fork.call("POST", "/hibernate")
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        forking = pool.submit(lambda: api.http.post(f"/api/sandboxes/from-checkpoint/{one}", json={"metadata": {"under": one}}, timeout=90))
        found = wait_for(lambda: api.list_all(**{"metadata.under": one}), "it is listed")[0]
        assert api.delete(f"/api/sandboxes/{found['sandboxID']}").status_code == 204
        assert forking.result(60).status_code in (410, 502)


def test_what_is_wrong_with_a_patch(api, box):
    one = box.checkpoint("one")
    path = f"/api/sandboxes/checkpoints/{one}/patches"
    for body, says in [({}, "script is required"), ({"script": ""}, "script is required"), ({"script": 1}, "script"), ({"script": "a\x00"}, "NUL")]:
        refusal(api.post(path, json=body), 400, says)
    refusal(api.post(path, json={"script": "x" * 600_000}), 400)
    refusal(api.post(f"/api/sandboxes/checkpoints/{NOBODYS}/patches", json={"script": "true"}), 404)
    refusal(api.post("/api/sandboxes/checkpoints/x/patches", json={"script": "true"}), 400, "invalid checkpoint ID")
    refusal(api.get("/api/sandboxes/checkpoints/x/patches"), 400)
    refusal(api.delete(f"{path}/{NOBODYS}"), 404)
    assert patches(api, one) == []
    box.out("head -c 50000000 /dev/urandom > ~/big")
    two = box.checkpoint("two", ready=False)
    answer = api.post(f"/api/sandboxes/checkpoints/{two}/patches", json={"script": "true"})
    if answer.status_code != 201:  # It may be ready by then.
        refusal(answer, 400, "checkpoint is not ready")
    box.call("DELETE", f"/checkpoints/{one}")
    refusal(api.get(path), 404)
