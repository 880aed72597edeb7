// An agent session: JSON lines in, JSON lines out, the real agent in between.
//
//   stdin ──lines──▶ Session ──turns──▶ an agent's adapter ──▶ the agent's own program
//   stdout ◀─events── Output ◀──────────┘
//
// Who starts it sends lines and reads events; docs/agents.md of Warren describes both.

import * as module from "node:module";

import { readLines } from "./lines.mjs";
import { Output, log } from "./output.mjs";
import { endMarked, mark } from "./processes.mjs";
import { Session } from "./session.mjs";

// The second session in a sandbox reads the agent's library as it was compiled by the first; from Node.js 22.8 on.
module.enableCompileCache?.();

const AGENTS = {
    "claude-code": async () => (await import("./claude.mjs")).Claude,
    codex: async () => (await import("./codex.mjs")).Codex,
    opencode: async () => (await import("./opencode.mjs")).OpenCode,
};

const output = new Output();

async function end(code) {
    await output.close();
    process.exit(code);
}

async function fail(message) {
    output.write({ type: "error", message });
    await end(1);
}

function kindOf(args) {
    if (args.length === 0) return "claude-code";
    if (args.length === 2 && args[0] === "--agent" && Object.hasOwn(AGENTS, args[1])) return args[1];
    return undefined;
}

async function main() {
    if (Number(process.versions.node.split(".")[0]) < 18) {
        return fail(`agent sessions need Node.js 18 or later; this sandbox has ${process.version}`);
    }
    const kind = kindOf(process.argv.slice(2));
    if (kind === undefined) {
        return fail(`usage: claude-agent-wrapper [--agent ${Object.keys(AGENTS).join("|")}]`);
    }
    const Agent = await AGENTS[kind]();
    const missing = Agent.missing();
    if (missing) return fail(missing);
    mark();
    output.write({ type: "ready" });

    const session = new Session(new Agent(), output, end);
    readLines(process.stdin, {
        line: (line) => session.take(line),
        tooLong: (bytes) => session.complain(`a line of ${bytes} bytes is too long; it was left out`),
        end: () => session.inputEnded(),
    });
    for (const [signal, code] of [["SIGTERM", 143], ["SIGINT", 130], ["SIGHUP", 129]]) {
        process.on(signal, async () => {
            log(`ended by ${signal}`);
            setTimeout(() => process.exit(code), 3000).unref();
            await session.close();
            endMarked();
            await end(code);
        });
    }
    // Whatever goes wrong inside an agent's library is an event, and the session goes on.
    process.on("uncaughtException", (error) => session.complain(`inside the agent: ${error?.stack ?? error}`));
    process.on("unhandledRejection", (error) => session.complain(`inside the agent: ${error?.stack ?? error}`));
}

await main();
