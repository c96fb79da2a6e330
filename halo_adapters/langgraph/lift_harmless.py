"""What code may use so that it surely changes nothing: functions, classes, methods and attributes known to compute."""

from __future__ import annotations

import asyncio
import builtins
import functools
import itertools
import json
import math
import operator
import re
import textwrap
from collections import Counter, defaultdict
from types import BuiltinFunctionType
from typing import Any, cast, is_typeddict

from langchain_core import messages
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langgraph.types import Command, Send

from halo_core.lift import is_a

MAKERS: tuple[Any, ...] = (
    *(bool, bytes, dict, float, frozenset, int, list, set, sorted, str, tuple, Counter, defaultdict),
    *(json.dumps, json.loads, textwrap.dedent, textwrap.indent, textwrap.shorten, textwrap.fill, operator.itemgetter),
    *(re.compile, re.escape, re.findall, re.finditer, re.fullmatch, re.match, re.search, re.split, re.sub),
)
"""Functions and classes whose result is the caller's own."""
COMPUTING: tuple[Any, ...] = (
    *(abs, all, any, chr, divmod, enumerate, filter, format, hash, isinstance, issubclass, len, map, max, min, next),
    *(ord, pow, range, repr, reversed, round, slice, sum, zip, asyncio.gather, cast, functools.reduce, Command, Send),
    *(itertools.chain, itertools.count, itertools.groupby, itertools.islice, itertools.product, itertools.zip_longest),
    *(messages.convert_to_messages, messages.filter_messages, messages.get_buffer_string),
    *(value for value in vars(math).values() if is_a(value, BuiltinFunctionType)),
)
"""Others that compute."""
CALLING: tuple[tuple[Any, int], ...] = ((map, 0), (filter, 0), (functools.reduce, 0), (defaultdict, 0), (re.sub, 1))
"""Of those, the ones that call an argument, and which; `CALLED` names those given by keyword."""
CALLED = frozenset({"key", "default", "cls", "object_hook", "repl", "default_factory", "parse_float", "parse_int"})
TYPED: tuple[Any, ...] = (isinstance, issubclass, cast)
"""They take classes and do not call them."""
WIRED = (BasePromptTemplate, BaseOutputParser)
"""Classes of LangChain whose instances are runnables that change nothing."""
CALLS = frozenset({"invoke", "ainvoke", "batch", "abatch", "format", "format_messages", "format_prompt"})
"""Methods of models, prompts and chains that ask models and compute."""
SAMPLING = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "n", "seed", "presence_penalty", "frequency_penalty", None}
)
"""Keywords with which a call may sample, though its model does not; None is `**`."""
FACTORIES = frozenset({"from_messages", "from_template"})
"""Class methods of prompts that make one."""
VARIANTS = frozenset({"bind", "bind_tools", "partial", "with_structured_output"})
"""Methods of the same that return another of them."""
OF_TEXT = frozenset(
    """
    capitalize casefold center endswith format isalnum isalpha isdigit islower isspace isupper join ljust lower lstrip
    partition removeprefix removesuffix replace rjust rpartition rsplit rstrip split splitlines startswith strip
    swapcase title upper zfill
    """.split()  # noqa: SIM905
)
OF_VIEWS = frozenset({"items", "keys", "values"})
OF_OWN = frozenset(
    """
    add append clear copy count decode difference discard encode extend find get group groupdict groups index insert
    intersection most_common pop remove reverse setdefault sort symmetric_difference union update
    """.split()  # noqa: SIM905
)
"""Methods of texts, lists, sets, dicts and matches, some of which change them."""
FIELDS = frozenset(
    """
    additional_kwargs content content_blocks id invalid_tool_calls name response_metadata text tool_call_id tool_calls
    type usage_metadata artifact status page_content metadata
    """.split()  # noqa: SIM905
)
"""Attributes of messages and documents."""
GIVEN = frozenset({"config", "previous", "runtime", "store", "writer"})
"""Parameters that LangGraph fills."""


def is_harmless(value: Any) -> bool:
    return any(value is known for known in (*COMPUTING, *MAKERS))


def is_harmless_class(value: Any) -> bool:
    """Classes whose making computes: messages, exceptions of Python's own, dicts with typed keys."""
    if not is_a(value, type):
        return False
    if issubclass(value, BaseException) and value.__module__ == builtins.__name__:
        return True
    return (issubclass(value, messages.BaseMessage) and value.__module__.startswith("langchain_core.")) or (
        is_typeddict(value)
    )
