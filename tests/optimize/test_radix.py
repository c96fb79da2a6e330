"""The radix tree holds, finds and evicts what a plain list of prefixes with times of use does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from halo_core.optimize.problem import Segment
from halo_core.optimize.radix import PrefixTable, RadixTree
from tests.optimize.brute import Cache

SYSTEM: Segment = ("system", 100)
SHORT: Segment = ("short", 20)
LONG: Segment = ("long", 300)

segments = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from((5, 16, 40, 100))), min_size=1, max_size=4)


def test_a_prefix_is_found_in_whole_blocks() -> None:
    table = PrefixTable(block_tokens=16)
    tree = RadixTree(table)
    tree.insert(table.path("m", (SYSTEM, SHORT)))
    assert tree.hit_tokens(table.path("m", (SYSTEM, SHORT, LONG))) == 112  # of 120
    assert tree.hit_tokens(table.path("m", (SYSTEM, LONG))) == 96  # of 100
    assert tree.hit_tokens(table.path("m", (SHORT,))) == 0
    assert tree.hit_tokens(()) == 0


def test_paths_of_models_are_apart() -> None:
    table = PrefixTable()
    tree = RadixTree(table)
    tree.insert(table.path("m", (SYSTEM,)))
    assert tree.hit_tokens(table.path("other", (SYSTEM,))) == 0


def test_the_leaf_least_recently_used_goes_first() -> None:
    table = PrefixTable()
    tree = RadixTree(table, kv_tokens=460)
    first, second = table.path("m", (SYSTEM, ("first", 160))), table.path("m", (SYSTEM, ("second", 160)))
    tree.insert(first)
    tree.insert(second)
    tree.insert(first)
    tree.insert(table.path("m", (SYSTEM, ("third", 160))))
    assert tree.hit_tokens(first) == 256
    assert tree.hit_tokens(second) == 96
    assert tree.tokens == 420


def test_a_path_in_use_stays_but_for_what_does_not_fit_alone() -> None:
    table = PrefixTable()
    tree = RadixTree(table, kv_tokens=300)
    path = table.path("m", (SYSTEM, ("a", 100), LONG))
    tree.insert(path)
    assert tree.hit_tokens(path) == 192
    tree.insert(path[:2], beside_tokens=150)
    assert tree.hit_tokens(path) == 96


@given(
    paths=st.lists(st.tuples(segments, st.sampled_from((0, 30, 90))), max_size=25),
    kv_tokens=st.sampled_from((0, 60, 150, 400)),
)
def test_the_tree_does_what_a_list_of_prefixes_does(paths: list[tuple[list[Segment], int]], kv_tokens: int) -> None:
    table, plain = PrefixTable(), Cache(kv_tokens)
    tree = RadixTree(table, kv_tokens)
    for path, beside_tokens in paths:
        nodes = table.path("m", path)
        assert tree.hit_tokens(nodes) == plain.hit_tokens(tuple(path))
        tree = tree.copy()
        tree.insert(nodes, beside_tokens)
        plain.use(tuple(path), beside_tokens)
        assert tree.tokens == sum(prefix[-1][1] for prefix in plain.used)
        assert set(tree.state) == {table.path("m", prefix)[-1] for prefix in plain.used}
