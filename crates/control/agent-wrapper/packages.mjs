// Where the agents are: packages that somebody else has installed into the sandbox. Nothing of them is part of Warren.

import { accessSync, constants, existsSync, readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { delimiter, dirname, join } from "node:path";

const ROOT = "/opt/warren/agents";

/** Folders that hold packages, in the order in which they are looked at. */
function folders(kind) {
    const prefixes = [process.env.npm_config_prefix, dirname(dirname(process.execPath)), "/usr/local", "/usr", join(homedir(), ".npm-global")];
    return [
        join(ROOT, kind, "node_modules"),
        ...others(kind).map((other) => join(ROOT, other, "node_modules")),
        ...(process.env.NODE_PATH ?? "").split(delimiter),
        ...prefixes.filter(Boolean).map((prefix) => join(prefix, "lib", "node_modules")),
        ...ancestors(process.cwd()).map((folder) => join(folder, "node_modules")),
        join(homedir(), "node_modules"),
    ].filter(Boolean);
}

function others(kind) {
    try {
        return readdirSync(ROOT).filter((name) => name !== kind);
    } catch {
        return [];
    }
}

function ancestors(folder) {
    const all = [folder];
    while (dirname(all.at(-1)) !== all.at(-1)) all.push(dirname(all.at(-1)));
    return all;
}

/** The folder of an installed package. */
export function findPackage(kind, name) {
    return folders(kind)
        .map((folder) => join(folder, name))
        .find((folder) => existsSync(join(folder, "package.json")));
}

/** The file that `import` of an installed package would load. */
export function entryOf(folder) {
    const { name } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    return createRequire(join(folder, "package.json")).resolve(name);
}

/** The command line that starts a program of an installed package, or one on the PATH. */
export function findProgram(kind, packageName, program) {
    const folder = findPackage(kind, packageName);
    if (folder) {
        const { bin } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
        const file = typeof bin === "string" ? bin : bin?.[program];
        if (file) {
            const path = join(folder, file);
            return isScript(path) ? [process.execPath, path] : [path];
        }
    }
    const found = (process.env.PATH ?? "").split(delimiter).map((entry) => join(entry, program)).find(isExecutable);
    return found ? [found] : undefined;
}

function isScript(path) {
    return readFileSync(path).subarray(0, 64).toString("latin1").startsWith("#!/usr/bin/env node");
}

function isExecutable(path) {
    try {
        accessSync(path, constants.X_OK);
        return true;
    } catch {
        return false;
    }
}

/** The sentence for an agent that is not there. */
export function notInstalled(title, kind, packageName) {
    return (
        `${title} is not installed in this sandbox; make a snapshot that has it with: warren agent install ${kind}, ` +
        `or install it here with: sudo npm install --prefix ${ROOT}/${kind} ${packageName}`
    );
}
