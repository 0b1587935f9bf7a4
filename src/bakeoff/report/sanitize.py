"""Sanitise untrusted text in reports: clean values, inert JSON, a content security policy.

Data sets, model outputs and error messages are untrusted input. Their text reaches the page only
through Jinja's autoescape or ``inert_json``. The policy allows only the page's own scripts and
styles, by hash.
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
    """Return JSON that cannot open or close an element inside a script block."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content_policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """Return a policy that allows only these inline scripts and styles."""
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
    # A browser normalises \r\n to \n before it hashes the text between the tags.
    if "\r" in text or re.search(r"</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError("a browser would change or cut this text inline in a page")
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
