// The npm package @modelcontextprotocol/sdk, unmodified, over streamable HTTP and over stdio.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { inSandbox, key, url, waitFor } from './support.mjs'

const doors = {
  http: (id) => new StreamableHTTPClientTransport(new URL(`${url}/mcp/${id}`), { requestInit: { headers: { Authorization: `Bearer ${key}` } } }),
  stdio: (id) => new StdioClientTransport({
    command: process.env.WARREN_BIN,
    args: ['mcp', '--sandbox', id],
    env: { OPENCOMPUTER_API_URL: url, OPENCOMPUTER_API_KEY: key, PATH: process.env.PATH, HOME: '/nonexistent' },
  }),
}

for (const [door, transport] of Object.entries(doors)) {
  const skip = door === 'stdio' && !process.env.WARREN_BIN && 'WARREN_BIN names no program'
  test(`a client lists tools and calls them over ${door}`, { skip }, inSandbox(async (sandbox) => {
    const client = new Client({ name: 'test', version: '1' })
    await client.connect(transport(sandbox.sandboxId ?? sandbox.id))
    try {
      const { tools } = await client.listTools()
      assert.equal(tools.length, 16)
      const ran = await client.callTool({ name: 'sandbox_exec', arguments: { command: 'echo hi; exit 3' } })
      assert.match(ran.content[0].text, /^hi\n\[exit code 3 after/)
      await client.callTool({ name: 'sandbox_write_file', arguments: { path: 'a/b.txt', content: 'one\n' } })
      await client.callTool({ name: 'sandbox_edit_file', arguments: { path: 'a/b.txt', old_string: 'one', new_string: 'two' } })
      assert.equal(await sandbox.files.read('a/b.txt'), 'two\n')
      const wrong = await client.callTool({ name: 'sandbox_read_file', arguments: { paht: 'a' } })
      assert(wrong.isError && wrong.content[0].text.includes('"paht" is not a field'))
    } finally {
      await client.close()
    }
  }))

  test(`a call that is given up ends its command over ${door}`, { skip }, inSandbox(async (sandbox) => {
    const client = new Client({ name: 'test', version: '1' })
    await client.connect(transport(sandbox.sandboxId ?? sandbox.id))
    try {
      const call = client.callTool({ name: 'sandbox_exec', arguments: { command: 'sleep 4343' } }, undefined, { timeout: 1500 })
      await assert.rejects(call, /timed out/i)
      await waitFor(async () => (await sandbox.exec.run("pgrep -f 'sleep [4]343' || echo gone")).stdout === 'gone\n', 'the command has ended')
    } finally {
      await client.close()
    }
  }))
}
