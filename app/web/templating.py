"""Pages: one Jinja environment that escapes everything and refuses undefined names, and `render`."""

import hashlib
import math
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.core.db import ROOT
from app.web import markdown
from app.web.cookies import drop_flash, read_flash, set_flash

STATIC = ROOT / "static"


def render(
    request: Request, template: str, *, fragment: str | None = None, status_code: int = 200, **context: Any
) -> Response:
    """The page, or, where htmx asks for a part of it and there is a `fragment`, that template alone.

    Every template sees `request`, `user` (None for nobody), `csrf_token`, `nonce`, `flash` and `errors` besides
    `context`; `errors.some_field` is empty where nothing is wrong with the field.
    """
    partial = fragment is not None and is_htmx(request)
    principal = getattr(request.state, "principal", None)
    flash = None if partial else read_flash(request)
    html = (
        environment()
        .get_template(fragment if partial and fragment else template)
        .render(
            request=request,
            user=principal.user if principal else None,
            csrf_token=principal.csrf_token if principal else "",
            nonce=request.state.nonce,
            request_id=request.state.request_id,
            flash=flash,
            errors=Errors(context.pop("errors", {})),
            **context,
        )
    )
    response = HTMLResponse(html, status_code, {"Vary": "HX-Request"} if fragment else None)
    if flash is not None:
        drop_flash(response)
    return response


class Errors(dict[str, str]):
    """What is wrong with the fields of a form."""

    def __missing__(self, field: str) -> str:
        return ""


def redirect(request: Request, to: str, *, flash: str = "", kind: str = "success") -> Response:
    """Go to another page after a form was handled; `flash` is shown there once (`kind`: success or danger)."""
    response: Response
    if is_htmx(request):
        response = Response(status_code=204, headers={"HX-Redirect": to})
    else:
        response = RedirectResponse(to, 303)
    if flash:
        set_flash(response, flash, kind)
    return response


def is_htmx(request: Request) -> bool:
    """True where htmx wants a fragment: not for boosted links and not when it restores a page from history."""
    headers = request.headers
    return "hx-request" in headers and "hx-boosted" not in headers and "hx-history-restore-request" not in headers


@cache
def environment() -> Environment:
    """The one Jinja environment."""
    made = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        ago=ago,
        exact=exact,
        number=number,
        percent=percent,
        duration=duration,
        plural=plural,
        markdown=markdown.render,
        visible=markdown.visible,
    )
    made.globals.update(asset=asset, import_map=import_map, now=lambda: datetime.now(UTC))
    return made


def asset(path: str) -> str:
    """The address of a file under static/, with its content's hash: it may be cached for ever."""
    return f"/static/{path}?v={_digest(path, (STATIC / path).stat().st_mtime_ns)}"


def import_map() -> dict[str, dict[str, str]]:
    """For `<script type="importmap">`: a module that imports `./app.js` gets the one that the page has loaded."""
    names = sorted(path.name for path in STATIC.glob("*.js"))
    return {"imports": {f"/static/{name}": asset(name) for name in names}}


@cache
def _digest(path: str, _changed: int) -> str:
    return hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]


def ago(moment: datetime) -> str:
    """`3 minutes ago`, `in 2 days`; `just now` within ten seconds."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    amount = abs(seconds)
    if amount < 10:
        return "just now"
    for size, noun in ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute")):
        if amount >= size:
            said = plural(round(amount / size), noun)
            break
    else:
        said = plural(int(amount), "second")
    return f"{said} ago" if seconds > 0 else f"in {said}"


def exact(moment: datetime) -> str:
    """`20 Nov 2026, 14:05:09 UTC`."""
    return f"{moment.astimezone(UTC):%-d %b %Y, %H:%M:%S} UTC"


def number(value: float | None, digits: int | None = None) -> str:
    """`12,345`; floats with three significant digits unless `digits` after the point are asked for; `–` for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(share: float | None, digits: int = 0) -> str:
    """`0.934` as `93 %`; `–` for None."""
    return "–" if share is None or not math.isfinite(share) else f"{share * 100:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `38 s`, `4 min 10 s`, `2 h 5 min`; `–` for None."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 campaign`, `2 campaigns`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
