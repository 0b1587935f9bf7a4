"""What every table of a study file is made of: frozen, unknown keys refused, words for types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from bakeoff.errors import near_match

Fraction = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """One table of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def refuse_unknown(what: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse unknown names in a text, a list or a table, with the near match."""
    names = (value,) if isinstance(value, str) else value
    for name in names if isinstance(names, list | tuple | dict) else ():
        if name not in known:
            near = near_match(str(name), known)
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown {what} '{name}'; {hint}")
