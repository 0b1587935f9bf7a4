"""Make text safe for logs, terminals and reports: remove secrets and control characters.

Data sets, model outputs, error messages and file names are untrusted input. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"
# C0 and C1 controls (terminal escapes among them) but newline and tab, the bidirectional
# overrides that make text read backwards, and lone surrogates, which UTF-8 cannot hold.
_CONTROL_CHARS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRET_NAME = re.compile(
    r"(?!TOKENIZERS_)(?!.*_(PATH|FILE|DIR|SOCK|URL|HOME)$)"
    r".*(TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL|PRIVATE_?KEY)",
    re.IGNORECASE,
)
_MIN_SECRET_LENGTH = 8
"""Shorter values of environment variables are not taken for secrets."""
_KEY_NAMES = (
    r"(?:pass(?:word|wd)|api[_-]?key|private[_-]?key|client[_-]?secret|"
    r"secret[_-]?(?:access[_-]?)?key|(?:access|auth|hf)[_-]?token)"
)
# every repetition is bounded: the text may be long, and written to make matching slow
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,20}KEY-----|$)",
        r"(?P<kept>\b(?:Bearer|Basic)\s{1,4})[A-Za-z0-9+/._~=-]{8,}",
        # https://user:secret@host, https://token@host
        r"(?P<kept>\b[a-z][a-z0-9+.-]{0,15}://)[^\s/\"'<>]{1,500}(?=@)",
        r"\bhf_[A-Za-z0-9]{10,}",
        r"\bapi_org_[A-Za-z0-9]{10,}",
        r"\bsk-[A-Za-z0-9_-]{16,}",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{10,}",
        r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # a JSON web token
        r"(?P<kept>[?&](?:x-amz-(?:signature|security-token|credential)|sig|signature|token|key)=)"
        r"[^\s&\"'<>]{6,}",
        r"(?P<kept>--(?:[a-z]{1,12}-){0,2}(?:token|password|key|secret)[ =])[^\s]{6,}",
        # password = x, "api_key": "x", AWS_SECRET_ACCESS_KEY=x
        rf"(?P<kept>(?<![a-z]){_KEY_NAMES}[\"']?\s{{0,4}}[=:]\s{{0,4}}[\"']?)[^\s\"',;&\[]{{6,}}",
    )
)


def strip_control_chars(text: str) -> str:
    """Return the text with U+FFFD in place of every control character."""
    return _CONTROL_CHARS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def escape_control_chars(text: str) -> str:
    """Return JSON text with control characters as escapes: the same value, safe to print."""
    return _CONTROL_CHARS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def redact(text: str) -> str:
    """Return the text without secrets: tokens and keys by their form, and this process's secrets.

    The latter are the values of environment variables with names such as ``HF_TOKEN``.
    """
    return _redact(text, _process_secrets(os.environ))


def redact_value(value: Any) -> Any:
    """Return a JSON value with every string in it redacted, including keys."""
    return _redact_value(value, _process_secrets(os.environ))


def sanitize(text: str) -> str:
    """Return the text without secrets and control characters."""
    return strip_control_chars(redact(text))


def _process_secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the secrets of this process, longest first: one may contain another."""
    found = {
        v for k, v in environment.items() if len(v) >= _MIN_SECRET_LENGTH and _SECRET_NAME.match(k)
    }
    return sorted((v for v in found if not v.isdigit()), key=len, reverse=True)


def _redact(text: str, secrets: Sequence[str]) -> str:
    for value in secrets:
        text = text.replace(value, REDACTED)
    for pattern in _SECRETS:
        text = pattern.sub(_replacement, text)
    return text


def _redact_value(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return _redact(value, secrets)
    if isinstance(value, dict):
        return {_redact(k, secrets) if isinstance(k, str) else k: _redact_value(v, secrets)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [_redact_value(v, secrets) for v in value]
    if isinstance(value, tuple):
        return tuple(_redact_value(v, secrets) for v in value)
    return value


def _replacement(match: re.Match[str]) -> str:
    return (match.groupdict().get("kept") or "") + REDACTED
