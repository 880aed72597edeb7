// What the suites share: the server's address, sandboxes that clean up, and waiting for conditions.
import assert from 'node:assert/strict'
import { Sandbox } from '@opencomputer/sdk'

export const url = process.env.WARREN_URL
export const key = process.env.WARREN_KEY
export const otherKey = process.env.WARREN_OTHER_KEY
assert(url && key && otherKey, 'WARREN_URL, WARREN_KEY and WARREN_OTHER_KEY say where to test; tests/e2e/run sets them')
process.env.OPENCOMPUTER_API_URL = url
process.env.OPENCOMPUTER_API_KEY = key

/** Runs `body` with a sandbox of its own and kills it afterwards. */
export async function withSandbox(options, body) {
  const sandbox = await Sandbox.create({ memoryMB: 1024, ...options })
  try {
    return await body(sandbox)
  } finally {
    await sandbox.kill().catch(() => {})
  }
}

/** A test body that gets a sandbox. */
export const inSandbox = (body, options = {}) => () => withSandbox(options, body)

/** The sandbox as the raw API shows it. */
export async function view(sandbox) {
  const answer = await fetch(`${url}/api/sandboxes/${sandbox.id}`, { headers: { 'X-API-Key': key } })
  assert.equal(answer.status, 200)
  return answer.json()
}

/** Compares long texts; says where they part instead of printing them. */
export function same(actual, expected) {
  if (actual === expected) return
  let at = 0
  while (actual[at] === expected[at]) at++
  const near = (text) => JSON.stringify(text.slice(Math.max(0, at - 20), at + 20))
  assert.fail(`${actual.length} characters instead of ${expected.length}, different at ${at}: ${near(actual)} instead of ${near(expected)}`)
}

export async function waitFor(condition, what, within = 10_000) {
  const deadline = Date.now() + within
  for (;;) {
    const value = await condition()
    if (value) return value
    assert(Date.now() < deadline, `still not so after ${within} ms: ${what} (last: ${value})`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Fails instead of waiting for ever. */
export function within(ms, promise, what) {
  let timer
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${ms} ms: ${what}`)), ms)
  })
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer))
}

/** Collects what a session's callbacks are given. */
export class Output {
  stdout = []
  stderr = []
  exits = []
  replays = 0
  options = {
    onStdout: (chunk) => this.stdout.push(chunk),
    onStderr: (chunk) => this.stderr.push(chunk),
    onExit: (code) => this.exits.push(code),
    onScrollbackEnd: () => this.replays++,
  }
  get out() {
    return Buffer.concat(this.stdout).toString()
  }
  get err() {
    return Buffer.concat(this.stderr).toString()
  }
  until(text, ms = 10_000) {
    return waitFor(() => this.out.includes(text), `output has ${JSON.stringify(text)}`, ms)
  }
}

export const numbers = (last) => Array.from({ length: last }, (_, n) => `${n + 1}\n`).join('')
