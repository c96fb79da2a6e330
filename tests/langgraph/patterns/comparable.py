"""Results without what differs between any two runs: message ids and tool-call ids."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import BaseModel


def comparable(value: Any) -> Any:
    """`value` as plain data, with every id replaced by the order of its first appearance."""
    return _plain(value, {})


def _plain(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, BaseMessage):
        return type(value).__name__, _plain(value.model_dump(), ids)
    if isinstance(value, BaseModel):
        return type(value).__name__, _plain(value.model_dump(), ids)
    if isinstance(value, dict):
        return {
            key: _id(item, ids) if key in ("id", "tool_call_id") else _plain(item, ids) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, ids) for item in value]
    if isinstance(value, BaseException):
        return type(value).__name__, str(value)
    return value


def _id(value: Any, ids: dict[str, str]) -> Any:
    if not isinstance(value, str):
        return value
    return ids.setdefault(value, f"id {len(ids)}")
