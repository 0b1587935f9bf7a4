"""What keeps a report harmless: clean values, inert JSON, a strict content security policy.

Data sets, model outputs and error messages are written by strangers. Their text reaches the page
only through Jinja's autoescape or through ``inert_json``; the policy then forbids everything that
is not named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from bakeoff.core.redact import strip_control_chars


def clean(value: Any) -> Any:
    """Return a copy without control characters and with non-finite numbers as None."""
    if isinstance(value, str):
        return strip_control_chars(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(str(k)): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return value


def inert_json(value: Any) -> str:
    """Return JSON that cannot end or open an element when it stands inside a script block."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content_policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """Return the policy that allows exactly these inline scripts and styles, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(_hash_source(s) for s in scripts),
            "style-src " + " ".join(_hash_source(s) for s in styles),
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash_source(text: str) -> str:
    # A browser hashes what lies between the tags after it made \r\n into \n.
    if "\r" in text or re.search(r"</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError("this text cannot stand inline in a page without being changed or cut")
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
