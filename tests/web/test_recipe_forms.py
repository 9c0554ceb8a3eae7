"""The recipe's form and the recipe are the same thing."""

import pytest

from app.rounds import recipes
from app.web import recipe_forms

DEFAULTS = recipe_forms.values(recipes.parse({}))


def test_the_untouched_form_stores_nothing() -> None:
    read = recipe_forms.read(DEFAULTS)
    assert (read.overrides, read.errors) == ({}, {})


@pytest.mark.parametrize(
    "stored",
    [
        {"method": "ppo", "batch_prompts": 7, "every_hours": 1.5},
        {"reward": {"learning_rate": 3e-05, "seed": 4}, "ppo": {"steps": 12, "target_kl": 6.0, "whiten_rewards": True}},
        {
            "dpo": {"lora": {"r": 8}, "loss": "ipo", "length_normalised": True},
            "sample": {"distinct": False, "stop": "Q:"},
        },
        {"gates": [{"metric": "kl", "at_most": 9.0}]},
        {"gates": []},
    ],
)
def test_what_is_stored_comes_back_from_the_form(stored: dict[str, object]) -> None:
    read = recipe_forms.read(recipe_forms.values(recipes.parse(stored)))
    assert not read.errors
    assert read.overrides == stored


def test_every_field_of_every_stage_has_a_control_with_words() -> None:
    for stage in recipe_forms.stages():
        model = recipes.RoundRecipe.model_fields[stage.name].annotation
        assert model is not None
        assert {c.name.split(".")[1] for c in stage.controls} == set(model.model_fields)
        assert all(c.hint and c.label for c in stage.controls)


def test_what_is_typed_into_a_part_that_is_not_ticked_is_not_stored() -> None:
    read = recipe_forms.read(DEFAULTS | {"ppo.lora.r": "999999"})
    assert (read.overrides, read.errors) == ({}, {})


def test_numbers_may_have_separators_and_nothing_means_the_default() -> None:
    read = recipe_forms.read(DEFAULTS | {"every_annotations": "1,500", "reward.batch_size": "  "})
    assert read.overrides == {"every_annotations": 1500}


@pytest.mark.parametrize("typed", ["inf", "1e400", "-", "2.5", "٣x"])
def test_what_is_no_whole_number_is_refused_with_the_bounds(typed: str) -> None:
    read = recipe_forms.read(DEFAULTS | {"reward.batch_size": typed})
    assert read.errors == {"reward.batch_size": "Enter a whole number from 1 to 65,536."}


def test_a_text_that_is_too_long_is_refused_beside_its_input() -> None:
    assert recipe_forms.read(DEFAULTS | {"sample.stop": "x" * 201}).errors == {
        "sample.stop": "Enter a shorter text, or nothing."
    }


def test_a_stage_says_how_many_of_its_values_were_changed() -> None:
    [reward] = [stage for stage in recipe_forms.stages() if stage.name == "reward"]
    assert recipe_forms.changed(DEFAULTS, reward) == 0
    assert recipe_forms.changed(DEFAULTS | {"reward.epochs": "2", "reward.lora": "yes"}, reward) == 2
