"""A batch: the runs that may share calls with each other, their admission, and what was counted of them."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from halo_core.errors import HaloError
from halo_core.kv import Keep
from halo_core.pool.call import CallOrigin, Completion
from halo_core.runtime import catalogs
from halo_core.runtime.databases import QueryLog
from halo_core.runtime.flight import Flight, MergeKey
from halo_core.runtime.stats import BatchStats, OperatorStats
from halo_core.runtime.tool_desk import ToolDesk
from halo_core.runtime.watch import Watch
from halo_core.stats import Catalog, ObservedRow

logger = logging.getLogger(__name__)

MEMO_BYTES = 64 << 20
"""Answers kept for equal calls that come later; beyond it the least recently used are asked again."""

_batch_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Run:
    """One invocation of an app (one row). Its fields are touched on the pool's loop only, once it has begun."""

    batch: Batch
    key: str
    """Identifies the row across restarts: equal inputs at equal occurrences have equal keys."""
    order: int
    """Admission number within the process: earlier runs are served first."""
    calling: int = 0
    """Calls on their way that are executed for this run."""
    following: int = 0
    """Calls on their way that another run executes."""
    begun_s: float = 0.0
    """When it was admitted (the pool loop's time)."""
    noted: ObservedRow | None = None
    """What is written down of it for the catalog; None where it is not one of the first rows."""
    idle_since: float = 0.0
    repeats: Counter[tuple[str, str]] = field(default_factory=Counter)
    stats: OperatorStats = field(default_factory=OperatorStats)
    """Calls and tokens of this run alone."""
    trouble: BaseException | None = None
    """The last error of a call, where a framework would only pass on its text."""
    fatal: HaloError | None = None
    """Why the row must not end well, whatever its code made of it: a write in doubt, a tool wrongly declared."""
    steps: Counter[str] = field(default_factory=Counter)
    """Calls that each operator has made so far; touched by the callers, not by the pool's loop."""
    tools_s: dict[str, float] = field(default_factory=dict)
    """Tool -> seconds spent in it since the last model call; touched by the callers too."""

    def repetition(self, scope: str, fingerprint: str) -> int:
        """0 for the first call with this content in `scope` of this run, 1 for the next, and so on.

        A repetition inside one run is on purpose (retries, votes), so it is never answered from the first one.
        """
        seen = self.repeats[(scope, fingerprint)]
        self.repeats[(scope, fingerprint)] = seen + 1
        return seen

    def fail(self, error: HaloError) -> None:
        """Have this row fail with `error`, and those that it runs inside of, though a framework tells a model of it."""
        run: Run | None = self
        while run is not None:
            run.trouble = run.fatal = error
            run = run.batch.within

    def tools_so_far(self) -> Mapping[str, float]:
        """Seconds spent in tools since this was asked the last time."""
        spent, self.tools_s = self.tools_s, {}
        return spent

    def origin(self, operator: str, step: int = 0, attempt: int = 1, team: str = "") -> CallOrigin:
        """Attribution for a call of this run."""
        return CallOrigin(self.key, operator, step, team, attempt)


class Memo:
    """Answers of this batch by merge key, bounded by bytes, least recently used dropped first."""

    __slots__ = ("_bytes", "_entries", "_limit")

    def __init__(self, limit_bytes: int = MEMO_BYTES) -> None:
        self._entries: OrderedDict[MergeKey, Completion] = OrderedDict()
        self._bytes = 0
        self._limit = limit_bytes

    def get(self, key: MergeKey) -> Completion | None:
        """The answer, if it is still held."""
        completion = self._entries.get(key)
        if completion is not None:
            self._entries.move_to_end(key)
        return completion

    def put(self, key: MergeKey, completion: Completion) -> None:
        """Keep an answer."""
        if key in self._entries:
            return
        self._entries[key] = completion
        self._bytes += len(completion.raw)
        while self._bytes > self._limit and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= len(dropped.raw)

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self._bytes = 0


class RowKeys:
    """Numbers equal rows, so that each keeps its key when the same rows come again in the same order."""

    __slots__ = ("_lock", "_seen")

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def key(self, content: str) -> str:
        """The key of the next row with this canonical content."""
        with self._lock:
            n = self._seen[content]
            self._seen[content] = n + 1
        return f"{content}:{n}"


def row_keys(contents: Iterable[str]) -> list[str]:
    """A key per row that is the same in every run over these rows: its content and its n-th occurrence among all."""
    numbers = RowKeys()
    return [numbers.key(content) for content in contents]


class Batch:
    """A set of runs with one memo, made by `Executor.open_batch`; runs that apps start alone form an ambient batch."""

    def __init__(
        self,
        name: str,
        *,
        merge: bool = True,
        on_change: Callable[[Batch], None] | None = None,
        keys: RowKeys | None = None,
        keep_reads: bool = True,
        app: str = "",
        known: Catalog | None = None,
        within: Run | None = None,
    ) -> None:
        """`app` is the fingerprint under which the catalog keeps what is learnt; nothing is, where it is empty.
        `known` stands for what is kept of it. `within` is the row of another batch whose code runs this one."""
        self.name = name
        self.within = within
        self.app = app
        self.watch = Watch() if app else None
        self.known = known or (catalogs.known(app) if app else None)
        """What earlier runs had taught when the batch was opened."""
        self.ranks: Mapping[str, float] = {}
        """Operator -> how much of its row is still to come, see `operator_ranks`; what has more is served first."""
        self.keeps: Mapping[str, Keep] = {}
        """Operator -> what others will need of its calls' KV, see `halo_core.kv.keeps`."""
        self.answer_lengths: Mapping[str, float] = {}
        """Operator -> tokens that its answers are known to have."""
        self.planned = False
        """Whether the executor follows a plan of model switches that was made for it."""
        self.queries = QueryLog()
        self.learnt: Catalog | None = None
        """What this batch alone taught, once it is closed."""
        self.keys = keys or RowKeys()
        self.number = next(_batch_numbers)
        self.merge: bool = merge and (within is None or within.batch.merge)
        self.stats = BatchStats()
        self.memo = Memo()
        outer = within.batch.desk if within is not None else None
        self.desk: ToolDesk = ToolDesk(self.stats.tool, share=self.merge, keep_reads=keep_reads, outer=outer)
        self.flights: dict[MergeKey, Flight] = {}
        self._joined: Run | None = None
        self._numbers: dict[MergeKey, int] = {}
        self.active: set[Run] = set()
        self.started_s = time.monotonic()
        self.errors: list[str] = []
        """Batch-wide trouble that did not stop it (a journal that could not be written, say)."""
        self._on_change = on_change

    def row_key(self, content: str, key: str | None = None) -> str:
        """The key of the next row with this canonical content, or with its own `key`.

        A row of a batch inside another's row belongs to that one: its key begins with that row's.
        """
        if self.within is None:
            return key or self.keys.key(content)
        return self.within.batch.keys.key(f"{self.within.key}/{self.name}/{key or content}")

    def join(self, run: Run) -> None:
        """Share calls with the batch of `run`, whose code runs this one, and with all others that join that one."""
        self._joined = run
        self.memo, self.flights = run.batch.memo, run.batch.flights

    @property
    def joined(self) -> bool:
        """Whether its memo is another batch's."""
        return self._joined is not None

    def merge_key(self, run: Run, fingerprint: str) -> MergeKey:
        """The key of a call of `run`, one of this batch, that equal ones of other rows may answer.

        Equal rows of a batch inside another's row merge with each other, and all that they ask is that row's: what
        the row asks again, here or in its next such batch, is a repetition.
        """
        key = (fingerprint, run.repetition("", fingerprint))
        if self._joined is None:
            return key
        if key not in self._numbers:
            self._numbers[key] = self._joined.batch.merge_key(self._joined, fingerprint)[1]
        return fingerprint, self._numbers[key]

    def changed(self) -> None:
        """Something was counted; progress displays listen."""
        if self._on_change is None:
            return
        try:
            self._on_change(self)
        except Exception:  # a display that is gone, a pipe that broke: the batch goes on
            logger.exception("the listener of batch %r failed; it is told no more", self.name)
            self._on_change = None
