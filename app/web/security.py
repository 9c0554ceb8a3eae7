"""Around every request: its id, its content security policy, the same-site check, and a last resort for errors.

Pure ASGI, and outside everything else, so that no response leaves without the headers: error pages included.
"""

import logging
import secrets
import time
import uuid
from urllib.parse import urlsplit

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import Forbidden, TiebreakError, TooLarge
from app.core.settings import settings
from app.web import errors
from app.web.cookies import is_https, session_cookie_name
from app.web.deps import SAFE_METHODS

log = logging.getLogger("tiebreak.web")

# htmx puts fragments into the page with innerHTML; static/boot.js makes the one Trusted Types policy that it needs.
PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types default"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"

FIXED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: it would make browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()",
}


class Unavailable(TiebreakError):
    status = 503
    title = "Not available just now"


class Broken(TiebreakError):
    status = 500
    title = "Something went wrong on our side"


class Shield:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["nonce"] = secrets.token_urlsafe(16)
        state["request_id"] = uuid.uuid4().hex[:12]
        reply = Reply(scope, receive, send)
        try:
            check_same_site(scope)
            await self.app(scope, receive, reply.send)
        except Exception as error:
            if reply.started:
                raise
            await reply.explain(as_ours(error, scope))
        reply.log()


class Reply:
    """The response on its way out: headers added, a bare 413 put into words, the time taken."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.forward = scope, receive, send
        self.since = time.perf_counter()
        self.started = False
        self.replaced = False
        self.status = 0

    async def send(self, message: Message) -> None:
        if self.replaced:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if message["status"] == 413 and headers.get("content-type", "").startswith("text/plain"):
                # The framework's own two words, sent when the declared length is already too much.
                self.replaced = True
                await self.explain(TooLarge(errors.TOO_LARGE))
                return
            self.started, self.status = True, message["status"]
            self.add_headers(headers)
        await self.forward(message)

    async def explain(self, error: TiebreakError) -> None:
        """Send the page or the problem document for `error` instead of what was on its way."""
        try:
            response = errors.respond(Request(self.scope, self.receive), error)
        except Exception:  # a page that cannot be drawn must not cost the person the message
            log.exception("the error page of request %s failed", self.scope["state"]["request_id"])
            response = PlainTextResponse(f"{error.title}. {error.message}", error.status)
        self.started, self.status = True, response.status_code
        self.add_headers(response.headers)
        await response(self.scope, self.receive, self.forward)

    def add_headers(self, headers: MutableHeaders) -> None:
        state = self.scope["state"]
        for name, value in FIXED.items():
            headers.setdefault(name, value)
        page = headers.get("content-type", "").startswith("text/html")
        headers["Content-Security-Policy"] = PAGE_POLICY.format(nonce=state["nonce"]) if page else DATA_POLICY
        headers.setdefault("Cache-Control", "no-store")
        headers["X-Request-Id"] = state["request_id"]
        headers.setdefault("Server-Timing", f"app;dur={self.milliseconds():.1f}")
        if is_https():
            headers["Strict-Transport-Security"] = "max-age=31536000"

    def milliseconds(self) -> float:
        return (time.perf_counter() - self.since) * 1000

    def log(self) -> None:
        """One line a request, with the route's pattern: addresses may hold the secrets of one-time links."""
        route = self.scope.get("route")
        path = getattr(route, "path", None) or "(no route)"
        log.info(
            "%s %s %d %.0f ms [%s]",
            self.scope["method"],
            path,
            self.status,
            self.milliseconds(),
            self.scope["state"]["request_id"],
        )


def as_ours(error: Exception, scope: Scope) -> TiebreakError:
    """What to tell the person about an error that nobody expected. The details go to the log alone."""
    if isinstance(error, TiebreakError):
        return error
    log.error("request %s failed", scope["state"]["request_id"], exc_info=error)
    if isinstance(error, OperationalError | PoolTimeout):
        return Unavailable("The database does not answer at this moment. Nothing was changed. Try again in a minute.")
    return Broken("Nothing was changed. Try again; if it happens once more, tell whoever runs this site.")


def check_same_site(scope: Scope) -> None:
    """Raise `Forbidden` for a request from another site that would change something.

    A request with an Authorization header was made by a program: no browser adds one by itself. For the others the
    browser says where they come from, in Sec-Fetch-Site, or in Origin where the former is not sent (plain HTTP).
    """
    headers = Headers(scope=scope)
    if scope["method"] in SAFE_METHODS or "authorization" in headers:
        return
    cookies = headers.get("cookie", "")
    if scope["path"].startswith("/api/") and session_cookie_name() not in cookies:
        return  # will be told to authenticate
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        same = site in ("same-origin", "none")
    else:
        ours = {headers.get("host", ""), urlsplit(settings().public_url).netloc}
        same = origin is not None and urlsplit(origin).netloc in ours
    if not same:
        raise Forbidden(
            "This request came from another site, so nothing was changed. Open the page here and try again."
        )
