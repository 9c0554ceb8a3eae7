"""What the documents say is what the code does."""

import re
import runpy

from app.core.db import ROOT


def test_the_page_of_state_machines_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_states.py"))
    said = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    assert said == script["page"](), "run: python scripts/write_states.py"


def test_the_readme_names_every_folder_of_the_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in ("app", "workers", "workers/training", "migrations", "templates", "static", "tests", "docs"):
        assert f"{folder}/" in readme, folder


def test_the_readmes_commands_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", readme)) <= targets
