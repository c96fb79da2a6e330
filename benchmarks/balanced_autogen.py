"""The shortest-queue client of `balanced.py` for AutoGen: one for all teams of a batch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from autogen_core.models import ChatCompletionClient, CreateResult, LLMMessage, ModelInfo, RequestUsage
from autogen_ext.models.openai import OpenAIChatCompletionClient

from benchmarks.balanced import Queues
from benchmarks.engines import unlimited_http


class BalancedOpenAIClient(ChatCompletionClient):
    """AutoGen's OpenAI client over several equal servers, shortest queue first; connections are not limited."""

    def __init__(self, urls: Sequence[str], **settings: Any) -> None:
        """One client per server. The connections belong to the event loop that makes the first call."""
        self._servers = [
            OpenAIChatCompletionClient(base_url=url, http_client=unlimited_http(), **settings)  # type: ignore[call-arg]
            for url in urls
        ]
        self._queues = Queues(len(urls))
        self.calls = 0

    @contextmanager
    def _shortest(self) -> Iterator[OpenAIChatCompletionClient]:
        self.calls += 1
        with self._queues.shortest() as i:
            yield self._servers[i]

    async def create(self, messages: Sequence[LLMMessage], **options: Any) -> CreateResult:
        """One answer from the server with the fewest calls under way."""
        with self._shortest() as server:
            return await server.create(messages, **options)

    async def create_stream(
        self, messages: Sequence[LLMMessage], **options: Any
    ) -> AsyncGenerator[str | CreateResult, None]:
        """The same in pieces."""
        with self._shortest() as server:
            async for item in server.create_stream(messages, **options):
                yield item

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            await server.close()

    def actual_usage(self) -> RequestUsage:
        """Tokens of all servers."""
        used = [server.actual_usage() for server in self._servers]
        return RequestUsage(sum(u.prompt_tokens for u in used), sum(u.completion_tokens for u in used))

    def total_usage(self) -> RequestUsage:
        """Tokens of all servers."""
        return self.actual_usage()

    def count_tokens(self, messages: Sequence[LLMMessage], **options: Any) -> int:
        """As any of the servers counts them."""
        return self._servers[0].count_tokens(messages, **options)

    def remaining_tokens(self, messages: Sequence[LLMMessage], **options: Any) -> int:
        """As any of the servers counts them."""
        return self._servers[0].remaining_tokens(messages, **options)

    @property
    def model_info(self) -> ModelInfo:
        """Of the model that all servers serve."""
        return self._servers[0].model_info

    @property
    def capabilities(self) -> ModelInfo:
        """Deprecated in AutoGen: see `model_info`."""
        return self.model_info
