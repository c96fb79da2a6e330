"""The one family of errors that Halo raises on purpose.

Every message names the thing, what was expected, and what to do about it.
"""

from __future__ import annotations


class HaloError(Exception):
    """Base of all errors that Halo raises on purpose."""


class ConfigError(HaloError):
    """A setting (file, environment variable, argument) cannot be used as given."""


class PlanError(HaloError):
    """A plan is not well formed; the message names the operator."""


class ScheduleError(HaloError):
    """A schedule breaks the rules of the problem that it is for; the message names the task."""


class UnknownModelError(HaloError):
    """No engine of the pool serves the model that a call names."""


class EngineError(HaloError):
    """An engine refused or failed one call; other calls are not affected."""

    def __init__(self, message: str, *, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, where the engine gave one."""
        self.body = body
        """The engine's own error document, where it gave one."""


class PromptTooLongError(EngineError):
    """The prompt does not fit the model's context."""


class EngineDiedError(EngineError):
    """The engine's process or connection is gone; its unfinished calls may be sent again."""


class EngineStartError(EngineError):
    """An engine did not come up; the message ends with the tail of its log."""


class JournalError(HaloError):
    """The journal cannot be read or written."""


class InDoubtError(HaloError):
    """A tool's write was under way when a run was cut off; whether it was made is not known."""


class LiftError(HaloError):
    """A framework object cannot be lifted into a plan."""


class ClosedError(HaloError):
    """Something is used after it was closed."""


class CloneError(HaloError):
    """A framework object cannot be copied for a run of its own; the message names the attribute."""
