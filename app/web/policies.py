"""Deny by default: every route stands on a dependency that decides who may come in, or on the short list below.

`create_app()` refuses to start otherwise, so a forgotten check is found before anybody else finds it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute

PUBLIC = {
    "/static",  # style sheets and scripts
    "/livez",
    "/readyz",
    "/sign-in",
    "/sign-out",  # harmless without a session
    "/link/{secret}",  # the secret is the policy
    "/invite/{secret}",
}

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def policy(name: str) -> Callable[[Decorated], Decorated]:
    """Mark a dependency as one that decides who may come in: `@policy("lead of the campaign")`.

    The name is for people who read the table of routes. Such a dependency raises `NotSignedIn`, `NotFound` or
    `Forbidden`; whatever it returns is what the handler works with.
    """

    def mark(dependency: Decorated) -> Decorated:
        dependency.policy = name  # type: ignore[attr-defined]
        return dependency

    return mark


def routes_with_policies(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, set[str], set[str]]]:
    """For each route: its path, its methods, and the names of the policies that it stands on."""
    for route in iter_route_contexts(list(routes)):
        dependant = getattr(route, "dependant", None)
        names = set(_policies(dependant)) if dependant else set()
        yield getattr(route, "path", "") or "", set(getattr(route, "methods", None) or ()), names


def require_policies(routes: Iterable[BaseRoute]) -> None:
    """Raise unless every route has a policy or is public by the list above."""
    bare = [path for path, _, names in routes_with_policies(routes) if not names and path not in PUBLIC]
    if bare:
        raise RuntimeError(
            f"These routes let everybody in: {', '.join(bare)}. "
            "Give each a dependency marked with @policy (app.web.deps has the usual ones)."
        )


def _policies(dependant: Dependant) -> Iterator[str]:
    for part in dependant.dependencies:
        if name := getattr(part.call, "policy", None):
            yield name
        yield from _policies(part)
