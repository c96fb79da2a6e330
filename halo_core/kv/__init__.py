"""KV across engines: the block store that a host's engines share, and which engine holds what."""

from halo_core.kv.index import BlockHash, BlockIndex, PromptBlocks
from halo_core.kv.plugin.halo_kv.store import COUNTERS, BlockStore, Counters
from halo_core.kv.retention import ALL, PINNED, SLACK_TOKENS, Keep, keeps, moving_pays
from halo_core.kv.room import default_cap_bytes, store_root, used_bytes

__all__ = [
    "ALL",
    "COUNTERS",
    "PINNED",
    "SLACK_TOKENS",
    "BlockHash",
    "BlockIndex",
    "BlockStore",
    "Counters",
    "Keep",
    "PromptBlocks",
    "default_cap_bytes",
    "keeps",
    "moving_pays",
    "store_root",
    "used_bytes",
]
