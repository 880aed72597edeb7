// @opencomputer/sdk 0.12.4: images, snapshots, templates.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { SecretStore, Templates } from '@opencomputer/sdk'
import { Image, Sandbox, Snapshots } from '@opencomputer/sdk/node'
import { Image as ByPath } from './node_modules/@opencomputer/sdk/dist/image.js'
import { key, otherKey, url, view, withSandbox } from './support.mjs'

const snapshots = new Snapshots()
const fresh = () => Image.base().runCommands(`: ${randomUUID()}`)
const run = async (sandbox, command) => {
  const result = await sandbox.exec.run(command)
  assert.equal(result.exitCode, 0, JSON.stringify(result))
  return result.stdout
}

const named = (body) => async () => {
  const name = `ts-${randomUUID().slice(0, 8)}`
  try {
    await body(name)
  } finally {
    await snapshots.delete(name)
  }
}

test('cache keys', () => {
  assert.equal(Image, ByPath)
  assert.equal(Image.base().cacheKey(), '485f603ddf675cfc9b285fed0d9d5e85c4c09c66e8cb4fc0cc0720acc08874ef')
  assert.equal(Image.base().aptInstall(['curl']).cacheKey(), 'd6856c1efc670fe83d0b5dca1ea512a600287e2d52c9da97ad41f7e3e1a65e8f')
  const image = Image.base().aptInstall(['curl', 'git']).env({ B: '2', A: 'é & <x>' }).addFile('/w/a.txt', 'hi')
  assert.equal(image.cacheKey(), 'e27e251d46663cc5174db7ad166279a9b4a83b0af900797516892361637bed38')
  assert.deepEqual(image.toJSON().steps[1], { type: 'env', args: { vars: { B: '2', A: 'é & <x>' } } })
})

test('every step', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'e2e-image-'))
  try {
    mkdirSync(join(folder, 'tree', 'deep'), { recursive: true })
    writeFileSync(join(folder, 'one.bin'), Buffer.from([0, 255, 10, 13]))
    writeFileSync(join(folder, 'tree', 'deep', "é 'f'"), 'deep')
    writeFileSync(join(folder, 'tree', 'top'), 'top')
    const image = Image.base()
      .runCommands('mkdir -p ~/made', `echo ran > ~/made/f # ${randomUUID()}`)
      .env({ Z: '26', A: 'it\'s "1"' })
      .workdir('/srv/work')
      .addFile('/srv/work/config.json', '{"key": "é"}\n')
      .addLocalFile(join(folder, 'one.bin'), '/srv/one.bin')
      .addLocalDir(join(folder, 'tree'), '/srv/tree')
      .builderMemory(8192)
    assert.equal(image.toJSON().builderMemoryMB, 8192)
    await withSandbox({ image }, async (sandbox) => {
      assert.equal(await run(sandbox, 'pwd; cat ~/made/f config.json; echo "$A $Z"; id -un'), '/srv/work\nran\n{"key": "é"}\nit\'s "1" 26\nsandbox\n')
      assert.deepEqual([...(await sandbox.files.readBytes('/srv/one.bin'))], [0, 255, 10, 13])
      assert.equal(await sandbox.files.read("/srv/tree/deep/é 'f'"), 'deep')
      assert.equal(await sandbox.files.read('/srv/tree/top'), 'top')
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('build logs and the cache', async () => {
  const image = fresh().runCommands('echo a line of output', 'echo another >&2')
  const logs = []
  await withSandbox({ image, onBuildLog: (line) => logs.push(line) }, async (sandbox) => {
    assert.equal(sandbox.status, 'running')
    assert.equal(await run(sandbox, 'echo hi'), 'hi\n')
  })
  for (const line of ['Building image with 2 steps', 'Step 2/2 completed', 'a line of output', 'another']) assert(logs.includes(line), logs.join('\n'))
  const again = []
  await withSandbox({ image, onBuildLog: (line) => again.push(line) }, async () => {
    assert(!again.some((line) => line.endsWith('completed')), again.join('\n'))
  })
})

test('a failing step and a retry', async () => {
  const good = fresh().runCommands('echo good > ~/f')
  await assert.rejects(Sandbox.create({ image: good.runCommands('echo to stderr >&2; exit 4') }), /^Error: Build failed: step 2 \(run\) failed \(exit 4\): to stderr\nThe command was `echo to stderr >&2; exit 4`\.$/)
  await assert.rejects(Sandbox.create({ image: good.runCommands('exit 7') }), /^Error: Build failed: step 2 \(run\) failed \(exit 7\): `exit 7` wrote nothing$/)
  await withSandbox({ image: good.runCommands('echo fixed >> ~/f') }, async (sandbox) => {
    assert.equal(await sandbox.files.read('/home/sandbox/f'), 'good\nfixed\n')
  })
})

test('snapshots', named(async (name) => {
  const image = fresh().env({ A: 'image', B: 'image' }).workdir('/srv/w')
  const logs = []
  const made = await snapshots.create({ name, image, onBuildLogs: (line) => logs.push(line) })
  assert.deepEqual([made.name, made.status, made.manifest], [name, 'ready', image.toJSON()])
  assert(logs.includes('Building image with 3 steps'))
  assert.equal((await snapshots.get(name)).id, made.id)
  assert.equal((await snapshots.waitUntilReady(name, { timeoutMs: 5000 })).id, made.id)
  assert((await snapshots.list()).some((each) => each.name === name))
  await assert.rejects(snapshots.create({ name, image }), /409.*snapshot name already exists/)
  const stranger = new Snapshots({ apiKey: otherKey })
  await assert.rejects(stranger.get(name), /404/)
  await stranger.delete(name)
  await withSandbox({ snapshot: name, envs: { B: 'own' } }, async (sandbox) => {
    assert.equal(await run(sandbox, 'pwd; echo $A $B'), '/srv/w\nimage own\n')
  })
  const fork = await Sandbox.createFromCheckpoint(made.checkpointId, { envs: { C: 'c' }, timeout: 55 })
  try {
    assert.equal(await run(fork, 'pwd; echo $A $B $C'), '/srv/w\nimage image c\n')
    assert.equal((await view(fork)).timeout, 55)
  } finally {
    await fork.kill()
  }
  await snapshots.delete(name)
  await snapshots.delete(name)
  await assert.rejects(snapshots.get(name), /404/)
  await assert.rejects(Sandbox.create({ snapshot: name }))
}))

const beginAsync = async (name, image) => {
  const headers = { 'X-API-Key': key, 'Content-Type': 'application/json' }
  const answer = await fetch(`${url}/api/snapshots?async=1`, { method: 'POST', headers, body: JSON.stringify({ name, image }) })
  assert.equal(answer.status, 202)
  assert.equal((await answer.json()).status, 'building')
}

test('waiting for a build that goes on by itself', named(async (name) => {
  await beginAsync(name, Image.base().runCommands(`sleep 1 # ${randomUUID()}`).toJSON())
  const ready = await snapshots.waitUntilReady(name, { timeoutMs: 20_000, pollIntervalMs: 100 })
  assert.equal(ready.status, 'ready')
  await snapshots.delete(name)
  await beginAsync(name, Image.base().runCommands(`exit 1 # ${randomUUID()}`).toJSON())
  await assert.rejects(snapshots.waitUntilReady(name, { timeoutMs: 20_000, pollIntervalMs: 100 }), /build failed/)
}))

test('every option of a create from a snapshot', named(async (name) => {
  await snapshots.create({ name, image: fresh() })
  const store = await SecretStore.create({ name: `ts-${randomUUID()}` })
  try {
    await SecretStore.setSecret(store.id, 'KEY', 'hunter2-value')
    const options = { envs: { E: '1' }, metadata: { m: 'x' }, memoryMB: 8192, cpuCount: 2, timeout: 700, diskMB: 20480, previewAuth: {}, secretStore: store.name }
    await withSandbox({ snapshot: name, ...options }, async (sandbox) => {
      assert(sandbox.previewAuthToken)
      const { memoryMB, cpuCount, timeout, metadata } = await view(sandbox)
      assert.deepEqual({ memoryMB, cpuCount, timeout, metadata }, { memoryMB: 8192, cpuCount: 2, timeout: 700, metadata: { m: 'x' } })
      assert.match(await run(sandbox, 'echo $E $KEY'), /^1 osb_sealed_/)
    })
  } finally {
    await SecretStore.delete(store.id)
  }
}))

test('names with everything in them', async () => {
  const name = `ts é "quoted" ${randomUUID().slice(0, 8)}`
  const made = await snapshots.create({ name, image: Image.base() })
  assert.equal(made.name, name)
  assert.equal((await snapshots.get(name)).id, made.id)
  await withSandbox({ snapshot: name }, async (sandbox) => assert.equal(await run(sandbox, 'echo hi'), 'hi\n'))
  await snapshots.delete(name)
  await assert.rejects(snapshots.get(name), /404/)
})

test('templates', named(async (name) => {
  const templates = new Templates(`${url}/api`, key)
  assert((await templates.list()).some((each) => each.name === 'base' && each.status === 'ready'))
  const built = await templates.build(name, 'FROM base\n')
  assert.deepEqual([built.name, built.status], [name, 'ready'])
  assert.equal((await templates.get(name)).templateID, built.templateID)
  await withSandbox({ template: built.templateID }, async (sandbox) => assert.equal(await run(sandbox, 'echo hi'), 'hi\n'))
  await templates.delete(name)
  await assert.rejects(templates.get(name), /404/)
  await assert.rejects(templates.build(name, 'FROM base\nRUN true\n'), /400/)
}))

test('real packages', async () => {
  const image = Image.base().aptInstall(['tree', 'libsqlite3-0']).pipInstall(['numpy', 'humanize==4.*'])
  await withSandbox({ image }, async (sandbox) => {
    assert.match(await run(sandbox, "tree --version; python3 -c 'import numpy; print(numpy.arange(10).sum())'"), /^tree v.*\n45\n$/)
  })
})
