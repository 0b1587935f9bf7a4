"""The base class and the common field types of the tables of a study file."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bakeoff.core.errors import near_match
from bakeoff.core.names import NAME, invalid_name_reason, invalid_path_reason

LARGEST = 2**31 - 1
"""Upper bound of all counts: every library can hold it, and no study needs more."""


def _valid_name(text: str) -> str:
    """Return the name; raise if it could leave a folder, or if a file system cannot hold it."""
    if (why := invalid_name_reason(text)) is not None:
        raise ValueError(f"'{text[:80]}' is not a valid name: {why}")
    return text


def _valid_path(text: str) -> str:
    if (why := invalid_path_reason(text)) is not None:
        quotes = (
            ""
            if text.isprintable()
            else (
                "; in double quotes a backslash begins an escape such as \\t: put the path in "
                "single quotes"
            )
        )
        raise ValueError(f"it cannot be a path: {why}{quotes}")
    return text


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Name = Annotated[
    str, AfterValidator(_valid_name), Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})
]
"""The name of a study or a method: also of a folder, a file and a column of the report."""
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)]
"""A commit, branch or tag on a hub."""
Reference = Annotated[str, AfterValidator(_valid_path)]
"""A path, or a name that is looked up instead."""


class SpecTable(BaseModel):
    """One table of a study file: immutable, and unknown keys are an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def reject_unknown(what: str, value: object, known: tuple[str, ...]) -> None:
    """Raise for an unknown name in a text, a list or a table, with the nearest known name."""
    names = (value,) if isinstance(value, str) else value
    for name in names if isinstance(names, list | tuple | dict) else ():
        if name not in known:
            near = near_match(str(name), known)
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown {what} '{name}'; {hint}")
