"""Recipes: documented, bounded, strict."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from workers.training.recipes import RECIPES, DPORecipe


@pytest.mark.parametrize("stage", RECIPES)
def test_every_field_has_a_description_and_a_default_within_its_bounds(stage: str) -> None:
    recipe = RECIPES[stage]
    assert recipe(**recipe().model_dump()) == recipe()
    for name, field in recipe.model_fields.items():
        assert field.description, f"{stage}.{name} has no description"


def test_a_misspelt_key_and_a_value_out_of_bounds_are_errors() -> None:
    with pytest.raises(ValidationError, match="learning_rte"):
        DPORecipe(learning_rte=1e-4)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="beta"):
        DPORecipe(beta=0)


def test_recipes_records_errors_and_report_do_not_import_torch() -> None:
    program = (
        "import sys, workers.training.recipes, workers.training.records, workers.training.report, "
        "workers.training.errors, workers.training.checkpoints, workers.training.__main__;"
        "assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
