"""Rules of the house that a reader relies on, held by looking at the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.db import ROOT

SOURCES = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("workers/**/*.py")])
OURS = [path for path in SOURCES if "training" not in path.parts]


def offenders(paths: list[Path], pattern: str, allowed: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        if str(path.relative_to(ROOT)) not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]


def test_only_the_transaction_commits() -> None:
    assert offenders(OURS, r"\b(session|db|connection)\.commit\(\)", {"app/core/db.py"}) == []


def test_nothing_is_ever_unpickled_or_run_from_a_model() -> None:
    assert offenders(SOURCES, r"import pickle|torch\.load\(|trust_remote_code\s*=\s*True", set()) == []


def test_only_the_renderer_makes_markup() -> None:
    assert offenders(OURS, r"\bMarkup\(", {"app/web/markdown.py", "app/web/templating.py"}) == []
    templates = sorted(ROOT.glob("templates/**/*.html"))
    assert offenders(templates, r"\|\s*safe\b|\son[a-z]+=|\sstyle=", set()) == []


def test_the_web_process_never_imports_torch() -> None:
    code = "import sys, app.main; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["workers.gpu", "workers.housekeeping"])
def test_neither_do_the_celery_workers(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "False"


def test_no_page_loads_anything_from_elsewhere() -> None:
    shown = sorted([*ROOT.glob("templates/**/*.html"), *ROOT.glob("static/*.css"), *ROOT.glob("static/*.js")])
    assert offenders(shown, r"""(src|href)=["']https?:|@import\s+["']?http|url\(["']?http|from ["']http""", set()) == []
