// A session: what its lines mean, one turn at a time.
//
//   idle ──prompt──▶ turn ──▶ turn_complete | error ──▶ idle, or the next prompt that waits
//                     └─interrupt──▶ interrupted, at once; what the turn still says is left out
//
// It owns the options, the queue of prompts, the name of the conversation, and the permissions that are asked for. What an
// agent is and how it is made to work is its adapter's affair:
//
//   turn({text, resume, config, emit, permit, signal, room})   one prompt; rejects with what went wrong
//   refused(changes)      what it has nothing for, in a sentence
//   configure(changes)    while a turn runs: the names of the options that apply to it
//   close()               ends what it started

import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { join } from "node:path";

import { log } from "./output.mjs";

const MAX_WAITING = 1000;
const STATES = "/tmp/.warren-agents";
const STATE_MS = 24 * 60 * 60 * 1000;

const OPTIONS = {
    model: isText,
    allowedTools: isTexts,
    disallowedTools: isTexts,
    systemPrompt: (value) => isText(value) || isObject(value),
    permissionMode: isText,
    maxTurns: (value) => Number.isInteger(value) && value > 0,
    cwd: isText,
    mcpServers: isObject,
    resume: isText,
    endWhenIdle: (value) => typeof value === "boolean",
};

/** A conversation cannot be gone on with; nothing was done. */
export class ResumeFailed extends Error {}

export class Session {
    #agent;
    #output;
    #end;
    #config = { cwd: process.env.HOME || process.cwd(), permissionMode: "bypassPermissions", maxTurns: 50 };
    #waiting = [];
    #turn;
    #conversation;
    #id;
    #inputEnded = false;
    #code = 0;
    #permissions = new Map();
    #asked = new Set();
    #ending = false;

    constructor(agent, output, end) {
        process.env.IS_SANDBOX = "1";
        this.#agent = agent;
        this.#output = output;
        this.#end = end;
    }

    // === Lines ===

    take(line) {
        let command;
        try {
            command = JSON.parse(line);
        } catch {
            return this.complain("invalid JSON input");
        }
        if (!isObject(command)) return this.complain("invalid JSON input");
        switch (command.type) {
            case "session":
                return this.#name(command.id);
            case "configure":
                return this.#configure(command);
            case "prompt":
                return this.#prompt(command);
            case "interrupt":
                return this.#interrupt();
            case "permission_response":
                return this.#answer(command);
            default:
                return this.complain(`unknown command type: ${shown(command.type)}`);
        }
    }

    /** No line will come any more: what was asked for is done to its end, without anybody to ask. */
    inputEnded() {
        this.#inputEnded = true;
        for (const { answer } of this.#permissions.values()) answer({ behavior: "deny", message: "nobody is there to ask" });
        if (!this.#turn) this.#finish();
    }

    complain(message) {
        this.#output.write({ type: "error", message });
    }

    async close() {
        this.#ending = true;
        this.#waiting = [];
        this.#turn?.abort.abort();
        await this.#agent.close();
    }

    async #configure({ type: _, ...changes }) {
        for (const [name, value] of Object.entries(changes)) {
            if (value === null || value === undefined) delete changes[name];
            else if (!Object.hasOwn(OPTIONS, name)) return this.complain(`unknown option: ${shown(name)}; nothing was changed`);
            else if (!OPTIONS[name](value)) return this.complain(`${name} cannot be ${shown(value)}; nothing was changed`);
        }
        const refused = this.#agent.refused?.(changes);
        if (refused) return this.complain(`${refused}; nothing was changed`);
        Object.assign(this.#config, changes);
        const names = Object.keys(changes).filter((name) => name !== "endWhenIdle");
        const turn = this.#turn;
        if (!turn || turn.abort.signal.aborted || names.length === 0) {
            this.#output.write({ type: "configured" });
            if (!turn) this.#finish();
            return;
        }
        let applied = [];
        try {
            applied = await this.#agent.configure(changes);
        } catch (error) {
            log(`the running turn keeps its options: ${error.message}`);
        }
        const next = names.filter((name) => !applied.includes(name));
        this.#output.write({ type: "configured", applied, next_prompt: next });
    }

    #prompt({ text, resume }) {
        if (typeof text !== "string" || text === "") return this.complain("prompt text is required");
        if (resume !== undefined && resume !== null && !isText(resume)) return this.complain("resume must be text");
        if (this.#ending) return this.complain("the session is ending; this prompt was left out");
        if (this.#waiting.length >= MAX_WAITING) {
            return this.complain(`${MAX_WAITING} prompts wait already; this one was left out`);
        }
        this.#waiting.push({ text, resume });
        if (!this.#turn) this.#run();
    }

    #interrupt() {
        const turn = this.#turn;
        this.#output.write({ type: "interrupted" });
        if (!turn || turn.abort.signal.aborted) return;
        turn.abort.abort();
    }

    #answer({ id, behavior, message, updatedInput }) {
        const asked = this.#permissions.get(id);
        if (!asked) return this.complain(`no permission request ${shown(id)} waits for an answer`);
        if (behavior === "allow") {
            if (updatedInput !== undefined && !isObject(updatedInput)) return this.complain("updatedInput must be an object");
            asked.answer({ behavior, updatedInput: updatedInput ?? asked.input });
        } else if (behavior === "deny") {
            asked.answer({ behavior, message: isText(message) ? message : "the user did not allow it" });
        } else {
            this.complain("behavior must be allow or deny");
        }
    }

    // === Turns ===

    async #run() {
        while (this.#waiting.length > 0) await this.#do(this.#waiting.shift());
        this.#finish();
    }

    async #do({ text, resume }) {
        const abort = new AbortController();
        const turn = { abort, text };
        this.#turn = turn;
        const asked = resume || this.#config.resume || this.#conversation;
        delete this.#config.resume;
        try {
            await this.#attempt(turn, asked || undefined);
            this.#code = abort.signal.aborted ? 130 : 0;
            if (!abort.signal.aborted) {
                this.#output.write({ type: "turn_complete", claude_session_id: this.#conversation ?? null });
            }
        } catch (error) {
            this.#code = abort.signal.aborted ? 130 : 1;
            if (!abort.signal.aborted) this.complain(error?.message || String(error));
        } finally {
            // Nobody is asked for what has ended.
            for (const { answer } of this.#permissions.values()) answer({ behavior: "deny", message: "the turn has ended" });
            this.#asked.clear();
            this.#turn = undefined;
        }
    }

    async #attempt(turn, resume) {
        try {
            await this.#agent.turn(this.#view(turn, resume));
        } catch (error) {
            if (!(error instanceof ResumeFailed) || turn.abort.signal.aborted || this.#ending) throw error;
            this.#output.write({
                type: "resume_failed",
                claude_session_id: resume,
                message: `the conversation ${resume} could not be gone on with (${error.message}); a new one begins`,
            });
            this.#conversation = undefined;
            await this.#agent.turn(this.#view(turn, undefined));
        }
    }

    /** What an adapter sees of a turn. */
    #view(turn, resume) {
        const { signal } = turn.abort;
        const stopped = new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
        // A reader that stalls holds the agent back, until it is interrupted.
        const room = () => (signal.aborted ? undefined : whichever(this.#output.room(), stopped));
        return {
            text: turn.text,
            resume,
            config: { ...this.#config },
            signal,
            stopped,
            room,
            converse: (conversation) => this.#converse(conversation),
            emit: async (event) => {
                if (signal.aborted) return;
                this.#output.write(event);
                await room();
            },
            permit: (request, withdrawn) => this.#permit(request, withdrawn ? anyOf(signal, withdrawn) : signal),
        };
    }

    /** Asks whoever is attached. */
    #permit({ id, ...request }, signal) {
        // One use of a tool may be asked about more than once.
        const name = isText(id) && !this.#asked.has(id) ? id : randomUUID();
        this.#asked.add(name);
        if (this.#config.permissionMode === "bypassPermissions") return { behavior: "allow", updatedInput: request.input };
        if (this.#inputEnded || signal.aborted) return { behavior: "deny", message: "nobody is there to ask" };
        return new Promise((resolve) => {
            const answer = (given) => {
                if (!this.#permissions.delete(name)) return;
                signal.removeEventListener("abort", withdraw);
                this.#output.write({ type: "permission_resolved", id: name, behavior: given.behavior });
                resolve(given);
            };
            const withdraw = () => answer({ behavior: "deny", message: "the request was withdrawn" });
            signal.addEventListener("abort", withdraw, { once: true });
            this.#permissions.set(name, { answer, input: request.input });
            this.#output.write({ type: "permission_request", id: name, ...request });
        });
    }

    async #finish() {
        if (this.#ending) return;
        const done = this.#inputEnded || (this.#config.endWhenIdle && (this.#conversation || this.#code));
        if (!done) return;
        this.#ending = true;
        await this.#agent.close();
        await this.#end(this.#code);
    }

    // === What is told about it ===

    #converse(conversation) {
        if (!isText(conversation) || conversation === this.#conversation) return;
        this.#conversation = conversation;
        this.#note();
    }

    /** The server says once what it calls this session, and reads the file of that name. */
    #name(id) {
        if (this.#id !== undefined || typeof id !== "string" || !/^[a-z0-9]{1,32}$/.test(id)) return;
        this.#id = id;
        forgetOld();
        this.#note();
    }

    #note() {
        if (this.#id === undefined || this.#conversation === undefined) return;
        try {
            mkdirSync(STATES, { recursive: true, mode: 0o700 });
            const file = join(STATES, `${this.#id}.json`);
            writeFileSync(`${file}.new`, JSON.stringify({ conversation: this.#conversation }));
            renameSync(`${file}.new`, file);
        } catch (error) {
            log(`the name of the conversation could not be noted: ${error.message}`);
        }
    }
}

function forgetOld() {
    try {
        for (const name of readdirSync(STATES)) {
            const file = join(STATES, name);
            if (Date.now() - statSync(file).mtimeMs > STATE_MS) rmSync(file, { force: true });
        }
    } catch {
        // There is none, or not ours.
    }
}

function whichever(room, stopped) {
    return room && Promise.race([room, stopped]);
}

function anyOf(a, b) {
    const either = new AbortController();
    for (const signal of [a, b]) {
        if (signal.aborted) either.abort();
        else signal.addEventListener("abort", () => either.abort(), { once: true });
    }
    return either.signal;
}

function isText(value) {
    return typeof value === "string" && value !== "";
}

function isTexts(value) {
    return Array.isArray(value) && value.every(isText);
}

function isObject(value) {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}

function shown(value) {
    const text = typeof value === "string" ? value : (JSON.stringify(value) ?? String(value));
    return text.length > 100 ? `${text.slice(0, 100)}…` : text;
}
