"""From one score per completion to one advantage per token: KL-shaped rewards, GAE, whitening.

Shapes: (B, R), B completions of at most R tokens, `mask` true at the tokens that the policy wrote. It may have holes,
where a tool or a user spoke in between: nothing is learned there, and what follows carries over them.
"""

import torch
from torch import Tensor


def shaped_rewards(scores: Tensor, new: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
    """r_t = -β (log π - log π_ref)_t, plus the score (B,) at the last token of the completion → (B, R).

    This is the k1 estimator inside the reward (Ziegler et al. 2019). k3 there has a gradient that vanishes near the
    reference, and k1 in the loss has none at all in expectation: both leave the policy as good as unpenalised.
    """
    rewards = -beta * (new - reference) * mask
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): advantages and returns = A + V, both (B, R).

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γλ A_{t+1}; nothing follows the last token. t+1 is the next token of the
    mask, whatever stands between. Both are 0 off the mask.
    """
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(following)
    advantages = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        real = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(real, delta + gamma * lam * following, following)
        next_value = torch.where(real, values[:, t], next_value)
        advantages[:, t] = following
    return advantages * mask, (advantages + values) * mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked positions, a scalar; 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """(x - μ) / sqrt(σ² + 1e-8) over the masked positions (biased variance), plus μ again when kept; 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened + mean if keep_mean else whitened) * mask


class KLController:
    """The weight β of the KL penalty: fixed, or steered towards a target (Ziegler et al. 2019, §2.2).

    β ← β (1 + clip(KL/target - 1, ±0.2) · episodes / horizon), with KL in nats per sequence.
    """

    def __init__(self, beta: float, target: float | None, horizon: float) -> None:
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, episodes: int) -> None:
        """Take note of the mean KL of the last `episodes` completions."""
        if self.target is not None:
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            self.beta *= 1.0 + error * episodes / self.horizon
