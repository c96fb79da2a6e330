"""AutoGen's function tools as tools of a batch.

AutoGen runs a synchronous function in a thread that knows nothing of the run; here it gets the context of its caller.
A function under `halo_core.tool` says what it does; one that says nothing is taken to write.
"""

from __future__ import annotations

import asyncio
import copy
import functools
from contextvars import copy_context
from typing import Any

from halo_core.runtime import SESSION
from halo_core.tools import declare, signature_of, spec_of, tool_call


def wrap_run(original: Any) -> Any:
    """`FunctionTool.run` under Halo."""

    async def run(self: Any, args: Any, cancellation_token: Any) -> Any:
        running = SESSION.get()
        function = self._func
        if running is None:
            return await original(self, args, cancellation_token)
        if not asyncio.iscoroutinefunction(function):
            known = copy.copy(self)
            known._func = functools.partial(copy_context().run, function)
            self = known
        if spec_of(function) is not None:  # its wrapper, inside, asks the desk
            return await original(self, args, cancellation_token)
        call = tool_call(declare(self.name, {}), signature_of(args), {"args": args})
        return await running.batch.desk.acall(call, lambda: original(self, args, cancellation_token))

    return run
