"""The web process: `uvicorn --factory app.main:create_app`. Imports nothing that imports torch (a test looks)."""

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.web import (
    account,
    activity,
    annotate,
    api,
    campaign_people,
    campaign_prompts,
    campaign_settings,
    campaigns,
    checkpoints,
    docs,
    errors,
    health,
    home,
    live,
    people,
    rounds,
    runs,
    signin,
)
from app.web.limits import BODY_LIMIT, FORM_LIMITS
from app.web.policies import require_policies
from app.web.security import Shield
from app.web.templating import STATIC

# One module per screen, each with a `router`. A new one is a line here.
SCREENS = (
    health,
    signin,
    account,
    people,
    docs,
    home,
    annotate,
    api,
    live,
    rounds,
    runs,
    checkpoints,
    activity,
    campaign_settings,
    campaign_people,
    campaign_prompts,
    campaigns,
)


def create_app() -> FastAPI:
    """The application. Raises when a route has no policy and is not public (`app.web.policies`)."""
    app = FastAPI(
        title="Tiebreak",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        form_limits=FORM_LIMITS,  # type: ignore[arg-type]
    )
    for screen in SCREENS:
        # The limit is set here and not on the application, where it would sit outside the Shield.
        app.include_router(screen.router, max_body_size=BODY_LIMIT)
    app.mount("/static", VersionedFiles(directory=STATIC), name="static")
    app.add_middleware(Shield)
    errors.install(app)
    require_policies(app.routes)
    return app


class VersionedFiles(StaticFiles):
    """Files that may be cached for ever under an address with their hash (`asset()`), and are checked otherwise."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        versioned = b"v=" in scope.get("query_string", b"")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if versioned else "no-cache"
        return response
