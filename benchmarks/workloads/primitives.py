"""The seven primitives of Helium (arXiv 2603.16104, shapes and token counts of its table) as workloads.

Each takes `scale`: all texts of a call (system prompt, contexts, chunks, closing instructions) are cut to `scale` times
the table's tokens in, at four characters a token, and a sentence at least. `Step.tokens` stays the table's tokens out:
whoever scales the inputs scales the outputs by the same factor, else the calls that read answers have another shape.

Rows are `{"row": {...}}`, of made-up text, and all distinct; what repeats lies elsewhere:
- MapReduce-QA asks every expert twice within a row. The variant free of duplicates is `mapreduce-qa-once`.
- The document workloads have six questions to each context, one after the other. With `distinct`, each row has a
  context of its own.
- Iterative and Parallel repeat nothing; `distinct` changes nothing there, nor in the QA workloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from benchmarks.workloads.primitives_text import RULES, cut, passage, question, town
from benchmarks.workloads.shape import Row, Step, Workload

SCALE = 0.25
"""Of the table's lengths: what a small model on two cores answers in a reasonable time."""
CHARS_PER_TOKEN = 4
QUESTIONS_PER_CONTEXT = 6
CHUNKS = 6
QA = 80
"""Tokens of a question with the situation before it."""
CONTEXT = 450
REFLECT_CONTEXT = 600
QUESTION = 21
"""Tokens of a question on a context, with the words that introduce both."""

ROLES = {
    "historian": "what the records of the time say",
    "economist": "prices, wages and who had to pay",
    "engineer": "what could be built and kept up",
    "lawyer": "contracts, rights and what was owed",
    "physician": "what it did to the health of people",
    "sociologist": "who gained by it and who lost by it",
    "teacher": "what can be learned from it today",
}
"""The seven experts, and by what each judges."""
DEBATERS = {
    "believer": "You are the believer, who trusts the sources as they stand.",
    "doubter": "You are the doubter, who looks for what the sources hide.",
    "counter": "You are the counter, who trusts nothing but figures.",
}

_OTHERS = (
    "Above are the answers of the others to the same question. Compare them with your own answer, point by "
    "point. Where they are right and you were wrong, take over what they say, and say that you do. Where they "
    "are wrong, say why in one sentence. Then write your whole answer once more, improved, so that it can be "
    "read without any of the other answers at hand."
)
_CRITICS = (
    "Above is what two critics say of your answer. Correct what they have shown to be wrong, keep the rest, and write "
    "the final answer, which is short and complete."
)

Ask = Callable[[Step, Row, Sequence[Any], Mapping[str, Any]], list[BaseMessage]]


def expert(role: str) -> str:
    """What one of the `ROLES` is told first."""
    return f"You are the panel's {role} and judge by {ROLES[role]}."


def fit(text: str, tokens: float, scale: float) -> str:
    """The text cut to `scale` times `tokens`."""
    return cut(text, round(tokens * scale * CHARS_PER_TOKEN))


def rules(first: str, tokens: float, scale: float) -> str:
    """A system prompt of `scale` times `tokens`: its own first sentence, then the rules that hold for every role."""
    return fit(f"{first} {RULES}", tokens, scale)


# -- rows --------------------------------------------------------------------------------------------------------------


def _questions(scale: float, count: int, distinct: bool, seed: int) -> list[Row]:
    """`question`: a situation and what is asked about it."""
    draw, asked, rows = Random(seed), set[str](), list[Row]()
    for _ in range(count):
        place = town(draw)
        text = question(draw, place, asked)
        situation = passage(draw, place, round(QA * scale * CHARS_PER_TOKEN) - len(text))
        rows.append({"row": {"question": f"{situation} {text}".lstrip()}})
    return rows


def _documents(tokens: int, scale: float, count: int, distinct: bool, seed: int) -> list[Row]:
    """`context` and `question`: six questions to each context, one with `distinct`."""
    draw, asked, rows = Random(seed), set[str](), list[Row]()
    while len(rows) < count:
        place = town(draw)
        context = passage(draw, place, round(tokens * scale * CHARS_PER_TOKEN))
        for _ in range(1 if distinct else QUESTIONS_PER_CONTEXT):
            rows.append({"row": {"context": context, "question": question(draw, place, asked)}})
    return rows[:count]


def _chunks(tokens: int, scale: float, count: int, distinct: bool, seed: int) -> list[Row]:
    """`chunks`: a long text in six parts."""
    draw, rows = Random(seed), list[Row]()
    for _ in range(count):
        place = town(draw)
        chars = round(tokens * scale * CHARS_PER_TOKEN)
        rows.append({"row": {"chunks": [passage(draw, place, chars) for _ in range(CHUNKS)]}})
    return rows


# -- prompts -----------------------------------------------------------------------------------------------------------


def _task(row: Row) -> str:
    return f"Context:\n{row['context']}\n\nQuestion: {row['question']}" if "context" in row else str(row["question"])


def _answers(names: Sequence[str], answers: Mapping[str, Any]) -> list[str]:
    return [f"{name} wrote:\n{answers[name]}" for name in names]


def _on_task(step: Step, row: Row, found: Sequence[Any], answers: Mapping[str, Any]) -> list[BaseMessage]:
    """The row's task and the answers that the step needs."""
    return [SystemMessage(step.role), HumanMessage("\n\n".join([_task(row), *_answers(step.needs, answers)]))]


def _role_last(
    system: str, step: Step, row: Row, found: Sequence[Any], answers: Mapping[str, Any]
) -> list[BaseMessage]:
    """The row's task, and only behind it the role: all that comes before is the same for every role."""
    return [SystemMessage(system), HumanMessage(f"{_task(row)}\n\n{step.role}")]


def _go_on(closing: str, step: Step, row: Row, found: Sequence[Any], answers: Mapping[str, Any]) -> list[BaseMessage]:
    """The step's own history, whose answer is that of the first step it needs, then what the others have written."""
    own, *others = step.needs
    return [
        SystemMessage(step.role),
        HumanMessage(_task(row)),
        AIMessage(answers[own]),
        HumanMessage("\n\n".join([*_answers(others, answers), closing])),
    ]


def _on_chunk(i: int, step: Step, row: Row, found: Sequence[Any], answers: Mapping[str, Any]) -> list[BaseMessage]:
    """A part of the text, behind the summary of those before it where the step needs one."""
    so_far = [f"Summary so far:\n{answers[name]}" for name in step.needs]
    return [SystemMessage(step.role), HumanMessage("\n\n".join([*so_far, f"Text:\n{row['chunks'][i]}"]))]


def _on_answers(step: Step, row: Row, found: Sequence[Any], answers: Mapping[str, Any]) -> list[BaseMessage]:
    """The answers that the step needs, and nothing of the row."""
    return [SystemMessage(step.role), HumanMessage("\n\n".join(_answers(step.needs, answers)))]


# -- workloads ---------------------------------------------------------------------------------------------------------


def _map_reduce_qa(name: str, copies: Sequence[str], scale: float) -> Workload:
    system = {role: rules(expert(role), 165 - QA, scale) for role in ROLES}
    experts = [Step(f"{role}{copy}", "A", system[role], tokens=294, ask=_on_task) for role in ROLES for copy in copies]
    summary = rules("You write the one answer that all the experts' answers come to.", 115, scale)
    needs = tuple(step.name for step in experts)
    return Workload(
        name,
        (*experts, Step("summariser", "A", summary, needs, tokens=168, ask=_on_task)),
        partial(_questions, scale),
    )


def map_reduce_qa(scale: float = SCALE) -> Workload:
    """Seven experts, each asked twice with the same prompt, and a summariser: 15 calls."""
    return _map_reduce_qa("MapReduce-QA", ("_a", "_b"), scale)


def map_reduce_qa_once(scale: float = SCALE) -> Workload:
    """MapReduce-QA without the copies: 8 calls."""
    return _map_reduce_qa("MapReduce-QA, once", ("",), scale)


def map_reduce_doc(scale: float = SCALE) -> Workload:
    """Seven experts over a context and a question, whose role stands at the very end, and a summariser: 8 calls."""
    system = rules("You answer questions on a text as a member of a panel of experts.", 85, scale)
    ask = partial(_role_last, system)
    experts = [
        Step(role, "A", f"Answer as the panel's {role}, who judges by {by}.", tokens=400, ask=ask)
        for role, by in ROLES.items()
    ]
    summary = rules("You write the one answer that all the experts' answers come to.", 105, scale)
    return Workload(
        "MapReduce-Doc",
        (*experts, Step("summariser", "A", summary, tuple(ROLES), tokens=250, ask=_on_task)),
        partial(_documents, CONTEXT, scale),
    )


def _debate(
    name: str, system: int, tokens: tuple[int, int], rows: Callable[[int, bool, int], list[Row]], scale: float
) -> Workload:
    roles = {who: rules(first, system, scale) for who, first in DEBATERS.items()}
    closing = fit(_OTHERS, 80, scale)
    first = [Step(f"{who}_1", "A", role, tokens=tokens[0], ask=_on_task) for who, role in roles.items()]
    second = [
        Step(
            f"{who}_2",
            "A",
            role,
            (f"{who}_1", *(f"{other}_1" for other in roles if other != who)),
            tokens=tokens[1],
            ask=partial(_go_on, closing),
        )
        for who, role in roles.items()
    ]
    return Workload(name, (*first, *second), rows)


def debate_qa(scale: float = SCALE) -> Workload:
    """Three agents of different roles, two rounds, in the second of which each goes on from its own answer: 6 calls."""
    return _debate("Debate-QA", 156 - QA, (298, 360), partial(_questions, scale), scale)


def debate_doc(scale: float = SCALE) -> Workload:
    """The same over a context and a question: 6 calls."""
    rows = partial(_documents, CONTEXT, scale)
    return _debate("Debate-Doc", 570 - CONTEXT - QUESTION, (370, 402), rows, scale)


def reflect_doc(scale: float = SCALE) -> Workload:
    """An analyst, a critic, a critic of both, and the analyst again, who continues his history: a chain of 4 calls."""
    task = REFLECT_CONTEXT + QUESTION
    analyst = rules("You are the analyst, who answers questions on a text.", 728 - task, scale)
    facts = rules("You are the critic who checks an answer's facts against the text.", 767 - 120 - task, scale)
    logic = rules("You are the critic who checks an answer's figures and its logic.", 1035 - 120 - 258 - task, scale)
    last = partial(_go_on, fit(_CRITICS, 36, scale))
    return Workload(
        "Reflect-Doc",
        (
            Step("analyst", "A", analyst, tokens=120, ask=_on_task),
            Step("facts", "A", facts, ("analyst",), tokens=258, ask=_on_task),
            Step("logic", "A", logic, ("analyst", "facts"), tokens=512, ask=_on_task),
            Step("final", "A", analyst, ("analyst", "facts", "logic"), tokens=139, ask=last),
        ),
        partial(_documents, REFLECT_CONTEXT, scale),
    )


def iterative(scale: float = SCALE) -> Workload:
    """A summary carried through the six chunks of a text: a chain of 6 calls.

    The table has 216 to 401 tokens out; the calls between are put on the line between them.
    """
    chunk = 1012
    system = rules("You keep the summary of a text that comes in parts.", 1082 - chunk, scale)
    steps = [
        Step(
            f"part_{i}",
            "A",
            system,
            (f"part_{i - 1}",) if i > 1 else (),
            tokens=216 + 37 * (i - 1),
            ask=partial(_on_chunk, i - 1),
        )
        for i in range(1, CHUNKS + 1)
    ]
    return Workload("Iterative", tuple(steps), partial(_chunks, chunk, scale))


def parallel(scale: float = SCALE) -> Workload:
    """Seven roles read each of six chunks, each role's notes are summarised, a writer joins them: 42 + 7 + 1 calls.

    What the table's prompts hold beside chunks and answers, about 800 tokens, is taken for the roles' rules.
    """
    chunk = 800
    reads = {role: rules(expert(role), 1550 - chunk, scale) for role in ROLES}
    parts = range(1, CHUNKS + 1)
    readers = [
        Step(f"{role}_{i}", "A", system, tokens=432, ask=partial(_on_chunk, i - 1))
        for role, system in reads.items()
        for i in parts
    ]
    summaries = [
        Step(
            role,
            "A",
            rules(f"{expert(role)} You join your notes on the parts of a text.", 750, scale),
            tuple(f"{role}_{i}" for i in parts),
            tokens=512,
            ask=_on_answers,
        )
        for role in ROLES
    ]
    system = rules("You are the panel's writer and make one report of its members' summaries.", 850, scale)
    writer = Step("writer", "A", system, tuple(ROLES), tokens=512, ask=_on_answers)
    return Workload("Parallel", (*readers, *summaries, writer), partial(_chunks, chunk, scale))


PRIMITIVES: dict[str, Callable[..., Workload]] = {
    "mapreduce-qa": map_reduce_qa,
    "mapreduce-qa-once": map_reduce_qa_once,
    "mapreduce-doc": map_reduce_doc,
    "debate-qa": debate_qa,
    "debate-doc": debate_doc,
    "reflect-doc": reflect_doc,
    "iterative": iterative,
    "parallel": parallel,
}
"""Name on the command line -> (scale) -> the workload."""
