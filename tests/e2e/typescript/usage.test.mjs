// @opencomputer/sdk 0.12.4: usage and tags.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { test } from 'node:test'
import { Tags, Usage } from '@opencomputer/sdk'
import { inSandbox, key, otherKey, url, waitFor } from './support.mjs'

const sum = (points, name) => points.reduce((total, point) => total + point[name], 0)

test('usage by sandbox, by tag, and minute by minute', inSandbox(async (sandbox) => {
  const [usage, tags, mine] = [new Usage(url, key), new Tags(url, key), randomUUID()]
  await tags.set(sandbox.id, { 'usage-test': mine })
  const filter = { 'tag:usage-test': mine }
  const whole = await waitFor(async () => {
    const seen = await usage.forSandbox(sandbox.id)
    return seen.totals.uptimeSeconds >= 1 && seen
  }, 'a second has passed')
  for (const name of ['memoryAllocatedGbSeconds', 'memoryUsedGbSeconds', 'uptimeSeconds']) {
    assert.equal(sum(whole.points, name), whole.totals[name], name)
  }
  assert.equal(whole.totals.memoryAllocatedPeakMb, 1024)

  const bySandbox = await usage.bySandbox({ filter, from: new Date(Date.now() - 86_400_000).toISOString().slice(0, 10) })
  assert.deepEqual(bySandbox.items.map((item) => [item.sandboxId, item.tags]), [[sandbox.id, { 'usage-test': mine }]])
  assert.equal(bySandbox.items[0].memoryGbSeconds, bySandbox.total.memoryGbSeconds)
  const byTag = await usage.byTag('usage-test', { filter })
  assert.deepEqual(byTag.items.map((item) => [item.tagKey, item.tagValue, item.sandboxCount]), [['usage-test', mine, 1]])
  assert.equal(byTag.untagged.sandboxCount, 0)
  assert.equal(byTag.nextCursor, null)
  await assert.rejects(usage.bySandbox({ limit: 501 }), /400.*limit/)
  await assert.rejects(new Usage(url, otherKey).forSandbox(sandbox.id), /404/)
}))
