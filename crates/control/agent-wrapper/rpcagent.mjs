// What the adapters have in common whose agent is a program that speaks JSON-RPC: how it is started, kept, begun with and ended.
//
// Such an adapter has `start(turn)`, which calls `restart`, `open(turn)`, `forget()`, `notice(method, params)` and `request(method, params)`.

import { Rpc } from "./rpc.mjs";

export const START_MS = 60_000;

export class RpcAgent {
    /** The program, once it was started. */
    rpc;
    #made;

    /** All of these hold from the next turn on. */
    async configure() {
        return [];
    }

    async close() {
        await this.rpc?.end();
    }

    /** An interrupt does not wait for what takes long to begin. */
    async begin(turn) {
        let begins = true;
        turn.stopped.then(() => begins && this.rpc?.end());
        await this.start(turn);
        await this.open(turn);
        begins = false;
    }

    /** Starts the program and returns its greeting; nothing when it runs already, started with the same (`made`). */
    async restart(made, program, hello) {
        if (this.rpc && !this.rpc.isGone && this.#made === made) return undefined;
        await this.rpc?.end();
        this.#made = made;
        this.forget();
        const { command, cwd, env } = program();
        this.rpc = new Rpc(command, { cwd, env }, {
            notice: (method, params) => this.notice(method, params),
            request: (method, params) => this.request(method, params),
            gone: (why) => this.gone(why),
        });
        return this.rpc.call("initialize", hello, START_MS);
    }

    /** Calls that were under way have failed by themselves. */
    gone() {}
}
