// Claude Code, by its Agent SDK. Its messages are passed on as they are.

import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { Transform } from "node:stream";
import { pathToFileURL } from "node:url";

import { log } from "./output.mjs";
import { entryOf, findPackage, notInstalled } from "./packages.mjs";
import { ResumeFailed } from "./session.mjs";

const PACKAGE = "@anthropic-ai/claude-agent-sdk";
const MODEL = "claude-sonnet-4-20250514";
/** Any of these is a way to pay. */
const KEYS = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
];
const NOBODY = { behavior: "deny", message: "nobody is there to ask; decide yourself" };
/** How long an interrupted turn may take to write down how far it came. */
const WIND_DOWN_MS = 3000;
/** After which it is left alone. */
const LEAVE_MS = 1000;
const CONFIGURE_MS = 5000;

export class Claude {
    #sdk;
    #query;
    #child;
    /** The end of what the running turn's program complained about. */
    #said = "";

    /** What keeps it from working, if anything. */
    static missing() {
        if (!findPackage("claude-code", PACKAGE)) return notInstalled("Claude Code", "claude-code", PACKAGE);
        if (!KEYS.some((name) => process.env[name]) && !hasCredentials()) {
            return "ANTHROPIC_API_KEY environment variable is not set";
        }
        return undefined;
    }

    constructor() {
        // Loaded while the first lines come.
        this.#sdk = import(pathToFileURL(entryOf(findPackage("claude-code", PACKAGE))));
        this.#sdk.catch(() => {});
    }

    async turn(turn) {
        const { query } = await this.#sdk;
        if (turn.signal.aborted) return;
        const abort = new AbortController();
        const input = oneMessage(turn.text);
        this.#said = "";
        const running = query({
            prompt: input.messages,
            options: {
                ...options(turn.config),
                resume: turn.resume,
                abortController: abort,
                spawnClaudeCodeProcess: (start) => this.#spawn(start, turn.room),
                canUseTool: async (tool_name, wanted, more) => {
                    // A question is no permission: where nobody is asked, nobody has an answer.
                    if (tool_name === "AskUserQuestion" && turn.config.permissionMode === "bypassPermissions") return NOBODY;
                    return turn.permit(request(tool_name, wanted, more), more.signal);
                },
            },
        });
        this.#query = running;
        // It writes down how far it came, and ends by itself; its last message is the result. What does not end by any means must
        // not keep the next prompt waiting.
        let patience;
        let leave = () => {};
        const stop = () => {
            abort.abort();
            clearTimeout(patience);
            patience = setTimeout(() => leave(), LEAVE_MS);
        };
        turn.stopped.then(() => {
            patience = setTimeout(stop, WIND_DOWN_MS);
            running.interrupt().catch(stop);
        });
        const messages = running[Symbol.asyncIterator]();
        const next = () => new Promise((resolve, reject) => {
            leave = () => {
                this.#child?.kill("SIGKILL");
                resolve({ done: true });
            };
            messages.next().then(resolve, reject);
        });
        // A conversation that cannot be gone on with is refused before the turn begins.
        let begun = false;
        let refused = "";
        try {
            for (let given = await next(); !given.done; given = await next()) {
                const message = given.value;
                if (message.type === "system" && message.subtype === "init") begun = true;
                if (message.type === "result") input.end();
                if (!begun && turn.resume && message.type === "result" && message.is_error) {
                    refused = (message.errors ?? []).join("; ") || message.result || "it was refused";
                    continue;
                }
                if (message.session_id) turn.converse(message.session_id);
                await turn.emit(message);
            }
        } catch (error) {
            if (turn.signal.aborted) return;
            if (!refused && !begun && turn.resume && /exited with code/.test(error.message)) refused = error.message;
            if (!refused) throw error;
        } finally {
            clearTimeout(patience);
            input.end();
            this.#query = undefined;
        }
        if (refused) throw new ResumeFailed(this.#said.trim().split("\n").at(-1) || refused);
    }

    async configure(changes) {
        const running = this.#query;
        const applied = [];
        if (!running) return applied;
        if (changes.model) {
            await inTime(running.setModel(changes.model));
            applied.push("model");
        }
        if (changes.permissionMode) {
            await inTime(running.setPermissionMode(changes.permissionMode));
            applied.push("permissionMode");
        }
        return applied;
    }

    async close() {
        this.#child?.kill("SIGKILL");
    }

    /** Starts the program; what it says waits in its pipe while nobody has room for it. */
    #spawn({ command, args, cwd, env, signal }, room) {
        const child = spawn(command, args, { cwd, env, signal, stdio: ["pipe", "pipe", "pipe"], killSignal: "SIGKILL" });
        this.#child = child;
        const gate = new Transform({
            highWaterMark: 64 * 1024,
            transform: async (chunk, _, done) => {
                await room();
                done(null, chunk);
            },
        });
        child.stdout.pipe(gate);
        child.stderr.setEncoding("utf8");
        child.stderr.on("data", (text) => {
            this.#said = (this.#said + text).slice(-4000);
            log(text.trimEnd());
        });
        child.stdin.on("error", () => {});
        return {
            stdin: child.stdin,
            stdout: gate,
            get killed() { return child.killed; },
            get exitCode() { return child.exitCode; },
            get signalCode() { return child.signalCode; },
            kill: (name) => child.kill(name),
            on: (event, listener) => void child.on(event, listener),
            once: (event, listener) => void child.once(event, listener),
            off: (event, listener) => void child.off(event, listener),
        };
    }
}

function options(config) {
    return {
        model: config.model ?? MODEL,
        cwd: config.cwd,
        maxTurns: config.maxTurns,
        systemPrompt: config.systemPrompt,
        allowedTools: config.allowedTools ?? [],
        disallowedTools: config.disallowedTools ?? [],
        permissionMode: config.permissionMode,
        // Else a session could not be told to go on without asking.
        allowDangerouslySkipPermissions: true,
        mcpServers: config.mcpServers ?? {},
        // Their variables stay off the command line.
        mcpServersDelivery: "initialize",
        env: { ...process.env },
    };
}

function request(tool_name, input, more) {
    const request = { id: more.toolUseID, agent: "claude-code", tool_name, input };
    for (const [ours, theirs] of [["title", "title"], ["description", "description"], ["reason", "decisionReason"], ["blocked_path", "blockedPath"], ["agent_id", "agentID"]]) {
        if (more[theirs] !== undefined) request[ours] = more[theirs];
    }
    return request;
}

/** A conversation's next message; the agent is listened to until `end`. */
function oneMessage(text) {
    let end;
    const ended = new Promise((resolve) => (end = resolve));
    async function* messages() {
        yield { type: "user", message: { role: "user", content: text }, parent_tool_use_id: null, session_id: "" };
        await ended;
    }
    return { messages: messages(), end };
}

function inTime(promise) {
    const late = new Promise((_, reject) => setTimeout(() => reject(new Error("the agent did not answer")), CONFIGURE_MS).unref());
    return Promise.race([promise, late]);
}

function hasCredentials() {
    const folder = process.env.CLAUDE_CONFIG_DIR || join(homedir(), ".claude");
    if (existsSync(join(folder, ".credentials.json"))) return true;
    try {
        return /apiKeyHelper|ANTHROPIC_/.test(readFileSync(join(folder, "settings.json"), "utf8"));
    } catch {
        return false;
    }
}
