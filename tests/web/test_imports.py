"""The web process stays small."""

import subprocess
import sys

from app.core.db import ROOT


def test_the_web_process_never_imports_torch() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'accelerate', 'numpy', 'trl'}"
    code = f"import sys, app.main; app.main.create_app(); print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
