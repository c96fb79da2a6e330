"""Where an application keeps its model: closures, globals, arguments, objects, factories, context, config."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.runtime import Runtime

from tests.langgraph.patterns import helper_module
from tests.langgraph.patterns.pattern import Place, State, one_node, pattern

MODEL: BaseChatModel | None = None


def answer_with(model: BaseChatModel, question: str) -> State:
    """What most nodes below do."""
    return {"answer": str(model.invoke(question).content)}


@pattern("closure")
def closure(place: Place) -> Any:
    model = place.model()

    def node(state: State) -> State:
        return answer_with(model, state["question"])

    return one_node(node)


@pattern("global variable")
def global_variable(place: Place) -> Any:
    global MODEL
    MODEL = place.model()

    def node(state: State) -> State:
        assert MODEL is not None
        return answer_with(MODEL, state["question"])

    return one_node(node)


@pattern("default argument")
def default_argument(place: Place) -> Any:
    def node(state: State, *, model: BaseChatModel = place.model()) -> State:  # noqa: B008 - the pattern itself
        return answer_with(model, state["question"])

    return one_node(node)


@pattern("functools.partial")
def partial(place: Place) -> Any:
    def node(state: State, model: BaseChatModel) -> State:
        return answer_with(model, state["question"])

    return one_node(functools.partial(node, model=place.model()))


@pattern("bound self")
def bound_self(place: Place) -> Any:
    class Answerer:
        def __init__(self, model: BaseChatModel) -> None:
            self.model = model

        def node(self, state: State) -> State:
            return answer_with(self.model, state["question"])

    return one_node(Answerer(place.model()).node)


@pattern("inside a dict of lists")
def nested_container(place: Place) -> Any:
    models = {"good": [place.model()], "unused": []}

    def node(state: State) -> State:
        return answer_with(models["good"][0], state["question"])

    return one_node(node)


@pattern("helper in another module")
def helper(place: Place) -> Any:
    def node(state: State) -> State:
        return {"answer": helper_module.ask(place, state["question"])}

    return one_node(node)


@pattern("model made inside the node", asynchronous=True)
def made_in_node(place: Place) -> Any:
    async def node(state: State) -> State:
        return {"answer": str((await place.model().ainvoke(state["question"])).content)}

    return one_node(node)


@functools.lru_cache
def _cached_model(place: Place) -> BaseChatModel:
    return place.model()


@pattern("lru_cache factory")
def cached_factory(place: Place) -> Any:
    def node(state: State) -> State:
        return answer_with(_cached_model(place), state["question"])

    return one_node(node)


@dataclass
class Context:
    """The run-time context of `runtime_context`."""

    model: BaseChatModel


@pattern("runtime.context", arguments=lambda place: {"context": Context(place.model())})
def runtime_context(place: Place) -> Any:
    def node(state: State, runtime: Runtime[Context]) -> State:
        return answer_with(runtime.context.model, state["question"])

    return one_node(node, context_schema=Context)


@pattern("config['configurable'] picks the model", config={"configurable": {"model": "stub", "temperature": 0}})
def configurable_model(place: Place) -> Any:
    model = init_chat_model(
        model_provider="openai",
        configurable_fields=("model", "temperature"),
        base_url=place.base_url,
        api_key="not-needed",
        max_retries=0,
    )

    def node(state: State, config: RunnableConfig) -> State:
        return {"answer": str(model.invoke(state["question"], config).content)}

    return one_node(node)
