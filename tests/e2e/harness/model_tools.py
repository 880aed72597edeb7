"""Which of the tools an agent offers does what a script wants, and how it takes its arguments."""

import shlex

#: By kind, in the order they are liked. Names end a tool's own (`mcp__warren__sandbox_exec`).
NAMES = {
    "shell": ["Bash", "bash", "exec_command", "shell_command", "shell", "local_shell", "sandbox_exec"],
    "write": ["Write", "write", "sandbox_write_file"],
    "edit": ["Edit", "edit", "sandbox_edit_file"],
    "read": ["Read", "read", "sandbox_read_file"],
    "list": ["LS", "list", "sandbox_list_files"],
    "search": ["Grep", "grep", "sandbox_search_code"],
}
#: How a parameter may be called.
WORDS = {
    "shell": ["command", "cmd"],
    "path": ["file_path", "filePath", "path"],
    "content": ["content", "contents", "text"],
    "old": ["old_string", "oldString", "old_text", "old"],
    "new": ["new_string", "newString", "new_text", "new"],
    "search": ["pattern", "query"],
}

#: What Warren's own take.
HIDDEN = {
    "shell": {"properties": {"command": {}}},
    "write": {"properties": {"path": {}, "content": {}}},
    "edit": {"properties": {"path": {}, "old_string": {}, "new_string": {}}},
    "read": {"properties": {"path": {}}},
    "list": {"properties": {"path": {}}},
    "search": {"properties": {"pattern": {}}},
}


def call(turn, tools):
    """The tool and its input, as `(tool, input)`; None for a turn that calls none."""
    if "tool" in turn:
        named = next((tool for tool in tools if turn["tool"] in (tool.name, tool.shown)), None)
        named = named or next((tool for tool in tools if tool.shown.endswith((f"__{turn['tool']}", f"warren_{turn['tool']}"))), None)
        if named is None:
            # Called all the same: an agent has to bear a model that makes tools up.
            from .model_formats import Tool

            named = Tool(turn["tool"], {})
        return named, turn.get("input", {})
    kind = next((kind for kind in NAMES if kind in turn), None)
    if kind is None:
        return None
    tool = find(kind, tools)
    if tool is None:
        tool = hidden(kind, tools)
    if tool is None:
        return by_shell(kind, turn, tools)
    if kind == "shell":
        return tool, shell_input(tool, turn["shell"])
    made = {}
    if kind == "search":
        put(made, tool, "search", turn[kind])
    else:
        put(made, tool, "path", turn[kind])
    for field in ("content", "old", "new"):
        if field in turn:
            put(made, tool, field, turn[field])
    return tool, required(tool, made)


def find(kind, tools):
    for name in NAMES[kind]:
        for tool in tools:
            if tool.name == name or tool.shown.endswith(f"__{name}") or tool.shown.endswith(f"_{name}"):
                return tool
    return None


def hidden(kind, tools):
    """In Codex's code mode what an MCP server offers is not described, only there."""
    runs = next((tool for tool in tools if tool.name == "exec" and tool.freeform), None)
    if runs is None or find("shell", tools) is not None:
        return None
    from .model_formats import Tool

    return Tool(f"*{NAMES[kind][-1]}", HIDDEN[kind], within=runs)


def put(made, tool, field, value):
    name = next((each for each in WORDS[field] if each in tool.properties), WORDS[field][0])
    made[name] = value


def shell_input(tool, command):
    made = {}
    name = next((each for each in WORDS["shell"] if each in tool.properties), "command")
    if (tool.properties.get(name) or {}).get("type") == "array":
        made[name] = ["bash", "-lc", command]
    else:
        made[name] = command
    return required(tool, made)


def required(tool, made):
    """With what else the tool insists on."""
    for name in (tool.schema or {}).get("required", []):
        if name not in made:
            kind = (tool.properties.get(name) or {}).get("type")
            made[name] = {"integer": 60000, "number": 60000, "boolean": False, "array": [], "object": {}}.get(kind, "scripted")
    return made


def by_shell(kind, turn, tools):
    """Agents whose only hand is a shell (Codex) work with files through it."""
    shell = find("shell", tools)
    if shell is None:
        return None
    path = shlex.quote(turn[kind])
    if kind == "write":
        command = f"mkdir -p \"$(dirname {path})\" && printf %s {shlex.quote(turn['content'])} > {path}"
    elif kind == "edit":
        program = "import sys; p, o, n = sys.argv[1:]; t = open(p).read(); assert o in t; open(p, 'w').write(t.replace(o, n, 1))"
        command = f"python3 -c {shlex.quote(program)} {path} {shlex.quote(turn['old'])} {shlex.quote(turn['new'])}"
    else:
        command = {"read": "cat", "list": "ls -la", "search": "grep -rn"}[kind] + f" {path}" + (" ." if kind == "search" else "")
    return shell, shell_input(shell, command)
