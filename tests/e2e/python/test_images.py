"""opencomputer-sdk 1.1.0: images, snapshots, templates."""

import uuid

import httpx
import pytest
from opencomputer import Image, Sandbox, SecretStore, Snapshots, Template

from harness import settings

from .test_sandbox import raw

EMPTY = "485f603ddf675cfc9b285fed0d9d5e85c4c09c66e8cb4fc0cc0720acc08874ef"
M1 = "76022298215157fd20e50e6aeffbf8b3c910abb77ac9f93e2bbcaced5840e898"
M2 = "3e0b08051d1c2b70fa081ed1c4ed3873e63d83e4a2802c2916f9fdbe999695a2"


def fresh(image=None):
    """An image nobody has built before."""
    return (image or Image.base()).run_commands(f": {uuid.uuid4()}")


@pytest.fixture
async def snapshots():
    made = Snapshots()
    yield made
    await made.close()


@pytest.fixture
async def name(snapshots):
    made = f"py-{uuid.uuid4().hex[:10]}"
    yield made
    await snapshots.delete(made)


async def test_cache_keys(snapshots, name):
    assert Image.base().cache_key() == EMPTY
    assert Image.base().apt_install(["curl"]).cache_key() == M1
    image = Image.base().apt_install(["curl", "git"]).env({"B": "2", "A": "é & <x>"}).add_file("/w/a.txt", "hi")
    assert image.cache_key() == M2
    own = fresh().env({"B": "2", "A": "é & <x>"}).builder_memory(8192)
    built = await snapshots.create(name, own)
    assert built["contentHash"] == own.cache_key(), "the server's hash is the SDK's"


async def test_every_step(tmp_path, snapshots, name):
    (tmp_path / "one.bin").write_bytes(bytes(range(256)))
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "é 'f'").write_text("deep")
    (tmp_path / "tree" / "top").write_text("top")
    base = Image.base()
    image = (
        base.run_commands("mkdir -p ~/made", f"echo ran > ~/made/f # {uuid.uuid4()}")
        .env({"Z": "26", "A": "it's \"1\""})
        .workdir("/srv/work")
        .add_file("/srv/work/config.json", '{"key": "é"}\n')
        .add_local_file(str(tmp_path / "one.bin"), "/srv/one.bin")
        .add_local_dir(str(tmp_path / "tree"), "/srv/tree")
        .builder_memory(8192)
    )
    assert base.to_dict() == {"base": "base", "steps": []}, "images do not change"
    assert [step["type"] for step in image.to_dict()["steps"]] == ["run", "env", "workdir", "add_file", "add_file", "add_dir"]
    assert image.to_dict()["builderMemoryMB"] == 8192
    async with await Sandbox.create(image=image, memory_mb=1024) as sandbox:
        result = await sandbox.exec.run('pwd; cat ~/made/f config.json; echo "$A $Z"; id -un')
        assert result.stdout == '/srv/work\nran\n{"key": "é"}\nit\'s "1" 26\nsandbox\n'
        assert await sandbox.files.read_bytes("/srv/one.bin") == bytes(range(256))
        assert await sandbox.files.read("/srv/tree/deep/é 'f'") == "deep" and await sandbox.files.read("/srv/tree/top") == "top"
        # Writable, and everything else works as in any sandbox.
        await sandbox.files.write("/srv/work/config.json", "new")
        assert await (await sandbox.exec.start("sh", args=["-c", 'test "$Z" = 26'])).done == 0
        pty = await sandbox.pty.create()
        await pty.close()


async def test_build_logs_and_the_cache():
    image = fresh().run_commands("echo a line of output", "echo another >&2")
    logs = []
    async with await Sandbox.create(image=image, memory_mb=1024, on_build_log=logs.append) as sandbox:
        assert sandbox.status == "running" and sandbox.id.startswith("sb-")
        assert (await sandbox.exec.run("echo hi")).stdout == "hi\n"
    text = "\n".join(logs)
    assert "Building image with 2 steps" in logs and "Step 2/2 completed" in logs and "a line of output" in logs and "another" in logs, text
    assert logs.index("Step 1/2 completed") < logs.index("a line of output") < logs.index("Step 2/2 completed")
    again = []
    async with await Sandbox.create(image=image, memory_mb=1024, on_build_log=again.append):
        assert not [line for line in again if line.startswith("Step ")], again


async def test_a_failing_step_and_a_retry():
    good = fresh().run_commands("echo good > ~/f")
    with pytest.raises(RuntimeError, match=r"^Build failed: step 2 \(run\) failed \(exit 4\): to stderr\nThe command was `echo to stderr >&2; exit 4`\.$"):
        await Sandbox.create(image=good.run_commands("echo to stderr >&2; exit 4"))
    with pytest.raises(RuntimeError, match=r"^Build failed: step 2 \(run\) failed \(exit 7\): `exit 7` wrote nothing$"):
        await Sandbox.create(image=good.run_commands("exit 7"))
    logs = []
    async with await Sandbox.create(image=good.run_commands("echo fixed >> ~/f"), memory_mb=1024, on_build_log=logs.append) as sandbox:
        assert await sandbox.files.read("/home/sandbox/f") == "good\nfixed\n"
    assert "Step 3/3 completed" in logs and "Step 1/3 completed" not in logs, logs


async def test_snapshots(snapshots, name):
    image = fresh().env({"A": "image", "B": "image"}).workdir("/srv/w")
    logs = []
    made = await snapshots.create(name, image, on_build_logs=logs.append)
    assert (made["name"], made["status"], made["manifest"]) == (name, "ready", image.to_dict()) and "Building image with 3 steps" in logs
    assert (await snapshots.get(name))["id"] == made["id"]
    assert name in [each["name"] for each in await snapshots.list()]
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await snapshots.create(name, image)
    assert raised.value.response.status_code == 409
    stranger = Snapshots(api_key=settings.OTHER_KEY)
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await stranger.get(name)
    assert raised.value.response.status_code == 404
    await stranger.delete(name)
    await stranger.close()
    async with await Sandbox.create(snapshot=name, envs={"B": "own"}, memory_mb=1024) as sandbox:
        assert (await sandbox.exec.run("pwd; echo $A $B")).stdout == "/srv/w\nimage own\n"
    async with await Sandbox.create_from_checkpoint(made["checkpointId"], envs={"C": "c"}, timeout=55) as fork:
        assert (await fork.exec.run("pwd; echo $A $B $C")).stdout == "/srv/w\nimage image c\n"
        assert (await raw(fork))["timeout"] == 55
    await snapshots.delete(name)
    await snapshots.delete(name)
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await snapshots.get(name)
    assert raised.value.response.status_code == 404
    with pytest.raises((RuntimeError, httpx.HTTPStatusError)):
        await Sandbox.create(snapshot=name)


async def test_every_option_of_a_create_from_a_snapshot(snapshots, name):
    await snapshots.create(name, fresh())
    store = await SecretStore.create(f"py-{uuid.uuid4().hex}")
    try:
        await SecretStore.set_secret(store["id"], "KEY", "hunter2-value")
        sandbox = await Sandbox.create(
            snapshot=name, envs={"E": "1"}, metadata={"m": "x"}, memory_mb=4096, timeout=700, secret_store=store["name"], disk_mb=20480,
            preview_auth={"scheme": "bearer", "token": "a-token-of-our-own"},
        )  # fmt: skip
        async with sandbox:
            assert sandbox.preview_auth_token == "a-token-of-our-own"
            view = await raw(sandbox)
            assert (view["memoryMB"], view["timeout"], view["metadata"]) == (4096, 700, {"m": "x"})
            out = (await sandbox.exec.run("echo $E $KEY")).stdout
            assert out.startswith("1 osb_sealed_"), out
    finally:
        await SecretStore.delete(store["id"])


async def test_a_snapshot_by_version(snapshots, name):
    await snapshots.create(name, fresh().run_commands("echo 1 > ~/v"))
    async with await Sandbox.create(snapshot=f"{name}@1", memory_mb=1024) as sandbox:
        assert await sandbox.files.read("/home/sandbox/v") == "1\n"


async def test_templates(snapshots, name):
    base = settings.URL + "/api"
    async with httpx.AsyncClient(base_url=base, headers={"X-API-Key": settings.KEY}, timeout=60) as client:
        templates = Template._from_client(client)
        assert [each.status for each in await templates.list() if each.name == "base"] == ["ready"]
        built = await templates.build(name, "FROM base\n")
        assert (built.name, built.status) == (name, "ready")
        assert await templates.get(name) == built and built in await templates.list()
        async with await Sandbox.create(template=built.template_id, memory_mb=1024) as sandbox:
            assert (await sandbox.exec.run("echo hi")).stdout == "hi\n"
        await templates.delete(name)
        with pytest.raises(httpx.HTTPStatusError):
            await templates.get(name)


async def test_a_data_science_image(snapshots, name):
    """The example people start with, out of real packages."""
    image = (
        Image.base()
        .apt_install(["tree", "libsqlite3-0"])
        .pip_install(["numpy", "humanize==4.*"])
        .add_file("/workspace/analyze.py", "import numpy, os\nprint(numpy.arange(10).sum(), os.environ['PROJECT_ROOT'])\n")
        .run_commands("mkdir -p ~/data", "seq 1 10 > ~/data/numbers")
        .env({"PROJECT_ROOT": "/workspace"})
        .workdir("/workspace")
    )
    logs = []
    built = await snapshots.create(name, image, on_build_logs=logs.append)
    assert built["status"] == "ready" and any("numpy" in line for line in logs)
    async with await Sandbox.create(snapshot=name, memory_mb=1024) as sandbox:
        result = await sandbox.exec.run("pwd; python3 analyze.py; tree --version; python3 -c 'import humanize; print(humanize.intcomma(1000))'; wc -l < ~/data/numbers")
        assert result.exit_code == 0, result
        lines = result.stdout.splitlines()
        assert lines[:2] == ["/workspace", "45 /workspace"] and lines[2].startswith("tree v") and lines[3:] == ["1,000", "10"], lines
    # What comes after is built on the packages that are there.
    logs.clear()
    async with await Sandbox.create(image=image.run_commands(f"tree --version # {uuid.uuid4()}"), memory_mb=1024, on_build_log=logs.append):
        assert "Step 7/7 completed" in logs and "Step 1/7 completed" not in logs, logs
