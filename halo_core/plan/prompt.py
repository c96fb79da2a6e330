"""Prompt templates: chat messages made of ordered segments, literal text or a slot that names an input path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field

from halo_core.errors import PlanError
from halo_core.plan.frozen import Frozen


class LiteralText(Frozen):
    """Text that is the same in every row."""

    kind: Literal["literal"] = "literal"
    text: str

    def __str__(self) -> str:
        return '"' + self.text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


class Slot(Frozen):
    """A place that is filled from the state; `path` is dotted, its first part is the state key (`docs.0.title`)."""

    kind: Literal["slot"] = "slot"
    path: str = Field(min_length=1)

    @property
    def key(self) -> str:
        """The state key that the slot reads."""
        return self.path.split(".", 1)[0]

    def __str__(self) -> str:
        return "{" + self.path + "}"


Segment = Annotated[LiteralText | Slot, Field(discriminator="kind")]


class Message(Frozen):
    """One chat message: a role and its content in order."""

    kind: Literal["message"] = "message"
    role: str = Field(min_length=1)
    segments: tuple[Segment, ...] = ()

    def __str__(self) -> str:
        return f"{self.role}: " + (" ".join(map(str, self.segments)) or '""')


class MessagesSlot(Frozen):
    """A whole list of messages taken from the state (LangChain's placeholder, an agent's transcript)."""

    kind: Literal["messages"] = "messages"
    path: str = Field(min_length=1)

    @property
    def key(self) -> str:
        """The state key that the slot reads."""
        return self.path.split(".", 1)[0]

    def __str__(self) -> str:
        return "*{" + self.path + "}"


PromptPart = Annotated[Message | MessagesSlot, Field(discriminator="kind")]


class PromptTemplate(Frozen):
    """A chat prompt as ordered parts; what precedes the first slot is shared by all rows."""

    parts: tuple[PromptPart, ...] = ()

    @classmethod
    def chat(cls, parts: Iterable[tuple[str, str] | Message | MessagesSlot]) -> PromptTemplate:
        """Build from `(role, format string)` pairs, `Message`s and `MessagesSlot`s.

        Raises PlanError where a format string does more than name a path (conversion, format spec, empty field).
        """
        return cls(
            parts=tuple(Message(role=p[0], segments=_segments(p[1])) if isinstance(p, tuple) else p for p in parts)
        )

    @classmethod
    def parse(cls, text: str, role: str = "user") -> PromptTemplate:
        """Build a one-message template from a format string such as `"Answer in {lang}: {docs.0}"`."""
        return cls.chat([(role, text)])

    def slots(self) -> Iterator[Slot | MessagesSlot]:
        """All slots in the order in which they appear in the prompt."""
        for part in self.parts:
            if isinstance(part, MessagesSlot):
                yield part
            else:
                yield from (s for s in part.segments if isinstance(s, Slot))

    def state_keys(self) -> tuple[str, ...]:
        """The state keys that the slots read, each once, in order of first use."""
        return tuple(dict.fromkeys(slot.key for slot in self.slots()))

    def static_prefix(self) -> tuple[Message, ...]:
        """The messages, the last one possibly cut short, that precede the first slot."""
        prefix: list[Message] = []
        for part in self.parts:
            if isinstance(part, MessagesSlot):
                break
            literals: list[LiteralText] = []
            for segment in part.segments:
                if isinstance(segment, Slot):
                    if literals:
                        prefix.append(Message(role=part.role, segments=tuple(literals)))
                    return tuple(prefix)
                literals.append(segment)
            prefix.append(part)
        return tuple(prefix)


def _segments(text: str) -> tuple[LiteralText | Slot, ...]:
    segments: list[LiteralText | Slot] = []
    pending = ""  # "{{" splits a literal in two; both halves belong to one segment
    try:
        for literal, name, spec, conversion in Formatter().parse(text):
            pending += literal
            if name is None:
                continue
            if not name or spec or conversion:
                raise PlanError(
                    f"prompt template {text!r}: field {{{name}}} must only name an input path; "
                    "format it in the step that writes the key"
                )
            if pending:
                segments.append(LiteralText(text=pending))
                pending = ""
            segments.append(Slot(path=name))
    except ValueError as error:
        raise PlanError(f"prompt template {text!r}: {error}; write a literal brace twice") from error
    if pending:
        segments.append(LiteralText(text=pending))
    return tuple(segments)
