"""One trunk for several networks: under LoRA, policy, value and reward model are adapters on one set of weights.

The reference is the trunk with no adapter. Outside of `reading()` the first adapter of a trunk is the active one (the
policy's), and inside it that of the network whose turn it is: peft lets an adapter learn only while it is active, so
a backward pass belongs inside, together with its forward pass.

Who shares with whom:

    value model starts at zero                             policy + reference + value | reward model
    it starts as the reward model, which is a whole model  policy + reference | value + reward model
    the reward model is an adapter on the policy's base    policy + reference + value + reward model
"""

import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from workers.training import nets
from workers.training.checkpoints import check_model_directory, fingerprint
from workers.training.errors import ModelError
from workers.training.layout import Batch
from workers.training.nets import ADAPTED_HEAD, ADAPTER, Net, Policy, Scorer
from workers.training.recipes import Lora, PPORecipe


class Headed(nn.Module):
    """A backbone that somebody else may hold too, with a scalar head of its own: what `Scorer` needs of a model."""

    def __init__(self, backbone: nn.Module, config: Any, weight: Tensor) -> None:
        """`weight`: (M, d) of the heads."""
        super().__init__()
        self.base_model, self.config = backbone, config
        self.score = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        with torch.no_grad():
            self.score.weight.copy_(weight.float())

    def get_input_embeddings(self) -> Any:
        """The backbone's."""
        return self.base_model.get_input_embeddings()  # type: ignore[operator]


class OnTrunk(Scorer):
    """A scorer that reads the trunk of another network through an adapter of its own, or through none."""

    def __init__(self, trunk: Net, adapter: str | None, weight: Tensor, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(Headed(trunk.model.base_model, trunk.model.config, weight), trunk.codec, trunk.precision)
        self.trunk, self.adapter, self.mean, self.std, self.likelihood = trunk, adapter, mean, std, None
        self._has_its_turn = False

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Its adapter and its head."""
        named = self.model.named_parameters()
        return [(n, p) for n, p in named if n == "score.weight" or f".{self.adapter}." in n]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The trunk reads through this scorer's adapter, then through the policy's again."""
        if self._has_its_turn:
            yield
            return
        self._has_its_turn = True
        try:
            with self._switched():
                yield
        finally:
            self._has_its_turn = False

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states of all tokens (B·L, d), through the adapter."""
        if torch.is_grad_enabled() and self.adapter and not self._has_its_turn:
            raise RuntimeError("forward and backward of a shared trunk belong inside reading()")
        with self.reading():
            return super().states(batch)

    def _switched(self) -> AbstractContextManager[None]:
        peft: Any = self.trunk.peft
        return peft.disable_adapter() if self.adapter is None else _active(peft, self.adapter)


@contextmanager
def _active(peft: Any, adapter: str) -> Iterator[None]:
    before = peft.active_adapter
    peft.set_adapter(adapter)
    try:
        yield
    finally:
        peft.set_adapter(before)


def reward_and_value(recipe: PPORecipe, policy: Policy, model: str, reward_model: str) -> tuple[Scorer, Scorer]:
    """The frozen reward model and the value model to train, on as few copies of the weights as can be."""
    if is_adapter_on(reward_model, model):
        if recipe.lora is None:
            raise ModelError("The reward model is an adapter: set lora, or train the reward model whole.")
        scorer = _reward_adapter(policy, Path(reward_model))
        return scorer, _value_adapter(
            recipe.lora, recipe.seed, policy, scorer if recipe.value_init == "reward" else None
        )
    scorer = nets.load_reward_model(reward_model, recipe.precision)
    nets.same_tokens(policy, scorer)
    scorer.freeze()
    if recipe.value_init == "zero":
        if recipe.lora:
            return scorer, _value_adapter(recipe.lora, recipe.seed, policy, None)
        backbone = copy.deepcopy(policy.model.base_model).requires_grad_(True)
        head = Headed(backbone, policy.model.config, _zeros(policy))
        return scorer, Scorer(head, policy.codec, recipe.precision)
    if recipe.lora is None:
        return scorer, scorer.as_critic(recipe.precision, None, recipe.seed)
    return _beside(scorer, recipe.lora, recipe.seed)


def _beside(scorer: Scorer, lora: Lora, seed: int) -> tuple[Scorer, Scorer]:
    """A reward model as trunk: read through no adapter it is itself, through its adapter it is the value model."""
    weight, start = scorer.model.score.weight.detach(), scorer.value_head()
    scorer.peft = nets.attach(scorer.model, lora, seed)
    reward = OnTrunk(scorer, None, weight)
    reward.recall(scorer.model.config)
    reward.model.score.requires_grad_(False)
    return reward, OnTrunk(scorer, "default", *start)


def is_adapter_on(reward_model: str, model: str) -> bool:
    """Whether a reward model was saved as an adapter on the very weights that the policy starts from."""
    if not (Path(reward_model) / ADAPTER).is_file():
        return False
    base = _config(Path(reward_model)).get("base_model_name_or_path")
    return bool(base) and fingerprint(base) == fingerprint(model)


def _reward_adapter(policy: Policy, directory: Path) -> Scorer:
    """The reward model of an adapter directory on the policy's trunk, frozen."""
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    check_model_directory(directory)
    tensors = load_file(directory / "adapter_model.safetensors")
    if (head := tensors.pop(ADAPTED_HEAD, None)) is None:
        raise ModelError(f"{directory.name} has no head: save the reward model with its 'score' layer.")
    read = {**_config(directory), "modules_to_save": None, "task_type": None, "inference_mode": False}
    peft: Any = policy.peft
    with torch.random.fork_rng():
        peft.add_adapter("reward", LoraConfig(**read))
    set_peft_model_state_dict(peft, tensors, adapter_name="reward")
    scorer = OnTrunk(policy, "reward", head.to(policy.device))
    scorer.recall(SimpleNamespace(**json.loads((directory / "config.json").read_text())))
    scorer.model.score.requires_grad_(False)
    return scorer


def _value_adapter(lora: Lora, seed: int, policy: Policy, start: Scorer | None) -> Scorer:
    """A value model on the policy's trunk: like the reward adapter to begin with, or worth nothing everywhere."""
    peft: Any = policy.peft
    config = copy.deepcopy(peft.peft_config["default" if start is None else "reward"])
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)  # adapters of policy and value must not start alike
        peft.add_adapter("value", config)
    if start is None:
        return OnTrunk(policy, "value", _zeros(policy))
    weights = dict(policy.model.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            if ".value." in name:
                parameter.copy_(weights[name.replace(".value.", ".reward.")])
    return OnTrunk(policy, "value", *start.value_head())


def _config(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / ADAPTER).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{directory.name}/{ADAPTER} is not a readable JSON object.") from error


def _zeros(policy: Policy) -> Tensor:
    return torch.zeros(1, policy.model.config.get_text_config().hidden_size, device=policy.device)
