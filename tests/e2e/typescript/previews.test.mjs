// @opencomputer/sdk 0.12.4: previews and signed URLs.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import http from 'node:http'
import { test } from 'node:test'
import { inSandbox, url, waitFor, withSandbox } from './support.mjs'

/** Asks for a preview at the server's own address: stands for a name server, which a browser does without. */
function ask(host, path = '/', headers = {}) {
  const { hostname, port } = new URL(url)
  return new Promise((resolve, reject) => {
    const request = http.get({ hostname, port, path, headers: { Host: host, ...headers } }, (answer) => {
      let text = ''
      answer.on('data', (piece) => (text += piece)).on('end', () => resolve({ status: answer.statusCode, text }))
    })
    request.on('error', reject)
  })
}

async function serve(sandbox, port) {
  await sandbox.files.write('/home/sandbox/program.py', await readFile(new URL('../harness/program.py', import.meta.url), 'utf8'))
  await sandbox.exec.start('python3', { args: ['/home/sandbox/program.py', `127.0.0.1,${port}`] })
}

test('a port opens under the name the SDK gives it', inSandbox(async (sandbox) => {
  await serve(sandbox, 3000)
  const host = sandbox.getPreviewDomain(3000)
  assert.equal(host, `${sandbox.sandboxId}-p3000.localhost:${new URL(url).port}`)
  assert.equal(sandbox.domain, `${sandbox.sandboxId}-p80.localhost:${new URL(url).port}`)
  await waitFor(async () => (await ask(host)).status === 200, 'the preview answers', 20_000)
  assert.equal(JSON.parse((await ask(host, '/from/node')).text).target, '/from/node')

  const made = await sandbox.createPreviewURL({ port: 3000 })
  assert.equal(made.hostname, host)
  await sandbox.createPreviewURL({ port: 80, authConfig: {} })
  assert.deepEqual((await sandbox.listPreviewURLs()).map((each) => each.port), [80, 3000])
  await sandbox.deletePreviewURL(80)
  await sandbox.deletePreviewURL(80)
  assert.deepEqual((await sandbox.listPreviewURLs()).map((each) => each.id), [made.id])
  await assert.rejects(sandbox.createPreviewURL({ port: 81, domain: 'x.example.com' }), /400/)
  await assert.rejects(sandbox.createPreviewURL({ port: 0 }), /400/)
  await assert.rejects(sandbox.createPreviewURL({ port: 81, authConfig: { public: false } }), /400/)
}))

test('preview auth', () => withSandbox({ previewAuth: { token: 'auto' } }, async (sandbox) => {
  const first = sandbox.previewAuthToken
  assert.equal(first.length, 43)
  await serve(sandbox, 3000)
  const host = sandbox.getPreviewDomain(3000)
  assert.equal((await ask(host)).status, 401)
  await waitFor(async () => (await ask(host, '/', { Authorization: `Bearer ${first}` })).status === 200, 'it opens', 20_000)
  const second = await sandbox.rotatePreviewAuthToken()
  assert.notEqual(second, first)
  assert.equal(sandbox.previewAuthToken, second)
  assert.equal((await ask(host, '/', { 'X-OC-Preview-Token': first })).status, 401)
  assert.equal((await ask(host, '/', { 'X-OC-Preview-Token': second })).status, 200)
}))

test('signed URLs', inSandbox(async (sandbox) => {
  const upload = await sandbox.uploadUrl('/tmp/from a browser', { expiresIn: 60 })
  assert.equal((await fetch(upload, { method: 'PUT', body: 'sent' })).status, 204)
  assert.equal(await sandbox.files.read('/tmp/from a browser'), 'sent')
  const download = await sandbox.downloadUrl('/tmp/from a browser')
  assert.equal(await (await fetch(download)).text(), 'sent')
  assert.equal((await fetch(`${download}0`)).status, 403)
}))
