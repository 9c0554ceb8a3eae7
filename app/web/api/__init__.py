"""The JSON API under /api/v1: what scripts and other programs build on. Add freely, rename only with a deprecation."""

from fastapi import APIRouter

from app.web.api import annotation, campaigns, preferences, rounds, samples

router = APIRouter(prefix="/api/v1")
for part in (campaigns, annotation, preferences, rounds, samples):
    router.include_router(part.router)
