"""Small worlds whose best policy is known, for online trainers: a bandit with a KL penalty, and copying."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from workers.training.layout import collate
from workers.training.nets import Policy
from workers.training.tokens import Codec, Example

ACTIONS = 12
END = ACTIONS - 1


def tiny_policy(seed: int, spread: float, hidden: int = 16) -> Policy:
    """Two layers over `ACTIONS` tokens; the larger `spread`, the further its distributions are from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=ACTIONS, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, initializer_range=spread,
        bos_token_id=None, eos_token_id=END, pad_token_id=None,
    )  # fmt: skip
    tokenizer = SimpleNamespace(eos_token_id=END)
    return Policy(LlamaForCausalLM(config), Codec(tokenizer))


@dataclass
class Bandit:
    """One prompt token x, one completion token a, reward R(x, a), and β KL(π ‖ π_ref) to pay.

    Optimum: π*(a|x) ∝ π_ref(a|x) e^{R(x,a)/β}, worth J* = β E_x log Σ_a π_ref(a|x) e^{R(x,a)/β}.
    """

    reference: Tensor  # log π_ref (X, A)
    rewards: Tensor  # (X, A)
    beta: float

    @property
    def best(self) -> Tensor:
        """log π* (X, A)."""
        return (self.reference + self.rewards / self.beta).log_softmax(1)

    def worth(self, log_probs: Tensor) -> float:
        """J(π) = E_x Σ_a π (R - β (log π - log π_ref))."""
        return float((log_probs.exp() * (self.rewards - self.beta * (log_probs - self.reference))).sum(1).mean())

    def kl(self, log_probs: Tensor) -> float:
        """KL(π ‖ π_ref), mean over x."""
        return float((log_probs.exp() * (log_probs - self.reference)).sum(1).mean())

    def gap_closed(self, log_probs: Tensor) -> float:
        """0 at the reference, 1 at the optimum."""
        start = self.worth(self.reference)
        return (self.worth(log_probs) - start) / (self.worth(self.best) - start)

    def distance(self, log_probs: Tensor) -> float:
        """Total variation from the optimum, mean over x."""
        return float(0.5 * (log_probs.exp() - self.best.exp()).abs().sum(1).mean())

    def rate(self, examples: Sequence[Example], _: int = 0) -> list[float]:
        """R of each example."""
        rows = torch.tensor([(e.prompt[-1], e.completion[0]) for e in examples])
        return list(self.rewards[rows[:, 0], rows[:, 1]].tolist())


@torch.no_grad()
def table(policy: Policy, prompts: int) -> Tensor:
    """log π(a|x) of all actions after each one-token prompt: (X, A)."""
    examples = [Example([x], [a]) for x in range(prompts) for a in range(ACTIONS)]
    return policy.log_probs(collate(examples)).reshape(prompts, ACTIONS)


def copied(examples: Sequence[Example], _: int = 0) -> list[float]:
    """Share of the completion's tokens that repeat the prompt's last one."""
    return [sum(token == e.prompt[-1] for token in e.completion) / len(e.completion) for e in examples]
