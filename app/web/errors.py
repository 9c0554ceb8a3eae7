"""One place that turns an error into an answer: a page for people, `application/problem+json` for programs."""

from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from app.core.db import transaction
from app.core.errors import Invalid, NotFound, NotSignedIn, TiebreakError, TooLarge, TooMany
from app.web.deps import caller
from app.web.templating import render

TOO_LARGE = "This is more than one request may carry. Send less at once, or split the file."

WHAT_TO_DO = {
    403: "If you should be able to do this, ask whoever invited you.",
    404: "Check the address, or start from the front page. It may also be something that nobody has let you into yet.",
    405: "Go back and use the buttons of the page.",
    409: "Go back, reload the page and look at how things stand now.",
    410: "Whoever sent it to you can make a new one in a moment.",
    413: "Go back and send a smaller part.",
    422: "Go back, mend it and send it again.",
    429: "Nothing is locked for good. Wait a little, then try again.",
}


class Plain(TiebreakError):
    """An HTTP error that has no class of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.title = HTTPStatus(status).phrase


def install(app: FastAPI) -> None:
    """Answer every kind of error through `respond`. What is left over is caught by `security.Shield`."""
    app.add_exception_handler(TiebreakError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)


def _on_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, TiebreakError)
    return respond(request, error)


def _on_validation(request: Request, error: Exception) -> Response:
    """What was sent is not repeated in the answer: it may hold a password."""
    assert isinstance(error, RequestValidationError)
    faults = [{"field": _field(fault["loc"]), "message": fault["msg"]} for fault in error.errors()]
    said = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults[:5])
    return respond(request, Invalid(f"Some of what was sent does not fit. {said}.", errors=faults))


def _field(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location if part not in ("body", "query", "path")) or "request"


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known: dict[int, TiebreakError] = {
        404: NotFound("There is no page at this address."),
        405: Plain(405, "This address exists, but not for this kind of request."),
        413: TooLarge(TOO_LARGE),
    }
    # A field longer than FORM_LIMITS allows is a 400 to Starlette.
    status = 413 if str(error.detail).startswith("Part exceeded maximum size") else error.status_code
    response = respond(request, known.get(status) or Plain(status, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


def wants_json(request: Request) -> bool:
    """True for the JSON API, and for whoever asks for JSON or a stream and not for HTML."""
    accept = request.headers.get("accept", "")
    return request.url.path.startswith("/api/") or (
        ("json" in accept or "event-stream" in accept) and "text/html" not in accept
    )


def respond(request: Request, error: TiebreakError) -> Response:
    """The answer to `error`, in the form that the caller understands."""
    if wants_json(request):
        response = _problem(request, error)
    elif isinstance(error, NotSignedIn):
        response = _to_sign_in(request)
    else:
        response = _page(request, error)
    if isinstance(error, TooMany):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _problem(request: Request, error: TiebreakError) -> Response:
    body = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "request_id": request.state.request_id,
        **error.details,
    }
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(body, error.status, headers, "application/problem+json")


def _page(request: Request, error: TiebreakError) -> Response:
    if error.status == 404 and not hasattr(request.state, "principal"):
        _recognise(request)
    return render(
        request,
        "error.html",
        fragment="_error.html",
        status_code=error.status,
        error=error,
        what_to_do=WHAT_TO_DO.get(error.status, ""),
    )


def _recognise(request: Request) -> None:
    """No route, hence no dependency that looked who is calling; the page still greets people as it does elsewhere."""
    try:
        with transaction() as session:
            request.state.principal = caller(request, session, "") if request.method == "GET" else None
    except (SQLAlchemyError, TiebreakError):
        request.state.principal = None


def _to_sign_in(request: Request) -> Response:
    """To the sign-in page, and from there back to where the person was."""
    here = request.headers.get("hx-current-url") or request.headers.get("referer") or ""
    if request.method == "GET" and "hx-request" not in request.headers:
        here = str(request.url)
    parts = urlsplit(here)
    back = parts.path + (f"?{parts.query}" if parts.query else "")
    to = "/sign-in" + (f"?next={quote(back)}" if safe_next(back) != "/" else "")
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": to})
    return RedirectResponse(to, 303)


def safe_next(target: str | None) -> str:
    """`target` if it is a path on this site, else the start page: a sign-in must not send people elsewhere."""
    if not target or not target.startswith("/") or len(target) > 2000:
        return "/"
    # Browsers read `//host` and `/\host` as another host, and drop tabs and line ends before they look.
    if target[1:2] in ("/", "\\") or any(ord(letter) < 33 or letter == "\\" for letter in target):
        return "/"
    return target
