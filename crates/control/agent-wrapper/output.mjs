// Events to standard output, one JSON object a line.
//
// Writes do not block: a reader that stalls must not keep an interrupt from being read. What waits to be written is
// bounded by whoever makes events: they wait for `room()` before they take the next one from the agent.

import { Socket } from "node:net";

const ENOUGH = 256 * 1024;

export class Output {
    #stream = standardOutput();
    #waiting = [];

    constructor() {
        this.#stream.on("drain", () => this.#wake());
        this.#stream.on("error", () => process.exit(1));
    }

    /** Writes one event. */
    write(event) {
        this.#stream.write(`${encode(event)}\n`);
    }

    /** Resolves once little enough waits to be written. */
    room() {
        if (this.#stream.writableLength < ENOUGH) return undefined;
        return new Promise((resolve) => this.#waiting.push(resolve));
    }

    /** Resolves once everything is written. */
    close() {
        return new Promise((resolve) => this.#stream.write("", resolve));
    }

    #wake() {
        const waiting = this.#waiting;
        this.#waiting = [];
        for (const resolve of waiting) resolve();
    }
}

/** For people: what is wrong with the session itself. */
export function log(text) {
    process.stderr.write(`[claude-agent-wrapper] ${text}\n`);
}

function standardOutput() {
    try {
        return new Socket({ fd: 1, readable: false, writable: true });
    } catch {
        // A file.
        return process.stdout;
    }
}

function encode(event) {
    try {
        return JSON.stringify(event);
    } catch (error) {
        return JSON.stringify({ type: "error", message: `an event cannot be written as JSON: ${error.message}` });
    }
}
