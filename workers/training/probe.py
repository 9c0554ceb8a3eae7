"""A reward model from few pairs: a linear head on a frozen language model.

Below about a thousand pairs, fine-tuning a whole transformer learns the pairs by heart. A linear function of what the
policy already knows does not:

    r(x, y) = w · mean_t h_t + a Σ_t log π(y_t | …) + b min_t log π(y_t | …)

h_t are the last hidden states of the completion's tokens: how it is said. The likelihoods say how usual the whole is,
and how strange its strangest token: a wrong or garbled answer is an unlikely one. On standardised features,

    minimise  [Σ weight · loss(r_chosen - r_rejected, y) + ½ ridge |(w, a/3, b/3)|²] / Σ weight

with any loss of `judgements.py`, is convex as long as annotators are believed alike; a and b, whose meaning is known,
are held back less than the d anonymous weights. L-BFGS finds the optimum in a few dozen steps, all pairs at once, after
each completion went through the backbone once. There is nothing to resume. The centring term needs no place here:
features enter as differences. An ensemble is several heads, each fitted on its own bootstrap of the comparisons.

Deliberately left out: other layers, choosing `ridge` by cross-validation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.training import optimisation
from workers.training.comparisons import TokenComparison, examples_of
from workers.training.errors import Interrupted
from workers.training.judgements import Judgements
from workers.training.nets import Scorer
from workers.training.recipes import RewardRecipe
from workers.training.report import Reporter
from workers.training.tokens import Example

_STEPS = 20
_ITERATIONS = 5  # of L-BFGS in each reported step
_LIKELIHOOD_PRIOR = 3.0  # how much wider the prior of the two likelihood weights is


def fit(
    recipe: RewardRecipe,
    scorer: Scorer,
    comparisons: Sequence[TokenComparison],
    counts: Tensor,
    judgements: Judgements,
    report: Reporter,
) -> int:
    """Fit the heads of `scorer` on `comparisons`, each counted `counts` (N, M) times; returns the number of steps."""
    report.begin()
    labels = judgements.labels(comparisons)
    features = _features(recipe, scorer, examples_of(comparisons), report)
    pairs, counts = labels.pairs, counts.to(features)
    better, worse = pairs.better, pairs.worse
    report.count(len(comparisons), sum(comparison.tokens for comparison in comparisons))
    scale = (features[better] - features[worse]).square().mean(0).sqrt()  # what is always equal gets no say
    scale[-2:] /= _LIKELIHOOD_PRIOR
    scale.clamp_(min=1e-6)
    features = (features - features.mean(0)) / scale

    weights = torch.zeros(scorer.heads, features.shape[1], dtype=features.dtype, requires_grad=True)
    own = [parameter for _, parameter in judgements.trainable()]
    search = torch.optim.LBFGS([weights, *own], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def data_loss() -> Tensor:
        each = [
            counts[:, head] @ judgements.losses(labels, features @ weights[head], centering=0.0)
            for head in range(scorer.heads)
        ]
        return torch.stack(each).sum() / judgements.total

    def objective() -> Tensor:
        search.zero_grad()
        ridge = 0.5 * recipe.ridge * weights.square().sum() / judgements.total
        value = data_loss() + ridge + scorer.heads * judgements.prior()
        value.backward()
        return value

    for step in range(1, _STEPS + 1):
        search.step(objective)
        with torch.no_grad():
            gap = (features @ weights.T).mean(1)
            gap = gap[better] - gap[worse]
            loss = data_loss() / scorer.heads
            metrics = {"loss": loss, "accuracy": (gap > 0).double().mean(), "margin": gap.mean()}
        report.step(step, _STEPS, optimisation.to_floats(metrics))
    scorer.read_features((weights.detach() / scale).float().to(scorer.device))
    return _STEPS


@torch.no_grad()
def _features(recipe: RewardRecipe, scorer: Scorer, examples: Sequence[Example], report: Reporter) -> Tensor:
    """(N, d + 2) in fp64 on the host."""
    parts: list[Tensor] = []
    places: list[int] = []
    for group, batch in scorer.passes(examples, recipe.micro_batch_tokens):
        parts.append(scorer.features(batch).double().cpu())
        places += group
        if report.stopping:
            raise Interrupted("Stopped before the head was fitted; --resume starts again.")
    return torch.cat(parts)[sorted(range(len(places)), key=places.__getitem__)]
