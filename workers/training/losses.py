"""The losses: pure functions of tensors, one formula each, nothing about models or configuration.

All are in natural logarithms and unreduced over examples, so that the caller can divide by the total over a whole
optimiser step (micro-batches of unequal size must not be averaged twice).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE = 1 << 26  # most logits alive at once: 256 MB in fp32


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | float = 0.0,
    confidence: Tensor | float = 1.0,
) -> Tensor:
    """-[y log σ(Δ) + (1-y) log σ(-Δ)] with Δ = r_chosen - r_rejected - margin; all (B,), result (B,).

    y is `confidence`, the probability that `chosen` is better; 0.5 is a tie. Bradley & Terry 1952; margins as in
    Llama 2 (Touvron et al. 2023, eq. 2). `logsigmoid` stays finite where log(1 + exp) overflows.
    """
    gap = chosen - rejected - margin
    return -(confidence * F.logsigmoid(gap) + (1.0 - confidence) * F.logsigmoid(-gap))


def davidson(gap: Tensor, log_nu: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """log P(better wins), log P(worse wins), log P(tie) from the gap Δ = r_better - r_worse, all of Δ's shape.

    P(i beats j) = e^{r_i} / (e^{r_i} + e^{r_j} + ν e^{(r_i + r_j)/2}) and P(tie) the rest, Davidson 1970. Equally good
    completions tie with probability ν / (2 + ν); ν = 0 is Bradley-Terry, and so is any ν given that somebody wins.
    """
    half = 0.5 * gap
    tie = torch.as_tensor(log_nu, dtype=gap.dtype, device=gap.device).expand_as(gap)
    total = torch.stack([half, -half, tie]).logsumexp(0)
    return half - total, -half - total, tie - total


def unreliable(right: Tensor, reversed: Tensor, log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a judgement and of its reverse, from somebody who says the truth with probability η.

    p = η P(right) + (1-η) P(reversed), Crowd-BT (Chen et al. 2013, eq. 2); `log_odds` = log η/(1-η), all of one shape.
    """
    true, false = F.logsigmoid(log_odds), F.logsigmoid(-log_odds)
    return torch.logaddexp(true + right, false + reversed), torch.logaddexp(true + reversed, false + right)


def plackett_luce(scores: Tensor, places: Tensor, ties: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
    """Plackett-Luce on rankings, padded: scores and places (B, K), ties (B,) bool, margin (B,), result (B,).

    `places` holds each completion's place, 0 the best, equal for those of one group, -1 for those not ranked. Whoever
    is ranked was chosen from itself and all that are worse: Σ_i [log(e^{r_i} + Σ_{j worse than i} e^{r_j}) - r_i].
    Without groups that is -log P(ranking) (Luce 1959, Plackett 1975), with one unordered group at the end that of the
    top places, and with K = 2 Bradley-Terry. Within a group nothing is ordered; where `ties` says that its members are
    equally good, each two of them add Bradley-Terry with the label ½. A margin is added to the scores of all that are
    worse, which with K = 2 is Bradley-Terry's.
    """
    worse = places[:, None, :] > places[:, :, None]
    seen = worse | torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
    ranked = places >= 0
    others = scores[:, None, :].expand_as(seen)
    if margin is not None:
        others = others + margin[:, None, None] * worse
    others = others.masked_fill(~seen, torch.finfo(scores.dtype).min)
    loss = ((others.logsumexp(-1) - scores) * ranked).sum(1)
    if ties is not None:
        equal = ((places[:, None, :] == places[:, :, None]) & ranked[:, :, None] & ties[:, None, None]).triu(1)
        loss = loss + (bradley_terry(scores[:, :, None], scores[:, None, :], confidence=0.5) * equal).sum((1, 2))
    return loss


def ppo_policy(
    new: Tensor, old: Tensor, advantages: Tensor, clip: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7): max(-Aρ, -A clip(ρ, 1±ε)) per token, and the ratio ρ.

    Log-probabilities and advantages have one shape; ρ = exp(new - old) with the log-ratio clamped to ±20, so that a
    runaway token cannot overflow. `dual_clip` c > 1 bounds the loss of a bad token by -cA, however much likelier it has
    become (Ye et al. 2020, eq. 5). Positions outside the mask are the caller's to leave out.
    """
    ratio = (new - old).clamp(-20.0, 20.0).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return loss, ratio


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimator of KL(π‖π_ref) for each token: e^d - 1 - d with d = log π_ref - log π, never negative.

    `expm1`, because e^d - 1 loses all its digits near the reference, where d is small.
    """
    gap = (reference - new).clamp(-20.0, 20.0)
    return torch.expm1(gap) - gap


def surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """max(-Aρ, -A clip(ρ, 1 - low, 1 + high)), elementwise: the clipped surrogate with a range for each side."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - low, 1.0 + high))


def ppo_value(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V-R)², (clip(V, V_old ± ε) - R)²) per token: the pessimistic one of moved and held-back value."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T)[target] in fp32: logits (N, V), targets (N,) → (N,)."""
    values: Tensor = _LogSoftmaxAt.apply(logits, targets, temperature)
    return values


class _LogSoftmaxAt(torch.autograd.Function):
    """One number of each log-softmax, with a backward pass in the memory of the forward one.

    The gradient by the logits is (onehot - p) g / T. Autograd gets there through half a dozen tensors as large as the
    logits, which for large vocabularies costs more than the matrix products. It works once: a second backward pass
    through the same graph is an error.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        scaled = logits.float()
        log_probs = torch.log_softmax(scaled if temperature == 1.0 else scaled / temperature, dim=-1)
        ctx.save_for_backward(log_probs, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return log_probs.gather(-1, targets[:, None]).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        log_probs, targets = ctx.saved_tensors
        share = gradient[:, None] / ctx.temperature
        by_logits = log_probs.exp_().mul_(-share).scatter_add_(-1, targets[:, None], share)
        return by_logits.to(ctx.dtype), None, None


@torch.no_grad()
def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-Σ p log p of softmax(logits / T) in nats, without gradient: logits (N, V) → (N,)."""
    scaled = logits.float()
    return torch.special.entr((scaled if temperature == 1.0 else scaled / temperature).softmax(-1)).sum(-1)


def projected_log_probs(project: "Projection", hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of `targets` (N,) from hidden states (N, d) through the language-model head.

    Only the hidden states that predict a completion token come in, so prompt and padding cost no logits. Many
    tokens times a large vocabulary go through in tiles that the backward pass computes again.
    """

    def tile(part: Tensor, wanted: Tensor) -> Tensor:
        return token_log_probs(project(part), wanted, temperature)

    return _in_tiles(tile, project.vocabulary, hidden, targets)


def projected_log_probs_and_entropy(
    project: "Projection", hidden: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same, and from the same logits the entropy of the distribution that each target came from: both (N,)."""

    def tile(part: Tensor, wanted: Tensor) -> Tensor:
        logits = project(part)
        return torch.stack([token_log_probs(logits, wanted, temperature), token_entropy(logits, temperature)], dim=-1)

    log_probs, entropy = _in_tiles(tile, project.vocabulary, hidden, targets).unbind(-1)
    return log_probs, entropy.detach()


def projected_log_probs_and_hits(
    project: "Projection", hidden: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same, and from the same logits whether each target is the likeliest token (1 or 0): both (N,)."""

    def tile(part: Tensor, wanted: Tensor) -> Tensor:
        logits = project(part)
        hits = (logits.detach().argmax(-1) == wanted).float()
        return torch.stack([token_log_probs(logits, wanted, temperature), hits], dim=-1)

    log_probs, hits = _in_tiles(tile, project.vocabulary, hidden, targets).unbind(-1)
    return log_probs, hits.detach()


def _in_tiles(tile: Callable[[Tensor, Tensor], Tensor], vocabulary: int, hidden: Tensor, targets: Tensor) -> Tensor:
    rows = max(1, TILE // vocabulary)
    if len(targets) <= rows:
        return tile(hidden, targets)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(tile, part, wanted, use_reentrant=False) for part, wanted in parts])


class Projection:
    """The language-model head as a function (N, d) → (N, V), with what some families do to its logits.

    Gemma 2 and 3 cap them softly (c·tanh(x/c)), Cohere multiplies and Granite divides by a constant.
    """

    def __init__(self, head: torch.nn.Module, soft_cap: float | None = None, scale: float = 1.0) -> None:
        self.soft_cap, self.scale = soft_cap, scale
        self.weight: Tensor = head.get_parameter("weight")  # of a linear layer, or of the embeddings it is tied to
        self.bias: Tensor | None = getattr(head, "bias", None)
        self.vocabulary = self.weight.shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits
