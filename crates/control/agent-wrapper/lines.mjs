// Lines out of a stream of bytes, each of bounded length.

import { log } from "./output.mjs";

export const MAX_LINE = 16 * 1024 * 1024;

/** Calls `on.line(text)` for each line that is not blank, `on.tooLong(bytes)` for each that is left out, `on.end()` once. */
export function readLines(stream, on, max = MAX_LINE) {
    const splitter = new Splitter(on, max);
    stream.on("data", (chunk) => splitter.push(chunk));
    let ended = false;
    const end = () => {
        if (ended) return;
        ended = true;
        splitter.finish();
        on.end?.();
    };
    stream.on("end", end);
    stream.on("error", end);
    stream.on("close", end);
}

/** The lines of a stream, one at a time: what is not asked for stays in the pipe. */
export async function* linesOf(stream, max = MAX_LINE) {
    let ready = [];
    const splitter = new Splitter({ line: (line) => ready.push(line), tooLong: (bytes) => log(`a line of ${bytes} bytes of the agent is too long and was left out`) }, max);
    for await (const chunk of stream) {
        splitter.push(chunk);
        const lines = ready;
        ready = [];
        yield* lines;
    }
    splitter.finish();
    yield* ready;
}

class Splitter {
    #parts = [];
    #length = 0;
    #on;
    #max;

    constructor(on, max) {
        this.#on = on;
        this.#max = max;
    }

    push(chunk) {
        let from = 0;
        for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10, from)) {
            this.#add(chunk.subarray(from, at));
            this.finish();
            from = at + 1;
        }
        this.#add(chunk.subarray(from));
    }

    #add(part) {
        this.#length += part.length;
        if (this.#length > this.#max) this.#parts = [];
        else if (part.length > 0) this.#parts.push(part);
    }

    finish() {
        const parts = this.#parts;
        const length = this.#length;
        this.#parts = [];
        this.#length = 0;
        if (length > this.#max) return this.#on.tooLong(length);
        const line = Buffer.concat(parts).toString("utf8").trim();
        if (line !== "") this.#on.line(line);
    }
}
