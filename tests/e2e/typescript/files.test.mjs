// @opencomputer/sdk 0.12.4: files and terminals.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { inSandbox, key, url, waitFor } from './support.mjs'

const digest = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest('hex')

test('text, bytes and streams', inSandbox(async ({ files }) => {
  await files.write('/tmp/text', 'é ☃ 𝄞\r\n')
  assert.equal(await files.read('/tmp/text'), 'é ☃ 𝄞\r\n')
  const bytes = Uint8Array.from({ length: 25_600 }, (_, n) => n % 256)
  await files.write('/tmp/bytes', bytes)
  assert.deepEqual(await files.readBytes('/tmp/bytes'), bytes)
  await files.write('/tmp/stream', new Blob([bytes, 'tail']).stream())
  assert.deepEqual((await files.readBytes('/tmp/stream')).length, 25_604)
  await files.write('/tmp/empty', '')
  assert.equal((await files.readBytes('/tmp/empty')).length, 0)
}))

test('a hundred megabytes both ways', inSandbox(async (sandbox) => {
  const block = randomBytes(1024 * 1024)
  const blocks = Array.from({ length: 100 }, () => block)
  const expected = digest(...blocks)
  let sent = 0
  await sandbox.files.write('/tmp/large', new ReadableStream({
    pull(controller) {
      if (sent++ < 100) controller.enqueue(new Uint8Array(block))
      else controller.close()
    },
  }))
  assert.equal((await sandbox.exec.run('sha256sum < /tmp/large')).stdout.split(' ')[0], expected)
  assert.equal(digest(await sandbox.files.readBytes('/tmp/large')), expected)
  await sandbox.files.write('/tmp/again', new Uint8Array(Buffer.concat(blocks)))
  assert.equal((await sandbox.exec.run('sha256sum < /tmp/again')).stdout.split(' ')[0], expected)
}))

test('folders', inSandbox(async ({ files }) => {
  await files.makeDir('/tmp/a/b')
  await files.makeDir('/tmp/a/b')
  await files.write('/tmp/a/é & ☃#?', '12345')
  const entries = Object.fromEntries((await files.list('/tmp/a')).map((entry) => [entry.name, entry]))
  assert.deepEqual(Object.keys(entries).sort(), ['b', 'é & ☃#?'])
  assert.deepEqual(entries['é & ☃#?'], { name: 'é & ☃#?', isDir: false, size: 5, path: '/tmp/a/é & ☃#?' })
  assert.equal(entries.b.isDir, true)
  assert.deepEqual(await files.list('/tmp/a/b'), [])
  assert((await files.list()).some((entry) => entry.name === 'home'))
  assert.equal(await files.exists('/tmp/a/é & ☃#?'), true)
  assert.equal(await files.exists('/tmp/a/none'), false)
  await files.remove('/tmp/a')
  await files.remove('/tmp/a')
  assert.equal(await files.exists('/tmp/a/é & ☃#?'), false)
}))

test('errors carry their status', inSandbox(async ({ files }) => {
  await assert.rejects(files.read('/tmp/none'), /404/)
  await assert.rejects(files.list('/tmp/none'), /404/)
  await assert.rejects(files.read('/tmp'), /400/)
  await assert.rejects(files.write('/tmp', 'x'), /400/)
}))

test('what is uploaded belongs to the user', inSandbox(async (sandbox) => {
  await sandbox.files.write('project/main.js', 'console.log(6*7)\n')
  const result = await sandbox.exec.run('cd project && echo "// more" >> main.js && node main.js && touch new')
  assert.deepEqual([result.exitCode, result.stdout], [0, '42\n'])
}))

test('many files at once', inSandbox(async ({ files }) => {
  const names = Array.from({ length: 60 }, (_, n) => `/tmp/many/${n}`)
  await Promise.all(names.map((name) => files.write(name, name)))
  assert.deepEqual(await Promise.all(names.map((name) => files.read(name))), names)
}))

// Terminals.

async function openPty(sandbox, options = {}) {
  const chunks = []
  const pty = await sandbox.pty.create({ ...options, onOutput: (chunk) => chunks.push(chunk) })
  const text = () => Buffer.concat(chunks).toString()
  const until = (wanted, ms) =>
    waitFor(() => text().includes(wanted), `the terminal shows ${wanted}`, ms).catch((error) => {
      throw new Error(`${error.message}; it shows ${JSON.stringify(text().slice(-400))}`)
    })
  // create() returns before the socket is open; the prompt says that it is.
  await waitFor(() => chunks.length > 0, 'the prompt')
  return { pty, chunks, text, until }
}

test('a terminal echoes and answers', inSandbox(async (sandbox) => {
  const { pty, until } = await openPty(sandbox, { cols: 120, rows: 30 })
  pty.send('stty size; echo $TERM\n')
  await until('30 120')
  await until('xterm-256color')
  pty.send(new TextEncoder().encode("echo 'é ☃ 𝄞''!'\n"))
  await until('é ☃ 𝄞!')
  pty.close()
}))

test('a terminal is resized over REST', inSandbox(async (sandbox) => {
  const { pty, until } = await openPty(sandbox)
  const call = (method, path, body) =>
    fetch(`${url}/api/sandboxes/${sandbox.id}/pty/${pty.sessionId}${path}`, {
      method, headers: { 'X-API-Key': key, 'Content-Type': 'application/json' }, body: body && JSON.stringify(body),
    })
  assert.equal((await call('POST', '/resize', { cols: 101, rows: 33 })).status, 200)
  pty.send('stty size\n')
  await until('33 101')
  assert.equal((await call('DELETE', '')).status, 204)
}))

test('characters are whole in every message', inSandbox(async (sandbox) => {
  const { pty, chunks, until } = await openPty(sandbox)
  pty.send("stty -echo; python3 -c \"print('é☃𝄞' * 50000); print('do' + 'ne')\"\n")
  await until('done', 30_000)
  const decoder = new TextDecoder('utf-8', { fatal: true })
  for (const chunk of chunks) decoder.decode(chunk)
  pty.close()
}))
