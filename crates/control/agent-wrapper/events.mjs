// The events of agents that are not Claude Code, in its words, so that a client needs one vocabulary.

export function init({ agent, session_id, model, cwd, permissionMode, tools = [], version }) {
    return { type: "system", subtype: "init", agent, session_id, model, cwd, permissionMode, tools, agent_version: version };
}

export function assistant(session_id, model, ...content) {
    return { type: "assistant", message: { role: "assistant", model, content }, parent_tool_use_id: null, session_id };
}

export function text(value) {
    return { type: "text", text: value };
}

export function thinking(value) {
    return { type: "thinking", thinking: value };
}

export function toolUse(id, name, input) {
    return { type: "tool_use", id, name, input: input ?? {} };
}

export function toolResult(session_id, tool_use_id, content, is_error) {
    return {
        type: "user",
        message: { role: "user", content: [{ type: "tool_result", tool_use_id, content, is_error }] },
        parent_tool_use_id: null,
        session_id,
    };
}

export function result(session_id, { subtype = "success", text: said = "", begun, turns, usage, errors }) {
    return {
        type: "result",
        subtype,
        is_error: subtype !== "success",
        result: said,
        duration_ms: Date.now() - begun,
        num_turns: turns,
        usage,
        ...(errors ? { errors } : {}),
        session_id,
    };
}

/** What has no word there, as the agent says it. */
export function other(agent, session_id, event) {
    return { type: "agent_event", agent, session_id, event };
}
