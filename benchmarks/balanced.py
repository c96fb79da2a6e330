"""What a competent user puts in front of two servers: each call goes to the one with the fewest calls under way."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr

from benchmarks.engines import unlimited_http


class BalancedChatOpenAI(ChatOpenAI):
    """ChatOpenAI over several equal servers, shortest queue first; connections are not limited."""

    _servers: list[ChatOpenAI] = PrivateAttr(default_factory=list)
    _under_way: list[int] = PrivateAttr(default_factory=list)

    @classmethod
    def over(cls, urls: list[str], **settings: Any) -> BalancedChatOpenAI:
        """One client per server, with connections of its own (LangChain's cached ones belong to one event loop)."""
        balanced = cls(base_url=urls[0], **settings)
        balanced._servers = [ChatOpenAI(base_url=url, http_async_client=unlimited_http(), **settings) for url in urls]
        balanced._under_way = [0] * len(urls)
        return balanced

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        i = min(range(len(self._servers)), key=self._under_way.__getitem__)
        self._under_way[i] += 1
        try:
            return await self._servers[i]._agenerate(messages, stop, run_manager, **kwargs)
        finally:
            self._under_way[i] -= 1
