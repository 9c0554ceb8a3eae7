"""How likely people's judgements are, given the rewards: the loss of a reward model, and what it learns of the people.

A comparison is answered rightly with probability P(right) and the other way round with P(reversed):

    pairs           log σ(Δ) and log σ(-Δ), Δ = r_better - r_worse - margin            (Bradley & Terry 1952)
    davidson        the same with a third outcome, a tie, of its own probability         (Davidson 1970)
    plackett_luce   the ranking as one choice after another, and the ranking turned round (Plackett 1975)

Somebody who is right with probability η says p = η P(right) + (1-η) P(reversed) (Crowd-BT, Chen et al. 2013); η = 1
for all where annotators are equal. A tie says the same either way round, so η has no part in it. Then

    loss = -weight [y log p + (1-y) log(1-p)] + λ (r_better + r_worse)²

y = `confidence` moved by the label smoothing ε to y(1-2ε) + ε, 1-p the probability of the reversed judgement; the
centring term λ is over pairs in every case. The η_a are learnt as offsets to the log-odds of 0.9, the middle of their
prior, so that a weight decay pulls them there as well; the prior is `annotator_prior` answers, nine of ten right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.training import losses
from workers.training.comparisons import PairLabels, Rankings, TokenComparison, pair_labels, pairs_of, rankings
from workers.training.recipes import RewardRecipe
from workers.training.records import Comparison

_EXPECTED = 0.9  # share of right answers, before anything is known of an annotator


@dataclass(frozen=True)
class Labels:
    """What Q comparisons say. `annotator`: (Q,) place in `Judgements.annotators`, -1 for somebody not met before."""

    pairs: PairLabels
    ranked: Rankings
    margin: Tensor
    annotator: Tensor


class Judgements:
    """The likelihood with its own few parameters: a reliability for each annotator, and how common ties are."""

    def __init__(
        self,
        recipe: RewardRecipe,
        comparisons: Sequence[Comparison],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self.total = max(sum(comparison.weight for comparison in comparisons), 1e-9)
        self.annotators = sorted({c.annotator for c in comparisons}) if recipe.annotators == "learned" else []
        self._place = {name: place for place, name in enumerate(self.annotators)}
        self._answers = [0] * len(self.annotators)
        for comparison in comparisons if self.annotators else ():
            self._answers[self._place[comparison.annotator]] += 1
        self._offsets = nn.Parameter(torch.zeros(len(self.annotators), dtype=dtype, device=device))
        self._log_nu = math.log(recipe.tie_nu or _usual_nu(comparisons))
        self._nu_offset = nn.Parameter(torch.zeros((), dtype=dtype, device=device))

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of what is learnt beside the rewards; often nothing."""
        found = [("judgements/reliability", self._offsets)] if self.annotators else []
        if self.recipe.ties == "davidson" and self.recipe.tie_nu is None:
            found.append(("judgements/log_nu", self._nu_offset))
        return found

    def labels(self, part: Sequence[TokenComparison]) -> Labels:
        """The answers of some comparisons as tensors."""
        judged = [comparison.judged for comparison in part]
        return Labels(
            pair_labels(part, self.device),
            rankings(part, self.device),
            torch.tensor([c.margin if c.confidence != 0.5 else 0.0 for c in judged], device=self.device),
            torch.tensor([self._place.get(c.annotator, -1) for c in judged], device=self.device),
        )

    def losses(self, labels: Labels, scores: Tensor, centering: float) -> Tensor:
        """Weighted loss of each comparison (Q,) from the raw scores of all completions (C,)."""
        pairs = labels.pairs
        better, worse = scores[pairs.better], scores[pairs.worse]
        each = centering * (better + worse).square()
        whole = scores.new_zeros(len(labels.annotator))
        if self.recipe.ranking_loss == "plackett_luce":
            whole = labels.ranked.weight.to(scores) * self._ranking_losses(labels, scores)
        else:
            each = each + self._pair_losses(labels, better - worse - pairs.margin.to(scores))
        return whole.index_add(0, pairs.comparison, pairs.weight.to(scores) * each)

    def prior(self) -> Tensor:
        """-log of the prior of all reliabilities, per unit of the data's weight: to be added to the mean loss."""
        odds = self._log_odds(self._offsets)
        one = _EXPECTED * F.logsigmoid(odds) + (1 - _EXPECTED) * F.logsigmoid(-odds)
        return -self.recipe.annotator_prior * one.sum() / self.total

    @torch.no_grad()
    def findings(self) -> dict[str, object]:
        """What was learnt of the people, for report and manifest."""
        found: dict[str, object] = {}
        if self.annotators:
            reliability = torch.sigmoid(self._log_odds(self._offsets)).tolist()
            found["annotators"] = {
                name: {"reliability": round(value, 6), "answers": answers}
                for name, value, answers in zip(self.annotators, reliability, self._answers, strict=True)
            }
        if self.recipe.ties == "davidson":
            found["tie_nu"] = round(math.exp(self._log_nu + float(self._nu_offset)), 6)
        return found

    def _pair_losses(self, labels: Labels, gap: Tensor) -> Tensor:
        """(P,) without weights."""
        pairs = labels.pairs
        y, annotator = pairs.confidence.to(gap), labels.annotator[pairs.comparison]
        if self.recipe.ties == "half":
            return self._two_ways(F.logsigmoid(gap), F.logsigmoid(-gap), y, annotator)
        right, reversed, tie = losses.davidson(gap, self._log_nu + self._nu_offset.to(gap))
        return torch.where(y == 0.5, -tie, self._two_ways(right, reversed, y, annotator))

    def _ranking_losses(self, labels: Labels, scores: Tensor) -> Tensor:
        """(Q,) without weights."""
        ranked, margin = labels.ranked, labels.margin.to(scores)
        places, there = ranked.places, scores[ranked.index]
        turned = torch.where(places < 0, places, places.amax(1, keepdim=True) - places)
        right = -losses.plackett_luce(there, places, ranked.ties, margin)
        reversed = -losses.plackett_luce(there, turned, ranked.ties, -margin)
        return self._two_ways(right, reversed, ranked.confidence.to(scores), labels.annotator)

    def _two_ways(self, right: Tensor, reversed: Tensor, confidence: Tensor, annotator: Tensor) -> Tensor:
        """-[y log p + (1-y) log(1-p)] for log-probabilities of the judgement and of its reverse; all of one shape."""
        smoothing = self.recipe.label_smoothing
        y = confidence * (1 - 2 * smoothing) + smoothing
        if self.annotators:
            unknown = annotator < 0
            offsets = self._offsets.to(right)[annotator.clamp(min=0)].masked_fill(unknown, 0.0)
            said, opposed = losses.unreliable(right, reversed, self._log_odds(offsets))
            tie = confidence == 0.5
            right, reversed = torch.where(tie, right, said), torch.where(tie, reversed, opposed)
        return -(y * right + (1 - y) * reversed)

    @staticmethod
    def _log_odds(offsets: Tensor) -> Tensor:
        return offsets + math.log(_EXPECTED / (1 - _EXPECTED))


def _usual_nu(comparisons: Sequence[Comparison]) -> float:
    """The ν that equally good completions would need to tie as often as these do: t = ν / (2 + ν)."""
    pairs = [confidence for comparison in comparisons for _, _, confidence in pairs_of(comparison)]
    ties = (sum(confidence == 0.5 for confidence in pairs) + 0.5) / (len(pairs) + 1)
    return 2 * ties / (1 - ties)
