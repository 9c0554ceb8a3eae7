"""The losses of direct preference optimisation: pure functions of log-probabilities, unreduced, one formula each.

`gap` is the difference of the implied rewards of the better and the worse completion, z = r_c - r_r with
r = β (log π - log π_ref). Logarithms are natural; log π is a sum over the completion's tokens where it says *sum*, and
a mean over them where it says *mean*.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid(gap: Tensor) -> Tensor:
    """-log σ(z): DPO (Rafailov et al. 2023, eq. 7). Its expectation over a label that is wrong with probability ε,
    (1-ε) ℓ(z) + ε ℓ(-z), is conservative DPO (Mitchell 2023), which is least at σ(z) = 1 - ε: gaps stop growing."""
    return -F.logsigmoid(gap)


def robust(gap: Tensor, label_smoothing: float) -> Tensor:
    """[-(1-ε) log σ(z) + ε log σ(-z)] / (1-2ε), ε < ½: rDPO (Chowdhury et al. 2024).

    Its expectation, when labels are flipped with probability ε, is the loss that clean labels have.
    """
    wrong = label_smoothing
    return (-(1.0 - wrong) * F.logsigmoid(gap) + wrong * F.logsigmoid(-gap)) / (1.0 - 2.0 * wrong)


def hinge(gap: Tensor) -> Tensor:
    """max(0, 1 - z): SLiC's ranking loss on implied rewards (Zhao et al. 2023; Liu et al. 2023)."""
    return F.relu(1.0 - gap)


def ipo(gap: Tensor, beta: float) -> Tensor:
    """(h - 1/(2β))² with h = z/β, the gap of the log-ratios: IPO (Azar et al. 2023, eq. 17), whose τ is β."""
    return (gap / beta - 1.0 / (2.0 * beta)).square()


def simpo(gap: Tensor, margin: float) -> Tensor:
    """-log σ(z - γ) with z = β(mean log π(y_c) - mean log π(y_r)): SimPO (Meng et al. 2024, eq. 6), no reference."""
    return -F.logsigmoid(gap - margin)


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log σ(log odds(y_c) - log odds(y_r)), odds = P/(1-P), P = exp(*mean* log π): ORPO (Hong et al. 2024, eq. 7)."""
    return -F.logsigmoid((chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected)))


def kto(log_ratios: Tensor, desirable: Tensor, kl: Tensor, beta: float) -> Tensor:
    """1 - σ(β(l - KL)) where desirable, 1 - σ(β(KL - l)) elsewhere: KTO (Ethayarajh et al. 2024), without λ.

    l = log π - log π_ref (*sum*), (B,); `desirable` (B,) bool; `kl` a scalar ≥ 0 without gradient.
    """
    return torch.sigmoid(beta * torch.where(desirable, kl - log_ratios, log_ratios - kl))


def log1mexp(value: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0 without cancellation at either end (Mächler 2012); x is held below -1e-7.

    Near 0, 1 - e^x has lost its digits and expm1 has them; far below, e^x is what log1p needs.
    """
    value = value.clamp(max=-1e-7)
    near = value > -0.6931472
    close, far = torch.where(near, value, -0.6931472), torch.where(near, -0.6931472, value)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))
