"""The plan's JSON document and its version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import from_json as parse_json
from pydantic_core import to_json as dump_json

from halo_core.errors import PlanError

if TYPE_CHECKING:
    from halo_core.plan.plan import Plan

VERSION = 1
"""Version of the document; raised whenever an older reader would misread a newer document."""


def to_json(plan: Plan, indent: int | None = None) -> str:
    """The plan as a versioned JSON document."""
    content = {"halo_plan": VERSION, "plan": plan.model_dump(mode="json")}
    return dump_json(content, indent=indent, inf_nan_mode="constants").decode()


def from_json(cls: type[Plan], data: str | bytes) -> Plan:
    """Read what `to_json` wrote; raises PlanError for another version or a malformed document."""
    try:
        content: Any = parse_json(data)
    except ValueError as error:
        raise PlanError(f"plan document is not JSON ({error}); write it with Plan.to_json()") from error
    if not isinstance(content, dict) or "halo_plan" not in content:
        raise PlanError('plan document has no "halo_plan" version; write it with Plan.to_json()')
    if content["halo_plan"] != VERSION:
        raise PlanError(
            f"plan document has version {content['halo_plan']!r}, this Halo reads version {VERSION}; "
            "lift the plan again or use the Halo that wrote it"
        )
    try:
        return cls.model_validate_json(dump_json(content.get("plan"), inf_nan_mode="constants"))
    except ValidationError as error:
        raise PlanError(f"plan document is malformed: {_first(error, content)}") from error


def _first(error: ValidationError, content: Any) -> str:
    """The first complaint, with the operator's name where it lies inside one."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if len(first["loc"]) > 1 and first["loc"][0] == "operators":
        operator = content["plan"]["operators"][first["loc"][1]]
        name = operator.get("name") if isinstance(operator, dict) else operator
        where = f"operator {name!r} ({where})"
    return f"{where}: {first['msg']}"
