"""Section 20: usage and tags, with the SDK's own classes."""

import asyncio

import httpx
import pytest
from opencomputer import Sandbox, Tags, Usage

from harness import settings
from harness.client import marker


@pytest.fixture
async def client():
    async with httpx.AsyncClient(
        base_url=f"{settings.URL.rstrip('/').removesuffix('/api')}/api", headers={"X-API-Key": settings.KEY}
    ) as http:
        yield http


async def test_usage_by_sandbox_by_tag_and_minute_by_minute(client, sandbox):
    usage, tags, mine = Usage._from_client(client), Tags._from_client(client), marker()
    await tags.set(sandbox.sandbox_id, {"usage-test": mine})
    only = {"tag:usage-test": mine}
    async with asyncio.timeout(20):
        while (whole := await usage.for_sandbox(sandbox.sandbox_id)).totals.uptime_seconds < 1:
            await asyncio.sleep(0.1)
    assert whole.totals.memory_allocated_peak_mb == 1024 and whole.points
    assert sum(point.memory_allocated_gb_seconds for point in whole.points) == whole.totals.memory_allocated_gb_seconds
    assert sum(point.uptime_seconds for point in whole.points) == whole.totals.uptime_seconds

    by_sandbox = await usage.by_sandbox(filter=only)
    assert [item.sandbox_id for item in by_sandbox.items] == [sandbox.sandbox_id]
    item = by_sandbox.items[0]
    assert (item.status, item.tags) == ("running", {"usage-test": mine}) and item.tags_last_updated_at
    assert item.memory_gb_seconds == by_sandbox.total.memory_gb_seconds >= whole.totals.memory_allocated_gb_seconds

    by_tag = await usage.by_tag("usage-test", filter=only, sort="-diskOverageGbSeconds", limit=1)
    assert [(item.tag_value, item.sandbox_count) for item in by_tag.items] == [(mine, 1)]
    assert by_tag.untagged.sandbox_count == 0 and by_tag.next_cursor is None


async def test_usage_outlives_its_sandbox(client):
    usage = Usage._from_client(client)
    sandbox = await Sandbox.create(memory_mb=1024)
    await sandbox.kill()
    whole = await usage.for_sandbox(sandbox.sandbox_id)
    assert 0 < whole.totals.memory_allocated_gb_seconds < 60, "however short"
    again = await usage.for_sandbox(sandbox.sandbox_id)
    assert again.totals == whole.totals, "it has ended"
    with pytest.raises(httpx.HTTPStatusError):
        await usage.for_sandbox("sb-00000000")
