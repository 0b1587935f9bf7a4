"""How the methods of the report fixture ran: most with everything, a few without."""

from __future__ import annotations

from typing import Any

SWITCHES = ("lanes", "packing", "loss", "compile", "graphs", "lean_inputs")
UNWISHED = ("compile", "graphs")

DIFFERS = "losses or gradients differ from the same trials alone by 0.31 (relative)"
NOT_SHARED = "its frozen tensors differ by seed (encoder.layer.0.attention.self.query.vera_A)"
NOT_PACKABLE = "one of its layers averages over all tokens, padding included"

_OFF = {
    "vera": {"lanes": NOT_SHARED},
    "full": {"packing": NOT_PACKABLE},
    "head": {"packing": NOT_PACKABLE},
    "dora": {"lanes": DIFFERS, "lean_inputs": DIFFERS, "packing": NOT_PACKABLE},
}


def engine(method: str) -> dict[str, Any]:
    """Return a method's ``engine`` as the report has it."""
    failed = _OFF.get(method, {})
    off = {n: failed.get(n) for n in SWITCHES if n in failed or n in UNWISHED}
    on = [n for n in SWITCHES if n not in off]
    return {"lanes": 3 if "lanes" in on else 1, "on": on, "off": off}
