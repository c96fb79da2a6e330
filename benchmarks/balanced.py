"""What a competent user puts in front of two servers: each call goes to the one with the fewest calls under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr

from benchmarks.engines import unlimited_http


class Queues:
    """How many calls are under way at each of several equal servers."""

    def __init__(self, servers: int) -> None:
        self._under_way = [0] * servers
        self._lock = threading.Lock()

    @contextmanager
    def shortest(self) -> Iterator[int]:
        """The server with the fewest calls, which has one more inside the block."""
        with self._lock:
            i = min(range(len(self._under_way)), key=self._under_way.__getitem__)
            self._under_way[i] += 1
        try:
            yield i
        finally:
            with self._lock:
                self._under_way[i] -= 1


class BalancedChatOpenAI(ChatOpenAI):
    """ChatOpenAI over several equal servers, shortest queue first; connections are not limited."""

    _servers: list[ChatOpenAI] = PrivateAttr(default_factory=list)
    _queues: Queues = PrivateAttr()

    @classmethod
    def over(cls, urls: list[str], queues: Queues | None = None, **settings: Any) -> BalancedChatOpenAI:
        """One client per server, with connections of its own (LangChain's cached ones belong to one event loop).

        `queues` are those of another client of the same servers.
        """
        balanced = cls(base_url=urls[0], **settings)
        balanced._servers = [
            ChatOpenAI(
                base_url=url,
                http_async_client=unlimited_http(),
                http_client=httpx2.Client(limits=httpx2.Limits(max_connections=None), timeout=600),
                **settings,
            )
            for url in urls
        ]
        balanced._queues = queues or Queues(len(urls))
        return balanced

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._queues.shortest() as i:
            return await self._servers[i]._agenerate(messages, stop, run_manager, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._queues.shortest() as i:
            return self._servers[i]._generate(messages, stop, run_manager, **kwargs)
