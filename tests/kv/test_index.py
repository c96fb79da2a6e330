"""The prefix index: what the engines say they hold, by their own block hashes."""

from __future__ import annotations

from halo_core.kv import BlockIndex, PromptBlocks

A, B, C, D = (bytes([i]) * 32 for i in range(4))


def test_an_engine_holds_what_it_stored_and_has_not_removed() -> None:
    index = BlockIndex()
    index.stored([A, B, C])
    assert index.depth([A, B, C, D]) == 3
    index.removed([B, D])
    assert index.depth([A, B, C]) == 1
    assert len(index) == 2


def test_lost_events_leave_only_what_is_said_since() -> None:
    index = BlockIndex()
    index.stored([A, B])
    index.cleared()
    index.stored([B])
    assert index.depth([A, B]) == 0
    assert index.depth([B]) == 1
    assert index.resyncs == 1


def test_chunks_of_text_end_in_blocks() -> None:
    prompts = PromptBlocks()
    chain = [b"one", b"two", b"three"]
    prompts.learn(chain, 64, [A, B, C, D], 32)  # 200 tokens or so: 64 tokens a chunk, two blocks
    assert [prompts.block(chunk) for chunk in chain] == [B, D, None]
    assert prompts.chunks([A, B]) == [b"one"]
    assert prompts.chunks([D, C]) == [b"two"]


def test_a_chunk_keeps_the_block_that_it_was_first_seen_in() -> None:
    prompts = PromptBlocks()
    prompts.learn([b"one"], 64, [A, B], 32)
    prompts.learn([b"one", b"other"], 64, [A, B, C, D], 32)
    assert prompts.block(b"one") == B
    assert prompts.block(b"other") == D


def test_chunks_shorter_than_a_block_have_none_until_one_is_whole() -> None:
    prompts = PromptBlocks()
    prompts.learn([b"one", b"two"], 64, [A], 128)
    assert prompts.block(b"one") is None
    assert prompts.block(b"two") == A


def test_it_stays_bounded() -> None:
    prompts = PromptBlocks(capacity=2)
    for i in range(5):
        prompts.learn([bytes([i])], 32, [bytes([i]) * 32], 32)
    assert prompts.block(bytes([0])) is None
    assert prompts.block(bytes([4])) == bytes([4]) * 32
    assert prompts.chunks([bytes([0]) * 32]) == []
