"""The stand-in for a model: a tokenizer, a chat template, and answers that are a hash of the request.

Every answer is a pure function of what a real model would see, so that any difference in a prompt, a tool, a schema or
a sampling parameter shows in the answer. The token limit only cuts the answer, as it does under greedy decoding.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from halo_core.pool.call import Usage

CHARS_PER_TOKEN = 4
"""Every token of the stand-in tokenizer is this many characters (the last one of a text may be shorter)."""

# Fields that the answer does not depend on: transport, and what only cuts the answer or repeats the draw.
_NEUTRAL_FIELDS = frozenset(
    {"messages", "tools", "tool_choice", "response_format", "max_tokens", "max_completion_tokens", "min_tokens"}
    | {"ignore_eos", "n", "model", "stream", "stream_options", "priority", "request_id", "user", "metadata", "store"}
)
_DEFAULT_TOKENS = (8, 32)
_DEEPEST = 8


def count_tokens(text: str) -> int:
    """Number of tokens of a text."""
    return -(-len(text) // CHARS_PER_TOKEN)


def tokenize(text: str) -> list[int]:
    """Token ids of a text: equal pieces have equal ids, in every process."""
    data = [text[i : i + CHARS_PER_TOKEN] for i in range(0, len(text), CHARS_PER_TOKEN)]
    return [zlib.crc32(piece.encode("utf-8", "surrogatepass")) for piece in data]


def render(body: Mapping[str, Any]) -> str:
    """The prompt as text: tools first, then the messages, then the opening of the answer."""
    parts: list[str] = []
    if tools := body.get("tools"):
        parts.append(f"<|tools|>{_json(tools)}\n")
    for message in body.get("messages") or ():
        content = message.get("content")
        if not isinstance(content, str):
            content = _flatten(content)
        parts.append(f"<|{message.get('role')}|>{content}")
        for key in ("name", "tool_call_id", "tool_calls"):
            if value := message.get(key):
                parts.append(f"<|{key}|>{value if isinstance(value, str) else _json(value)}")
        parts.append("\n")
    parts.append("<|assistant|>")
    return "".join(parts)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    return [_canonical(item) for item in value] if isinstance(value, list | tuple) else value


def _json(value: Any) -> str:
    """JSON text that does not depend on the order of keys."""
    try:
        return to_json(_canonical(value)).decode()
    except (PydanticSerializationError, UnicodeError):  # lone surrogates
        return json.dumps(value, sort_keys=True)


def _flatten(content: Any) -> str:
    """Text of a content that is not a string: absent, or a list of parts."""
    if content is None:
        return ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, Mapping) else None
        texts.append(text if isinstance(text, str) else _json(part))
    return "".join(texts)


@dataclass(slots=True, frozen=True)
class Choice:
    """One of the `n` answers to a request."""

    text: str
    """The content, or the arguments where a tool is called."""
    tool: str = ""
    """Name of the tool that is called; empty for a plain answer."""
    finish: str = "stop"


@dataclass(slots=True, frozen=True)
class Answer:
    """What the stand-in answers to one request."""

    digest: str
    prompt: str
    choices: tuple[Choice, ...]
    tokens: int
    """Generated tokens, summed over the choices."""

    @property
    def steps(self) -> int:
        """Decode steps that it takes: the length of its longest choice, in tokens; at least 1."""
        return max(1, *(count_tokens(choice.text) for choice in self.choices))

    def usage(self, prompt_tokens: int, cached_tokens: int) -> Usage:
        """What the call is charged."""
        return Usage(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, generated_tokens=self.tokens)


def answer(model: str, body: Mapping[str, Any], *, tokens: int | None = None, room: int | None = None) -> Answer:
    """Answer a request body; `tokens` sets the natural length of a plain answer, `room` cuts it like `max_tokens`."""
    prompt = render(body)
    rest = {key: value for key, value in body.items() if key not in _NEUTRAL_FIELDS and value is not None}
    schema = _schema(body.get("response_format"))
    tool = _chosen_tool(body)
    parts = [model]
    for key in sorted(rest):
        value = rest[key]
        parts.append(f"{key}={value!r}" if isinstance(value, str | int | float) else f"{key}={_json(value)}")
    if schema is not None:
        parts.append(_json(schema))
    parts.append(prompt)
    digest = sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if room is not None:
        limit = room if limit is None else min(limit, room)
    choices = tuple(
        _choice(digest if index == 0 else f"{index:x}{digest}"[:32], body, schema, tool, tokens, limit)
        for index in range(body.get("n") or 1)
    )
    return Answer(digest, prompt, choices, sum(count_tokens(choice.text) for choice in choices))


def _choice(
    digest: str,
    body: Mapping[str, Any],
    schema: Any,
    tool: Mapping[str, Any] | None,
    tokens: int | None,
    limit: int | None,
) -> Choice:
    name = ""
    if tool is not None:
        name = tool["name"]
        text = json.dumps(instance(tool.get("parameters") or {}, digest))
    elif schema is not None:
        text = json.dumps(instance(schema, digest))
    else:
        if limit is not None and body.get("ignore_eos"):
            length = limit
        elif tokens is None:
            low, high = _DEFAULT_TOKENS
            length = low + int(digest[-4:], 16) % (high - low + 1)
        else:
            length = tokens
        length = max(length, body.get("min_tokens") or 0)
        size = (length if limit is None else min(length, limit)) * CHARS_PER_TOKEN
        text = (digest + " ") * (size // 33 + 1)
        return Choice(text[:size], finish="length" if limit is not None and length >= limit else "stop")
    if limit is not None and count_tokens(text) > limit:
        return Choice(text[: limit * CHARS_PER_TOKEN], name, "length")
    return Choice(text, name, "tool_calls" if name else "stop")


def _schema(response_format: Any) -> Any:
    """The JSON schema that the answer must follow; None for free text."""
    if not isinstance(response_format, Mapping):
        return None
    if response_format.get("type") == "json_schema":
        return (response_format.get("json_schema") or {}).get("schema") or {}
    if response_format.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return None


def _chosen_tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The function to call: the one demanded, the first where any is, or where the user's last words ask to use one."""
    functions: list[Mapping[str, Any]] = [tool["function"] for tool in body.get("tools") or () if tool.get("function")]
    choice = body.get("tool_choice")
    if not functions or choice == "none":
        return None
    if isinstance(choice, Mapping):
        wanted = (choice.get("function") or {}).get("name")
        return next((function for function in functions if function["name"] == wanted), functions[0])
    if choice == "required":
        return functions[0]
    last = (body.get("messages") or [{}])[-1]
    asked = last.get("role") == "user" and "use tool" in _flatten(last.get("content")).lower()
    return functions[0] if asked else None


def instance(schema: Any, digest: str) -> Any:
    """A small value that is valid under a JSON schema and differs with `digest`."""
    return _instance(schema, digest, schema, 0)


def _instance(schema: Any, digest: str, root: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping):
        return digest
    seed = int(digest[:8], 16)
    if reference := schema.get("$ref"):
        target: Any = root
        for key in str(reference).removeprefix("#").strip("/").split("/"):
            target = target.get(key, {}) if isinstance(target, Mapping) and key else target
        return _instance(target, digest, root, depth + 1) if depth < _DEEPEST else None
    if "const" in schema:
        return schema["const"]
    if options := schema.get("enum"):
        return options[seed % len(options)]
    for key in ("anyOf", "oneOf"):
        if branches := schema.get(key):
            # Past the depth limit the plainest branch ends a recursive schema.
            return _instance(branches[-1] if depth >= _DEEPEST else branches[0], digest, root, depth + 1)
    if branches := schema.get("allOf"):
        schema = {**schema, **{key: value for branch in branches for key, value in branch.items()}}
        if "$ref" in schema:
            return _instance({"$ref": schema["$ref"]}, digest, root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties") or {}
        names = schema.get("required") if "required" in schema else list(properties)
        return {name: _instance(properties.get(name, {}), _vary(digest, name), root, depth + 1) for name in names or ()}
    if kind == "array":
        length = max(schema.get("minItems", 0), 0 if depth >= _DEEPEST else min(1, schema.get("maxItems", 1)))
        return [_instance(schema.get("items", {}), _vary(digest, str(i)), root, depth + 1) for i in range(length)]
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10) - (1 if kind == "integer" else 0))
        value = low + seed % (int(high - low) + 1) if high >= low else low
        return int(value) if kind == "integer" else float(value)
    if kind == "boolean":
        return bool(seed % 2)
    if kind == "null":
        return None
    least, most = schema.get("minLength", 0), schema.get("maxLength", 1 << 30)
    return (digest[:12] + "x" * max(0, least - 12))[:most]


def _vary(digest: str, name: str) -> str:
    return blake2b(name.encode(), key=digest[:64].encode(), digest_size=16).hexdigest()


# -- the wire ------------------------------------------------------------------------------------------------------


def _usage_json(usage: Usage) -> str:
    total = usage.prompt_tokens + usage.generated_tokens
    return (
        f'{{"prompt_tokens":{usage.prompt_tokens},"completion_tokens":{usage.generated_tokens},"total_tokens":{total},'
        f'"prompt_tokens_details":{{"cached_tokens":{usage.cached_tokens}}}}}'
    )


def _quote(text: str) -> str:
    # Plain answers are hex digits and spaces, which need no escaping; this is the hot path.
    return f'"{text}"' if text.replace(" ", "").isalnum() else json.dumps(text)


def _call_id(answered: Answer, index: int) -> str:
    return f"call_{answered.digest[:20]}{index}"


def completion_json(answered: Answer, model: str, usage: Usage) -> bytes:
    """The `chat.completion` object."""
    choices = []
    for index, choice in enumerate(answered.choices):
        if choice.tool:
            message = (
                f'"content":null,"tool_calls":[{{"id":"{_call_id(answered, index)}","type":"function","function":'
                f'{{"name":{json.dumps(choice.tool)},"arguments":{json.dumps(choice.text)}}}}}]'
            )
        else:
            message = f'"content":{_quote(choice.text)}'
        choices.append(
            f'{{"index":{index},"message":{{"role":"assistant",{message}}},"logprobs":null,'
            f'"finish_reason":"{choice.finish}"}}'
        )
    return (
        f'{{"id":"chatcmpl-{answered.digest}","object":"chat.completion","created":0,"model":{json.dumps(model)},'
        f'"choices":[{",".join(choices)}],"usage":{_usage_json(usage)}}}'
    ).encode()


@dataclass(slots=True, frozen=True)
class ChunkWriter:
    """Writes the `chat.completion.chunk` objects of one answer."""

    answered: Answer
    model: str

    def chunk(self, choices: str, usage: str = "") -> bytes:
        """One chunk around the JSON text of its choices and usage."""
        tail = f',"usage":{usage}' if usage else ""
        return (
            f'{{"id":"chatcmpl-{self.answered.digest}","object":"chat.completion.chunk","created":0,'
            f'"model":{json.dumps(self.model)},"choices":[{choices}]{tail}}}'
        ).encode()

    def _delta(self, index: int, delta: str, finish: str = "") -> bytes:
        reason = f'"{finish}"' if finish else "null"
        return self.chunk(f'{{"index":{index},"delta":{{{delta}}},"logprobs":null,"finish_reason":{reason}}}')

    def opening(self) -> Iterator[bytes]:
        """The first chunk of each choice: the role, and the tool that is called."""
        for index, choice in enumerate(self.answered.choices):
            if choice.tool:
                call_id = _call_id(self.answered, index)
                call = (
                    f'"role":"assistant","content":null,"tool_calls":[{{"index":0,"id":"{call_id}",'
                    f'"type":"function","function":{{"name":{json.dumps(choice.tool)},"arguments":""}}}}]'
                )
                yield self._delta(index, call)
            else:
                yield self._delta(index, '"role":"assistant","content":""')

    def tokens(self, start: int, stop: int) -> Iterator[bytes]:
        """The tokens `start` to `stop` of each choice that has them."""
        for index, choice in enumerate(self.answered.choices):
            text = choice.text[start * CHARS_PER_TOKEN : stop * CHARS_PER_TOKEN]
            if not text:
                continue
            if choice.tool:
                yield self._delta(index, f'"tool_calls":[{{"index":0,"function":{{"arguments":{json.dumps(text)}}}}}]')
            else:
                yield self._delta(index, f'"content":{_quote(text)}')

    def closing(self, usage: Usage) -> Iterator[bytes]:
        """The finish reason of each choice, then the usage."""
        for index, choice in enumerate(self.answered.choices):
            yield self._delta(index, "", choice.finish)
        yield self.chunk("", _usage_json(usage))


def chunk_bounds(steps: int, pieces: int = 4) -> Sequence[int]:
    """Where to cut an answer of `steps` tokens into at most `pieces` chunks: 0, ..., steps."""
    size = max(1, -(-steps // pieces))
    return [*range(0, steps, size), steps]
