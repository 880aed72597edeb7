// Every method of agent sessions by the published TypeScript SDK; run by agents/test_sessions_sdk.py.
import assert from 'node:assert/strict'
import { Sandbox } from '@opencomputer/sdk'

const [id, mark, held] = process.argv.slice(2)

async function within(seconds, promise, what) {
  let timer
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`not within ${seconds} s: ${what}`)), seconds * 1000)))
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

class Seen {
  all = []
  errors = []
  exits = []
  replays = 0
  waiting = []
  options = {
    onEvent: (event) => {
      this.all.push(event)
      this.waiting.forEach((look) => look())
    },
    onError: (text) => this.errors.push(text),
    onExit: (code) => this.exits.push(code),
    onScrollbackEnd: () => this.replays++,
  }
  until(type, after = 0) {
    const found = () => this.all.slice(after).find((event) => event.type === type)
    const event = new Promise((resolve) => {
      const look = () => found() && resolve(found())
      this.waiting.push(look)
      look()
    })
    return within(40, event, `${type}, after ${JSON.stringify(this.all.at(-1))?.slice(0, 300)} ${this.errors}`)
  }
}

const sandbox = await Sandbox.connect(id)
assert.deepEqual(await sandbox.agent.list(), [])
const seen = new Seen()
const session = await sandbox.agent.start({
  prompt: `Make it. ${mark}`, model: 'claude-sonnet-4-5', systemPrompt: 'You are terse.', allowedTools: ['Bash'],
  permissionMode: 'bypassPermissions', maxTurns: 10, cwd: '/home/sandbox', mcpServers: {}, ...seen.options,
})
const end = await seen.until('turn_complete')
assert.deepEqual(seen.all.slice(0, 2).map((event) => event.type), ['ready', 'configured'])
assert.equal((await seen.until('result')).result, 'Made.')
assert.equal(seen.replays, 1)
assert.equal(await sandbox.files.read('/home/sandbox/made.txt'), 'hello\n')
const [view] = await sandbox.agent.list()
assert.equal(view.sessionID, session.sessionId)
assert.equal(view.sandboxID, id)
assert.equal(view.running, true)
assert.equal(view.claudeSessionId, end.claude_session_id)

let at = seen.all.length
session.configure({ model: 'claude-haiku-4-5', maxTurns: 5 })
await seen.until('configured', at)
session.sendPrompt('Again.')
assert.equal((await seen.until('turn_complete', at)).claude_session_id, end.claude_session_id)
at = seen.all.length
session.sendPrompt(`Wait. ${held}`)
await seen.until('system', at)
session.interrupt()
await seen.until('interrupted', at)

const others = new Seen()
const other = await sandbox.agent.attach(session.sessionId, others.options)
await others.until('interrupted')
other.close()
assert.equal(await within(5, other.done, 'done after close'), -1)
await session.kill(15)
assert.equal(await within(10, session.done, 'done after kill'), 143)
assert.deepEqual(seen.exits, [143])
assert.deepEqual(others.all, seen.all)

// Another session goes on with the conversation.
const resumed = new Seen()
const next = await sandbox.agent.start({ resume: end.claude_session_id, prompt: 'And now?', ...resumed.options })
assert.equal((await resumed.until('result')).result, 'Resumed.')
assert.equal((await resumed.until('turn_complete')).claude_session_id, end.claude_session_id)
await next.kill()
assert.equal(await within(10, next.done, 'done after kill'), 137)
assert(![...seen.errors, ...resumed.errors].some((text) => text.includes('non-JSON')), `${seen.errors} ${resumed.errors}`)
await assert.rejects(sandbox.agent.start({ permissionMode: 'yolo' }), /400.*permissionMode must be one of/)
console.log('all of it')
process.exit(0)
