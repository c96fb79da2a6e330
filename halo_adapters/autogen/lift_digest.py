"""The fingerprint of a team: a digest of all that decides what it does, equal across processes.

Read are the attributes of the team and of all it holds, and the code of the user's functions and classes. Left out is
what says nothing of behaviour: what a run leaves behind, ids, temporary paths, servers' addresses and keys.
"""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, get_args, get_origin

from autogen_agentchat.messages import BaseMessage
from autogen_core.tools import BaseTool
from pydantic import BaseModel
from pydantic_core import to_json

from halo_adapters.autogen.lift_code import CLOSED, LIBRARIES, is_framework
from halo_core.lift import code_digest, fields, is_library, package_of, references

DEPTH = 60
"""References followed from the team, at most."""
OBJECTS = 20_000
"""Objects looked at, at most."""

_STATE = frozenset(
    """
    _team_id _group_topic_type _group_chat_manager_topic_type _participant_topic_types _output_topic_type
    _output_message_queue _runtime _embedded_runtime _initialized _is_running _message_factory _has_cycles
    _terminated _setted _message_count _total_token_count _prompt_token_count _completion_token_count _start_time
    _stop_messages _total_usage _actual_usage _cur_usage _total _actual _closed _current_index _create_calls
    """.split()  # noqa: SIM905
)
"""Attributes of AutoGen's and Halo's objects that a run changes or that differ from object to object."""
_PLACES = frozenset({"_client", "_raw_config", "api_key", "base_url", "_base_url", "azure_endpoint", "organization"})
"""Attributes of model clients that say where calls go, not what they ask."""
_GROWING = (list, dict, set, deque, bytearray)
_BASES = (bool, int, float, complex, str, bytes, bytearray)
_ID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.IGNORECASE)


def fingerprint(team: object) -> str:
    """A hexadecimal digest of the team (or agent), for one version of Python."""
    walk = _Walk()
    walk.visit(team, 0)
    return walk.digest.hexdigest()


class _Walk:
    """One walk over object references, depth first; every object is looked at once."""

    def __init__(self) -> None:
        self.digest = blake2b(digest_size=16)
        self.seen: dict[int, tuple[int, Any]] = {}  # keeps what it has seen alive, so that ids stay unique

    def tell(self, kind: str, data: str | bytes = b"") -> None:
        """Add a fact; its length goes first, so that no two lists of facts look alike."""
        told = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        self.digest.update(f"{kind}:{len(told)}:".encode() + told)

    def visit(self, value: Any, depth: int) -> None:
        """Add what `value` says, and what it refers to."""
        cls = type(value)
        if depth > DEPTH or len(self.seen) > OBJECTS:
            return
        if value is None or issubclass(cls, _BASES):
            self._scalar(value)
        elif issubclass(cls, tuple):  # equal constants may or may not be one object
            self._items("tuple", value, depth)
        elif issubclass(cls, set | frozenset):
            self._set(value, depth)
        elif get_origin(value) is not None:
            self._items("alias", (get_origin(value), *get_args(value)), depth)
        elif id(value) in self.seen:
            self.tell("again", str(self.seen[id(value)][0]))
        else:
            self.seen[id(value)] = (len(self.seen), value)
            look = next((look for types, look in _LOOKS if issubclass(cls, types)), _Walk._object)
            look(self, value, depth + 1)

    def _scalar(self, value: Any) -> None:
        base = next((base for base in _BASES if issubclass(type(value), base)), None)
        if issubclass(type(value), Enum):
            self.tell("enum", f"{type(value).__qualname__}.{fields(value).get('_name_')}")
        elif base is str:
            self.tell("str", _plain(str.__str__(value)))
        else:
            self.tell("scalar", repr(value) if base is None else f"{base.__name__} {base.__repr__(value)}")

    def _items(self, kind: str, items: Iterable[Any], depth: int) -> None:
        listed = list(items)
        self.tell(kind, str(len(listed)))
        for item in listed:
            self.visit(item, depth + 1)

    def _list(self, value: Any, depth: int) -> None:
        self._items("list", value, depth)

    def _set(self, value: Any, depth: int) -> None:
        """A set's order differs from process to process."""
        found = []
        for item in value:
            walk = _Walk()
            walk.visit(item, depth + 1)
            found.append(walk.digest.digest())
        self.tell("set", b"".join(sorted(found)))

    def _mapping(self, value: Any, depth: int) -> None:
        items = dict.items(value) if isinstance(value, dict) else value.items()
        self._named("dict", {k: v for k, v in items if not (isinstance(k, str) and k in _PLACES)}, depth)

    def _named(self, kind: str, values: Mapping[Any, Any], depth: int) -> None:
        self.tell(kind, str(len(values)))
        for name, value in values.items():
            self.visit(name, depth + 1)
            self.visit(value, depth + 1)

    def _function(self, function: FunctionType, depth: int) -> None:
        if is_framework(function) or package_of(function) in CLOSED | sys.stdlib_module_names:
            self.tell("function", f"{function.__module__}.{function.__qualname__}")
        else:
            self.tell("code", code_digest(function.__code__))
        reached = references(function, globals_too=not is_library(function, LIBRARIES))
        # A list or dict that code holds on to is as often a counter that grows as a setting: runs must not change it.
        self._items("refers", (type(v) if isinstance(v, _GROWING) else v for _, v in reached), depth)

    def _method(self, method: MethodType, depth: int) -> None:
        self.visit(method.__func__, depth)
        self.visit(method.__self__, depth)

    def _partial(self, partial: functools.partial[Any], depth: int) -> None:
        self._items("partial", (partial.func, *partial.args), depth)
        self._named("keywords", partial.keywords, depth)

    def _class(self, cls: type, depth: int) -> None:
        self.tell("class", f"{cls.__module__}.{cls.__qualname__}")
        if is_library(cls, LIBRARIES):
            return
        self._items("bases", cls.__bases__, depth)
        if issubclass(cls, BaseModel):
            for name, field in cls.__pydantic_fields__.items():
                rules = [fields(rule) or rule for rule in field.metadata]
                self._items(f"field {name}", (field.annotation, field.default, field.description, rules), depth)
        own = vars(cls).items()
        self._named("members", {name: member for name, member in own if _is_code(name, member)}, depth)

    def _wrapped(self, member: Any, depth: int) -> None:
        """A property or a class or static method."""
        inner = (member.fget, member.fset) if isinstance(member, property) else (member.__func__,)
        self._items(type(member).__name__, inner, depth)

    def _named_only(self, value: Any, depth: int) -> None:
        self.tell("named", getattr(value, "__qualname__", None) or value.__name__)

    def _as_text(self, value: Any, depth: int) -> None:
        self.tell(type(value).__name__, _plain(str(value)))

    def _pattern(self, value: re.Pattern[Any], depth: int) -> None:
        self._items("pattern", (value.pattern, value.flags), depth)

    def _object(self, value: Any, depth: int) -> None:
        cls = type(value)
        self._class(cls, depth)
        own = fields(value)
        if package_of(cls) in CLOSED | sys.stdlib_module_names:
            self.visit(own.get("__wrapped__"), depth)  # lru_cache and the like
            return
        if issubclass(cls, BaseTool) and is_framework(cls):
            self.tell("schema", to_json(value.schema, fallback=repr))
        aside = _STATE | _PLACES | ({"id", "created_at"} if issubclass(cls, BaseMessage) else set())
        # Attributes of an object have no order; those of a used one may have been set anew.
        self._named("object", {name: own[name] for name in sorted(own) if name not in aside}, depth)


_LOOKS: tuple[tuple[Any, Any], ...] = (
    (Enum, lambda walk, value, depth: walk._scalar(value)),
    ((dict, MappingProxyType), _Walk._mapping),
    ((list, deque), _Walk._list),
    (FunctionType, _Walk._function),
    (MethodType, _Walk._method),
    (functools.partial, _Walk._partial),
    (type, _Walk._class),
    ((property, classmethod, staticmethod), _Walk._wrapped),
    ((BuiltinFunctionType, ModuleType), _Walk._named_only),
    ((PurePath, date, Decimal), _Walk._as_text),
    (re.Pattern, _Walk._pattern),
)
"""How each kind of object is looked at; the first that fits decides."""


def _is_code(name: str, member: Any) -> bool:
    """Whether a member of a class says what the class does."""
    if isinstance(member, FunctionType | property | classmethod | staticmethod):
        return True
    return not name.startswith(("__", "_abc_")) and isinstance(
        member, (*_BASES, type(None), type, tuple, list, dict, set, frozenset)
    )


def _plain(text: str) -> str:
    """A text without what differs from process to process: ids and temporary places, in texts without white space."""
    if len(text.split(maxsplit=1)) > 1:
        return text
    return "(temporary)" if text.startswith(tempfile.gettempdir()) else _ID.sub("(id)", text)
