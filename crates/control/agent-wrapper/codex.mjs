// Codex, by its app server: threads and turns over JSON-RPC.

import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

import * as events from "./events.mjs";
import { findProgram, notInstalled } from "./packages.mjs";
import { descendants, endSince } from "./processes.mjs";
import { RpcAgent, START_MS } from "./rpcagent.mjs";
import { ResumeFailed } from "./session.mjs";

const KIND = "codex";
const PACKAGE = "@openai/codex";
const INTERRUPT_MS = 3000;

/** Of each mode: when Codex asks, what it may touch without asking, and what is allowed for it without asking anybody. */
const MODES = {
    bypassPermissions: { approvalPolicy: "never", sandbox: "danger-full-access", policy: { type: "dangerFullAccess" } },
    default: { approvalPolicy: "untrusted", sandbox: "danger-full-access", policy: { type: "dangerFullAccess" } },
    auto: { approvalPolicy: "untrusted", sandbox: "danger-full-access", policy: { type: "dangerFullAccess" } },
    acceptEdits: { approvalPolicy: "untrusted", sandbox: "danger-full-access", policy: { type: "dangerFullAccess" }, edits: true },
    dontAsk: { approvalPolicy: "never", sandbox: "workspace-write", policy: { type: "workspaceWrite" } },
    plan: { approvalPolicy: "never", sandbox: "read-only", policy: { type: "readOnly" } },
};

export class Codex extends RpcAgent {
    #started;
    #thread;
    #model;
    #running;
    /** The turn before this one; it may still have something to say. */
    #over;

    static missing() {
        return findProgram(KIND, PACKAGE, "codex") ? undefined : notInstalled("Codex", KIND, PACKAGE);
    }

    refused(changes) {
        const name = ["allowedTools", "disallowedTools"].find((name) => changes[name]?.length > 0);
        return name && `${name}: codex has no list of tools that could be allowed or not; permissionMode says what it may do`;
    }

    async turn(turn) {
        const begun = Date.now();
        await this.begin(turn);
        if (turn.signal.aborted) return;
        const mode = modeOf(turn.config);
        await turn.emit(events.init({
            agent: KIND, session_id: this.#thread, model: this.#model, cwd: turn.config.cwd, permissionMode: turn.config.permissionMode,
            version: this.#started,
        }));
        const running = { turn, mode, said: "", turns: 0, usage: undefined, changes: new Map(), open: new Set(), before: descendants(this.rpc.pid) };
        const ended = new Promise((resolve, reject) => Object.assign(running, { resolve, reject }));
        ended.catch(() => {});
        this.#running = running;
        turn.stopped.then(() => this.#interrupt(running));
        try {
            const started = await this.rpc.call("turn/start", {
                threadId: this.#thread,
                input: [{ type: "text", text: turn.text, text_elements: [] }],
                cwd: turn.config.cwd,
                approvalPolicy: mode.approvalPolicy,
                sandboxPolicy: mode.policy,
                ...(turn.config.model ? { model: turn.config.model } : {}),
            });
            running.id ??= started.turn.id;
            if (turn.signal.aborted) this.#interrupt(running);
            const { status, error } = await ended;
            // A command it was waiting for would go on by itself.
            if (status === "interrupted" && running.open.size > 0) endSince(this.rpc.pid, running.before);
            const failed = status !== "completed" && !running.tooMany;
            const subtype = running.tooMany ? "error_max_turns" : failed ? "error_during_execution" : "success";
            await turn.emit(events.result(this.#thread, {
                subtype, text: running.said, begun, turns: running.turns, usage: running.usage,
                errors: failed ? [error?.message ?? `the turn ended: ${status}`] : undefined,
            }));
            if (failed) throw new Error(`Codex returned an error result: ${error?.message ?? status}`);
        } finally {
            this.#over = running.id;
            this.#running = undefined;
        }
    }

    async start({ config }) {
        // A thread keeps its servers for as long as the program has it.
        const made = JSON.stringify(config.mcpServers ?? {});
        const program = () => ({
            command: [...findProgram(KIND, PACKAGE, "codex"), "app-server", ...provider()], cwd: config.cwd, env: process.env,
        });
        const hello = await this.restart(made, program, { clientInfo: { name: "warren", title: "Warren", version: "1" } });
        if (!hello) return;
        this.#started = hello.userAgent;
        this.rpc.notify("initialized", {});
    }

    forget() {
        this.#thread = undefined;
    }

    gone(why) {
        this.#running?.reject(new Error(why));
    }

    /** The conversation that was asked for, or a new one. */
    async open({ resume, config }) {
        if (resume !== undefined && resume === this.#thread) return;
        const mode = modeOf(config);
        const wanted = {
            cwd: config.cwd,
            approvalPolicy: mode.approvalPolicy,
            sandbox: mode.sandbox,
            // Not by the command line: what is said of a server may be secret.
            config: { mcp_servers: serversOf(config.mcpServers) },
            ...(config.model ? { model: config.model } : {}),
            ...(typeof config.systemPrompt === "string" ? { developerInstructions: config.systemPrompt } : {}),
        };
        let opened;
        if (resume === undefined) {
            opened = await this.rpc.call("thread/start", wanted, START_MS);
        } else {
            try {
                opened = await this.rpc.call("thread/resume", { ...wanted, threadId: resume, excludeTurns: true }, START_MS);
            } catch (error) {
                throw new ResumeFailed(error.message);
            }
        }
        this.#thread = opened.thread.id;
        this.#model = opened.model;
    }

    #interrupt(running) {
        if (!running.id || running.interrupting) return;
        running.interrupting = true;
        const hard = setTimeout(() => running.resolve({ status: "interrupted" }), INTERRUPT_MS);
        this.rpc.call("turn/interrupt", { threadId: this.#thread, turnId: running.id }).catch(() => {});
        running.hard = hard;
    }

    async notice(method, params) {
        const running = this.#running;
        if (!running || (params.threadId && params.threadId !== this.#thread)) return;
        if (params.turnId !== undefined && params.turnId === this.#over) return;
        const { turn } = running;
        switch (method) {
            case "turn/started":
                running.id = params.turn.id;
                turn.converse(this.#thread);
                if (turn.signal.aborted) this.#interrupt(running);
                return;
            case "turn/completed":
                clearTimeout(running.hard);
                return running.resolve(params.turn);
            case "item/started":
                return this.#begun(running, params.item);
            case "item/completed":
                return this.#done(running, params.item);
            case "thread/tokenUsage/updated": {
                const { last } = params.tokenUsage;
                const before = running.usage ?? { input_tokens: 0, cache_read_input_tokens: 0, output_tokens: 0 };
                running.usage = {
                    input_tokens: before.input_tokens + last.inputTokens - last.cachedInputTokens,
                    cache_read_input_tokens: before.cache_read_input_tokens + last.cachedInputTokens,
                    output_tokens: before.output_tokens + last.outputTokens,
                };
                running.turns += 1;
                if (running.turns >= turn.config.maxTurns && !running.tooMany) running.mayBeTooMany = true;
                return;
            }
            case "error":
                return turn.emit(events.other(KIND, this.#thread, { method, params }));
            case "turn/plan/updated":
            case "turn/diff/updated":
            case "thread/compacted":
            case "warning":
                return turn.emit(events.other(KIND, this.#thread, { method, params }));
            default:
        }
    }

    async #begun(running, item) {
        const use = toolOf(item);
        if (item.type === "fileChange") running.changes.set(item.id, item.changes);
        if (!use) return;
        if (running.mayBeTooMany) {
            running.tooMany = true;
            return this.#interrupt(running);
        }
        if (item.type === "commandExecution") running.open.add(item.id);
        await running.turn.emit(events.assistant(this.#thread, this.#model, events.toolUse(item.id, use.name, use.input)));
    }

    async #done(running, item) {
        const { turn } = running;
        running.open.delete(item.id);
        const say = (...content) => turn.emit(events.assistant(this.#thread, this.#model, ...content));
        if (item.type === "agentMessage") {
            running.said = item.text;
            return say(events.text(item.text));
        }
        if (item.type === "reasoning") {
            const thought = [...(item.summary ?? []), ...(item.content ?? [])].join("\n");
            return thought === "" ? undefined : say(events.thinking(thought));
        }
        const use = toolOf(item);
        if (use) return turn.emit(events.toolResult(this.#thread, item.id, use.output, use.failed));
        if (item.type !== "userMessage") return turn.emit(events.other(KIND, this.#thread, { method: "item/completed", params: { item } }));
    }

    async request(method, params) {
        const running = this.#running;
        const ask = async (tool_name, input) => {
            if (!running) return { behavior: "deny" };
            return running.turn.permit({ id: params.approvalId ?? params.itemId, agent: KIND, tool_name, input, reason: params.reason ?? undefined });
        };
        const decision = ({ behavior }) => ({ decision: behavior === "allow" ? "accept" : "decline" });
        switch (method) {
            case "item/commandExecution/requestApproval":
                return decision(await ask("Bash", { command: params.command, cwd: params.cwd }));
            case "item/fileChange/requestApproval":
                if (running?.mode.edits) return { decision: "accept" };
                return decision(await ask("Edit", { changes: running?.changes.get(params.itemId) ?? [] }));
            case "item/permissions/requestApproval": {
                const { behavior } = await ask("Permissions", params.permissions);
                return { permissions: behavior === "allow" ? params.permissions : {}, scope: "turn" };
            }
            case "mcpServer/elicitation/request":
                return { action: "decline", content: null };
            case "item/tool/requestUserInput":
                return { answers: {} };
            default:
                throw new Error(`${method} is not answered here`);
        }
    }
}

function modeOf(config) {
    return MODES[config.permissionMode] ?? MODES.default;
}

/** An item as a tool that was used; nothing for what is none. */
function toolOf(item) {
    switch (item.type) {
        case "commandExecution":
            return {
                name: "Bash",
                input: { command: item.command, cwd: item.cwd },
                output: item.aggregatedOutput ?? "",
                failed: item.status !== "completed" || (item.exitCode ?? 0) !== 0,
            };
        case "fileChange":
            return { name: "Edit", input: { changes: item.changes }, output: item.status, failed: item.status !== "completed" };
        case "mcpToolCall":
            return {
                name: `mcp__${item.server}__${item.tool}`,
                input: item.arguments,
                output: item.error?.message ?? item.result?.content ?? "",
                failed: item.status !== "completed" || Boolean(item.error),
            };
        case "webSearch":
            return { name: "WebSearch", input: { query: item.query }, output: "", failed: false };
        case "dynamicToolCall":
            return { name: item.tool, input: item.arguments, output: item.contentItems ?? "", failed: item.success === false };
        default:
            return undefined;
    }
}

/** With a key in the environment and nobody logged in, that key is used; nothing of it is written anywhere. */
function provider() {
    const key = ["CODEX_API_KEY", "OPENAI_API_KEY"].find((name) => process.env[name]);
    const folder = process.env.CODEX_HOME || join(homedir(), ".codex");
    if (!key || existsSync(join(folder, "auth.json")) || names(join(folder, "config.toml"), /^\s*model_provider\s*=/m)) return [];
    const url = process.env.OPENAI_BASE_URL || "https://api.openai.com/v1";
    const about = { name: "OpenAI", base_url: url, env_key: key, wire_api: "responses" };
    return ["-c", 'model_provider="openai-key"', ...flags("model_providers.openai-key", { ...about, supports_websockets: false })];
}

function serversOf(servers = {}) {
    const each = ({ command, args, env, url, headers }) =>
        command ? { command, args: args ?? [], env: env ?? {} } : { url, http_headers: headers ?? {} };
    return Object.fromEntries(Object.entries(servers).map(([name, server]) => [name, each(server)]));
}

function flags(path, about) {
    return Object.entries(about).flatMap(([key, value]) => ["-c", `${path}.${key}=${JSON.stringify(value)}`]);
}

function names(file, pattern) {
    try {
        return pattern.test(readFileSync(file, "utf8"));
    } catch {
        return false;
    }
}
