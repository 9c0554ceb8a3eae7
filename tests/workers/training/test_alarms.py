"""Each alarm just above its threshold, and silence just below it."""

import pytest

from workers.training.alarms import alarms

START = {"entropy": 2.0, "completions/clipped_ratio": 0.02, "code_fence_rate": 0.0, "sycophancy": 0.1,
         "refusal_rate": 0.0, "mean_length": 100.0, "ece": 0.02, "accuracy": 0.7, "kl": -0.1, "logps/chosen": -50.0,
         "rewards/margins": 0.1, "markdown_rate": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("quiet", "loud", "word"),
    [
        ({"kl": 60.0}, {"kl": 60.1}, "ten times the target"),
        ({"kl": 0.1}, {"kl": -0.1}, "negative"),
        ({"reward_uncertainty_ratio": 2.0}, {"reward_uncertainty_ratio": 2.1}, "disagree"),
        ({"ece": 0.069}, {"ece": 0.071}, "calibration"),
        ({"accuracy": 0.651}, {"accuracy": 0.649}, "accuracy fell"),
        ({"reward_length_spearman": 0.5}, {"reward_length_spearman": 0.51}, "rank correlation"),
        ({"reward_length_share": 0.6}, {"reward_length_share": 0.61}, "explains 61%"),
        ({"mean_length": 130.0}, {"mean_length": 131.0}, "grew from 100 to 131"),
        ({"sycophancy": 0.149}, {"sycophancy": 0.151}, "wrong view"),
        ({"refusal_rate": 0.049}, {"refusal_rate": 0.051}, "refusals"),
        ({"entropy": 1.0}, {"entropy": 0.99}, "entropy"),
        ({"opener_top_share": 0.3}, {"opener_top_share": 0.31}, "begin alike"),
        ({"completions/clipped_ratio": 0.06}, {"completions/clipped_ratio": 0.061}, "end by themselves"),
        ({"repetition": 0.1}, {"repetition": 0.11}, "said before"),
        ({"code_fence_rate": 0.01}, {"code_fence_rate": 0.02}, "code fence"),
        ({"markdown_rate": 0.6}, {"markdown_rate": 1.0, "code_fence_rate": 0.2}, "code fence"),
        ({"suite/sums/regressed": 0.0}, {"suite/sums/regressed": 1.0}, "suite/sums/regressed fell"),
        ({"val/ess": 0.5}, {"val/ess": 0.49}, "49%"),
        ({"val/explained_variance": 0.0}, {"val/explained_variance": -0.1}, "Value model"),
        ({"logps/chosen": -60.0, "rewards/margins": 0.1}, {"logps/chosen": -55.1, "rewards/margins": 0.2}, "lost 5.1"),
    ],
)
def test_thresholds(quiet: dict[str, float], loud: dict[str, float], word: str) -> None:
    assert alarms(quiet, [START], target_kl=6.0) == []
    told = alarms(loud, [START], target_kl=6.0)
    assert len(told) == 1 and word in told[0]


def test_without_earlier_reports_only_absolute_thresholds_speak() -> None:
    assert alarms({"entropy": 0.01, "mean_length": 1e9, "sycophancy": 1.0, "kl": -1.0}) == []
    assert len(alarms({"repetition": 0.5})) == 1


def test_over_optimisation_is_the_proxy_rising_three_times_while_the_held_out_model_sees_no_new_high() -> None:
    def history(*points: tuple[float, float]) -> list[dict[str, float]]:
        return [{"reward": proxy, "held_out_reward": held_out} for proxy, held_out in points]

    *before, last = history((0, 0), (1, 1.0), (2, 0.9), (3, 1.0), (4, 0.8))
    assert "Over-optimisation" in alarms(last, before)[0]
    *before, last = history((0, 0), (1, 1.0), (2, 0.9), (3, 1.1), (4, 0.8))  # a new high within the three
    assert alarms(last, before) == []
    *before, last = history((0, 0), (1, 1.0), (2, 0.9), (1.9, 1.0), (4, 0.8))  # the proxy fell between
    assert alarms(last, before) == []
    *before, last = history((1, 1.0), (2, 0.9), (3, 0.8))  # too early to tell
    assert alarms(last, before) == []
