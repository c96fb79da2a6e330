"""What the static scan finds in each way of holding a model, and that it runs nothing on its way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest
from langchain.chat_models import init_chat_model
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from halo_adapters.langgraph.inventory import OBJECTS, NodeInventory, inventory, scan
from halo_adapters.langgraph.lift_models import ModelUse, model_use
from halo_adapters.langgraph.lift_prompts import prompt_template
from halo_core.plan import Sampling
from tests.langgraph import lift_apps

MODEL = ChatOpenAI(model="small", base_url="http://127.0.0.1:9/v1", api_key="not-needed", temperature=0)
OTHER = ChatOpenAI(model="other", base_url="http://127.0.0.1:9/v1", api_key="not-needed", temperature=0)
SETTINGS = SimpleNamespace(models={"good": [MODEL]})


class Settings:
    """A class that holds the model as its attribute."""

    model = MODEL


class State(TypedDict, total=False):
    """A question and its answer."""

    question: str
    answer: str


def found_in(target: Any) -> list[tuple[str, str]]:
    return [(use.name, use.found_in) for use in scan(target).models]


def closure() -> Any:
    llm = MODEL
    return lambda state: llm.invoke(state["question"])


def global_name() -> Any:
    return lambda state: MODEL.invoke(state["question"])


def class_attribute() -> Any:
    return lambda state: Settings.model.invoke(state["question"])


def namespace() -> Any:
    return lambda state: SETTINGS.models["good"][0].invoke(state["question"])


def default() -> Any:
    return lambda state, *, llm=MODEL: llm.invoke(state["question"])


def partial() -> Any:
    return functools.partial(lambda state, llm: llm.invoke(state), llm=MODEL)


class Answerer:
    """Holds its model, and a second one on the class."""

    judge = OTHER

    def __init__(self) -> None:
        self.model = MODEL

    def node(self, state: State) -> Any:
        return self.ask(state["question"]), self.judge

    def ask(self, question: str) -> Any:
        return self.model.invoke(question)

    def __call__(self, state: State) -> Any:
        return self.model.invoke(state["question"])


class Slotted:
    """Keeps its model in a slot."""

    __slots__ = ("llm",)

    def __init__(self) -> None:
        self.llm = MODEL


def slots() -> Any:
    held = Slotted()
    return lambda state: held.llm.invoke(state)


def ask(question: str) -> Any:
    return MODEL.invoke(question)


def function() -> Any:
    return lambda state: ask(state["question"])


@functools.lru_cache
def cached() -> Any:
    return MODEL


def through_cache() -> Any:
    return lambda state: cached().invoke(state)


assert lift_apps  # loaded, so that the import inside the node can be followed


def local_import() -> Any:
    def node(state: State) -> Any:
        from tests.langgraph.lift_apps import model as make

        return make().invoke(state["question"])

    return node


def retried() -> Any:
    llm = MODEL.with_retry().with_fallbacks([OTHER])
    return lambda state: llm.invoke(state)


def in_tool() -> Any:
    @tool
    def consult(question: str) -> str:
        """Ask the other one."""
        return str(OTHER.invoke(question).content)

    return ToolNode([consult])


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (closure, [("small", "closure 'llm'")]),
        (global_name, [("small", "global 'MODEL'")]),
        (class_attribute, [("small", "global 'Settings.model'")]),
        (namespace, [("small", "global 'SETTINGS'.models['good'][0]")]),
        (default, [("small", "default 'llm'")]),
        (partial, [("small", "argument 'llm'")]),
        (lambda: Answerer().node, [("other", "self.judge"), ("small", "self.model")]),
        (Answerer, [("small", "model")]),
        (slots, [("small", "closure 'held'.llm")]),
        (function, [("small", "global 'MODEL' in ask")]),
        (through_cache, [("small", "global 'MODEL' in cached")]),
        (local_import, [("", "made in model")]),
        (retried, [("small", "closure 'llm'"), ("other", "closure 'llm'.fallbacks[0]")]),
        (in_tool, [("other", "global 'OTHER' in consult")]),
        (lambda: RunnableLambda(global_name()), [("small", "global 'MODEL'")]),
        (lambda: MODEL, [("small", "")]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_where_models_are_found(build: Callable[[], Any], expected: list[tuple[str, str]]) -> None:
    assert found_in(build()) == expected


def test_a_model_made_in_the_node_is_known_by_its_class() -> None:
    def node(state: State) -> Any:
        return ChatOpenAI(model=state["question"]).invoke("hi")

    assert scan(node).models == [ModelUse("ChatOpenAI", "", found_in="made inside")]


def test_what_only_running_tells_is_not_found() -> None:
    def node(state: State, runtime: Runtime[Any]) -> Any:
        return runtime.context.model.invoke(state["question"])

    assert scan(node).models == []


def test_raw_clients_are_found_without_a_name() -> None:
    client = openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="not-needed")

    def node(state: State) -> Any:
        return client.chat.completions.create(model="small", messages=[])

    (use,) = scan(node).models
    assert (use.kind, use.name, use.base_url, use.client) == ("AsyncOpenAI", "", "http://127.0.0.1:9/v1", True)


def test_configurable_models() -> None:
    fixed = init_chat_model("small", model_provider="openai", configurable_fields=("temperature",), api_key="x")
    free = init_chat_model(model_provider="openai", configurable_fields=("model",), api_key="x")
    assert [use.name for use in scan(lambda state: fixed.invoke(state)).models] == ["small"]
    assert [use.name for use in scan(lambda state: free.invoke(state)).models] == [""]


# -- what is known of the calls -----------------------------------------------------------------------------------


def test_sampling_of_fields_and_bound_arguments() -> None:
    llm = ChatOpenAI(model="small", api_key="x", temperature=0.3, top_p=0.9, max_tokens=7, frequency_penalty=0.5)
    use = model_use(llm, {"temperature": 0, "stop": ["a", "b"], "seed": 3}, None, "")
    assert use.sampling == Sampling(
        temperature=0, top_p=0.9, max_tokens=7, seed=3, stop=("a", "b"), extra={"frequency_penalty": 0.5}
    )


def test_other_providers_have_a_class_and_no_name() -> None:
    use = model_use(FakeListChatModel(responses=["a"]), {}, None, "here")
    assert (use.kind, use.name, use.base_url) == ("FakeListChatModel", "", None)
    assert use.advised().model == "(FakeListChatModel, named at run time)"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    raise AssertionError("ran a tool")


def test_bound_tools_and_structured_output() -> None:
    bound = scan(MODEL.bind_tools([add])).models[0]
    assert [(t.name, t.description, sorted(t.parameters)) for t in bound.tools] == [
        ("add", "Add two numbers.", ["properties", "required", "type"])
    ]
    schema = {"title": "Verdict", "type": "object", "properties": {}}
    structured = scan(MODEL.with_structured_output(schema)).models[0]
    assert structured.response_format is not None
    assert structured.response_format["json_schema"]["name"] == "Verdict"


def test_chains_pair_prompts_and_models() -> None:
    first = ChatPromptTemplate.from_messages([("human", "One {a}")])
    second = PromptTemplate.from_template("Two {b}")
    chain = first | MODEL | StrOutputParser() | {"b": RunnableLambda(str)} | second | OTHER
    uses = scan(lambda state: chain.invoke(state)).models
    assert [(use.name, str(use.prompt.parts[0]) if use.prompt else "") for use in uses] == [
        ("small", 'user: "One " {a}'),
        ("other", 'user: "Two " {b}'),
    ]


def test_the_only_template_beside_the_only_model_is_its_prompt() -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be kind."), MessagesPlaceholder("history")])
    (use,) = scan(lambda state: MODEL.invoke(prompt.invoke(state))).models
    assert use.prompt is not None
    assert [str(part) for part in use.prompt.parts] == ['system: "Be kind."', "*{history}"]


@pytest.mark.parametrize(
    "prompt",
    [
        ChatPromptTemplate.from_messages([("human", "{{a}}")], template_format="mustache"),
        ChatPromptTemplate.from_messages([MessagesPlaceholder("a", n_messages=2)]),
        ChatPromptTemplate.from_messages([("human", [{"type": "text", "text": "{a}"}])]),
        ChatPromptTemplate.from_messages([("human", "{a:>10}")]),
        ChatPromptTemplate.from_messages([("human", "{a}")]).partial(a=lambda: "called"),
    ],
)
def test_prompts_that_the_plan_cannot_say(prompt: Any) -> None:
    assert prompt_template(prompt) is None


def test_partial_texts_are_literal() -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "In {lang}: {{x}}"), ("human", "{q}")]).partial(lang="French")
    template = prompt_template(prompt)
    assert template is not None
    assert [str(part) for part in template.parts] == ['system: "In French: {x}"', "user: {q}"]


# -- whole graphs -------------------------------------------------------------------------------------------------


class Watch(AgentMiddleware):
    """Wraps the model call, and holds another model."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = OTHER

    def wrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
        self.judge.invoke("hm")
        return handler(request)


def test_agents() -> None:
    plain = inventory(create_agent(MODEL, [add], system_prompt="One word."))
    assert [(use.name, use.found_in) for use in plain["model"].models] == [("small", "create_agent")]
    (use,) = plain["model"].models
    assert [tool.name for tool in use.tools] == ["add"]
    assert use.prompt is not None
    assert [str(part) for part in use.prompt.parts] == ['system: "One word."', "*{messages}"]
    assert list(plain["tools"].tools) == ["add"]
    wrapped = inventory(create_agent(MODEL, [add], middleware=[Watch()]))
    assert {use.name for use in wrapped["model"].models} == {"small", "other"}


@pytest.mark.parametrize("prompt", ["One word.", SystemMessage("One word."), None])
def test_react_agents(prompt: Any) -> None:
    (use,) = inventory(create_react_agent(MODEL, [add], prompt=prompt))["agent"].models
    assert use.found_in == "create_react_agent"
    assert use.prompt is not None
    assert [str(part) for part in use.prompt.parts] == (['system: "One word."'] if prompt else []) + ["*{messages}"]


def test_a_prompt_function_of_a_react_agent_is_unknown() -> None:
    (use,) = inventory(create_react_agent(MODEL, [add], prompt=lambda state: [state["messages"][-1]]))["agent"].models
    assert use.prompt is None


def test_models_of_branches_count_to_the_node_that_they_leave() -> None:
    def node(state: State) -> State:
        return {}

    def choose(state: State) -> str:
        return str(MODEL.invoke("?").content)

    builder = StateGraph(State)
    builder.add_node("a", node)
    builder.add_conditional_edges(START, choose, ["a"])
    builder.add_conditional_edges("a", choose, ["a"])
    found = inventory(builder.compile())
    assert {name: [use.found_in for use in inside.models] for name, inside in found.items()} == {
        "a": ["branch 'choose': global 'MODEL'"],
        "__start__": ["branch 'choose': global 'MODEL'"],
    }


# -- safety -------------------------------------------------------------------------------------------------------


class Trap:
    """An object that minds being touched."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    def __iter__(self) -> Any:
        raise AssertionError("iterated")

    def __bool__(self) -> bool:
        raise AssertionError("asked for truth")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Holder:
    """Holds a trap beside its model."""

    trap: Trap
    llm: Any

    @property
    def lazy(self) -> Any:
        raise AssertionError("ran a property")


def test_the_scan_runs_no_code_of_the_users() -> None:
    trap = Trap()
    holder = Holder(trap, MODEL)
    loop: list[Any] = [holder]
    loop.append(loop)

    def node(state: State, *, extra: Any = trap) -> Any:
        return holder.lazy, trap, loop, extra

    found: NodeInventory = scan(node)
    assert [(use.name, use.found_in) for use in found.models] == [("small", "closure 'holder'.llm")]


def test_the_scan_is_bounded() -> None:
    deep: list[Any] = [MODEL]
    for _ in range(5_000):
        deep = [deep]
    wide = [[n] for n in range(50_000)]
    assert scan(lambda state: (deep, wide)).models == []


def test_a_node_that_holds_a_whole_framework_is_scanned_in_bounds(request: pytest.FixtureRequest) -> None:
    found = scan(lambda state: (request, MODEL))
    assert [use.name for use in found.models if use.found_in == "global 'MODEL'"] == ["small"]
    assert len(found.digests) < 3 * OBJECTS
