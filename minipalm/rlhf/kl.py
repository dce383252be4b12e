"""How far the policy has moved: estimators of KL(policy ‖ reference)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


def k1(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """log π(y) − log π_ref(y): unbiased for tokens y drawn from π, often negative.

    Example: π = (.5, .3, .2), π_ref = (.25, .25, .5): mean .2180 = KL, variance .3706.

    Source: for k1, k2, k3, J. Schulman, "Approximating KL divergence" (2020).
    """
    return logprobs - ref_logprobs


def k2(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(log π(y) − log π_ref(y))² / 2: biased, never negative.

    As a loss it has the gradient of KL(π ‖ π_ref), which k1 and k3 do not have.
    """
    return (logprobs - ref_logprobs) ** 2 / 2


def k3(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """r − 1 − log r with r = π_ref(y) / π(y): unbiased and never negative.

    Near the reference it varies less than k1: for the laws of `k1`, mean .2180,
    variance .0393.

    Args:
        logprobs: log π(y) of tokens y drawn from π, nats; with a gradient.
        ref_logprobs: log π_ref(y) of the same tokens.

    Returns:
        one number a token, right to four digits even where the two differ by 0.005
        only: there r − 1 as a difference of float32 numbers has lost most of its own.

    Example: logprobs log .5, ref_logprobs log .25: r = ½, k3 = −½ + log 2 = .1931.
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.expm1() - log_ratio


def exact_kl(
    logits: Float[Tensor, "*batch V"], ref_logits: Float[Tensor, "*batch V"]
) -> Float[Tensor, "*batch"]:
    """Σ_y π(y) (log π(y) − log π_ref(y)) at each place, nats; no sampling error.

    Args:
        logits: of the policy π: π = softmax(logits) over the last axis.
        ref_logits: of the reference π_ref. Both get a gradient.

    Returns:
        KL(π ‖ π_ref) in float32 whatever the logits' type, 0 or more.

    Example: π = (.5, .3, .2) and π_ref = (.25, .25, .5) give .2180; the other way round
    it would be .2393.
    """
    logprobs = logits.float().log_softmax(-1)
    ref_logprobs = ref_logits.float().log_softmax(-1)
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)


@dataclass
class KLController:
    """The KL coefficient β, fixed or steered towards a target.

    Attributes:
        coef: β, reward units a nat.
        target: KL to hold, nats a response; None keeps β as it is.
        horizon: number of episodes in which β can grow by about a fifth.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2; the step per episode
    is that of the authors' code.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, episodes: int) -> None:
        """β ← β·(1 + e·episodes/horizon), e = kl/target − 1 within ±0.2.

        Without a target β stays as it is. Changes `self.coef`, gives nothing back.

        Args:
            kl: of the last answers, nats: sum over an answer's tokens, mean over
                answers; the unit of `target`.
            episodes: how many answers.

        Example: β .15, target 6, kl 12, 64 episodes: β becomes .150192.
        """
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * episodes / self.horizon
