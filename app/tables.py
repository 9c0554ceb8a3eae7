"""Every mapped table. Rows refer to each other across slices, so whoever writes one needs all of them known."""

import importlib.util
import pkgutil

import app


def load() -> None:
    """Import each slice's models. Called by whatever starts a process: web, workers, command line, migrations."""
    for package in pkgutil.iter_modules(app.__path__):
        for part in ("models", "states", "audit"):
            name = f"app.{package.name}.{part}"
            if package.ispkg and importlib.util.find_spec(name):
                importlib.import_module(name)
