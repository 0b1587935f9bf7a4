"""Who may ask: the guard before every route, and the headers on every answer.

Data sets and answers are somebody's secrets, and every page that a browser shows can send requests
to this machine. So a request must name this server as its host (a name that was pointed here from
outside does not), must not come from another page, and must bear the token that was printed, or the
cookie that was given for it. Standard library and ASGI only.
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
"""What ``Sec-Fetch-Site`` may say: from one of our own pages, or typed by the user."""
EMPTY_STYLE_HASH = base64.b64encode(hashlib.sha256(b"").digest()).decode()
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # Plotly opens an empty style element and fills it through the CSSOM
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
CROSS_SITE = "Requests of other pages are refused: paste the address, do not follow a link to it."
TOKEN_REQUIRED = "Open the address that `bakeoff view` printed: it holds the token."


class Refusal(NamedTuple):
    """An answer in place of the one that was asked for; it tells nothing of any study."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


class Access:
    """What opens the view: a token a start, a code that works once, the cookie that they buy."""

    def __init__(self, port: int, hosts: Iterable[str] = LOOPBACK) -> None:
        """Make new secrets for a server on ``port`` that goes by the names ``hosts``."""
        self.token = secrets.token_urlsafe(32)
        self.once: str | None = secrets.token_urlsafe(32)
        """For the browser that is opened by us: its command line can be read by other accounts."""
        self._session = secrets.token_urlsafe(32)
        self.cookie = f"bakeoff-view-{port}"
        names = [f"[{h}]" if ":" in h else h for h in hosts]
        self.hosts = frozenset(f"{n}:{port}".lower() for n in names)
        if port == 80:
            self.hosts |= frozenset(n.lower() for n in names)

    def knows_token(self, given: str) -> bool:
        """Tell whether a token is right, in a time that does not depend on how nearly it is."""
        if self.once is not None and _equal_in_constant_time(given, self.once):
            self.once = None
            return True
        return _equal_in_constant_time(given, self.token)

    def knows_session(self, cookies: str) -> bool:
        """Tell whether a cookie header holds the cookie that was given."""
        try:
            found = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return found is not None and _equal_in_constant_time(found.value, self._session)

    @property
    def set_cookie(self) -> str:
        """The header that gives the cookie: no script reads it, no other site sends it."""
        return f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"


def host_names(host: str) -> tuple[str, ...]:
    """Return the names that a server bound to ``host`` goes by."""
    beyond = (socket.gethostname(), socket.getfqdn()) if host in ANY_ADDRESS else (host,)
    return tuple(dict.fromkeys((*LOOPBACK, *beyond)))


class Guard:
    """Stands before the application: refuses, or hands on; ``landing`` is where a token leads."""

    def __init__(self, app: Application, access: Access, landing: str = "/") -> None:
        self.app = app
        self.access = access
        self.landing = landing

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; whatever is no request over HTTP is refused."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(k, v) for k, v in message["headers"] if k.decode().lower() not in HEADERS]
                message["headers"] = kept + _encode_headers(HEADERS.items())
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, sealed)
            return
        text = refusal.text.encode()
        headers = (
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", str(len(text))),
        )
        start = {"type": "http.response.start", "status": refusal.status}
        await sealed({**start, "headers": _encode_headers((*headers, *refusal.headers))})
        await sealed({"type": "http.response.body", "body": text})

    def _refusal(self, scope: Message) -> Refusal | None:
        heads: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            heads.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = [h.lower() for h in heads.get("host", [])]
        if len(hosts) != 1 or hosts[0] not in self.access.hosts:
            return Refusal(421, "This server does not go by that name.\n")
        origins = {f"http://{h}" for h in self.access.hosts}
        if not set(heads.get("origin", [])) <= origins:
            return Refusal(403, CROSS_SITE + "\n")
        if not set(heads.get("sec-fetch-site", [])) <= set(SAME_SITE):
            return Refusal(403, CROSS_SITE + "\n")
        if scope["method"] != "GET":
            return Refusal(405, "Only GET.\n", (("allow", "GET"),))
        return self._unknown(scope, heads)

    def _unknown(self, scope: Message, heads: dict[str, list[str]]) -> Refusal | None:
        """Return the answer to who bears no cookie: the cookie for the right token, else no."""
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
        # on one path alone: a path that was sent is never an address to be led to
        if scope["path"] == "/" and given and self.access.knows_token(given[0]):
            to = (("location", self.landing), ("set-cookie", self.access.set_cookie))
            return Refusal(303, "", to)
        kind, _, bearer = heads.get("authorization", [""])[0].partition(" ")
        if kind.lower() == "bearer" and self.access.knows_token(bearer.strip()):
            return None
        if any(self.access.knows_session(c) for c in heads.get("cookie", [])):
            return None
        return Refusal(401, TOKEN_REQUIRED + "\n", (("www-authenticate", "Bearer"),))


def _equal_in_constant_time(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _encode_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
