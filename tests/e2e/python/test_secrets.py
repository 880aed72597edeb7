"""opencomputer-sdk 1.1.0: secret stores, and the sandboxes that have them."""

import re
import uuid

import httpx
import pytest
from opencomputer import Sandbox, SecretStore

from harness import settings

TOKEN = re.compile(r"osb_sealed_[0-9a-f]{32}")


@pytest.fixture
async def store():
    made = await SecretStore.create(f"py-{uuid.uuid4().hex}")
    yield made
    try:
        await SecretStore.delete(made["id"])
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == 404


async def test_stores(store):
    assert {"id", "orgId", "name", "egressAllowlist", "createdAt", "updatedAt"} <= store.keys()
    assert store["egressAllowlist"] == []
    assert await SecretStore.get(store["id"]) == store
    assert store in await SecretStore.list()
    listed = await SecretStore.update(store["id"], egress_allowlist=["api.example.com", "*.example.org"])
    assert (listed["name"], listed["egressAllowlist"]) == (store["name"], ["api.example.com", "*.example.org"])
    renamed = await SecretStore.update(store["id"], name=store["name"] + "-2")
    assert (renamed["name"], renamed["egressAllowlist"]) == (store["name"] + "-2", listed["egressAllowlist"])
    assert (await SecretStore.update(store["id"], egress_allowlist=[]))["egressAllowlist"] == []
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await SecretStore.create(store["name"] + "-2")
    assert raised.value.response.status_code == 409
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await SecretStore.get(store["id"], api_key=settings.OTHER_KEY)
    assert raised.value.response.status_code == 404
    await SecretStore.delete(store["id"])
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await SecretStore.get(store["id"])
    assert raised.value.response.status_code == 404


async def test_secrets(store):
    assert await SecretStore.list_secrets(store["id"]) == []
    await SecretStore.set_secret(store["id"], "B_KEY", "hunter2-b")
    await SecretStore.set_secret(store["id"], "A_KEY", "hunter2-a", allowed_hosts=["api.example.com"])
    listed = await SecretStore.list_secrets(store["id"])
    assert [(one["name"], one["allowedHosts"], one["storeId"]) for one in listed] == [
        ("A_KEY", ["api.example.com"], store["id"]),
        ("B_KEY", [], store["id"]),
    ]
    assert "hunter2" not in str(listed)
    await SecretStore.delete_secret(store["id"], "A_KEY")
    await SecretStore.delete_secret(store["id"], "A_KEY")
    assert [one["name"] for one in await SecretStore.list_secrets(store["id"])] == ["B_KEY"]
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await SecretStore.set_secret(store["id"], "not-a-name", "x")
    assert raised.value.response.status_code == 400


async def test_a_sandbox_has_tokens_and_never_values(store):
    await SecretStore.set_secret(store["id"], "API_KEY", "hunter2-value", allowed_hosts=["api.example.com"])
    await SecretStore.set_secret(store["id"], "MINE", "hunter2-mine")
    await SecretStore.update(store["id"], egress_allowlist=["api.example.com"])
    async with await Sandbox.create(memory_mb=1024, secret_store=store["name"], envs={"MINE": "plain"}) as sandbox:
        shown = (await sandbox.exec.run("env")).stdout
        envs = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        assert TOKEN.fullmatch(envs["API_KEY"]) and envs["MINE"] == "plain"
        assert envs["HTTPS_PROXY"] == envs["http_proxy"] == "http://169.254.169.253:3128"
        assert envs["NO_PROXY"] == "localhost,127.0.0.1,::1,169.254.169.254"
        assert envs["SSL_CERT_FILE"] == "/etc/ssl/certs/ca-certificates.crt"
        assert "hunter2" not in shown
        allowed = await sandbox.get_allowed_hosts()
        assert (allowed["sandboxID"], allowed["secretStore"]) == (sandbox.id, store["name"])
        assert allowed["egressAllowlist"] == ["api.example.com"]
        assert allowed["perSecretAllowedHosts"] == {"API_KEY": ["api.example.com"]}

        # A new value stays behind the same token; a new name is for new sandboxes.
        await SecretStore.set_secret(store["id"], "API_KEY", "hunter3-value")
        await SecretStore.set_secret(store["id"], "LATER", "x")
        after = (await sandbox.exec.run("echo $API_KEY; echo ${LATER:-none}")).stdout
        assert after == f"{envs['API_KEY']}\nnone\n"

        # It outlives sleep.
        await sandbox.hibernate()
        await sandbox.wake()
        assert (await sandbox.exec.run("echo $API_KEY")).stdout.strip() == envs["API_KEY"]


async def test_a_plain_sandbox_has_nothing_of_it(sandbox):
    allowed = await sandbox.get_allowed_hosts()
    assert (allowed["egressAllowlist"], allowed["perSecretAllowedHosts"]) == ([], {})
    assert "secretStore" not in allowed and "baseSecretStore" not in allowed
    assert "PROXY" not in (await sandbox.exec.run("env")).stdout.upper()


async def test_an_unknown_store_is_refused():
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await Sandbox.create(memory_mb=1024, secret_store="no such store")
    assert raised.value.response.status_code == 400
    assert raised.value.response.json()["error"] == "secret store not found: no such store"


async def test_a_fork_is_layered(store):
    upper = await SecretStore.create(f"py-{uuid.uuid4().hex}", egress_allowlist=["upper.example.com"])
    try:
        await SecretStore.update(store["id"], egress_allowlist=["base.example.com"])
        await SecretStore.set_secret(store["id"], "A", "base")
        await SecretStore.set_secret(store["id"], "B", "base", allowed_hosts=["base.example.com"])
        await SecretStore.set_secret(upper["id"], "B", "upper", allowed_hosts=["upper.example.com"])
        async with await Sandbox.create(memory_mb=1024, secret_store=store["name"]) as parent:
            mine = (await parent.exec.run("echo $A; echo $B")).stdout.split()
            checkpoint = await parent.create_checkpoint("one")
            fork = await Sandbox.create_from_checkpoint(checkpoint["id"], secret_store=upper["name"])
            async with fork:
                theirs = (await fork.exec.run("echo $A; echo $B")).stdout.split()
                assert all(TOKEN.fullmatch(token) for token in mine + theirs)
                assert not set(mine) & set(theirs), "tokens of a fork are its own"
                allowed = await fork.get_allowed_hosts()
                assert (allowed["secretStore"], allowed["baseSecretStore"]) == (upper["name"], store["name"])
                assert allowed["egressAllowlist"] == ["base.example.com", "upper.example.com"]
                assert allowed["perSecretAllowedHosts"] == {"B": ["upper.example.com"]}
    finally:
        await SecretStore.delete(upper["id"])


async def test_a_store_can_go_with_its_sandbox(store):
    async with await Sandbox.create(memory_mb=1024, secret_store=store["name"]) as sandbox:
        await sandbox.kill(delete_secret_store=True)
    assert store["id"] not in {one["id"] for one in await SecretStore.list()}
