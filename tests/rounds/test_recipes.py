"""What a round's recipe may ask for."""

import pytest

from app.core.errors import Invalid
from app.rounds import recipes


@pytest.mark.parametrize("stage", ["reward", "dpo", "ppo"])
def test_a_round_does_not_store_adapters_without_their_base(stage: str) -> None:
    assert recipes.parse({stage: {"lora": {"r": 4}}}).stage(stage)["lora"]["r"] == 4
    with pytest.raises(Invalid, match=f"leave {stage}.lora.save_adapter off"):
        recipes.parse({stage: {"lora": {"r": 4, "save_adapter": True}}})
