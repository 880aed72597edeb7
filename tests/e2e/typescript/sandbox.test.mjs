// @opencomputer/sdk 0.12.4: the life of a sandbox.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { Sandbox } from '@opencomputer/sdk'
import { inSandbox, key, otherKey, url, view, waitFor, withSandbox } from './support.mjs'

test('this is the published version', () => {
  const manifest = JSON.parse(readFileSync(new URL('./node_modules/@opencomputer/sdk/package.json', import.meta.url)))
  assert.equal(manifest.version, '0.12.4')
})

describe('any spelling of the URL works', () => {
  for (const suffix of ['', '/', '/api', '/api/']) {
    test(`${suffix || 'bare'}`, async () => {
      const options = { apiUrl: url + suffix, apiKey: key }
      await withSandbox(options, async (sandbox) => {
        assert.match(sandbox.sandboxId, /^sb-[0-9a-f]{8}$/)
        assert.equal(sandbox.status, 'running')
        assert.equal((await sandbox.exec.run('echo hi')).stdout, 'hi\n')
        await sandbox.files.write('/tmp/f', 'x')
        assert.equal(await sandbox.files.read('/tmp/f'), 'x')
        const shell = await sandbox.exec.shell()
        assert.equal((await shell.run('echo shell')).stdout, 'shell\n')
        await shell.close()
        await sandbox.kill()
        assert.equal(sandbox.status, 'stopped')
        assert.equal(await sandbox.isRunning(), false)
      })
    })
  }
})

test('every option of create is honoured', inSandbox(async (sandbox) => {
  const result = await sandbox.exec.run('echo "$A"; nproc')
  assert.equal(result.stdout.split('\n')[0], '1 & "2"')
  const seen = await view(sandbox)
  assert.deepEqual([seen.cpuCount, seen.memoryMB, seen.diskMB, seen.timeout], [2, 8192, 20480, 600])
  assert.deepEqual(seen.metadata, { job: 'é' })
  assert.match(sandbox.domain, new RegExp(`^${sandbox.sandboxId}-p80\\.`))
}, { template: 'base', timeout: 600, envs: { A: '1 & "2"' }, metadata: { job: 'é' }, cpuCount: 2, memoryMB: 8192, diskMB: 20480 }))

test('options that cannot be honoured are refused', async () => {
  for (const options of [{ memoryMB: 2048 }, { cpuCount: 3 }, { template: 'none' }, { secretStore: 's' }, { previewAuth: { scheme: 'none' } }]) {
    await assert.rejects(Sandbox.create(options), /Failed to create sandbox: (4\d\d|501) \{"error":"[^"]{8,}/)
  }
  await assert.rejects(Sandbox.create({ apiKey: `osb_${'0'.repeat(64)}` }), /401/)
})

test('connect finds what create made and nobody else does', inSandbox(async (sandbox) => {
  await sandbox.files.write('/tmp/shared', 'x')
  const again = await Sandbox.connect(sandbox.sandboxId)
  assert.equal(again.status, 'running')
  assert.equal(await again.files.read('/tmp/shared'), 'x')
  await assert.rejects(Sandbox.connect(sandbox.sandboxId, { apiKey: otherKey }), /404/)
  await assert.rejects(Sandbox.connect('sb-00000000'), /404/)
}))

test('a killed sandbox is gone', async () => {
  const sandbox = await Sandbox.create({ memoryMB: 1024 })
  await sandbox.kill()
  await sandbox.kill({ deleteSecretStore: true })
  assert.equal(await sandbox.isRunning(), false)
  assert.equal((await Sandbox.connect(sandbox.id)).status, 'stopped')
  await assert.rejects(sandbox.exec.run('true'), /410/)
  await assert.rejects(sandbox.files.read('/etc/hostname'), /410/)
})

test('hibernate and wake', inSandbox(async (sandbox) => {
  await sandbox.files.write('/home/sandbox/kept', 'yes')
  await sandbox.hibernate()
  assert.equal(sandbox.status, 'hibernated')
  assert.equal(await sandbox.isRunning(), false)
  await sandbox.wake()
  assert.equal(sandbox.status, 'running')
  assert.equal(await sandbox.files.read('/home/sandbox/kept'), 'yes')
  await sandbox.hibernate()
  await sandbox.wake({ timeout: 900 })
  assert.equal((await view(sandbox)).timeout, 900)
  await sandbox.wake()
  assert.equal((await view(sandbox)).timeout, 0)
}))

describe('any use wakes', { concurrency: true }, () => {
  const stream = () => new Blob(['stream']).stream()
  for (const [name, use] of Object.entries({
    run: async (sandbox) => assert.equal((await sandbox.exec.run('cat /tmp/f')).stdout, 'x'),
    start: async (sandbox) => assert.equal(await (await sandbox.exec.start('true')).done, 0),
    shell: async (sandbox) => assert.equal((await (await sandbox.exec.shell()).run('cat /tmp/f')).stdout, 'x'),
    read: async (sandbox) => assert.equal(await sandbox.files.read('/tmp/f'), 'x'),
    write: (sandbox) => sandbox.files.write('/tmp/g', 'y'),
    'streamed write': (sandbox) => sandbox.files.write('/tmp/g', stream()),
    list: (sandbox) => sandbox.files.list('/tmp'),
    exists: async (sandbox) => assert.equal(await sandbox.files.exists('/tmp/f'), true),
    pty: async (sandbox) => (await sandbox.pty.create()).close(),
  })) {
    test(name, inSandbox(async (sandbox) => {
      await sandbox.files.write('/tmp/f', 'x')
      await sandbox.hibernate()
      await use(sandbox)
      assert.equal(await sandbox.isRunning(), true)
    }))
  }
})

test('the time-out can be set', inSandbox(async (sandbox) => {
  await sandbox.setTimeout(1)
  await waitFor(async () => !(await sandbox.isRunning()), 'it hibernated', 15_000)
  assert.equal(sandbox.status, 'hibernated')
  assert.equal((await sandbox.exec.run('echo back')).stdout, 'back\n')
  await sandbox.setTimeout(0)
  assert.equal((await view(sandbox)).timeout, 0)
}))

test('many sandboxes at once', async () => {
  const sandboxes = await Promise.all(
    Array.from({ length: 10 }, (_, n) => Sandbox.create({ memoryMB: 1024, envs: { N: `${n}` } })),
  )
  const results = await Promise.all(sandboxes.map((sandbox) => sandbox.exec.run('echo $N')))
  assert.deepEqual(results.map((result) => result.stdout), sandboxes.map((_, n) => `${n}\n`))
  await Promise.all(sandboxes.map((sandbox) => sandbox.kill()))
})
