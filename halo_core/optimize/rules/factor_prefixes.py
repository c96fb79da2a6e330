"""Factor shared prefixes: the beginnings of prompts that are known before anything runs, and who shares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from pydantic_core import to_json

from halo_core.optimize.prefix_lint import CHARS_PER_TOKEN
from halo_core.optimize.rules.rule import add_facts
from halo_core.plan import AdvisedCall, LLMOperator, OpaqueStep, Plan, SharedPrefix
from halo_core.stats.prompts import common_chars

LEAST_CHARS = 256
"""Characters (about 64 tokens) below which a prefix is not named; the runtime compares prompts in such chunks."""
OPENING = 40
"""Characters of a prefix that are shown."""


def factor_prefixes(plan: Plan) -> Plan:
    """Note long literal text that begins the prompts of an operator in every row, or of several, as `SharedPrefix`.

    A prefix that goes on where another ends is noted too, if it is that much longer. Prefixes of different models, or
    of calls with different tools, share nothing: templates render tools first. No prompt is changed. The runtime
    finds these beginnings in the calls by itself and computes a long one before those that wait for it.
    """
    return add_facts(plan, _shared(plan))


def _shared(plan: Plan) -> Iterator[SharedPrefix]:
    texts: dict[tuple[str, bytes], list[tuple[str, str]]] = {}
    for operator in plan.operators:
        for call in calls_in(operator):
            if text := _text(call):
                tools = to_json([tool.model_dump(mode="json") for tool in call.tools])
                texts.setdefault((call.model, tools), []).append((text, operator.name))
    place = {operator.name: i for i, operator in enumerate(plan.operators)}
    for (model, _), uses in texts.items():
        for prefix, users in _prefixes(sorted(uses)):
            names = sorted(set(users), key=place.__getitem__)
            opening = prefix[:OPENING].replace("\n", " ") + ("…" if len(prefix) > OPENING else "")
            yield SharedPrefix(
                operators=tuple(names),
                model=model,
                tokens=len(prefix) // CHARS_PER_TOKEN,
                digest=blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
                opening=opening,
            )


def calls_in(operator: object) -> Sequence[LLMOperator | AdvisedCall]:
    """The model calls of an operator whose prompts the plan may know."""
    if isinstance(operator, OpaqueStep):
        return operator.advised_calls
    return (operator,) if isinstance(operator, LLMOperator) else ()


def _text(call: LLMOperator | AdvisedCall) -> str:
    """The static prefix, each message with its role, as one text."""
    messages = call.prompt.static_prefix() if call.prompt is not None else ()
    return "\n".join(f"{m.role}: {''.join(getattr(s, 'text', '') for s in m.segments)}" for m in messages)


def _prefixes(uses: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """From sorted (text, user) pairs the texts that begin some of them, shorter before longer, with those users."""
    pending = [(0, len(uses), 0)]  # from, to, characters that are noted already
    while pending:
        start, end, noted = pending.pop()
        first_text, last_text = uses[start][0], uses[end - 1][0]  # sorted: what these share, all between them do
        prefix = first_text[: common_chars(first_text, last_text)]
        if len(prefix) >= noted + LEAST_CHARS:
            yield prefix, [user for _, user in uses[start:end]]
            noted = len(prefix)
        depth, inner, first = len(prefix), [], start
        for i in range(start + 1, end + 1):
            if i == end or uses[i][0][depth : depth + 1] != uses[first][0][depth : depth + 1]:
                if i - first < end - start and len(uses[first][0]) > depth:
                    inner.append((first, i, noted))
                first = i
        pending += reversed(inner)
