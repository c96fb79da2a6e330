"""Interception of AutoGen's own OpenAI client, for teams that are run under Halo without a change to their code.

`create` and `create_stream` of the client's base class are wrapped. They do nothing special outside runs of Halo,
unless a whole script is run under it (`halo exec`), where single calls are routed too.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from autogen_agentchat.agents import BaseChatAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.teams import BaseGroupChat
from autogen_core.models import RequestUsage

from halo_adapters.autogen import tools
from halo_adapters.autogen.attribution import speaking
from halo_adapters.autogen.client import HaloChatCompletionClient
from halo_adapters.autogen.tasks import task_content
from halo_core.errors import HaloError
from halo_core.runtime import SESSION, Run, ambient_run, get_executor

logger = logging.getLogger(__name__)

_installed: list[tuple[type, str, Any]] = []
_everywhere = False
_twins: WeakKeyDictionary[Any, HaloChatCompletionClient] = WeakKeyDictionary()


def install(*, everywhere: bool = False) -> None:
    """Wrap AutoGen's OpenAI client where autogen-ext has it; idempotent.

    `everywhere`: every team and agent that the process runs is a run of Halo's ambient batch, and calls outside any run
    are routed too.
    """
    global _everywhere
    _everywhere = _everywhere or everywhere
    if everywhere and not any(cls is BaseGroupChat for cls, _, _ in _installed):
        _patch(BaseGroupChat, "run_stream", _run_stream)
        _patch(BaseChatAgent, "run_stream", _run_stream)
        _patch(BaseChatAgent, "run", _run)
    tools.install()
    if any(name == "create" for _, name, _ in _installed):
        return
    try:
        from autogen_ext.models.openai import BaseOpenAIChatCompletionClient
    except ImportError:  # nothing to intercept
        return
    _patch(BaseOpenAIChatCompletionClient, "create", _create)
    _patch(BaseOpenAIChatCompletionClient, "create_stream", _create_stream)


def uninstall() -> None:
    """Put AutoGen's own methods back."""
    global _everywhere
    _everywhere = False
    while _installed:
        cls, name, original = _installed.pop()
        setattr(cls, name, original)
    tools.uninstall()


def _patch(cls: type, name: str, wrap: Any) -> None:
    original = getattr(cls, name)
    _installed.append((cls, name, original))
    setattr(cls, name, functools.wraps(original)(wrap(original)))


# -- calls -------------------------------------------------------------------------------------------------------------


def _twin(client: Any) -> HaloChatCompletionClient | None:
    """The client of the pool that stands for AutoGen's, None where the call is left alone."""
    run = SESSION.get()
    if run is None and not _everywhere:
        return None
    twin = _twins.get(client)
    if twin is None:
        sdk = client._client
        arguments = dict(client._create_args)
        try:
            twin = HaloChatCompletionClient(
                **arguments,
                base_url=None if type(sdk).__name__ == "AsyncAzureOpenAI" else str(sdk.base_url),  # another protocol
                api_key=sdk.api_key,
                default_headers=dict(getattr(sdk, "_custom_headers", None) or {}),
                model_info=client.model_info,
                add_name_prefixes=client._add_name_prefixes,
                include_name_in_message=client._include_name_in_message,
                late_system="error",  # as AutoGen's client itself
            )
        except HaloError as error:
            _leave_alone(str(error))
            return None
        twin._charged = functools.partial(_charge, ref(client))
        _twins[client] = twin
    served, reason = twin.route()
    if served is None:
        _leave_alone(reason or "not routable")
        return None
    return twin


def _leave_alone(reason: str) -> None:
    run = SESSION.get()
    batch = run.batch if run is not None else get_executor().ambient()
    if reason not in batch.stats.outside_reasons:
        logger.info("model call left alone: %s", reason)
    batch.stats.leave_alone(reason)


def _create(original: Any) -> Any:
    async def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        twin = _twin(self)
        if twin is None:
            return await original(self, *args, **kwargs)
        return await twin.create(*args, **kwargs)

    return create


def _create_stream(original: Any) -> Any:
    async def create_stream(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        twin = _twin(self)
        inner = original(self, *args, **kwargs) if twin is None else twin.create_stream(*args, **kwargs)
        async with aclosing(inner):
            async for item in inner:
                yield item

    return create_stream


def _charge(client: ReferenceType[Any], usage: RequestUsage, executed: bool) -> None:
    """Usage stands where the app looks for it: at its own client."""
    own = client()
    if own is not None:
        own._total_usage = _sum(own._total_usage, usage)
        if executed:
            own._actual_usage = _sum(own._actual_usage, usage)


def _sum(one: RequestUsage, other: RequestUsage) -> RequestUsage:
    return RequestUsage(one.prompt_tokens + other.prompt_tokens, one.completion_tokens + other.completion_tokens)


# -- runs (halo exec) --------------------------------------------------------------------------------------------------


@contextmanager
def _inside(run: Run, agent: str) -> Iterator[None]:
    token = SESSION.set(run)
    try:
        with speaking(agent):
            yield
    finally:
        SESSION.reset(token)


def _run_stream(original: Any) -> Any:
    async def run_stream(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        if SESSION.get() is not None:
            async with aclosing(original(self, *args, **kwargs)) as stream:
                async for item in stream:
                    yield item
            return
        tools.install()  # classes may have come since
        executor = get_executor()
        run = executor.begin(executor.ambient(), task_content(kwargs.get("task")))
        failed = True
        try:
            await executor.admitted(run)
            stream = original(self, *args, **kwargs)
            try:
                while True:
                    with _inside(run, self.name):  # around each step: a generator shares its consumer's context
                        item = await anext(stream, None)
                    if item is None:
                        break
                    failed = not isinstance(item, TaskResult) and failed
                    yield item
            finally:
                await stream.aclose()
        finally:
            executor.end(run, failed=failed)

    return run_stream


def _run(original: Any) -> Any:
    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if SESSION.get() is not None:
            return await original(self, *args, **kwargs)
        tools.install()
        with ambient_run(task_content(kwargs.get("task"))) as own:
            await get_executor().admitted(own)
            with _inside(own, self.name):
                return await original(self, *args, **kwargs)

    return run
