"""The first policy: the demo policy, built once on this machine, or whatever `MODEL` names."""

import shutil
import subprocess
import sys
from pathlib import Path

from sqlalchemy.orm import Session

from app.checkpoints import lineage
from app.checkpoints.models import Checkpoint
from app.core.db import ROOT
from app.core.errors import TiebreakError
from app.core.settings import settings
from app.demo import language

DEMO_POLICY = "demo policy"
DIALOGUES = 20_000
SEED = 7


def first_policy(session: Session) -> Checkpoint:
    """The checkpoint row of `MODEL`, or of the demo policy when it is unset."""
    given = settings().model
    return lineage.register_base(session, given) if given else lineage.register_base(session, str(home()), DEMO_POLICY)


def home() -> Path:
    return settings().data.resolve() / "models" / "demo-policy"


def build() -> None:
    """Build the demo policy unless it is there, showing its progress on the terminal. About a minute on two cores."""
    if settings().model or (home() / "MANIFEST.json").exists():
        return
    out = home().with_name("building")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    corpus = out / "corpus.jsonl"
    language.write_corpus(corpus, DIALOGUES, SEED)
    command = [sys.executable, "-m", "workers.training", "tiny", "--data", str(corpus), "--out", str(out / "out")]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode:
        raise TiebreakError("The demo policy could not be built; what went wrong stands above.")
    shutil.rmtree(home(), ignore_errors=True)
    (out / "out" / "checkpoint").rename(home())
    shutil.rmtree(out)
