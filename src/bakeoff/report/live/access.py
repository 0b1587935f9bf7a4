"""Access control for the live view: checks before every route, security headers on every response.

Data and predictions are confidential, and any page in a browser can send requests to this machine.
So a request must name this server as its host (which blocks DNS rebinding), must not come from
another site, and must carry the printed token or the session cookie that was issued for it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
SAME_SITE = ("same-origin", "none")
"""Accepted values of ``Sec-Fetch-Site``: this view's own pages, or a typed address."""
EMPTY_STYLE_HASH = base64.b64encode(hashlib.sha256(b"").digest()).decode()
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # Plotly adds an empty style element and fills it through the CSSOM
        f"style-src 'self' 'sha256-{EMPTY_STYLE_HASH}'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
CROSS_SITE = "Requests from other pages are refused: paste the address instead of following a link."
TOKEN_REQUIRED = "Open the address that `bakeoff view` printed: it contains the token."


class Refusal(NamedTuple):
    """The response to a rejected request; it reveals nothing about any study."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


class Access:
    """The credentials of one server: a token, a single-use code, and the session cookie."""

    def __init__(self, port: int, hosts: Iterable[str] = LOOPBACK) -> None:
        """Create new secrets for a server on ``port`` with the host names ``hosts``."""
        self.token = secrets.token_urlsafe(32)
        self.single_use_code: str | None = secrets.token_urlsafe(32)
        """For the browser that bakeoff opens: other accounts can read its command line."""
        self._session = secrets.token_urlsafe(32)
        self.cookie = f"bakeoff-view-{port}"
        names = [f"[{h}]" if ":" in h else h for h in hosts]
        self.hosts = frozenset(f"{n}:{port}".lower() for n in names)
        if port == 80:
            self.hosts |= frozenset(n.lower() for n in names)

    def accepts_token(self, token: str) -> bool:
        """Tell whether a token is valid, in constant time; consumes the single-use code."""
        code = self.single_use_code
        if code is not None and _equal_in_constant_time(token, code):
            self.single_use_code = None
            return True
        return _equal_in_constant_time(token, self.token)

    def accepts_session(self, cookies: str) -> bool:
        """Tell whether a cookie header contains the session cookie."""
        try:
            cookie = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return cookie is not None and _equal_in_constant_time(cookie.value, self._session)

    @property
    def set_cookie(self) -> str:
        """The header that sets the cookie, hidden from scripts and not sent by other sites."""
        return f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"


def host_names(host: str) -> tuple[str, ...]:
    """Return the host names of a server bound to ``host``."""
    names = (socket.gethostname(), socket.getfqdn()) if host in ANY_ADDRESS else (host,)
    return tuple(dict.fromkeys((*LOOPBACK, *names)))


class Guard:
    """ASGI middleware that rejects unauthorised requests; a token redirects to ``landing``."""

    def __init__(self, app: Application, access: Access, landing: str = "/") -> None:
        self.app = app
        self.access = access
        self.landing = landing

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request; only HTTP is accepted."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (k, v) for k, v in message["headers"] if k.decode().lower() not in HEADERS
                ]
                message["headers"] = headers + _encode_headers(HEADERS.items())
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
            return
        text = refusal.text.encode()
        headers = (
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", str(len(text))),
        )
        start = {"type": "http.response.start", "status": refusal.status}
        await send_with_headers({**start, "headers": _encode_headers((*headers, *refusal.headers))})
        await send_with_headers({"type": "http.response.body", "body": text})

    def _refusal(self, scope: Message) -> Refusal | None:
        heads: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            heads.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = [h.lower() for h in heads.get("host", [])]
        if len(hosts) != 1 or hosts[0] not in self.access.hosts:
            return Refusal(421, "Unknown host name.\n")
        origins = {f"http://{h}" for h in self.access.hosts}
        if not set(heads.get("origin", [])) <= origins:
            return Refusal(403, CROSS_SITE + "\n")
        if not set(heads.get("sec-fetch-site", [])) <= set(SAME_SITE):
            return Refusal(403, CROSS_SITE + "\n")
        if scope["method"] != "GET":
            return Refusal(405, "Only GET is allowed.\n", (("allow", "GET"),))
        return self._authenticate(scope, heads)

    def _authenticate(self, scope: Message, heads: dict[str, list[str]]) -> Refusal | None:
        """Return None for a valid cookie or bearer token; else a redirect (URL token) or a 401."""
        tokens = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
        # only on one path: a path from the request is never used as a redirect target
        if scope["path"] == "/" and tokens and self.access.accepts_token(tokens[0]):
            headers = (("location", self.landing), ("set-cookie", self.access.set_cookie))
            return Refusal(303, "", headers)
        kind, _, bearer = heads.get("authorization", [""])[0].partition(" ")
        if kind.lower() == "bearer" and self.access.accepts_token(bearer.strip()):
            return None
        if any(self.access.accepts_session(c) for c in heads.get("cookie", [])):
            return None
        return Refusal(401, TOKEN_REQUIRED + "\n", (("www-authenticate", "Bearer"),))


def _equal_in_constant_time(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _encode_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
