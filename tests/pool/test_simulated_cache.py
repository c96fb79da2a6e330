"""The prefix cache: exact sharing by blocks, least recently used eviction, nothing lost, events that tell it all."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from halo_core.pool.engine import CacheEvent
from halo_core.pool.prefix_cache import PrefixCache, block_hashes
from halo_core.pool.simulated_model import tokenize


def filled(cache: PrefixCache, hashes: list[bytes]) -> None:
    """What a request does that computes these blocks and ends."""
    hits = cache.match(hashes)
    cache.hold(hashes[:hits])
    assert cache.take(len(hashes) - hits)
    cache.publish(hashes[hits:], None, "")
    cache.release(hashes, 0)


def test_hashes_cover_whole_blocks_and_all_before_them() -> None:
    text = "".join(chr(97 + i % 26) for i in range(64 * 3 + 63))
    hashes = block_hashes(text, 16)
    assert len(hashes) == 3
    assert block_hashes(text[:128], 16) == hashes[:2]
    assert block_hashes("X" + text[1:], 16)[2] != hashes[2]
    assert block_hashes(text[64:], 16, hashes[0]) == hashes[1:]
    assert len(block_hashes("é" * 64 + "x" * 64, 16)) == 2


def test_only_leading_blocks_match() -> None:
    cache = PrefixCache(10, 16)
    filled(cache, [b"a", b"b", b"c"])
    assert cache.match([b"a", b"b", b"x", b"c"]) == 2
    assert cache.match([b"b"]) == 1
    assert cache.match([b"x"]) == 0
    assert (cache.known, cache.available) == (3, 10)


def test_the_least_recently_used_goes_first_and_the_end_of_a_prefix_before_its_start() -> None:
    cache = PrefixCache(4, 16)
    filled(cache, [b"a1", b"a2"])
    filled(cache, [b"b1", b"b2"])
    filled(cache, [b"a1"])
    assert cache.take(1)
    assert cache.match([b"a1", b"a2"]) == 1
    assert cache.take(1)
    assert cache.match([b"b1", b"b2"]) == 1
    assert cache.take(1)
    assert cache.match([b"b1"]) == 0
    assert cache.match([b"a1"]) == 1


def test_held_blocks_are_not_evicted() -> None:
    cache = PrefixCache(2, 16)
    filled(cache, [b"a"])
    cache.hold([b"a"])
    assert not cache.take(2)
    assert cache.match([b"a"]) == 1
    assert not cache.clear()
    cache.release([b"a"], 0)
    assert cache.take(2)
    assert cache.match([b"a"]) == 0


def test_two_that_fill_the_same_block_end_up_sharing_it() -> None:
    cache = PrefixCache(4, 16)
    assert cache.take(2)
    cache.publish([b"a"], None, "")
    cache.publish([b"a"], None, "")
    assert (cache.known, cache.available) == (1, 3)
    cache.release([b"a"], 0)
    assert cache.available == 3
    cache.release([b"a"], 0)
    assert cache.available == 4
    assert cache.clear()
    assert cache.known == 0


@given(st.integers(0, 1 << 32))
def test_events_rebuild_the_cache_and_no_block_is_ever_lost(seed: int) -> None:
    rng = random.Random(seed)
    cache = PrefixCache(12, 1)
    mirror: set[bytes] = set()
    words: dict[bytes, int] = {}

    def on_event(event: CacheEvent) -> None:
        if event.kind == "stored":
            assert event.parent_hash is None or event.parent_hash in mirror
            assert len(event.token_ids) == len(event.block_hashes)
            for block, token in zip(event.block_hashes, event.token_ids, strict=True):
                assert isinstance(block, bytes)
                assert words.setdefault(block, token) == token
                assert block not in mirror
                mirror.add(block)
        elif event.kind == "removed":
            for block in event.block_hashes:
                assert isinstance(block, bytes)
                mirror.remove(block)
        else:
            mirror.clear()

    cache.on_event = on_event
    running: list[tuple[list[bytes], int, str]] = []
    for _ in range(60):
        if running and rng.random() < 0.5:
            hashes, hits, text = running.pop(rng.randrange(len(running)))
            if rng.random() < 0.8:
                cache.publish(hashes[hits:], hashes[hits - 1] if hits else None, text[hits * 4 :])
                cache.release(hashes, 0)
            else:  # cancelled
                cache.release(hashes[:hits], len(hashes) - hits)
        else:
            text = "".join(rng.choice("ab") * 4 for _ in range(rng.randint(1, 5)))
            hashes = block_hashes(text, 1)
            hits = cache.match(hashes)
            cache.hold(hashes[:hits])
            if cache.take(len(hashes) - hits):
                running.append((hashes, hits, text))
            else:
                cache.release(hashes[:hits], 0)
        assert mirror == set(cache._holders)
        assert 0 <= cache.available <= cache.blocks
        if not running:
            assert cache.available == cache.blocks
    assert tokenize("aaaabbbb")[0] == tokenize("aaaacccc")[0]
