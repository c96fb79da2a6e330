"""Tools as operators: what they do to the world is declared, or read from the SQL or the HTTP method."""

from halo_core.plan import Effect
from halo_core.tools.decorator import Itself, identity_of, identity_of_object, tool, tool_call
from halo_core.tools.signature import signature_of
from halo_core.tools.spec import ToolDeclarationError, ToolSpec, declare, spec_of

__all__ = [
    "Effect",
    "Itself",
    "ToolDeclarationError",
    "ToolSpec",
    "declare",
    "identity_of",
    "identity_of_object",
    "signature_of",
    "spec_of",
    "tool",
    "tool_call",
]
