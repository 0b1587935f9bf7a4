"""What every table of a study file is made of: frozen, unknown keys refused, words for types."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bakeoff.core.errors import near_match
from bakeoff.core.names import NAME, invalid_name_reason, invalid_path_reason

LARGEST = 2**31 - 1
"""Of any count: what every library below can hold; far more than any study needs."""


def _valid_name(text: str) -> str:
    """Refuse what could leave a folder, or that some file system cannot hold."""
    if (why := invalid_name_reason(text)) is not None:
        raise ValueError(f"'{text[:80]}' cannot be a name: {why}")
    return text


def _valid_path(text: str) -> str:
    if (why := invalid_path_reason(text)) is not None:
        raise ValueError(f"it cannot be a path: {why}")
    return text


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Name = Annotated[
    str, AfterValidator(_valid_name), Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})
]
"""Of a study or a method: a folder, a file and a column of a report bear it."""
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)]
"""A commit, a branch or a tag of a hub."""
Reference = Annotated[str, AfterValidator(_valid_path)]
"""A path, or a name that is looked up in place of one."""


class SpecTable(BaseModel):
    """One table of a study file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def reject_unknown(what: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse unknown names in a text, a list or a table, with the near match."""
    names = (value,) if isinstance(value, str) else value
    for name in names if isinstance(names, list | tuple | dict) else ():
        if name not in known:
            near = near_match(str(name), known)
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown {what} '{name}'; {hint}")
