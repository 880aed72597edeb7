// JSON-RPC with a program of an agent: one message a line. Its messages are taken one at a time, and the next is not
// read before the one before is dealt with, so that a reader that stalls holds the agent back.

import { spawn } from "node:child_process";

import { linesOf } from "./lines.mjs";
import { log } from "./output.mjs";

const MAX_MESSAGE = 64 * 1024 * 1024;

export class Rpc {
    #child;
    #next = 1;
    #calls = new Map();
    #on;
    #ended;
    #said = "";

    /** `on.notice(method, params)` and `on.request(method, params)`, whose answer is sent back. */
    constructor([command, ...args], { cwd, env }, on) {
        this.#on = on;
        this.#child = spawn(command, args, { cwd, env, stdio: ["pipe", "pipe", "pipe"] });
        this.#child.stderr.setEncoding("utf8");
        this.#child.stderr.on("data", (text) => {
            this.#said = (this.#said + text).slice(-2000);
            log(text.trimEnd());
        });
        this.#child.stdin.on("error", () => {});
        this.#ended = new Promise((resolve) => {
            this.#child.on("error", (error) => resolve(`it could not be started: ${error.message}`));
            this.#child.on("exit", (code, signal) => resolve(signal ? `a signal ended it: ${signal}` : `it ended with code ${code}`));
        }).then((why) => {
            this.why = `${command.split("/").at(-1)} is gone: ${why}${reasonIn(this.#said)}`;
            for (const { reject } of this.#calls.values()) reject(new Error(this.why));
            this.#calls.clear();
            this.#on.gone?.(this.why);
        });
        this.#read();
    }

    get pid() {
        return this.#child.pid;
    }

    get isGone() {
        return this.why !== undefined;
    }

    call(method, params, withinMs) {
        if (this.isGone) return Promise.reject(new Error(this.why));
        const id = this.#next++;
        return new Promise((resolve, reject) => {
            const late = withinMs && setTimeout(() => {
                this.#calls.delete(id);
                reject(new Error(`${method} was not answered within ${withinMs / 1000} s`));
            }, withinMs);
            const done = (settle) => (value) => {
                clearTimeout(late);
                settle(value);
            };
            this.#calls.set(id, { resolve: done(resolve), reject: done(reject) });
            this.#send({ id, method, params });
        });
    }

    notify(method, params) {
        this.#send({ method, params });
    }

    async end() {
        this.#child.kill("SIGTERM");
        const hard = setTimeout(() => this.#child.kill("SIGKILL"), 1000);
        await this.#ended;
        clearTimeout(hard);
    }

    #send(message) {
        this.#child.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`);
    }

    async #read() {
        for await (const line of linesOf(this.#child.stdout, MAX_MESSAGE)) {
            const message = parse(line);
            if (message === undefined) log(`not a message of the agent: ${line.slice(0, 200)}`);
            else if (message.method !== undefined && message.id !== undefined) this.#serve(message);
            else if (message.method !== undefined) await this.#notice(message);
            else this.#settle(message);
        }
    }

    async #notice({ method, params }) {
        try {
            await this.#on.notice(method, params ?? {});
        } catch (error) {
            log(`${method} could not be told: ${error.stack ?? error}`);
        }
    }

    async #serve({ id, method, params }) {
        try {
            this.#send({ id, result: await this.#on.request(method, params ?? {}) });
        } catch (error) {
            this.#send({ id, error: { code: -32601, message: error.message } });
        }
    }

    #settle({ id, result, error }) {
        const call = this.#calls.get(id);
        this.#calls.delete(id);
        if (error) call?.reject(Object.assign(new Error(error.message ?? JSON.stringify(error)), { code: error.code, data: error.data }));
        else call?.resolve(result);
    }
}

/** The last line that reads like a reason: below it programs print where they were and with what. */
export function reasonIn(said) {
    const lines = said.split("\n").map((line) => line.trim()).filter(Boolean);
    const reason = lines.findLast((line) => /\b(error|fail(ed)?|cannot|denied|no space|full)\b|error:/i.test(line)) ?? lines.at(-1);
    return reason ? `: ${reason}` : "";
}

function parse(line) {
    try {
        const message = JSON.parse(line);
        return typeof message === "object" && message !== null ? message : undefined;
    } catch {
        return undefined;
    }
}
