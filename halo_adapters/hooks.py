"""Wrapping methods of a framework's classes on first use, and putting all of them back."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any


class Hooks:
    """The wrappers on the subclasses of one base class."""

    def __init__(
        self, base: type, entries: Sequence[str], contract: Sequence[str], wrap: Callable[[type, str, Any], Any]
    ) -> None:
        """`entries`: methods of `base` through which every use goes; `contract`: what subclasses define below them.

        `wrap(owner, name, method)` makes the wrapper of a contract method, which has a true `__halo__`; where it
        returns the method itself, that is left alone.
        """
        self._base = base
        self._entry_names = entries
        self._contract = contract
        self._wrap = wrap
        self._replaced: list[tuple[type, str, Any]] = []
        self._ensured: set[type] = set()
        self._lock = threading.RLock()

    @property
    def installed(self) -> bool:
        """Whether any method is not the framework's own."""
        return bool(self._replaced)

    def install(self, entry: Callable[[Any], Any]) -> None:
        """Put `entry(method)` in place of every entry method; idempotent."""
        with self._lock:
            if not self._replaced:
                for name in self._entry_names:
                    self._replace(self._base, name, entry(getattr(self._base, name)))

    def uninstall(self) -> None:
        """Take every wrapper off again."""
        with self._lock:
            while self._replaced:
                cls, name, method = self._replaced.pop()
                setattr(cls, name, method)
            self._ensured.clear()

    def ensure(self, cls: type) -> None:
        """Wrap the contract methods that `cls` and its bases define; cheap when that is done already.

        Only names in a class's own `__dict__` are wrapped: LangChain compares `type(self)._stream` with the base's.
        """
        if cls in self._ensured:
            return
        with self._lock:  # two threads that meet a class first would wrap it twice
            for owner in cls.__mro__:
                if owner is not self._base and issubclass(owner, self._base):
                    self._wrap_own(owner)
            self._ensured.add(cls)

    def ensure_all(self) -> None:
        """`ensure` for every subclass that exists by now, where the base has no entry through which every use goes."""
        found = [self._base]
        while found:
            cls = found.pop()
            self.ensure(cls)
            found += cls.__subclasses__()

    def _wrap_own(self, owner: type) -> None:
        for name in self._contract:
            method = owner.__dict__.get(name)
            if (
                inspect.isfunction(method)
                and not getattr(method, "__halo__", False)
                and not getattr(method, "__isabstractmethod__", False)
            ):
                wrapped = self._wrap(owner, name, method)
                if wrapped is not method:
                    self._replace(owner, name, wrapped)

    def _replace(self, cls: type, name: str, method: Any) -> None:
        self._replaced.append((cls, name, getattr(cls, name)))
        setattr(cls, name, method)
