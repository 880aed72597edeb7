// @opencomputer/sdk 0.12.4: commands, sessions, shells.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { inSandbox, numbers, Output, same, waitFor, within } from './support.mjs'

const infoOf = async (sandbox, id) => (await sandbox.exec.list()).find((each) => each.sessionID === id)
const lives = async (sandbox, text) => (await sandbox.exec.run(`pgrep -f '[${text[0]}]${text.slice(1)}'`)).exitCode === 0

test('run', inSandbox(async (sandbox) => {
  assert.deepEqual(await sandbox.exec.run('echo out; echo err >&2; exit 3'), { exitCode: 3, stdout: 'out\n', stderr: 'err\n' })
  const result = await sandbox.commands.run('echo "$A é ☃"; pwd', { env: { A: 'a b' }, cwd: '/tmp' })
  assert.equal(result.stdout, 'a b é ☃\n/tmp\n')
  assert.equal((await sandbox.exec.run('kill -TERM $$')).exitCode, 143)
  assert.equal((await sandbox.exec.run('kill -KILL $$')).exitCode, 137)
}))

describe('commands that take their time', { concurrency: true }, () => {
  test('longer than the inline wait', inSandbox(async (sandbox) => {
    assert.deepEqual(await sandbox.exec.run('echo a; sleep 3; echo b; exit 4'), { exitCode: 4, stdout: 'a\nb\n', stderr: '' })
  }))
  test('longer than any proxy waits', inSandbox(async (sandbox) => {
    assert.equal((await sandbox.exec.run('sleep 33; echo slept')).stdout, 'slept\n')
  }))
  test('a time limit', inSandbox(async (sandbox) => {
    const result = await sandbox.exec.run('echo before; sleep 600', { timeout: 1 })
    assert.equal(result.exitCode, -1)
    assert.equal(result.stdout, 'before\n')
  }))
  test('giving up waiting leaves the command running', inSandbox(async (sandbox) => {
    const error = await sandbox.exec.run('sleep 3; echo later > /tmp/later', { timeoutMs: 500 }).catch((error) => error)
    assert.equal(error.name, 'ExecTimeoutError')
    assert.equal((await infoOf(sandbox, error.execId)).running, true)
    await waitFor(() => sandbox.files.exists('/tmp/later'), 'the command finished')
  }))
  test('an abort signal', inSandbox(async (sandbox) => {
    const abort = new AbortController()
    setTimeout(() => abort.abort(), 700)
    await assert.rejects(sandbox.exec.run('sleep 5', { signal: abort.signal }), { name: 'ExecTimeoutError' })
  }))
  test('a session’s time limit', inSandbox(async (sandbox) => {
    assert.equal(await (await sandbox.exec.start('sleep', { args: ['600'], timeout: 1 })).done, -1)
  }))
  test('a session that outlives its client', inSandbox(async (sandbox) => {
    const session = await sandbox.exec.start('sleep', { args: ['600'], maxRunAfterDisconnect: 1 })
    session.close()
    await waitFor(async () => !(await infoOf(sandbox, session.sessionId)).running, 'it ended')
  }))
})

test('output of a mebibyte and less is whole', inSandbox(async (sandbox) => {
  same((await sandbox.exec.run('seq 1 100000')).stdout, numbers(100_000))
}))

test('commands at once', inSandbox(async (sandbox) => {
  const results = await Promise.all(Array.from({ length: 20 }, (_, n) => sandbox.exec.run(`sleep 0.1; echo ${n}`)))
  assert.deepEqual(results.map((result) => result.stdout), results.map((_, n) => `${n}\n`))
}))

test('a session streams both ways', inSandbox(async (sandbox) => {
  const output = new Output()
  const session = await sandbox.exec.start('sh', {
    args: ['-c', 'echo "$A" >&2; pwd; cat'], env: { A: 'x' }, cwd: '/tmp', ...output.options,
  })
  await output.until('/tmp\n')
  assert.equal(output.replays, 1)
  session.sendStdin('text\n')
  session.sendStdin(new TextEncoder().encode('bytes é\n'))
  await output.until('text\nbytes é\n')
  assert.equal(output.err, 'x\n')
  await session.kill(15)
  assert.equal(await session.done, 143)
  assert.deepEqual(output.exits, [143])
  session.sendStdin('dropped')
  session.close()
}))

test('input of many megabytes arrives in one message', inSandbox(async (sandbox) => {
  const output = new Output()
  const session = await sandbox.exec.start('sh', { args: ['-c', 'head -c 12000000 | md5sum'], ...output.options })
  session.sendStdin(new Uint8Array(12000000))
  assert.equal(await session.done, 0)
  assert.equal(output.out, '02c47bac5b2803f9a2ccbf5777fece72  -\n')
}))

test('background is start', inSandbox(async (sandbox) => {
  const output = new Output()
  const session = await sandbox.exec.background('sh', { args: ['-c', 'echo bg; exit 4'], ...output.options })
  assert.equal(await session.done, 4)
  assert.equal(output.out, 'bg\n')
}))

test('list, attach and the scrollback', inSandbox(async (sandbox) => {
  const first = await sandbox.exec.start('sh', { args: ['-c', 'echo early; read x; echo late $x; exit 6'] })
  const second = new Output()
  const attached = await sandbox.exec.attach(first.sessionId, second.options)
  await second.until('early\n')
  const info = await infoOf(sandbox, first.sessionId)
  assert.deepEqual([info.sandboxID, info.command, info.running, info.attachedClients], [sandbox.id, 'sh', true, 2])
  attached.sendStdin('word\n')
  assert.deepEqual(await Promise.all([attached.done, first.done]), [6, 6])
  assert.equal(second.out, 'early\nlate word\n')
  const third = new Output()
  assert.equal(await (await sandbox.exec.attach(first.sessionId, third.options)).done, 6)
  assert.deepEqual([third.out, third.replays], [second.out, 1])
  assert.deepEqual([(await infoOf(sandbox, first.sessionId)).running, (await infoOf(sandbox, first.sessionId)).exitCode], [false, 6])
  await assert.rejects(sandbox.exec.attach('00000000'), /WebSocket/)
}))

for (const [signal, code] of [[2, 130], [9, 137], [15, 143], [undefined, 137]]) {
  test(`kill with ${signal ?? 'no signal'} reaches children`, inSandbox(async (sandbox) => {
    const session = await sandbox.exec.start('bash', { args: ['-c', 'sleep 4321 | cat; echo never'] })
    await waitFor(() => lives(sandbox, 'sleep 4321'), 'the child runs')
    await sandbox.exec.kill(session.sessionId, signal)
    assert.equal(await session.done, code)
    await waitFor(async () => !(await lives(sandbox, 'sleep 4321')), 'the child ended')
  }))
}

test('what cannot start is refused', inSandbox(async (sandbox) => {
  await assert.rejects(sandbox.exec.start('no-such-program'), /Failed to create exec session: 400 .*no-such-program/)
  await assert.rejects(sandbox.exec.run('true', { cwd: '/no/such' }), /\/no\/such/)
  await assert.rejects(sandbox.exec.kill('00000000'), /404/)
}))

test('a lot of output reaches a session whole', inSandbox(async (sandbox) => {
  const output = new Output()
  const session = await sandbox.exec.start('sh', { args: ['-c', 'read go; seq 1 2000000'], ...output.options })
  session.sendStdin('go\n')
  assert.equal(await within(60_000, session.done, 'the output'), 0)
  same(output.out, numbers(2_000_000))
}))

test('a background child does not hold a run', inSandbox(async (sandbox) => {
  const result = await within(15_000, sandbox.exec.run('sleep 1234 & echo started'), 'the run')
  assert.equal(result.stdout, 'started\n')
  assert.equal(await lives(sandbox, 'sleep 1234'), true)
}))

describe('shell()', () => {
  test('keeps its state', inSandbox(async (sandbox) => {
    const shell = await sandbox.exec.shell({ cwd: '/tmp', env: { FROM: 'outside' } })
    assert.equal((await shell.run('pwd; echo $FROM')).stdout, '/tmp\noutside\n')
    await shell.run('cd /etc && export X=1; f() { echo f-$1; }')
    assert.deepEqual(await shell.run('pwd; echo $X; f 2; echo e >&2; false'), { exitCode: 1, stdout: '/etc\n1\nf-2\n', stderr: 'e\n' })
    assert.equal((await shell.run('')).exitCode, 0)
    assert.equal((await shell.run('printf no-newline')).stdout, 'no-newline')
    assert.equal((await shell.run('cat <<X\nhere $X\nX')).stdout, 'here 1\n')
    await shell.close()
    await assert.rejects(shell.run('true'), { name: 'ShellClosedError' })
  }))
  test('streams and is exact', inSandbox(async (sandbox) => {
    const shell = await sandbox.exec.shell()
    const command = (text) => `python3 -c "print('${text}' * 100000)"; seq 1 200000`
    const expected = (text) => `${text.repeat(100_000)}\n${numbers(200_000)}`
    same((await shell.run(command('é☃𝄞'))).stdout, expected('é☃𝄞'))
    // The SDK cuts what it streams between the halves of characters that take two UTF-16 units; these take one.
    const seen = []
    same((await shell.run(command('é☃'), { onStdout: (chunk) => seen.push(chunk) })).stdout, expected('é☃'))
    same(Buffer.concat(seen).toString(), expected('é☃'))
    for (let n = 0; n < 100; n++) assert.equal((await shell.run(`echo ${n}; echo e${n} >&2`)).stderr, `e${n}\n`)
    await shell.close()
  }))
  test('says when it is busy', inSandbox(async (sandbox) => {
    const shell = await sandbox.exec.shell()
    const running = shell.run('sleep 1; echo done')
    await assert.rejects(shell.run('true'), { name: 'ShellBusyError' })
    assert.equal((await running).stdout, 'done\n')
    await shell.close()
  }))
  test('is closed by exit', inSandbox(async (sandbox) => {
    const shell = await sandbox.exec.shell()
    await assert.rejects(shell.run('exit 9'), /bash exited with code 9/)
    await assert.rejects(shell.run('true'), { name: 'ShellClosedError' })
  }))
  test('can be taken up again', inSandbox(async (sandbox) => {
    const shell = await sandbox.exec.shell()
    await shell.run('cd /tmp; X=kept; seq 1 300000')
    const again = await sandbox.exec.reattachShell(shell.sessionId)
    assert.equal((await within(10_000, again.run('pwd; echo $X'), 'the reattached shell')).stdout, '/tmp\nkept\n')
    await again.close()
  }))
  test('opens many times without hanging', inSandbox(async (sandbox) => {
    for (let batch = 0; batch < 5; batch++) {
      await Promise.all(Array.from({ length: 10 }, async (_, n) => {
        const shell = await sandbox.exec.shell()
        assert.equal((await within(20_000, shell.run(`echo ${n}`), 'the first command')).stdout, `${n}\n`)
        await shell.close()
      }))
    }
  }))
})
