// What a session has started, found in /proc.

import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** In the environment of everything a session starts. */
const MARK = "WARREN_AGENT_MARK";

export function mark() {
    process.env[MARK] = randomUUID();
}

/** Ends everything this session has started and that still runs, wherever it went. */
export function endMarked() {
    const marked = `${MARK}=${process.env[MARK]}`;
    for (const pid of all()) {
        if (pid !== process.pid && environment(pid).includes(marked)) end(pid);
    }
}

/** What descends from a process, itself left out. */
export function descendants(pid) {
    const children = new Map();
    for (const each of all()) {
        const parent = parentOf(each);
        children.set(parent, [...(children.get(parent) ?? []), each]);
    }
    const found = new Set();
    const waiting = [pid];
    while (waiting.length > 0) {
        for (const child of children.get(waiting.pop()) ?? []) {
            found.add(child);
            waiting.push(child);
        }
    }
    return found;
}

/** Ends what has come to descend from a process since `before`, except programs of its own. */
export function endSince(pid, before) {
    const found = descendants(pid);
    const own = new Set([pid, ...before].map(programOf));
    for (const each of found) {
        if (!before.has(each) && !own.has(programOf(each))) end(each);
    }
}

function all() {
    return readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number);
}

function environment(pid) {
    try {
        return readFileSync(`/proc/${pid}/environ`, "latin1").split("\0");
    } catch {
        return [];
    }
}

function parentOf(pid) {
    try {
        const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
        return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
    } catch {
        return 0;
    }
}

function programOf(pid) {
    try {
        return readlinkSync(`/proc/${pid}/exe`);
    } catch {
        return `${pid}`;
    }
}

function end(pid) {
    try {
        process.kill(pid, "SIGKILL");
    } catch {
        // Gone, or somebody else's.
    }
}
