"""How much of an agent's own answer its next turn finds in the caches: a matter of the model's chat template.

A template that renders an answer as it was generated gives the next turn the same tokens, whose KV is there. One that
leaves reasoning out, trims white space or moves the system prompt gives others: they are computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from halo_core.stats.observed import Calls, ObservedRow


@dataclass(slots=True, frozen=True)
class Reuse:
    """One step that goes on with the conversation of another."""

    step: str
    continues: str
    rows: int
    answer_tokens: float
    """Of the earlier step's answers, median."""
    found_tokens: float
    """Of those: found in a cache by the later step, median; whole blocks only."""
    block_tokens: int
    """Tokens of a block: so many at most are lost at an answer's end in any case."""

    @property
    def prevented(self) -> bool:
        """Whether the template must be what keeps whole blocks of the answers from being found."""
        return self.found_tokens <= 0 and self.answer_tokens >= 2 * self.block_tokens

    def __str__(self) -> str:
        found = f"{self.found_tokens:.0f} of {self.answer_tokens:.0f} tokens"
        line = f"{self.step} finds {found} that {self.continues} generated in the caches"
        if not self.prevented:
            return line
        return (
            f"{line}: the chat template does not render an answer as it was generated (reasoning left out, white space "
            "trimmed?), so all of it is computed again"
        )


def decoded_reuse(
    rows: Sequence[tuple[ObservedRow, Calls]], continues: Mapping[str, str], block_tokens: int
) -> list[Reuse]:
    """What was found again, by step; only rows in which both calls were computed for the row count.

    `continues`: step -> the step that it goes on with.
    """
    found: list[Reuse] = []
    for step, before in continues.items():
        pairs = [
            (calls[before], calls[step])
            for _, calls in rows
            if before in calls and step in calls and calls[before].executed and calls[step].executed
        ]
        pairs = [(one, two) for one, two in pairs if two.cached_tokens]
        if not pairs:
            continue
        again = [min(max(two.cached_tokens - one.prompt_tokens, 0), one.answer_tokens) for one, two in pairs]
        answers = median(one.answer_tokens for one, _ in pairs)
        found.append(Reuse(step, before, len(pairs), answers, median(again), block_tokens))
    return found
