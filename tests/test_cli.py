"""The command line as processes of their own, on a data directory of their own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.db import ROOT
from app.core.embedded import services
from app.core.settings import Settings

Run = Callable[..., subprocess.CompletedProcess[str]]

NEW_CAMPAIGN = """
from app import tables
from app.core.db import transaction
from app.core.embedded import provided
from tests.factories import make_campaign

tables.load()
with provided(), transaction() as session:
    print(make_campaign(session).id)
"""


@pytest.fixture(scope="module")
def tiebreak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    data = tmp_path_factory.mktemp("cli")
    environment = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")}
    environment["TIEBREAK_DATA"] = str(data)

    def run(*arguments: str, script: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script] if script else [sys.executable, "-m", "app", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    # Held open meanwhile, so that each command finds the servers up.
    with services(Settings(TIEBREAK_DATA=data, DATABASE_URL="", REDIS_URL="")):
        yield run


def test_a_new_users_token_stands_alone_on_the_last_line(tiebreak: Run) -> None:
    said = tiebreak("user", "create", "ann@example.org", "--role", "lead", "--print-token")
    assert said.returncode == 0, said.stderr
    assert re.fullmatch(r"tb_[\w-]{43}", said.stdout.splitlines()[-1])


def test_without_a_token_a_one_time_link_is_printed(tiebreak: Run) -> None:
    said = tiebreak("user", "create", "bob@example.org", "--role", "annotator")
    assert "/link/" in said.stdout.splitlines()[-1]
    assert "/invite/" in tiebreak("user", "invite", "carl@example.org", "--role", "annotator").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("user", "create", "x@example.org", "--role", "king"), "--role must be one of admin, lead, annotator"),
        (("user", "create", "not an address", "--role", "lead"), "address"),
        (("model", "add", "/nowhere"), "neither a directory nor a hub id"),
        (("import", "/nowhere.jsonl", "--campaign", "x"), "is not a file"),
        (("export", "--campaign", "x"), "no such campaign"),
        (("simulate", "--method", "magic"), "dpo or ppo"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_1(tiebreak: Run, arguments: tuple[str, ...], says: str) -> None:
    said = tiebreak(*arguments)
    assert said.returncode == 1 and says in said.stderr and "Traceback" not in said.stderr


def test_a_model_without_a_chat_template_is_refused_with_what_to_do(tiebreak: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    said = tiebreak("model", "add", str(tmp_path))
    assert said.returncode == 1 and "has no chat template: add one" in said.stderr


def test_a_hub_model_is_registered(tiebreak: Run) -> None:
    said = tiebreak("model", "add", "Qwen/Qwen2.5-0.5B-Instruct")
    assert said.returncode == 0 and len(said.stdout.strip()) == 36


def test_import_and_export_are_each_others_inverse(tiebreak: Run, tmp_path: Path) -> None:
    made = tiebreak(script=NEW_CAMPAIGN).stdout.strip()
    rows = [{"prompt": f"Q{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(5)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "{oops"]))
    said = tiebreak("import", str(file), "--campaign", made)
    assert said.returncode == 0 and "5 comparisons imported" in said.stdout and "line 6" in said.stderr
    back = [json.loads(line) for line in tiebreak("export", "--campaign", made).stdout.splitlines()]
    pairs = {(r["prompt"][0]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in back}
    assert pairs == {(r["prompt"], r["chosen"], r["rejected"]) for r in rows}
