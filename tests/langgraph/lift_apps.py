"""Small graphs of every shape that LangGraph knows, to be lifted; none of their nodes is ever run."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from langchain.agents import create_agent
from langchain_core.messages import AnyMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import CachePolicy, Command, RetryPolicy, Send
from typing_extensions import TypedDict

EFFECTS: list[str] = []
"""What nodes would leave behind if a lift ran them."""

STYLE = "Write one plain sentence."


def model(name: str = "small", **settings: Any) -> ChatOpenAI:
    """A client that reaches nobody."""
    settings = {"temperature": 0, "max_tokens": 64, **settings}
    return ChatOpenAI(model=name, base_url="http://127.0.0.1:9/v1", api_key="not-needed", **settings)


class Review(TypedDict, total=False):
    """A text and what became of it."""

    text: str
    summary: str
    critique: str
    notes: Annotated[list[str], operator.add]
    score: Annotated[int, operator.add]
    answer: str


def fan() -> Any:
    """One step, two beside each other of which one is followed by another, and one after all of them."""
    llm = model()

    def outline(state: Review) -> Review:
        EFFECTS.append("outline")
        return {"summary": str(llm.invoke(f"{STYLE} {state['text']}").content)}

    def critique(state: Review) -> Review:
        return {"critique": str(llm.invoke(state["summary"]).content)}

    def score(state: Review) -> Review:
        return {"score": len(state["summary"])}

    def weigh(state: Review) -> Review:
        return {"score": 1, "notes": ["weighed"]}

    def answer(state: Review) -> Review:
        return {"answer": str(llm.invoke(state["critique"]).content)}

    builder = StateGraph(Review)
    builder.add_node(outline, retry_policy=RetryPolicy(max_attempts=4))
    builder.add_node(critique, cache_policy=CachePolicy())
    builder.add_node(score, metadata={"halo": {"pure": True}})
    builder.add_node(weigh)
    builder.add_node(answer, defer=True)
    builder.add_edge(START, "outline")
    builder.add_edge("outline", "critique")
    builder.add_edge("outline", "score")
    builder.add_edge("score", "weigh")
    builder.add_edge(["critique", "weigh"], "answer")
    builder.add_edge("answer", END)
    return builder.compile(name="fan")


def uneven() -> Any:
    """Two arms of different length without a join: only supersteps order them."""

    def step(state: Review) -> Review:
        return {"notes": ["step"]}

    builder = StateGraph(Review)
    for name in ("left", "right", "longer", "end"):
        builder.add_node(name, step)
    builder.add_edge(START, "left")
    builder.add_edge(START, "right")
    builder.add_edge("right", "longer")
    builder.add_edge("left", "end")
    return builder.compile(name="uneven")


def loop() -> Any:
    """Write, grade, and write again until the grade is good; the edge's labels stand only in its code."""
    writer, grader = model("writer", temperature=0.7), model("grader")

    def write(state: Review) -> Review:
        return {"summary": str(writer.invoke(state["text"]).content)}

    def grade(state: Review) -> Review:
        return {"critique": str(grader.invoke(state["summary"]).content)}

    def good(state: Review):  # no annotation
        if "good" in state["critique"]:
            return END
        return "write"

    builder = StateGraph(Review)
    builder.add_node(write)
    builder.add_node(grade)
    builder.add_edge(START, "write")
    builder.add_edge("write", "grade")
    builder.add_conditional_edges("grade", good)
    return builder.compile(name="loop")


@tool
def look_up(term: str) -> str:
    """Look a term up."""
    EFFECTS.append(term)
    return term


def agent() -> Any:
    """`create_agent` with a system prompt and a tool."""
    return create_agent(model(), [look_up], system_prompt="You answer with one word.", name="agent")


class Topics(TypedDict, total=False):
    """A question, what it falls into, and what was found."""

    question: str
    topics: list[str]
    found: Annotated[list[str], operator.add]
    answer: str


class Topic(TypedDict):
    """One item of the fan-out."""

    topic: str


def map_reduce() -> Any:
    """Split, one research per topic, reduce."""
    llm = model()

    def split(state: Topics) -> Topics:
        return {"topics": str(llm.invoke(state["question"]).content).split(",")}

    def spread(state: Topics):
        return [Send("research", {"topic": topic}) for topic in state["topics"]]

    def research(state: Topic) -> Topics:
        return {"found": [str(llm.invoke(state["topic"]).content)]}

    def reduce(state: Topics) -> Topics:
        return {"answer": str(llm.invoke("\n".join(state["found"])).content)}

    builder = StateGraph(Topics)
    for node in (split, research, reduce):
        builder.add_node(node)
    builder.add_edge(START, "split")
    builder.add_conditional_edges("split", spread)
    builder.add_edge("research", "reduce")
    builder.add_edge("reduce", END)
    return builder.compile(name="map_reduce")


def goto() -> Any:
    """A triage that goes where its annotation says, and a node that goes where its code says."""
    llm = model()

    def triage(state: Review) -> Command[Literal["short", "long"]]:
        where = "short" if len(state["text"]) < 80 else "long"
        return Command(update={"summary": str(llm.invoke(state["text"]).content)}, goto=where)

    def short(state: Review):
        return Command(update={"answer": state["summary"]}, goto=END)

    def long(state: Review):
        return Command(goto="short")

    builder = StateGraph(Review)
    for node in (triage, short, long):
        builder.add_node(node)
    builder.add_edge(START, "triage")
    return builder.compile(name="goto")


def nested() -> Any:
    """A graph as a node of another."""

    def close(state: Review) -> Review:
        return {"answer": state["critique"]}

    builder = StateGraph(Review)
    builder.add_node("draft", loop())
    builder.add_node(close)
    builder.add_edge(START, "draft")
    builder.add_edge("draft", "close")
    builder.add_edge("close", END)
    return builder.compile(name="nested")


def chain() -> Any:
    """LCEL chains as nodes: one that is certainly one model call, one with a function that hides something."""
    prompt = ChatPromptTemplate.from_messages([("system", "Sum it up in {{one}} line."), ("human", "{text}")])
    judge = ChatPromptTemplate.from_messages([("human", "Is this good?\n{summary}")])

    def keep(text: str) -> Review:
        EFFECTS.append(text)
        return {"critique": text}

    builder = StateGraph(Review)
    builder.add_node("sum_up", prompt | model(stop=["\n"]) | StrOutputParser() | (lambda text: {"summary": text}))
    builder.add_node("judge", judge | model() | StrOutputParser() | keep)
    builder.add_node("answer", {"answer": judge | model() | StrOutputParser()})
    builder.add_edge(START, "sum_up")
    builder.add_edge("sum_up", "judge")
    builder.add_edge("judge", "answer")
    return builder.compile(name="chain")


def functional() -> Any:
    """`@entrypoint` with a `@task`."""
    llm = model()

    @task
    def ask(question: str) -> str:
        return str(llm.invoke(question).content)

    @entrypoint()
    def flow(question: str) -> str:
        return ask(question).result()

    return flow


class Chat(TypedDict):
    """A conversation."""

    messages: Annotated[list[AnyMessage], add_messages]


def anywhere() -> Any:
    """A branch whose answers nobody can tell, an error handler, and a node that nothing leads to."""
    llm = model("")

    def pick(state: Chat):
        return str(llm.invoke(state["messages"]).content)

    def step(state: Chat) -> Chat:
        return {"messages": []}

    def rescue(state: Chat) -> Chat:
        return {"messages": []}

    builder = StateGraph(Chat)
    builder.add_node("first", step, error_handler=rescue)
    builder.add_node("second", step)
    builder.add_edge(START, "first")
    builder.add_conditional_edges("first", pick)
    return builder.compile(name="anywhere")


APPS = [fan, uneven, loop, agent, map_reduce, goto, nested, chain, functional, anywhere]
