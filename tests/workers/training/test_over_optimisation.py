"""Gao et al. 2023 in miniature: a known gold reward, a proxy from 200 noisy labels, a policy without restraint.

8,000 completions have 16 traits with heavy tails. Gold likes a direction of traits and dislikes extremes; a reward
model (linear and square terms, Bradley–Terry with a ridge) learns it from 200 sampled pairs, another one from 200
others. The policy is a softmax over all completions, optimised against the proxy with β = 0 by the natural policy
gradient, which adds η · reward to its logits: exact, without sampling. With six of nine seeds gold ends below where it
began.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from workers.training import losses, monitors
from workers.training.alarms import alarms

COMPLETIONS, TRAITS, LABELS, HEADS, UPDATES, RATE = 8000, 16, 200, 5, 150, 0.02
SEEDS = range(9)


@dataclass
class Run:
    """What each evaluation found: KL to the start, proxy, held-out and gold reward; and where the alarm came."""

    distances: list[float]
    proxy: list[float]
    held_out: list[float]
    gold: list[float]
    conservative_gold: list[float]
    alarm: int | None

    def fallen(self, share: float) -> int | None:
        """The first evaluation after the peak at which gold has lost this share of what it had won."""
        peak = max(self.gold)
        bound = peak - share * (peak - self.gold[0])
        after = range(self.gold.index(peak), len(self.gold))
        return next((i for i in after if self.gold[i] < bound), None)


@cache
def run(seed: int) -> Run:
    chance = torch.Generator().manual_seed(seed)
    traits = torch.randn(COMPLETIONS, TRAITS, generator=chance)
    traits = traits * 1.5 ** torch.randn(COMPLETIONS, 1, generator=chance)
    taste = torch.randn(TRAITS, generator=chance)
    gold = traits @ (taste / taste.norm()) - 0.5 * (traits.square() - 1).mean(1) * TRAITS**0.5
    features = torch.cat([traits, (traits.square() - 1) / 2**0.5], 1)

    def label() -> tuple[Tensor, Tensor]:
        one, other = torch.randint(COMPLETIONS, (2, LABELS), generator=chance)
        first = torch.rand(LABELS, generator=chance) < torch.sigmoid(gold[one] - gold[other])
        return torch.where(first, one, other), torch.where(first, other, one)

    def reward_model(chosen: Tensor, rejected: Tensor) -> Tensor:
        weights = torch.zeros(features.shape[1], requires_grad=True)
        optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            pairs = losses.bradley_terry(features[chosen] @ weights, features[rejected] @ weights)
            total: Tensor = pairs.sum() + 0.15 * weights.square().sum()
            total.backward()
            return total

        optimiser.step(loss)
        return (features @ weights).detach()

    chosen, rejected = label()
    proxy, held_out = reward_model(chosen, rejected), reward_model(*label())
    draws = [torch.randint(LABELS, (LABELS,), generator=chance) for _ in range(HEADS)]
    heads = torch.stack([reward_model(chosen[drawn], rejected[drawn]) for drawn in draws])

    def optimised(reward: Tensor) -> list[Tensor]:
        return [torch.softmax(RATE * update * reward, 0) for update in range(UPDATES)]

    found = Run([], [], [], [], [float(p @ gold) for p in optimised(heads.mean(0) - heads.std(0))], None)
    reports: list[dict[str, float]] = []
    for policy in optimised(proxy):
        kl = torch.special.xlogy(policy, policy * COMPLETIONS).sum()
        found.distances.append(float(kl.clamp(min=0).sqrt()))
        for values, reward in ((found.proxy, proxy), (found.held_out, held_out), (found.gold, gold)):
            values.append(float(policy @ reward))
        report = {"reward": found.proxy[-1], "held_out_reward": found.held_out[-1], "kl": float(kl)}
        if found.alarm is None and any("Over-optimisation" in told for told in alarms(report, reports)):
            found.alarm = len(reports)
        reports.append(report)
    return found


def test_the_proxy_always_rises_and_gold_rises_and_then_falls_below_where_it_began() -> None:
    lost = [seed for seed in SEEDS if run(seed).gold[-1] < run(seed).gold[0]]
    assert len(lost) == 6
    for seed in SEEDS:
        proxy = run(seed).proxy
        assert all(later > earlier - 1e-5 for earlier, later in zip(proxy, proxy[1:], strict=False))
        assert max(run(seed).gold) > run(seed).gold[0] + 1.5


def test_the_alarm_comes_before_gold_has_lost_a_tenth_of_what_it_won() -> None:
    """In five of the six; in one the held-out model is deceived for a while, too, and it is three evaluations late."""
    late = []
    for seed in SEEDS:
        alarm, fallen = run(seed).alarm, run(seed).fallen(0.1)
        if fallen is not None:
            assert alarm is not None
            late.append(max(0, alarm - fallen))
    assert len(late) == 6 and sorted(late)[:5] == [0] * 5 and max(late) <= 3


def test_no_alarm_where_gold_keeps_what_it_won() -> None:
    assert [run(seed).alarm for seed in SEEDS if run(seed).fallen(0.1) is None] == [None] * 3


def test_a_reward_that_shuns_what_its_ensemble_disagrees_about_peaks_higher() -> None:
    for seed in SEEDS:
        assert max(run(seed).conservative_gold) >= max(run(seed).gold)


def test_gaos_curve_fits_gold_up_to_its_fall() -> None:
    """d (α - β log d) with β > 0, so that it turns; it stays within 15 % of what was won."""
    found = run(2)
    end = found.fallen(0.5)
    assert end is not None
    gains = [gold - found.gold[0] for gold in found.gold[:end]]
    alpha, beta = monitors.fit_gold(found.distances[:end], gains)
    curve = [d * (alpha - beta * float(torch.tensor(d).log())) if d else 0.0 for d in found.distances[:end]]
    worst = max(abs(one - other) for one, other in zip(gains, curve, strict=True))
    assert beta > 0 and worst < 0.15 * max(gains)
