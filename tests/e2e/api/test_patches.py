"""Section 15.6: patches of a checkpoint run in what is made from it, once each, on every transition to running."""

from concurrent.futures import ThreadPoolExecutor

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


def test_a_fork_gets_the_patches_of_a_checkpoint_that_goes_meanwhile(api, box):
    one = box.checkpoint("one")
    patch(api, one, "echo one >> ~/log; sleep 0.7")
    patch(api, one, "echo two >> ~/log")
    with ThreadPoolExecutor(1) as pool:
        forking = pool.submit(lambda: api.fork(one, metadata={"of": one}))
        wait_for(lambda: api.list_all(**{"metadata.of": one}), "it is listed")
        assert box.call("DELETE", f"/checkpoints/{one}").status_code == 204
        with forking.result(60) as fork:
            assert fork.out("cat ~/log") == "one\ntwo\n" and "patchError" not in fork.view()


def test_patches_that_are_made_at_once_are_all_there(api, box):
    one = box.checkpoint("one")
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda number: patch(api, one, f"echo {number} >> ~/log"), range(12)))
    assert sorted(each["sequence"] for each in made) == list(range(1, 13))
    with api.fork(one) as fork:
        assert sorted(map(int, fork.out("cat ~/log").split())) == list(range(12))


def test_a_fork_under_patches_can_be_looked_at_and_deleted(api, box):
    one = box.checkpoint("one")
    patch(api, one, "sleep 250")
    with api.fork(box.checkpoint("other")) as fork:
        fork.call("POST", "/hibernate")
    with ThreadPoolExecutor(1) as pool:
        forking = pool.submit(lambda: api.http.post(f"/api/sandboxes/from-checkpoint/{one}", json={"metadata": {"under": one}}, timeout=90))
        found = wait_for(lambda: api.list_all(**{"metadata.under": one}), "it is listed")[0]
        assert api.delete(f"/api/sandboxes/{found['sandboxID']}").status_code == 204
        assert forking.result(60).status_code in (410, 502)


def test_a_patch_that_runs_holds_up_no_other_reboot_and_is_told_of(api, box):
    one = box.checkpoint("one")
    with api.fork(one) as fork:
        slow = patch(api, one, "sleep 250")
        before = fork.view()["generation"]
        with ThreadPoolExecutor(1) as pool:
            rebooting = pool.submit(lambda: api.http.post(f"{fork.path}/reboot", timeout=90))
            wait_for(lambda: fork.view()["generation"] != before, "it runs again, and the patch in it")
            assert api.delete(f"/api/sandboxes/checkpoints/{one}/patches/{slow['id']}").status_code == 204
            # A moment after the patch has begun: the agent of a machine takes that long to tell.
            wait_for(lambda: fork.call("POST", "/power-cycle").status_code == 204, "the reboot is no longer under way", 20)
            assert rebooting.result(60).status_code == 503
        assert fork.out("echo in") == "in\n"
        assert [(run[0], run[1]) for run in runs(fork)] == [(1, None)], "that it ran is told, and that it came to no end"


def test_a_checkpoint_holds_no_half_of_a_patch(api, box):
    """It waits for the end of it. One that was hibernated in the middle of a patch has to be woken first."""
    with api.fork(box.checkpoint("one")) as fork, ThreadPoolExecutor(1) as pool:
        origin = fork.created["fromCheckpointId"]

        def reboot_into(script):
            patch(api, origin, script)
            before = fork.view()["generation"]
            rebooting = pool.submit(lambda: api.http.post(f"{fork.path}/reboot", timeout=90))
            wait_for(lambda: fork.view()["generation"] != before, "it runs again, and the patch in it")
            return rebooting

        rebooting = reboot_into("echo begun >> ~/log; sleep 1; echo over >> ~/log")
        with api.fork(fork.checkpoint("two")) as other:
            assert other.out("cat ~/log") == "begun\nover\n"
        assert rebooting.result(60).status_code == 204
        rebooting = reboot_into("sleep 250")
        assert fork.call("POST", "/hibernate").status_code == 200
        assert rebooting.result(60).status_code == 503
        refusal(api.http.post(f"{fork.path}/checkpoints", json={"name": "three"}), 503, "hibernated while a patch ran; wake it")


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
