// @opencomputer/sdk 0.12.4: secret stores, and the sandboxes that have them.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { test } from 'node:test'
import { Sandbox, SecretStore } from '@opencomputer/sdk'
import { inSandbox, otherKey, withSandbox } from './support.mjs'

const TOKEN = /^osb_sealed_[0-9a-f]{32}$/

const withStore = (body, options = {}) => async () => {
  const store = await SecretStore.create({ name: `ts-${randomUUID()}`, ...options })
  try {
    await body(store)
  } finally {
    await SecretStore.delete(store.id).catch((error) => assert.match(error.message, /404/))
  }
}

const run = async (sandbox, command) => (await sandbox.exec.run(command)).stdout

test('stores', withStore(async (store) => {
  assert.deepEqual(store.egressAllowlist, ['api.example.com'])
  for (const field of ['id', 'orgId', 'name', 'createdAt', 'updatedAt']) assert.equal(typeof store[field], 'string', field)
  assert.deepEqual(await SecretStore.get(store.id), store)
  assert((await SecretStore.list()).some((each) => each.id === store.id))
  const renamed = await SecretStore.update(store.id, { name: `${store.name}-2` })
  assert.deepEqual([renamed.name, renamed.egressAllowlist], [`${store.name}-2`, ['api.example.com']])
  assert.deepEqual((await SecretStore.update(store.id, { egressAllowlist: [] })).egressAllowlist, [])
  await assert.rejects(SecretStore.create({ name: `${store.name}-2` }), /409.*a store with that name already exists/)
  await assert.rejects(SecretStore.get(store.id, { apiKey: otherKey }), /404/)
  await SecretStore.delete(store.id)
  await assert.rejects(SecretStore.get(store.id), /404/)
}, { egressAllowlist: ['API.example.com'] }))

test('secrets', withStore(async (store) => {
  assert.deepEqual(await SecretStore.listSecrets(store.id), [])
  await SecretStore.setSecret(store.id, 'B_KEY', 'hunter2-b')
  await SecretStore.setSecret(store.id, 'A_KEY', 'hunter2-a', { allowedHosts: ['api.example.com'] })
  const listed = await SecretStore.listSecrets(store.id)
  assert.deepEqual(listed.map((each) => [each.name, each.allowedHosts, each.storeId]), [
    ['A_KEY', ['api.example.com'], store.id],
    ['B_KEY', [], store.id],
  ])
  assert(!JSON.stringify(listed).includes('hunter2'))
  await SecretStore.deleteSecret(store.id, 'A_KEY')
  await SecretStore.deleteSecret(store.id, 'A_KEY')
  assert.deepEqual((await SecretStore.listSecrets(store.id)).map((each) => each.name), ['B_KEY'])
  await assert.rejects(SecretStore.setSecret(store.id, 'not-a-name', 'x'), /400/)
  await assert.rejects(SecretStore.setSecret(store.id, 'A', ''), /400/)
}))

test('a sandbox has tokens and never values', withStore(async (store) => {
  await SecretStore.setSecret(store.id, 'API_KEY', 'hunter2-value', { allowedHosts: ['api.example.com'] })
  await withSandbox({ secretStore: store.name, envs: { PLAIN: '1' } }, async (sandbox) => {
    const shown = await run(sandbox, 'env')
    const envs = Object.fromEntries(shown.trim().split('\n').map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]))
    assert.match(envs.API_KEY, TOKEN)
    assert.equal(envs.HTTPS_PROXY, 'http://169.254.169.253:3128')
    assert.equal(envs.NODE_EXTRA_CA_CERTS, '/usr/local/share/ca-certificates/opensandbox-proxy.crt')
    assert(!shown.includes('hunter2'))
    const allowed = await sandbox.getAllowedHosts()
    assert.equal(allowed.secretStore, store.name)
    assert.deepEqual(allowed.egressAllowlist, [])
    assert.deepEqual(allowed.perSecretAllowedHosts, { API_KEY: ['api.example.com'] })
    await SecretStore.setSecret(store.id, 'API_KEY', 'hunter3-value', { allowedHosts: [] })
    assert.deepEqual((await sandbox.getAllowedHosts()).perSecretAllowedHosts, {})
    assert.equal((await run(sandbox, 'echo $API_KEY')).trim(), envs.API_KEY)

    const checkpoint = await sandbox.createCheckpoint('one')
    const fork = await Sandbox.createFromCheckpoint(checkpoint.id)
    try {
      const token = (await run(fork, 'echo $API_KEY')).trim()
      assert.match(token, TOKEN)
      assert.notEqual(token, envs.API_KEY)
      assert.equal((await fork.getAllowedHosts()).secretStore, store.name)
    } finally {
      await fork.kill()
    }
  })
}))

test('a plain sandbox has nothing of it', inSandbox(async (sandbox) => {
  const allowed = await sandbox.getAllowedHosts()
  assert.deepEqual([allowed.egressAllowlist, allowed.perSecretAllowedHosts, allowed.secretStore], [[], {}, undefined])
}))

test('an unknown store is refused', async () => {
  await assert.rejects(Sandbox.create({ memoryMB: 1024, secretStore: 'no such store' }), /400.*secret store not found: no such store/)
})

test('a store can go with its sandbox', withStore(async (store) => {
  const sandbox = await Sandbox.create({ memoryMB: 1024, secretStore: store.name })
  await sandbox.kill({ deleteSecretStore: true })
  assert(!(await SecretStore.list()).some((each) => each.id === store.id))
}))
