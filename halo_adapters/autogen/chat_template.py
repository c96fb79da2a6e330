"""What a model's chat template does with a system message that is not the first: seen by rendering one."""

from __future__ import annotations

import functools
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

from halo_core.pool import SimulatedSpec, VLLMSpec, get_pool

logger = logging.getLogger(__name__)

_MARK = "a-late-system-message"
_PROBE = (
    {"role": "system", "content": "first"},
    {"role": "user", "content": "question"},
    {"role": "system", "content": _MARK},
    {"role": "user", "content": "more"},
)


def shows_late_system(served: str) -> bool:
    """Whether the template of a served model renders a later system message; False where nobody can tell."""
    for spec in get_pool().config.engines:
        if spec.model == served:
            if isinstance(spec, SimulatedSpec):
                return True
            return isinstance(spec, VLLMSpec) and _template_shows(spec.path or spec.model)
    return False


@functools.cache
def _template_shows(folder: str) -> bool:
    template = _template(Path(folder))
    if template is None:
        return False
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what was generated, for training; means nothing here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    names: dict[str, Any] = {"bos_token": "", "eos_token": "", "add_generation_prompt": True}
    names |= {"tools": None, "documents": None}  # transformers defines them always
    try:
        return _MARK in environment.from_string(template).render(messages=[dict(m) for m in _PROBE], **names)
    except Exception as error:  # a template may do anything; one that refuses the probe refuses the message
        logger.info("the chat template of %s takes no later system message: %s", folder, error)
        return False


def _template(folder: Path) -> str | None:
    """The chat template in a model's folder."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template")
    except (OSError, ValueError):
        return None
    if isinstance(found, list):  # several, each with a name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found if isinstance(found, str) else None
