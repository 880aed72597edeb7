// OpenCode, by the Agent Client Protocol: one session over JSON-RPC.

import * as events from "./events.mjs";
import { log } from "./output.mjs";
import { findProgram, notInstalled } from "./packages.mjs";
import { RpcAgent, START_MS } from "./rpcagent.mjs";
import { ResumeFailed } from "./session.mjs";

const KIND = "opencode";
const PACKAGE = "opencode-ai";
const CANCEL_MS = 3000;
const ASK = { edit: "ask", bash: "ask", webfetch: "ask", external_directory: "ask" };
/** Of each mode: what OpenCode is told of permissions, and kinds of tools that are allowed without asking anybody. */
const MODES = {
    bypassPermissions: { permission: undefined },
    default: { permission: ASK, allow: [] },
    auto: { permission: ASK, allow: [] },
    acceptEdits: { permission: { ...ASK, edit: "allow" }, allow: ["edit"] },
    dontAsk: { permission: { edit: "deny", bash: "deny", webfetch: "deny", external_directory: "deny" }, allow: [] },
    plan: { permission: { edit: "deny", bash: "deny", webfetch: "deny", external_directory: "deny" }, allow: [] },
};

export class OpenCode extends RpcAgent {
    #version;
    #conversation;
    #model;
    #running;
    #loading = false;

    static missing() {
        return findProgram(KIND, PACKAGE, "opencode") ? undefined : notInstalled("OpenCode", KIND, PACKAGE);
    }

    async turn(turn) {
        const begun = Date.now();
        await this.begin(turn);
        if (turn.signal.aborted) return;
        const running = { turn, text: "", thought: "", said: "", tools: new Map(), turns: 0 };
        this.#running = running;
        const sessionId = this.#conversation;
        await turn.emit(events.init({
            agent: KIND, session_id: sessionId, model: this.#model, cwd: turn.config.cwd, permissionMode: turn.config.permissionMode,
            version: this.#version,
        }));
        turn.converse(sessionId);
        try {
            const prompt = [{ type: "text", text: turn.text }];
            const asked = this.rpc.call("session/prompt", { sessionId, prompt });
            const cancelled = turn.stopped.then(async () => {
                this.#cancel(sessionId);
                await new Promise((resolve) => setTimeout(resolve, CANCEL_MS).unref());
                return { stopReason: "cancelled" };
            });
            const { stopReason, usage } = await Promise.race([asked, cancelled]);
            await this.#flush(running);
            const failed = stopReason === "max_turn_requests" ? "error_max_turns" : stopReason === "end_turn" ? "success" : "error_during_execution";
            const subtype = running.tooMany ? "error_max_turns" : failed;
            await turn.emit(events.result(sessionId, {
                subtype, text: running.said, begun, turns: running.turns,
                usage: usage && { input_tokens: usage.inputTokens, output_tokens: usage.outputTokens },
                errors: subtype === "success" ? undefined : [`the turn ended: ${stopReason}`],
            }));
            if (subtype === "error_during_execution") throw new Error(`OpenCode ended the turn: ${stopReason}`);
        } finally {
            this.#running = undefined;
        }
    }

    async start({ config }) {
        const mode = MODES[config.permissionMode] ?? MODES.default;
        const permission = permissions(mode, config);
        const made = JSON.stringify([config.cwd, permission, config.mcpServers]);
        // Permissions are told to the program when it starts, servers when it opens a conversation.
        const program = () => ({
            command: [...findProgram(KIND, PACKAGE, "opencode"), "acp"], cwd: config.cwd,
            env: { ...process.env, OPENCODE_DISABLE_AUTOUPDATE: "1", OPENCODE_CONFIG_CONTENT: JSON.stringify(configured(permission)) },
        });
        const hello = await this.restart(made, program, {
            protocolVersion: 1, clientCapabilities: { fs: { readTextFile: false, writeTextFile: false } },
        });
        if (!hello) return;
        this.#version = hello.agentInfo?.version;
    }

    forget() {
        this.#conversation = undefined;
    }

    async open({ resume, config }) {
        if (resume === undefined || resume !== this.#conversation) {
            const wanted = { cwd: config.cwd, mcpServers: serversOf(config.mcpServers) };
            let opened;
            this.#loading = true;
            try {
                opened = resume === undefined
                    ? await this.rpc.call("session/new", wanted, START_MS)
                    : await this.rpc.call("session/load", { ...wanted, sessionId: resume }, START_MS);
            } catch (error) {
                if (resume === undefined || this.rpc.isGone) throw error;
                throw new ResumeFailed(error.data?.message ?? error.message);
            } finally {
                this.#loading = false;
            }
            this.#conversation = resume ?? opened.sessionId;
            this.#model = opened?.configOptions?.find(({ id }) => id === "model")?.currentValue;
        }
        if (config.model && config.model !== this.#model) {
            await this.rpc.call("session/set_config_option", { sessionId: this.#conversation, configId: "model", value: config.model }, START_MS);
            this.#model = config.model;
        }
    }

    #cancel(sessionId) {
        this.rpc.notify("session/cancel", { sessionId });
    }

    async notice(method, { sessionId, update }) {
        const running = this.#running;
        // What is told while a conversation is loaded was told before.
        if (method !== "session/update" || !running || this.#loading || sessionId !== this.#conversation) return;
        const { turn } = running;
        switch (update.sessionUpdate) {
            case "agent_message_chunk":
                if (running.thought) await this.#flush(running);
                running.text += update.content?.text ?? "";
                return;
            case "agent_thought_chunk":
                if (running.text) await this.#flush(running);
                running.thought += update.content?.text ?? "";
                return;
            case "tool_call":
            case "tool_call_update":
                await this.#flush(running);
                return this.#tool(running, update);
            case "user_message_chunk":
            case "available_commands_update":
            case "usage_update":
                return;
            default:
                return turn.emit(events.other(KIND, sessionId, update));
        }
    }

    /** A tool is told of once when what it was asked is known, and once when it is done. */
    async #tool(running, update) {
        const tool = running.tools.get(update.toolCallId) ?? { input: {}, name: "tool" };
        running.tools.set(update.toolCallId, tool);
        if (update.kind) tool.name = NAMES[update.kind] ?? update.title ?? update.kind;
        if (update.rawInput) tool.input = update.rawInput;
        const done = update.status === "completed" || update.status === "failed";
        if (!tool.told && (done || update.status === "in_progress")) {
            tool.told = true;
            running.turns += 1;
            if (running.turns > running.turn.config.maxTurns) {
                running.tooMany = true;
                return this.#cancel(this.#conversation);
            }
            await running.turn.emit(events.assistant(this.#conversation, this.#model, events.toolUse(update.toolCallId, tool.name, tool.input)));
        }
        if (done && !tool.done) {
            tool.done = true;
            await running.turn.emit(events.toolResult(this.#conversation, update.toolCallId, textOf(update), update.status === "failed"));
        }
    }

    async #flush(running) {
        const content = [];
        if (running.thought) content.push(events.thinking(running.thought));
        if (running.text) content.push(events.text(running.text));
        if (running.text) running.said = running.text;
        running.thought = running.text = "";
        if (content.length > 0) await running.turn.emit(events.assistant(this.#conversation, this.#model, ...content));
    }

    async request(method, params) {
        if (method !== "session/request_permission") throw new Error(`${method} is not answered here`);
        const running = this.#running;
        const outcome = (kinds) => {
            const option = kinds.map((kind) => params.options.find((each) => each.kind === kind)).find(Boolean);
            return { outcome: option ? { outcome: "selected", optionId: option.optionId } : { outcome: "cancelled" } };
        };
        if (!running) return outcome(["reject_once", "reject_always"]);
        const { toolCall } = params;
        const { config } = running.turn;
        const mode = MODES[config.permissionMode] ?? MODES.default;
        const tool = running.tools.get(toolCall.toolCallId);
        const input = { ...toolCall.rawInput, ...tool?.input };
        // It may ask before it has told of the tool's input; who is asked must see the command, which is the title then.
        if (toolCall.kind === "execute" && input.command === undefined && toolCall.title) input.command = toolCall.title;
        const free = mode.allow?.includes(toolCall.kind);
        const { behavior } = free ? { behavior: "allow" } : await running.turn.permit({
            id: toolCall.toolCallId, agent: KIND, tool_name: NAMES[toolCall.kind] ?? tool?.name ?? "tool", input, title: toolCall.title,
        });
        return behavior === "allow" ? outcome(["allow_once", "allow_always"]) : outcome(["reject_once", "reject_always"]);
    }
}

const NAMES = { execute: "Bash", edit: "Edit", read: "Read", search: "Grep", fetch: "WebFetch" };

/** Names of tools that OpenCode knows by others. */
const THEIRS = { Write: "edit", MultiEdit: "edit", NotebookEdit: "edit", LS: "list", TodoWrite: "todowrite", Agent: "task" };

/**
 * What OpenCode is told of permissions: what the mode asks for, what may be used without asking, what may not be used at all.
 * The last of the rules for a tool that fits is the one that counts.
 */
function permissions(mode, { allowedTools = [], disallowedTools = [] }) {
    const rules = { ...mode.permission };
    for (const [tools, says] of [[mode.permission ? allowedTools : [], "allow"], [disallowedTools, "deny"]]) {
        for (const tool of tools) {
            const [, name, pattern] = /^([^(]+)(?:\((.*)\))?$/s.exec(tool) ?? [undefined, tool];
            const theirs = THEIRS[name] ?? (/^mcp__(.+?)__(.+)$/.exec(name)?.slice(1).join("_") || name.toLowerCase());
            if (pattern === undefined) {
                rules[theirs] = says;
                continue;
            }
            const before = rules[theirs] ?? "allow";
            // `Bash(git log:*)` is how Claude Code says that arguments follow.
            rules[theirs] = { ...(typeof before === "string" ? { "*": before } : before), [pattern.replace(/:\*$/, "*")]: says };
        }
    }
    return Object.keys(rules).length > 0 ? rules : undefined;
}

/** The user's own configuration, with what the session asks for. */
function configured(permission) {
    let own = {};
    try {
        own = JSON.parse(process.env.OPENCODE_CONFIG_CONTENT || "{}");
    } catch (error) {
        log(`OPENCODE_CONFIG_CONTENT is not JSON and is left out: ${error.message}`);
    }
    return permission ? { ...own, permission: { ...own.permission, ...permission } } : own;
}

function serversOf(servers = {}) {
    const pairs = (map = {}) => Object.entries(map).map(([name, value]) => ({ name, value }));
    return Object.entries(servers).map(([name, { type, command, args, env, url, headers }]) =>
        command ? { name, command, args: args ?? [], env: pairs(env) } : { type, name, url, headers: pairs(headers) },
    );
}

function textOf({ content, rawOutput }) {
    const text = (content ?? []).map((each) => each.content?.text ?? (each.type === "diff" ? each.newText : "")).join("");
    return text || (typeof rawOutput?.output === "string" ? rawOutput.output : (rawOutput?.error ?? ""));
}
