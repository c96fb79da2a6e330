"""Text that stands for text: of a given length, equal where the seed is, else different from the first character."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from halo_core.pool.simulated_model import CHARS_PER_TOKEN


@lru_cache(maxsize=4096)
def shared_filler(seed: str, tokens: int) -> str:
    """`filler`, remembered: for stretches that many calls have."""
    return filler(seed, tokens)


def filler(seed: str, tokens: int) -> str:
    """`tokens` tokens of the simulated engine's tokenizer."""
    chars = tokens * CHARS_PER_TOKEN
    digest = blake2b(seed.encode("utf-8", "surrogatepass")).hexdigest()
    # One hash tells prompts apart; what follows need only be of the right length, but not repeat in blocks.
    return "".join(f"{digest}{i:08x}" for i in range(chars // (len(digest) + 8) + 1))[:chars]


def uniform(*seed: object) -> float:
    """A number in [0, 1) that is the same for the same seed, in every process."""
    text = "\x1f".join(map(str, seed)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / 2**64
