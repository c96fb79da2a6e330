"""`HaloChatModel`: a chat model that is the pool, for new code; no patch, no server address, no key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import Field, SecretStr

from halo_adapters.langgraph.intercept import INSIDE
from halo_adapters.langgraph.openai_route import OpenAIRoute, reason_to_refuse
from halo_adapters.langgraph.session import row_content
from halo_core.errors import UnknownModelError
from halo_core.runtime import SESSION, Run, ambient_run

_ROUTE = OpenAIRoute()


class HaloChatModel(BaseChatOpenAI):
    """Chat completions from Halo's pool, with tools, structured output, streaming and reasoning.

    Takes the sampling arguments of `ChatOpenAI`. Inside a Halo run its calls belong to that run; outside, each call is
    a run of the ambient batch, so that concurrent equal calls still become one. Raises `UnknownModelError` for a model
    that the pool does not serve.
    """

    model_name: str = Field(default="default", alias="model")
    openai_api_key: SecretStr | None = Field(default=SecretStr("unused"), alias="api_key")

    @property
    def _llm_type(self) -> str:
        return "halo-chat"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """The pool is not part of a serialised graph."""
        return False

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self._require((messages, stop), kwargs)
        with _run(messages) as run:
            result: ChatResult = _ROUTE.generate(run, self, super()._generate, (messages, stop, run_manager), kwargs)
            return result

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self._require((messages, stop), kwargs)
        with _run(messages) as run:
            args = (messages, stop, run_manager)
            result: ChatResult = await _ROUTE.agenerate(run, self, super()._agenerate, args, kwargs)
            return result

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        self._require(args, kwargs)
        with _run(args[0] if args else kwargs["messages"]) as run:
            inner = _ROUTE.stream(run, self, super()._stream, args, kwargs)
            while True:
                session, inside = SESSION.set(run), INSIDE.set(True)
                try:
                    chunk = next(inner)
                except StopIteration:
                    return
                finally:
                    INSIDE.reset(inside)
                    SESSION.reset(session)
                yield chunk

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        self._require(args, kwargs)
        with _run(args[0] if args else kwargs["messages"]) as run:
            inner = _ROUTE.astream(run, self, super()._astream, args, kwargs)
            while True:
                session, inside = SESSION.set(run), INSIDE.set(True)
                try:
                    chunk = await anext(inner)
                except StopAsyncIteration:
                    return
                finally:
                    INSIDE.reset(inside)
                    SESSION.reset(session)
                yield chunk

    def _require(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reason = reason_to_refuse(self, args, kwargs)
        if reason is not None:
            raise UnknownModelError(f"HaloChatModel(model={self.model_name!r}): {reason}")

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        result: ChatResult = super()._create_chat_result(response, generation_info)
        for generation, choice in zip(result.generations, getattr(response, "choices", ()), strict=False):
            # vLLM calls it `reasoning` now and `reasoning_content` before; ChatOpenAI drops both.
            extra = choice.message.model_extra or {}
            reasoning = extra.get("reasoning") or extra.get("reasoning_content")
            if reasoning and isinstance(generation.message, AIMessage):
                generation.message.additional_kwargs["reasoning_content"] = reasoning
        return result


def _run(messages: Any) -> AbstractContextManager[Run]:
    current = SESSION.get()
    return ambient_run(row_content(messages)) if current is None else nullcontext(current)
