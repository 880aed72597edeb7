// @opencomputer/sdk 0.12.4: checkpoints, forks, patches, restarts, scaling.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Sandbox, ScalingLockedError } from '@opencomputer/sdk'
import { inSandbox, key, otherKey, url, view, waitFor } from './support.mjs'

const find = async (sandbox, id) => (await sandbox.listCheckpoints()).find((each) => each.id === id)

async function ready(sandbox, id) {
  const found = await waitFor(async () => {
    const seen = await find(sandbox, id)
    return seen.status !== 'processing' && seen
  }, `${id} is ready`, 30_000)
  assert.equal(found.status, 'ready', JSON.stringify(found))
  return found
}

async function withFork(id, options, body) {
  const fork = await Sandbox.createFromCheckpoint(id, options)
  try {
    return await body(fork)
  } finally {
    await fork.kill().catch(() => {})
  }
}

test('checkpoint, fork, restore, delete', inSandbox(async (sandbox) => {
  await sandbox.files.write('/home/sandbox/f', 'before')
  assert.deepEqual(await sandbox.listCheckpoints(), [])
  const checkpoint = await sandbox.createCheckpoint('one')
  assert.deepEqual([checkpoint.name, checkpoint.sandboxId, checkpoint.status, checkpoint.kind], ['one', sandbox.id, 'processing', 'full'])
  const found = await ready(sandbox, checkpoint.id)
  assert(found.sizeBytes > 0)
  assert(!Number.isNaN(Date.parse(found.createdAt)))
  await sandbox.files.write('/home/sandbox/f', 'after')

  await withFork(checkpoint.id, { timeout: 500, envs: { E: '1' } }, async (fork) => {
    assert.notEqual(fork.id, sandbox.id)
    assert.equal(fork.status, 'running')
    assert.equal(await fork.files.read('/home/sandbox/f'), 'before')
    assert.equal((await fork.exec.run('echo $E')).stdout, '1\n')
    assert.equal((await view(fork)).timeout, 500)
  })

  await sandbox.restoreCheckpoint(checkpoint.id)
  assert.equal(await sandbox.files.read('/home/sandbox/f'), 'before')
  assert.equal(await (await sandbox.exec.start('sh', { args: ['-c', 'exit 5'] })).done, 5)

  await sandbox.deleteCheckpoint(checkpoint.id)
  await sandbox.deleteCheckpoint(checkpoint.id)
  assert.deepEqual(await sandbox.listCheckpoints(), [])
  await assert.rejects(Sandbox.createFromCheckpoint(checkpoint.id), /404/)
  await assert.rejects(sandbox.restoreCheckpoint(checkpoint.id), /404/)
}))

test('kinds and retention', inSandbox(async (sandbox) => {
  const retentionPolicy = { mode: 'delete_oldest', maxCount: 2 }
  for (let n = 0; n < 4; n++) {
    const made = await sandbox.createCheckpoint(`c${n}`, { kind: 'disk_only', promoteToFull: false, retentionPolicy })
    assert.equal(made.kind, 'disk_only')
    await ready(sandbox, made.id)
  }
  const names = async () => (await sandbox.listCheckpoints()).map((each) => each.name).join()
  await waitFor(async () => (await names()) === 'c3,c2', 'the newest two are left')
  await assert.rejects(sandbox.createCheckpoint('c3'), /409/)
  await assert.rejects(sandbox.createCheckpoint(''), /400/)
}))

test('a fork of a checkpoint still in the making', inSandbox(async (sandbox) => {
  await sandbox.files.write('/home/sandbox/f', 'x')
  const checkpoint = await sandbox.createCheckpoint('one')
  await withFork(checkpoint.id, {}, async (fork) => assert.equal(await fork.files.read('/home/sandbox/f'), 'x'))
}))

test('patches', inSandbox(async (sandbox) => {
  const { id } = await sandbox.createCheckpoint('one')
  await ready(sandbox, id)
  const made = await Sandbox.createCheckpointPatch(id, { script: 'echo patched > ~/p', description: 'a patch' })
  assert.deepEqual([made.patch.sequence, made.patch.description], [1, 'a patch'])
  const bad = await Sandbox.createCheckpointPatch(id, { script: 'exit 3' })
  assert.deepEqual((await Sandbox.listCheckpointPatches(id)).map((each) => each.sequence), [1, 2])
  await withFork(id, {}, async (fork) => {
    assert.equal(await fork.files.read('/home/sandbox/p'), 'patched\n')
    assert.match((await view(fork)).patchError, /exit code 3/)
    await Sandbox.deleteCheckpointPatch(id, bad.patch.id)
    await Sandbox.deleteCheckpointPatch(id, bad.patch.id)
    await fork.hibernate()
    await fork.wake()
    assert.equal((await view(fork)).patchError, undefined)
  })
}))

test('reboot and power-cycle', inSandbox(async (sandbox) => {
  await sandbox.files.write('/home/sandbox/f', 'kept')
  await sandbox.exec.start('sleep', { args: ['600'] })
  for (const restart of ['reboot', 'powerCycle']) {
    await sandbox[restart]()
    assert.equal(await sandbox.isRunning(), true)
    assert.equal(await sandbox.files.read('/home/sandbox/f'), 'kept')
    assert.equal((await sandbox.exec.run('pgrep -c sleep || true')).stdout.trim(), '0')
  }
}))

const machines = (process.env.WARREN_SERVE_ARGS ?? '').includes('--runtime vm')

test('scaling', { skip: machines && 'virtual machines cannot grow' }, inSandbox(async (sandbox) => {
  const scaled = await sandbox.scale({ memoryMB: 4096 })
  assert.deepEqual([scaled.sandboxID, scaled.memoryMB, scaled.cpuPercent], [sandbox.id, 4096, 100])
  assert.equal((await sandbox.getAutoscale()).enabled, false)
  assert.equal((await sandbox.setAutoscale({ enabled: true, minMemoryMB: 1024, maxMemoryMB: 4096 })).enabled, true)
  assert.equal((await sandbox.setScalingLock(true)).locked, true)
  assert.equal((await sandbox.getScalingLock()).locked, true)
  await assert.rejects(sandbox.scale({ memoryMB: 1024 }), ScalingLockedError)
  await assert.rejects(sandbox.setAutoscale({ enabled: true }), ScalingLockedError)
  await sandbox.setScalingLock(false)
  await sandbox.scale({ memoryMB: 1024 })
  assert.equal((await sandbox.exec.run("free -m | awk '/Mem/ {print $2}'")).stdout.trim(), '1024')
  await assert.rejects(sandbox.scale({ memoryMB: 2048 }), /400/)
}))

test('a published checkpoint', inSandbox(async (sandbox) => {
  await sandbox.files.write('/home/sandbox/f', 'shared')
  const { id } = await sandbox.createCheckpoint('one')
  await assert.rejects(Sandbox.createFromCheckpoint(id, { apiKey: otherKey }), /403/)
  const answer = await fetch(`${url}/api/sandboxes/checkpoints/${id}/publish`, { method: 'POST', headers: { 'X-API-Key': key } })
  assert.equal((await answer.json()).isPublic, true)
  await withFork(id, { apiKey: otherKey }, async (fork) => assert.equal(await fork.files.read('/home/sandbox/f'), 'shared'))
}))
