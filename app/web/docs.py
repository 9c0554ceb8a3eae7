"""The JSON API's own page: drawn here from the OpenAPI document, so that no script comes from anywhere else."""

from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse, Response

from app.web import api_reference
from app.web.deps import SignedIn
from app.web.templating import render

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def docs(request: Request, principal: SignedIn) -> Response:
    document = public_document(request.app)
    sections = api_reference.sections(document, str(request.base_url))
    return render(request, "docs/index.html", sections=sections, errors_of=api_reference.ERRORS)


@router.get("/api/v1/openapi.json")
def openapi(request: Request, principal: SignedIn) -> Response:
    """For tools that generate clients."""
    return JSONResponse(public_document(request.app))


@lru_cache(maxsize=4)
def public_document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the public calls; they do not change while a process runs."""
    return api_reference.restrict(app.openapi())
