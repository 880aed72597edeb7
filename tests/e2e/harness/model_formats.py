"""How Anthropic's and OpenAI's interfaces write a conversation down, and an answer to it."""

import json
import re
import uuid
from dataclasses import dataclass


@dataclass
class Tool:
    """A tool an agent offers."""

    name: str
    schema: dict
    #: What stands in front of its name, for agents that put tools into groups.
    group: str | None = None
    #: It takes text instead of an object.
    freeform: bool = False
    #: The tool that runs JavaScript, which alone can call it (Codex's code mode).
    within: "Tool | None" = None

    @property
    def shown(self):
        return f"{self.group}.{self.name}" if self.group else self.name

    @property
    def properties(self):
        return (self.schema or {}).get("properties", {})


def text_of(content):
    """The text of a message, of whatever it is made; results of tools are none of it."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part.get("text", "") for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def event(data, name=None):
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def pieces(text, count):
    size = max(1, -(-len(text) // max(1, count)))
    return [text[start : start + size] for start in range(0, len(text), size)]


class Conversation:
    """What all have in common. `steps` are its parts in order: ("user", text) or ("model", id of what it answered)."""

    def __init__(self, body, mark):
        self.body = body
        self.tools = self.read_tools(body)
        self.mark, self.spoken = None, 0
        last = None
        for kind, value in self.steps(body):
            found = mark.findall(value) if kind == "user" else None
            if found:
                self.mark, self.spoken = found[-1], 0
            elif kind == "model" and last != "model":
                self.spoken += 1
            last = kind


class Messages(Conversation):
    """Anthropic's."""

    def read_tools(self, body):
        return [Tool(each["name"], each.get("input_schema", {})) for each in body.get("tools", []) if "input_schema" in each]

    def steps(self, body):
        for message in body.get("messages", []):
            if message.get("role") == "assistant":
                yield "model", ""
            else:
                yield "user", text_of(message.get("content"))

    def blocks(self, answer):
        if answer["text"] is not None:
            yield {"type": "text", "text": answer["text"]}
        for tool, value in answer["calls"]:
            yield {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": tool.name, "input": value}

    def whole(self, answer, content=None):
        taken, given = answer["usage"]
        return {
            "id": f"msg_{uuid.uuid4().hex[:24]}", "type": "message", "role": "assistant",
            "model": self.body.get("model"), "content": list(self.blocks(answer)) if content is None else content,
            "stop_reason": "tool_use" if answer["calls"] else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": taken, "output_tokens": given, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        }

    def events(self, answer):
        made = lambda data: event(data, data["type"])
        yield made({"type": "message_start", "message": self.whole(answer, []) | {"stop_reason": None}})
        for index, block in enumerate(self.blocks(answer)):
            if block["type"] == "text":
                yield made({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}})
                for part in pieces(block["text"], answer["pieces"]):
                    yield made({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": part}})
            else:
                yield made({"type": "content_block_start", "index": index, "content_block": block | {"input": {}}})
                for part in pieces(json.dumps(block["input"]), 2):
                    yield made({"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": part}})
            yield made({"type": "content_block_stop", "index": index})
        reason = "tool_use" if answer["calls"] else "end_turn"
        yield made({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": answer["usage"][1]}})
        yield made({"type": "message_stop"})


class Responses(Conversation):
    """OpenAI's newer one."""

    def read_tools(self, body):
        found = []
        for each in body.get("tools", []):
            self.read_tool(each, found)
        for item in body["input"] if isinstance(body.get("input"), list) else []:
            for each in item.get("tools", []) if item.get("type") == "additional_tools" else []:
                self.read_tool(each, found)
        return found

    def read_tool(self, each, found, group=None):
        kind = each.get("type")
        if kind == "function":
            found.append(Tool(each["name"], each.get("parameters", {}), group))
        elif kind == "custom":
            made = Tool(each["name"], {}, group, freeform=True)
            found.append(made)
            found += (Tool(name, schema, within=made) for name, schema in declared(each.get("description", "")))
        elif kind == "namespace":
            for tool in each.get("tools", []):
                self.read_tool(tool, found, each["name"])

    def steps(self, body):
        items = body.get("input", [])
        if isinstance(items, str):
            yield "user", items
            return
        for item in items:
            kind = item.get("type", "message")
            if kind == "message" and item.get("role") == "user":
                yield "user", text_of(item.get("content"))
            elif kind in ("function_call", "custom_tool_call", "local_shell_call") or (kind == "message" and item.get("role") == "assistant"):
                yield "model", ""
            elif kind.endswith("_output"):
                yield "tool", ""

    def items(self, answer):
        if answer["text"] is not None:
            yield {
                "type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": answer["text"], "annotations": []}],
            }
        for tool, value in answer["calls"]:
            if tool.within:
                name = json.dumps(tool.name)
                if tool.name.startswith("*"):
                    name = f"ALL_TOOLS.find((each) => each.name.endsWith({json.dumps(tool.name[1:])})).name"
                program = f"const r = await tools[{name}]({json.dumps(value)});\n"
                tool, value = tool.within, program + "text(typeof r === 'string' ? r : JSON.stringify(r));"
            made = {"id": f"fc_{uuid.uuid4().hex}", "call_id": f"call_{uuid.uuid4().hex[:24]}", "name": tool.name, "status": "completed"}
            if tool.group:
                made["namespace"] = tool.group
            if tool.freeform:
                yield made | {"type": "custom_tool_call", "input": value}
            else:
                yield made | {"type": "function_call", "arguments": json.dumps(value)}

    def whole(self, answer, status="completed", items=None):
        taken, given = answer["usage"]
        return {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "status": status, "model": self.body.get("model"), "error": None,
            "output": list(self.items(answer)) if items is None else items,
            "usage": {
                "input_tokens": taken, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": given,
                "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": taken + given,
            },
        }

    def events(self, answer):
        made = lambda data: event(data, data["type"])
        yield made({"type": "response.created", "response": self.whole(answer, "in_progress", [])})
        items = list(self.items(answer))
        for index, item in enumerate(items):
            if item["type"] == "message":
                yield made({"type": "response.output_item.added", "output_index": index, "item": item | {"content": [], "status": "in_progress"}})
                for part in pieces(answer["text"], answer["pieces"]):
                    yield made({
                        "type": "response.output_text.delta", "item_id": item["id"], "output_index": index, "content_index": 0, "delta": part,
                    })
            else:
                yield made({"type": "response.output_item.added", "output_index": index, "item": item | {"status": "in_progress"}})
            yield made({"type": "response.output_item.done", "output_index": index, "item": item})
        yield made({"type": "response.completed", "response": self.whole(answer, items=items)})


def declared(description):
    """The tools a description declares for JavaScript, with the names of their arguments."""
    for found in re.finditer(r"declare const tools: \{ (\w+)\(args: \{(.*?)\n?\}\):", description, re.S):
        names = re.findall(r"^  (\w+)(\??):", found[2], re.M)
        yield found[1], {"properties": {name: {} for name, _ in names}, "required": [name for name, maybe in names if not maybe]}


class Completions(Conversation):
    """OpenAI's older one, which most other providers speak."""

    def read_tools(self, body):
        functions = [each["function"] for each in body.get("tools", []) if each.get("type") == "function"]
        return [Tool(each["name"], each.get("parameters", {})) for each in functions]

    def steps(self, body):
        for message in body.get("messages", []):
            role = message.get("role")
            if role == "assistant":
                yield "model", ""
            else:
                yield ("user" if role == "user" else role), text_of(message.get("content"))

    def calls(self, answer):
        for index, (tool, value) in enumerate(answer["calls"]):
            yield {
                "index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
                "function": {"name": tool.name, "arguments": json.dumps(value)},
            }

    def usage(self, answer):
        taken, given = answer["usage"]
        return {"prompt_tokens": taken, "completion_tokens": given, "total_tokens": taken + given}

    def head(self, kind):
        return {"id": f"chatcmpl-{uuid.uuid4().hex[:24]}", "object": kind, "created": 1, "model": self.body.get("model")}

    def whole(self, answer):
        message = {"role": "assistant", "content": answer["text"]}
        if answer["calls"]:
            message["tool_calls"] = list(self.calls(answer))
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if answer["calls"] else "stop"}
        return self.head("chat.completion") | {"choices": [choice], "usage": self.usage(answer)}

    def events(self, answer):
        head = self.head("chat.completion.chunk")
        made = lambda delta, reason=None: event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        yield made({"role": "assistant", "content": ""})
        for part in pieces(answer["text"] or "", answer["pieces"]):
            yield made({"content": part})
        for call in self.calls(answer):
            yield made({"tool_calls": [call]})
        yield made({}, "tool_calls" if answer["calls"] else "stop")
        yield event(head | {"choices": [], "usage": self.usage(answer)})
        yield event("[DONE]")


FORMATS = {"/messages": Messages, "/responses": Responses, "/chat/completions": Completions}
