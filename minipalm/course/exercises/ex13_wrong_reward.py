"""Lesson 13: laws of over-optimisation, when to stop, ensembles, and length."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.evaluate.laws import LawFit, Peak, fit_law, ppo_columns, ppo_peak
from minipalm.evaluate.length import LengthEffect, length_effect, without_length
from minipalm.evaluate.stopping import Stop, stop_at
from minipalm.rlhf.ensemble import uncertainty_weighted, worst_case

# --- 13.1 ppo_columns ---------------------------------------------------------------


def ppo_columns_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Case("the example of the docstring", torch.tensor([0.0, 1.0, 2.0])),
        Case("a run", 8 * torch.rand(7, generator=draw) + 0.1),
        Case("near to SFT", 0.9 * torch.rand(4, generator=draw) + 0.05),
        Case("SFT among others", torch.tensor([3.0, 0.0, 5.5, 0.0])),
        Case("float64", 6 * torch.rand(3, generator=draw).double() + 0.2),
    ]


def ppo_columns_oracle(d: Tensor) -> Tensor:
    """Point by point."""
    rows = [[x, -x * math.log(x) if x > 0 else 0.0] for x in d.tolist()]
    return torch.tensor(rows, dtype=d.dtype)


def columns_by_where(d):
    """The logarithm of 1 where there is none of d."""
    log = torch.where(d > 0, d, torch.ones_like(d)).log()
    return torch.cat([d[:, None], (-d * log)[:, None]], dim=1)


def columns_by_entropy(d):
    """torch's own −x log x."""
    return torch.stack((d, torch.special.entr(d)), -1)


XLOGY = "torch.xlogy(d, d)"

PPO_COLUMNS = Exercise(
    id="13.1",
    answer=ppo_columns,
    why="A law that is linear in its numbers can be fitted in one step, with errors. "
    "This is what makes it linear.",
    difficulty=1,
    importance=3,
    minutes=4,
    hints=(
        "In R(d) = α · (something) + β · (something), which two things stand beside α "
        "and β, signs included? And what is 0 · log 0 in floating point?",
        r"columns $d$ and $-d \log d$, where $d \log d \to 0$ for $d \to 0$",
        "`torch.xlogy(x, y)` is x log y, and 0 where x is 0.",
    ),
    bonus="Which power law would you have tried? Fit d(α − β d^p) for p = 0.1, and "
    "compare: from your data, can it be told from the logarithm?",
    cases=ppo_columns_cases,
    oracle=ppo_columns_oracle,
    traps=(
        Trap(
            "At SFT itself d is 0, and 0 times log 0 is NaN: one such row spoils the "
            "whole fit. d log d goes to 0 there.",
            (XLOGY, "d * d.log()"),
        ),
        Trap(
            "The second column has a minus: the law takes β d log d away.",
            (f"-{XLOGY}", XLOGY),
        ),
        Trap(
            "That is −d², of the law of best of n. RL's has a logarithm: −d log d.",
            (XLOGY, "d.square()"),
        ),
        Trap(
            "The d before the logarithm is missing: R(d) multiplies the whole bracket "
            "by d.",
            (XLOGY, "torch.where(d > 0, d.log(), d)"),
        ),
        Trap(
            "The law has the natural logarithm; with another base β has another unit.",
            (XLOGY, f"({XLOGY} / math.log(10))"),
        ),
        Trap(
            "The logarithm of two is used. The law has the natural one: otherwise β "
            "has another unit, and the peak another place.",
            (XLOGY, f"({XLOGY} / math.log(2))"),
        ),
        Trap(
            "log(1 + d) is another law: it agrees nowhere with d log d but at 0.",
            (XLOGY, "(d * d.log1p())"),
        ),
        Trap(
            "The columns are the wrong way round: α's comes first.",
            ("[d, -torch.xlogy(d, d)]", "[-torch.xlogy(d, d), d]"),
        ),
        Trap(
            "Two rows of N: asked for are N rows of two. Stack along axis 1.",
            ("dim=1", "dim=0"),
        ),
        Trap(
            "log d² is twice log d. d is √KL already, and the law speaks of log d.",
            (XLOGY, f"(2 * {XLOGY})"),
        ),
        Trap(
            "The columns must have d's own type: here float64 becomes float32.",
            ("return torch.stack", "return torch.Tensor.float(torch.stack"),
            ("dim=1)", "dim=1))"),
        ),
    ),
    twins=(Twin(columns_by_where), Twin(columns_by_entropy)),
    equivalent={"torch.xlogy(d, d) → torch.xlogy(d, d)": "both arguments are d"},
)

# --- 13.2 fit_law -------------------------------------------------------------------


def fit_law_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def points(d: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        X = torch.stack([d, -d * d.log()], dim=1)
        y = X @ torch.tensor([1.7, 0.8]).to(X)
        return X, y + noise * torch.randn(len(d), generator=draw).to(X)

    example = torch.tensor([[1.0, -1.0], [2.0, -4.0], [3.0, -9.0]])
    near = 5 + 0.02 * torch.arange(12) + 0.005 * torch.rand(12, generator=draw)
    same = 5 + 1e-5 * torch.arange(4, dtype=torch.float64)
    one = torch.tensor([[2.0, -4.0]]).repeat(4, 1)
    flat = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    return [
        Case("the example of the docstring", example, torch.tensor([1.0, 2.0, 2.0])),
        Case("a noisy run", *points(7 * torch.rand(11, generator=draw) + 0.2, 0.4)),
        Case("float64", *points(5 * torch.rand(6, generator=draw).double() + 1, 0.3)),
        Case("distances that hardly differ", *points(near, 0.5)),
        Case("three points", *points(torch.tensor([0.5, 2.0, 6.0]), 0.5)),
        Case("distances that differ by nothing", *points(same, 0.5)),
        Case("two points", *points(torch.tensor([0.5, 2.0]), 0.5)),
        Case("all at one distance", one, torch.rand(4, generator=draw)),
        Case("all where the logarithm is 0", flat, torch.rand(5, generator=draw)),
    ]


def fit_law_oracle(columns: Tensor, gains: Tensor) -> LawFit:
    """Sums over points, and the inverse of two by two that one learns at school."""
    rows, y = columns.tolist(), gains.tolist()
    if len(rows) < 3:
        raise ValueError
    aa = sum(a * a for a, _ in rows)
    ab = sum(a * b for a, b in rows)
    bb = sum(b * b for _, b in rows)
    determinant = aa * bb - ab * ab
    if determinant <= 1e-9 * aa * bb:
        raise ValueError
    ay = sum(a * one for (a, _), one in zip(rows, y))
    by = sum(b * one for (_, b), one in zip(rows, y))
    alpha = (bb * ay - ab * by) / determinant
    beta = (aa * by - ab * ay) / determinant
    left = [one - alpha * a - beta * b for (a, b), one in zip(rows, y)]
    variance = sum(e * e for e in left) / (len(rows) - 2)
    return LawFit(
        alpha,
        beta,
        math.sqrt(variance * bb / determinant),
        math.sqrt(variance * aa / determinant),
        math.sqrt(variance),
    )


def fit_by_qr(columns, gains):
    """Without the inverse of XᵀX: X = QR, so the variance is that of R⁻¹."""
    X, y = columns.double(), gains.double()
    if X.shape[0] <= 2:
        raise ValueError("points")
    Q, R = torch.linalg.qr(X)
    size = X.square().sum(0)
    if (R[0, 0] * R[1, 1]).square() <= 1e-9 * size[0] * size[1]:
        raise ValueError("one distance")
    ab = torch.linalg.solve_triangular(R, (Q.T @ y)[:, None], upper=True)[:, 0]
    s = ((X @ ab - y) ** 2).sum().div(X.shape[0] - 2).sqrt()
    inverse = torch.linalg.inv(R)
    a, b = (s * inverse.norm(dim=1)).tolist()
    return LawFit(ab[0].item(), ab[1].item(), a, b, s.item())


def fit_by_lstsq(columns, gains):
    """The library's least squares, and the covariance by hand."""
    X, y = columns.to(torch.float64), gains.to(torch.float64)[:, None]
    n = len(y)
    (a, b), (_, c) = (X.T @ X).tolist()
    if n < 3 or a * c - b * b <= 1e-9 * a * c:
        raise ValueError("not enough to fit two numbers")
    found = torch.linalg.lstsq(X, y).solution
    s2 = float(((y - X @ found) ** 2).sum()) / (n - 2)
    det = a * c - b * b
    errors = (s2 * c / det) ** 0.5, (s2 * a / det) ** 0.5
    return LawFit(*found[:, 0].tolist(), *errors, s2**0.5)


FIT_LAW = Exercise(
    id="13.2",
    answer=fit_law,
    why="A law without errors is a drawing. With them you can say whether two reward "
    "models differ, and how far the law may be trusted.",
    difficulty=3,
    importance=4,
    minutes=9,
    hints=(
        "If the same distances were run again with other noise, which of the numbers "
        "here would change, and by how much?",
        r"$(\alpha,\beta) = (X^\top X)^{-1} X^\top y$, $s^2 = \sum e^2/(N-2)$, "
        r"variances: the diagonal of $s^2 (X^\top X)^{-1}$",
        "`power = X.T @ X`, with X in float64; look at its determinant before you "
        "invert it.",
    ),
    bonus="The iterations of one run are not independent, so these errors are too "
    "small. Fit each seed alone: how much larger is the spread of α over seeds?",
    cases=fit_law_cases,
    oracle=fit_law_oracle,
    traps=(
        Trap(
            "Two numbers were fitted, so N − 2 is left to learn the noise from. "
            "Dividing by N makes every error too small.",
            ("(len(X) - 2)", "len(X)"),
        ),
        Trap(
            "N − 1 belongs to a mean, which is one fitted number. Here are two: N − 2.",
            ("(len(X) - 2)", "(len(X) - 1)"),
        ),
        Trap(
            "These are variances. A standard error is the root of one.",
            ("(variance * inverse.diagonal()).sqrt()", "variance * inverse.diagonal()"),
        ),
        Trap(
            "The noise is missing from the errors: the diagonal of (XᵀX)⁻¹ must be "
            "multiplied by s².",
            ("(variance * inverse.diagonal())", "inverse.diagonal()"),
        ),
        Trap(
            "s is multiplied where s² belongs: under the root stand variances.",
            ("(variance * inverse", "(variance.sqrt() * inverse"),
        ),
        Trap(
            "One over the diagonal of XᵀX is not the diagonal of its inverse: α and β "
            "are found together, and each is less sure for it.",
            ("inverse.diagonal()", "(1 / power.diagonal())"),
        ),
        Trap(
            "The scatter is asked for as a standard deviation, and this is s².",
            ("variance.sqrt().item()", "variance.item()"),
        ),
        Trap(
            "The scatter is that of all gains around their mean, not of what the law "
            "leaves over.",
            ("variance.sqrt().item()", "y.std().item()"),
        ),
        Trap(
            "The gains are measured from SFT, and every law is 0 at d = 0: do not take "
            "their mean away.",
            ("gains.double()", "gains.double() - gains.double().mean()"),
        ),
        Trap(
            "A constant was fitted besides. Every law is 0 at SFT: there are two "
            "columns, and no third of ones.",
            ("columns.double()", "columns.double() - columns.double().mean(0)"),
            ("gains.double()", "gains.double() - gains.double().mean()"),
        ),
        Trap(
            "These errors are divided by √N once more. XᵀX is a sum over points: its "
            "inverse shrinks with N already.",
            ("inverse.diagonal()).sqrt()", "inverse.diagonal() / len(X)).sqrt()"),
        ),
        Trap(
            "In float32 the products of nearly equal distances lose the digits that "
            "matter. Convert to float64 first.",
            ("columns.double(), gains.double()", "columns.float(), gains.float()"),
        ),
        Trap(
            "Two points are fitted exactly, and nothing is left to know the error "
            "from: refuse fewer than three with a ValueError.",
            ("len(X) < 3", "len(X) < 2"),
        ),
        Trap(
            "Points at one distance fit endless pairs (α, β). Look at the determinant, "
            "and refuse them with a ValueError.",
            ("if torch.det(power) <=", "if False and torch.det(power) <="),
            ("torch.linalg.inv(power)", "torch.linalg.pinv(power)"),
        ),
        Trap(
            "α and β, or their errors, are the wrong way round: the first column is "
            "α's.",
            ("found.tolist(), errors", "found.flip(0).tolist(), errors"),
        ),
        Trap(
            "The errors are the wrong way round: the diagonal's first is α's.",
            ("errors.tolist()", "errors.flip(0).tolist()"),
        ),
    ),
    twins=(Twin(fit_by_qr), Twin(fit_by_lstsq)),
    equivalent={"y - X @ found → X @ found - y": "it is squared"},
)

# --- 13.3 ppo_peak ------------------------------------------------------------------


def ppo_peak_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    alpha, beta = (0.5 + torch.rand(2, generator=draw)).tolist()
    return [
        Case("the example of the docstring", 2.0, 1.0),
        Case("half of it", 1.0, 0.5),
        Case("some law", 1.0 + alpha, beta),
        Case("a steep one", 3.0 + alpha, 2 * beta),
        Case("a reward model that is worse than none", -alpha, beta),
        Case("it rises for ever", alpha, -beta),
        Case("a straight line", alpha, 0.0),
    ]


def ppo_peak_oracle(alpha: float, beta: float) -> Peak:
    """Walk uphill in ever smaller steps."""
    if not beta > 0:
        raise ValueError
    d, step = 1.0, 0.5
    while step > 1e-13:
        best = max(
            (d, d * (1 + step), d / (1 + step)), key=lambda x: gain(x, alpha, beta)
        )
        if best == d:
            step /= 2
        d = best
    return Peak(d, gain(d, alpha, beta))


def gain(d: float, alpha: float, beta: float) -> float:
    return d * (alpha - beta * math.log(d))


def peak_by_law(alpha, beta):
    """Where the slope is 0, and then the law itself."""
    if not beta > 0.0:
        raise ValueError("no peak")
    log_d = (alpha - beta) / beta
    d = math.e**log_d
    return Peak(d, alpha * d - beta * d * log_d)


def peak_by_tensor(alpha, beta):
    """The same in tensors."""
    a, b = torch.tensor([alpha, beta], dtype=torch.float64)
    if b <= 0:
        raise ValueError("no peak")
    d = (a / b).exp() / math.e
    return Peak(d.item(), (b * d).item())


LAW_THERE = ("Peak(d, beta * d)", "Peak(d, d * (alpha - beta * math.log(d)))")

PPO_PEAK = Exercise(
    id="13.3",
    answer=ppo_peak,
    why="What one asks a law for: how far to go, and what there is to be had.",
    difficulty=2,
    importance=3,
    minutes=4,
    hints=(
        "What is the slope of d (α − β log d)? The logarithm has one of its own.",
        r"$\alpha - \beta \log d^* - \beta = 0$; put $\log d^*$ back into the law",
        "`d = math.exp(alpha / beta - 1)`, after beta has been looked at.",
    ),
    bonus="The peak is an exponential of α/β. By how much does it move if β is wrong "
    "by its standard error? What does that say about laws as speed limits?",
    cases=ppo_peak_cases,
    oracle=ppo_peak_oracle,
    traps=(
        Trap(
            "That is where the gain is 0 again. The slope of d log d is log d + 1, so "
            "the peak comes earlier, by a factor e.",
            ("alpha / beta - 1", "alpha / beta"),
        ),
        Trap(
            "R is 0 at this distance, not largest: its slope has a −β besides, since d "
            "log d grows by log d + 1.",
            ("alpha / beta - 1", "alpha / beta"),
            LAW_THERE,
        ),
        Trap(
            "The 1 has the wrong sign: α − β log d − β = 0 at the peak.",
            ("alpha / beta - 1", "alpha / beta + 1"),
        ),
        Trap(
            "The 1 is to be taken off: solve α − β log d − β = 0 for log d.",
            ("alpha / beta - 1", "alpha / beta + 1"),
            LAW_THERE,
        ),
        Trap(
            "The exponent has the wrong sign: log d = α/β − 1, not 1 − α/β.",
            ("alpha / beta - 1", "1 - alpha / beta"),
            LAW_THERE,
        ),
        Trap(
            "The 1 belongs into the exponent: log d is α/β − 1.",
            ("math.exp(alpha / beta - 1)", "math.exp(alpha / beta) - 1"),
            LAW_THERE,
        ),
        Trap(
            "β divides all of α − β: log d = (α − β)/β.",
            ("alpha / beta - 1", "alpha - beta"),
            LAW_THERE,
        ),
        Trap(
            "The law's logarithm is the natural one: undo it by exp, not by a power of "
            "10.",
            ("math.exp(alpha / beta - 1)", "10 ** (alpha / beta - 1)"),
            LAW_THERE,
        ),
        Trap(
            "α/2β is the peak of best of n's law. RL's has a logarithm.",
            ("math.exp(alpha / beta - 1)", "alpha / (2 * beta)"),
            ("Peak(d, beta * d)", "Peak(d, d * (alpha - beta * d))"),
        ),
        Trap(
            "The gain at the peak is d (α − β log d), not d α: β's part is gone by "
            "then.",
            ("Peak(d, beta * d)", "Peak(d, alpha * d)"),
        ),
        Trap(
            "The gain is β d, not β alone: put log d* = α/β − 1 back into the law.",
            ("Peak(d, beta * d)", "Peak(d, beta)"),
        ),
        Trap(
            "That is the KL. The laws, and this peak, are told in d = √KL.",
            ("Peak(d, beta * d)", "Peak(d * d, beta * d)"),
        ),
        Trap(
            "α and β are the wrong way round in the exponent: a smaller β means a "
            "reward model that lasts longer.",
            ("alpha / beta - 1", "beta / alpha - 1"),
        ),
        Trap(
            "With β below 0 the law rises for ever, and this place is its lowest: "
            "refuse it with a ValueError.",
            ("if beta <= 0:", "if beta == 0:"),
        ),
        Trap(
            "β = 0 is a straight line, without a peak: refuse it with a ValueError "
            "instead of dividing by it.",
            ("if beta <= 0:", "if beta < 0:"),
        ),
        Trap(
            "The two are the wrong way round: first the distance, then the gain.",
            ("Peak(d, beta * d)", "Peak(beta * d, d)"),
        ),
    ),
    twins=(Twin(peak_by_law), Twin(peak_by_tensor)),
)

# --- 13.4 stop_at -------------------------------------------------------------------


def stop_at_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def run(n: int, peak: float, noise: float) -> list[float]:
        along = torch.arange(n) - peak
        return (-(along**2) / n + noise * torch.randn(n, generator=draw)).tolist()

    example = [1.0, 3.0, 2.0, 2.5, 9.0]
    return [
        Case("the example of the docstring", example, 2),
        Case("a patience of 3", example, 3),
        Case("a noisy run", run(30, 12.0, 1.0), 4, window=3),
        Case("a longer window", run(24, 7.0, 2.0), 3, 5),
        Case("a window longer than the run", run(6, 1.0, 0.5), 2, window=9),
        Case("a plateau", [0.0, 2.0, 2.0, 2.0, 2.0, 2.0], 3),
        Case("it only falls", [-1.0, -2.0, -3.0, -4.0], 2),
        Case("it only rises", [1.0, 2.0, 3.0, 4.0], 1),
        Case("it rises below 0", [-5.0, -4.0, -3.0, -2.5, -1.0], 2),
        Case("a single value", [0.7], 1),
        Case("falls at the very end", [1.0, 2.0, 1.0, 0.0], 2),
        Case("a high that comes too late", [0.0, 5.0, 1.0, 1.0, 1.0, 6.0, 7.0], 3),
        Case("two highs", [0.0, 4.0, 1.0, 5.0, 1.0, 1.0, 1.0, 9.0], 3),
        Case("one lucky value", [1.0, 2.0, 9.0, 2.0, 6.0, 6.0, 6.0, 1.0], 4, 3),
        Case("no signal", [], 2),
        Case("no patience", [1.0, 2.0], 0),
        Case("no window", [1.0, 2.0], 2, window=0),
    ]


def stop_at_oracle(signal: Sequence[float], patience: int, window: int = 1) -> Stop:
    """For each iteration: was it the last one, by what was known then?"""
    if len(signal) == 0 or patience < 1 or window < 1:
        raise ValueError
    means = []
    for now in range(len(signal)):
        known = [signal[i] for i in range(len(signal)) if now - window < i <= now]
        means.append(sum(known) / len(known))
    for now in range(len(signal)):
        high = max(means[: now + 1])
        kept = [i for i in range(now + 1) if means[i] == high][0]
        if now - kept >= patience:
            return Stop(kept, now)
    return Stop(kept, now)


def stop_by_counting(signal, patience, window=1):
    """Iterations since the last high."""
    if min(len(signal), patience, window) < 1:
        raise ValueError("nothing to go by")
    high, kept, waited, recent = None, 0, 0, []
    for now, one in enumerate(signal):
        recent = [*recent, one][-window:]
        mean = math.fsum(recent) / len(recent)
        if high is None or mean > high:
            high, kept, waited = mean, now, 0
        else:
            waited += 1
        if waited == patience:
            break
    return Stop(kept, now)


def stop_by_tensor(signal, patience, window=1):
    """All means at once, then the first time that the high is old enough."""
    if patience < 1 or window < 1 or not len(signal):
        raise ValueError("nothing to go by")
    x = torch.tensor([0.0, *signal], dtype=torch.float64).cumsum(0)
    ends = torch.arange(1, len(signal) + 1)
    starts = (ends - window).clamp(min=0)
    means = (x[ends] - x[starts]) / (ends - starts)
    means = means.round(decimals=9)
    highs = means.cummax(0).values
    first = [int((means[: n + 1] == highs[n]).nonzero()[0]) for n in range(len(signal))]
    for now, kept in enumerate(first):
        if now - kept >= patience:
            return Stop(kept, now)
    return Stop(first[-1], len(signal) - 1)


LAST = "return Stop(kept, len(signal) - 1)"

STOP_AT = Exercise(
    id="13.4",
    answer=stop_at,
    why="A reward that is wrong can be used, for a while. This is how long.",
    difficulty=2,
    importance=5,
    minutes=7,
    hints=(
        "At iteration 7, what do you know, and what not yet? How old may the last high "
        "be?",
        r"$\bar x_t = \text{mean}(x_{t-w+1}, \dots, x_t)$; end at the first $t$ with "
        r"$t - t^* \geq \text{patience}$, $t^*$ the first of the highest mean so far",
        "`kept, high = 0, float('-inf')`, then walk through the signal.",
    ),
    bonus="Each label costs money. Compare 128 labels at every fourth iteration with "
    "32 at each: which finds the better policy, and which sees more iterations?",
    cases=stop_at_cases,
    oracle=stop_at_oracle,
    traps=(
        Trap(
            "The policy to keep is that of the high, not the one that you have when "
            "you notice.",
            ("return Stop(kept, now)", "return Stop(now, now)"),
        ),
        Trap(
            "The whole signal is looked at: what comes after the end of the run is not "
            "known, and was never computed.",
            ("elif now - kept >= patience:", "elif False:"),
        ),
        Trap(
            "The window reaches into the future. At an iteration only its own value "
            "and earlier ones are known.",
            (
                "signal[max(0, now + 1 - window) : now + 1]",
                "signal[max(0, now - window // 2) : now + window // 2 + 1]",
            ),
        ),
        Trap(
            "The window begins at the present iteration: its later values are not "
            "known yet. It ends there.",
            ("max(0, now + 1 - window) : now + 1", "now : now + window"),
        ),
        Trap(
            "The whole signal is searched for its high, and patience only added to it. "
            "A run that was ended never reaches a later high.",
            ("elif now - kept >= patience:", "elif False:"),
            (LAST, "return Stop(kept, min(kept + patience, len(signal) - 1))"),
        ),
        Trap(
            "`window` has no effect: a single lucky batch counts as a high.",
            ("max(0, now + 1 - window)", "now"),
        ),
        Trap(
            "The window is one too long: `window` values end with the present one.",
            ("now + 1 - window", "now - window"),
        ),
        Trap(
            "In the beginning there are fewer values than the window: divide by how "
            "many there are.",
            ("/ len(recent)", "/ window"),
        ),
        Trap(
            "Equal is no new high: on a plateau patience would never run out.",
            ("if mean > high:", "if mean >= high:"),
        ),
        Trap(
            "One iteration too late: the run ends as soon as the high is `patience` "
            "iterations old.",
            ("now - kept >= patience", "now - kept > patience"),
        ),
        Trap(
            "Compared is with the last high, not with the value before: a signal that "
            "falls and rises again has made no new high.",
            (
                "elif now - kept >= patience:",
                "else:\n            high = mean\n        if now - kept >= patience:",
            ),
        ),
        Trap(
            "Patience is counted from the beginning and not from the last high: each "
            "new high starts it anew.",
            ("elif now - kept >= patience:", "elif now >= patience:"),
        ),
        Trap(
            "Iterations without a new high are added up over the whole run. Each new "
            "high starts patience anew.",
            ('high = 0, float("-inf")', 'high, waited = 0, float("-inf"), 0'),
            (
                "elif now - kept >= patience:",
                "else:\n            waited += 1\n        if waited >= patience:",
            ),
        ),
        Trap(
            "Until the window is full there are means, too, of all values so far: do "
            "not wait for it.",
            (
                "        if mean",
                "        if now + 1 < window:\n            continue\n        if mean",
            ),
        ),
        Trap(
            "Kept is the iteration of the highest mean. This is the one of the highest "
            "single value.",
            (
                "return Stop(kept, now)",
                "return Stop(signal.index(max(signal[: now + 1])), now)",
            ),
            (LAST, "return Stop(signal.index(max(signal)), now)"),
        ),
        Trap(
            "The run is over with its signal: nothing after the last iteration can be "
            "seen, even if patience is left.",
            (LAST, "return Stop(kept, kept + patience)"),
        ),
        Trap(
            "Iterations count from 0: the last one is one less than there are.",
            (LAST, "return Stop(kept, len(signal))"),
        ),
        Trap(
            "The high is remembered as a single value, and compared with means. Keep "
            "the mean.",
            ("kept, high = now, mean", "kept, high = now, signal[now]"),
        ),
        Trap(
            "A signal may be below 0 from the start, and its first value is a high: "
            "begin with minus infinity.",
            ('float("-inf")', "0.0"),
        ),
        Trap(
            "No signal, or a patience or window below 1, must be refused with a "
            "ValueError.",
            ("if not signal or patience < 1 or window < 1:", "if False:"),
        ),
    ),
    twins=(Twin(stop_by_counting), Twin(stop_by_tensor)),
    equivalent={
        "(0, float('-inf')) → (1, float('-inf'))": "the first value is a new high",
        "(0, float('-inf')) → (-1, float('-inf'))": "the first value is a new high",
        "max(0, now + 1 - window) → max(now + 1 - window, 0)": "the larger of two",
    },
)

# --- 13.5 worst_case ----------------------------------------------------------------


def ensemble_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    level = 2 * torch.randn(1, 5, generator=draw)
    return [
        Case("the example of the docstring", torch.tensor([[1.0, 3.0], [2.0, -3.0]])),
        Case("five models", level + torch.randn(5, 7, generator=draw)[:, :5]),
        Case("two models, many answers", torch.randn(2, 9, generator=draw)),
        Case("many models, one answer", torch.randn(6, 1, generator=draw)),
        Case("one model", torch.randn(1, 4, generator=draw)),
        Case("all negative", -torch.rand(3, 4, generator=draw) - 1),
        Case("float64", torch.randn(3, 2, generator=draw).double()),
    ]


def worst_case_oracle(scores: Tensor) -> Tensor:
    """Answer by answer, the smallest of a list."""
    K, B = scores.shape
    worst = [min(scores[k, b].item() for k in range(K)) for b in range(B)]
    return torch.tensor(worst, dtype=scores.dtype)


def worst_by_sort(scores):
    return scores.sort(dim=0).values[0]


def worst_by_max(scores):
    return -torch.max(-scores, dim=0).values


WORST_CASE = Exercise(
    id="13.5",
    answer=worst_case,
    why="The shortest of all defences: an answer must please every model.",
    difficulty=1,
    importance=4,
    minutes=3,
    hints=(
        "Along which axis do the models stand?",
        r"$\min_k s_k(y)$, for each answer $y$ on its own",
        "`scores.amin(...)`",
    ),
    bonus="The least of K noisy scores lies below their mean, by more the larger K is. "
    "Why does this not matter to PPO, where advantages are whitened, nor to best of n?",
    cases=ensemble_cases,
    oracle=worst_case_oracle,
    traps=(
        Trap(
            "That is the kindest model. A policy needs to fool only one of them to be "
            "paid.",
            ("amin", "amax"),
        ),
        Trap(
            "The worst answer of each model, K numbers. Asked for is the worst model "
            "for each answer.",
            ("amin(0)", "amin(1)"),
        ),
        Trap(
            "One number for all answers is left. Keep the answers apart: the least "
            "along the axis of models.",
            ("amin(0)", "amin()"),
        ),
        Trap(
            "The model that is most severe on the whole speaks for all answers. It may "
            "differ from answer to answer.",
            ("scores.amin(0)", "scores[scores.mean(1).argmin()]"),
        ),
        Trap(
            "That is the number of the worst model, not what it says.",
            ("amin(0)", "argmin(0)"),
        ),
        Trap(
            "`min` along an axis gives values and places. Only the values are asked "
            "for.",
            ("scores.amin(0)", "tuple(scores.min(0))"),
        ),
        Trap(
            "The mean forgives one model that has seen through the answer, if the "
            "others have not.",
            ("amin(0)", "mean(0)"),
        ),
        Trap(
            "The median lets the policy fool just over half of the models.",
            ("scores.amin(0)", "scores.median(0).values"),
        ),
        Trap(
            "The products of scores are no worst case: two that are below 0 would make "
            "a good one.",
            ("amin(0)", "prod(0)"),
        ),
        Trap(
            "The smallest in size is not the smallest: −3 is worse than .1.",
            (
                "scores.amin(0)",
                "scores.gather(0, scores.abs().argmin(0, keepdim=True))[0]",
            ),
        ),
    ),
    twins=(Twin(worst_by_sort), Twin(worst_by_max)),
)

# --- 13.6 uncertainty_weighted ------------------------------------------------------


def weighted_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    scores = [case.args[0] for case in ensemble_cases(seed)]
    names = [case.name for case in ensemble_cases(seed)]
    return [
        *(Case(name, one) for name, one in zip(names, scores)),
        Case("no caution: the mean", scores[1], 0.0),
        Case("much caution", torch.randn(4, 3, generator=draw), caution=2.0),
        Case("a little", 3 * torch.randn(4, 6, generator=draw), 0.1),
        Case("disagreement would be rewarded", scores[1], -0.5),
    ]


def weighted_oracle(scores: Tensor, caution: float = 0.5) -> Tensor:
    """Answer by answer, over a list of K numbers."""
    if not caution >= 0:
        raise ValueError
    found = []
    for one in scores.T.tolist():
        mean = sum(one) / len(one)
        variance = sum((x - mean) ** 2 for x in one) / len(one)
        found.append(mean - caution * variance)
    return torch.tensor(found, dtype=scores.dtype)


def weighted_by_var(scores, caution=0.5):
    if caution < 0.0:
        raise ValueError("caution")
    return torch.mean(scores, 0) - torch.var(scores, 0, correction=0) * caution


def weighted_by_pairs(scores, caution=0.5):
    """The variance is half of the mean squared difference of two models."""
    if not 0 <= caution:
        raise ValueError("caution")
    apart = (scores[:, None] - scores[None]).pow(2)
    return scores.sum(0) / len(scores) - caution * apart.mean((0, 1)) / 2


SQUARES = "(scores - mean).square().mean(0)"

UNCERTAINTY_WEIGHTED = Exercise(
    id="13.6",
    answer=uncertainty_weighted,
    why="Where models disagree they have seen no data, and there a policy finds what "
    "pays without being good.",
    difficulty=2,
    importance=4,
    minutes=5,
    hints=(
        "Two answers have the same mean score. About one all models agree. Which one "
        "would you rather give, and what is it worth to you?",
        r"$\bar s - \lambda \cdot \frac1K \sum_k (s_k - \bar s)^2$",
        "`mean = scores.mean(0)`, after caution has been looked at.",
    ),
    bonus="Find λ at which mean − λ·variance of two models equals their worst case. "
    "Why does it depend on how far apart they are?",
    cases=weighted_cases,
    oracle=weighted_oracle,
    traps=(
        Trap(
            "The variance divides by K − 1. These K models are all that there are, not "
            "a sample: divide by K. (With one model it is NaN.)",
            (SQUARES, "scores.var(0)"),
        ),
        Trap(
            "That is the standard deviation. What is taken off is the variance.",
            (SQUARES, f"{SQUARES}.sqrt()"),
        ),
        Trap(
            "Disagreement is rewarded: the policy is sent to where nobody knows. Take "
            "it off.",
            ("mean - caution", "mean + caution"),
        ),
        Trap(
            "`caution` has no effect.",
            ("caution * (scores", "0.5 * (scores"),
        ),
        Trap(
            "The squares are added up over the models: more models would be more "
            "caution. Take their mean.",
            (".square().mean(0)", ".square().sum(0)"),
        ),
        Trap(
            "Disagreement is between models, about one answer. Here it is the spread "
            "of answers.",
            (SQUARES, "(scores - scores.mean(1, keepdim=True)).square().mean()"),
        ),
        Trap(
            "This is one variance of all scores together. Each answer has its own, "
            "over the models.",
            (SQUARES, "scores.var(correction=0)"),
        ),
        Trap(
            "Caution weighs both terms: the mean itself must stay as it is.",
            ("mean - caution *", "caution * mean - caution *"),
        ),
        Trap(
            "It starts from the most severe model, and takes the disagreement off "
            "besides: start from the mean.",
            ("mean = scores.mean(0)\n", "mean = scores.amin(0)\n"),
        ),
        Trap(
            "Distances without squares are another measure of disagreement: a variance "
            "is asked for.",
            (".square()", ".abs()"),
        ),
        Trap(
            "The mean of the squares is not the variance: take the models' mean off "
            "first.",
            ("(scores - mean).square()", "scores.square()"),
        ),
        Trap(
            "The mean is over answers, not over models: K numbers instead of one for "
            "each answer.",
            ("scores.mean(0)", "scores.mean(1)"),
            (SQUARES, "(scores - mean[:, None]).square().mean(1)"),
        ),
        Trap(
            "A negative caution rewards disagreement. Refuse it with a ValueError.",
            ("if caution < 0:", "if False:"),
        ),
        Trap(
            "A caution of 0 is allowed: it is the plain mean.",
            ("if caution < 0:", "if caution <= 0:"),
        ),
    ),
    twins=(Twin(weighted_by_var), Twin(weighted_by_pairs)),
    equivalent={"scores - mean → mean - scores": "it is squared"},
)

# --- 13.7 length_effect -------------------------------------------------------------


def length_effect_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def answers(n: int, pay: float, better: float) -> tuple[Tensor, Tensor, Tensor]:
        gold = 6 + 1.5 * torch.randn(n, generator=draw)
        noise = 3 * torch.randn(n, generator=draw)
        lengths = (15 + better * (gold - 6) + noise).round().long()
        scores = 0.4 * gold + pay * lengths + 0.5 * torch.randn(n, generator=draw)
        return scores, lengths, gold

    _, lengths, gold = answers(6, 0.0, 1.0)
    alone = torch.arange(5)
    return [
        Case("the docstring's law", 2 * gold + 0.1 * lengths, lengths, gold),
        Case("longer is paid", *answers(40, 0.2, 1.0)),
        Case("longer is better, and not paid", *answers(60, 0.0, 2.0)),
        Case("shorter is paid, longer is better", *answers(35, -0.15, 1.5)),
        Case("lengths as float", *(x.float() for x in answers(11, 0.3, -1.0))),
        Case("three answers", *answers(3, 0.1, 0.5)),
        Case("all equally good", torch.randn(5, generator=draw), alone, torch.ones(5)),
        Case("length is gold", torch.randn(5, generator=draw), alone, 2.0 * alone),
        Case("one length", torch.randn(4, generator=draw), torch.ones(4), gold[:4]),
        Case("the score is gold", 3 * gold, lengths, gold),
        Case("two answers", *answers(2, 0.1, 0.5)),
    ]


def length_effect_oracle(scores: Tensor, lengths: Tensor, gold: Tensor) -> LengthEffect:
    """From the three plain correlations and deviations, as textbooks have it."""
    n = len(scores)
    if n < 3:
        raise ValueError
    named = {"s": scores.tolist(), "l": lengths.tolist(), "g": gold.tolist()}
    means = {name: math.fsum(x) / n for name, x in named.items()}

    def co(a: str, b: str) -> float:
        both = zip(named[a], named[b])
        return math.fsum((x - means[a]) * (y - means[b]) for x, y in both)

    gg = co("g", "g")

    def rest(a: str, b: str) -> float:
        return co(a, b) - (co(a, "g") * co(b, "g") / gg if gg else 0.0)

    if min(rest("s", "s"), rest("l", "l")) < 1e-12:
        return LengthEffect(0.0, 0.0)
    return LengthEffect(
        rest("s", "l") / rest("l", "l"),
        rest("s", "l") / math.sqrt(rest("s", "s") * rest("l", "l")),
    )


def effect_by_regression(scores, lengths, gold):
    """Score on gold, length and a constant; then the length that gold leaves."""
    if len(scores) <= 2:
        raise ValueError("three answers")
    s, x, g = (one.double() - one.double().mean() for one in (scores, lengths, gold))

    def left(y):
        return y - g * ((g @ y) / (g @ g) if g @ g > 0 else 0.0)

    s, x = left(s), left(x)
    if s @ s < 1e-12 or x @ x < 1e-12:
        return LengthEffect(0.0, 0.0)
    both = torch.stack([s / s.norm(), x / x.norm()])
    return LengthEffect(float((x @ s) / (x @ x)), float((both[0] * both[1]).sum()))


def effect_by_lstsq(scores, lengths, gold):
    """The slope is length's coefficient in a fit with gold and a constant."""
    n = len(scores)
    if n < 3:
        raise ValueError("three answers")
    one = torch.ones(n, dtype=torch.float64)
    y, x, g = scores.double(), lengths.double(), gold.double()
    known = torch.stack([one, g - g.mean()], dim=1)
    if not (g != g[0]).any():
        known = known[:, :1]
    Q, _ = torch.linalg.qr(known)
    y, x = y - Q @ (Q.T @ y), x - Q @ (Q.T @ x)
    if min(float(y @ y), float(x @ x)) < 1e-12:
        return LengthEffect(0.0, 0.0)
    slope = float(torch.linalg.lstsq(x[:, None], y[:, None]).solution)
    return LengthEffect(slope, slope * float(x.norm() / y.norm()))


LENGTH_EFFECT = Exercise(
    id="13.7",
    answer=length_effect,
    why="The commonest thing that is wrong with a reward. Found before training it "
    "costs a line; after it, a policy.",
    difficulty=3,
    importance=5,
    minutes=8,
    hints=(
        "Good answers here may be longer. How could you compare a long answer with a "
        "short one that is just as good?",
        r"$s = $ rest of score, $l = $ rest of length after gold; "
        r"slope $\sum s l / \sum l^2$, "
        r"correlation $\sum s l / \sqrt{\sum s^2 \sum l^2}$",
        "`score, length = residuals(scores, gold), residuals(lengths, gold)`",
    ),
    bonus="In the field there is no gold. Which other thing could you hold equal: the "
    "prompt, the labeller, the answer cut to its first sentence? What would each miss?",
    cases=length_effect_cases,
    oracle=length_effect_oracle,
    traps=(
        Trap(
            "Gold is not held equal: if good answers are longer, an honest score looks "
            "biased. Take away what gold explains, from both.",
            (
                "residuals(scores, gold), residuals(lengths, gold)",
                "scores.double() - scores.double().mean(), "
                "lengths.double() - lengths.double().mean()",
            ),
        ),
        Trap(
            "Gold is taken from the score only. What is left of length still knows "
            "about gold: take it from both.",
            (
                "residuals(lengths, gold)",
                "lengths.double() - lengths.double().mean()",
            ),
        ),
        Trap(
            "Gold is taken from the length only. What is left of the score still knows "
            "about gold: take it from both.",
            (
                "residuals(scores, gold)",
                "scores.double() - scores.double().mean()",
            ),
        ),
        Trap(
            "The slope is that of length on score. Asked for is score for one token "
            "more: divide by the squares of length's rest.",
            ("together / powers[1]", "together / powers[0]"),
        ),
        Trap(
            "Slope and correlation are the wrong way round.",
            (
                "LengthEffect(slope.item(), correlation.item())",
                "LengthEffect(correlation.item(), slope.item())",
            ),
        ),
        Trap(
            "The correlation is squared: the sign says whether longer or shorter "
            "answers are paid.",
            ("correlation.item()", "correlation.item() ** 2"),
        ),
        Trap(
            "A score less gold still knows about gold, unless it rises by exactly one "
            "a point: take gold's own line away, as `residuals` does.",
            ("residuals(scores, gold)", "residuals(scores - gold, 0 * gold)"),
        ),
        Trap(
            "A covariance has units. For the correlation divide by both rests' sizes.",
            (
                "correlation = together / (powers[0] * powers[1]).sqrt()",
                "correlation = together / (len(scores) - 1)",
            ),
        ),
        Trap(
            "The root is missing: a correlation lies from −1 to 1.",
            ("(powers[0] * powers[1]).sqrt()", "(powers[0] * powers[1])"),
        ),
        Trap(
            "Score and gold have changed places: this asks what length does to gold "
            "among answers of equal score.",
            ("residuals(scores, gold)", "residuals(gold, scores)"),
            ("residuals(lengths, gold)", "residuals(lengths, scores)"),
        ),
        Trap(
            "Length is held equal and gold is looked at: it should be the other way "
            "round.",
            ("residuals(scores, gold)", "residuals(scores, lengths)"),
            ("residuals(lengths, gold)", "residuals(gold, lengths)"),
        ),
        Trap(
            "Lines of gold on score and on length are taken, not of score and length "
            "on gold: `residuals(y, x)` leaves what is left of y.",
            ("residuals(scores, gold)", "residuals(gold, scores)"),
            ("residuals(lengths, gold)", "residuals(gold, lengths)"),
        ),
        Trap(
            "Where gold explains length or score in full, only rounding is left, and "
            "its quotients mean nothing: both are 0 then.",
            ("if min(powers) < 1e-12:", "if min(powers) < 0:"),
        ),
        Trap(
            "Fewer than three answers must be refused with a ValueError: a line in "
            "gold leaves nothing of two.",
            ("if len(scores) < 3:", "if len(scores) < 2:"),
        ),
    ),
    twins=(Twin(effect_by_regression), Twin(effect_by_lstsq)),
    equivalent={
        "min(powers) < 1e-12 → min(powers) <= 1e-12": "a sum of squares that is 1e-12 "
        "to its last bit is itself a matter of rounding",
        "LengthEffect(0.0, 0.0) → LengthEffect(0.0, 0.0)": "both are 0",
    },
)

# --- 13.8 without_length ------------------------------------------------------------


def without_length_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def some(n: int) -> tuple[Tensor, Tensor]:
        scores = torch.randn(n, generator=draw)
        return scores, torch.randint(4, 27, (n,), generator=draw)

    scores, lengths = some(5)
    return [
        Case(
            "the example of the docstring",
            torch.tensor([1.0, 1.0]),
            torch.tensor([10, 20]),
            0.1,
            15.0,
        ),
        Case("some answers", *some(7), 0.14, 16.2),
        Case("it pays for short ones", *some(6), -0.3, 14.0),
        Case("lengths as float", scores, lengths.float(), 0.2, 9.5),
        Case("it does not pay for length", *some(4), 0.0, 16.0),
        Case("learning", scores.clone().requires_grad_(True), lengths, 0.25, 12.0),
    ]


def without_length_oracle(
    scores: Tensor, lengths: Tensor, slope: float, usual: float
) -> Tensor:
    """Answer by answer; what it takes off is a plain number."""
    taken = [slope * (length - usual) for length in lengths.tolist()]
    return torch.stack([score - off for score, off in zip(scores, taken)])


def without_by_sum(scores, lengths, slope, usual):
    """First as if all were empty, then all of the usual length."""
    return (scores - slope * lengths) + slope * usual


def without_by_bonus(scores, lengths, slope, usual):
    missing = usual - lengths.to(scores.dtype)
    return torch.add(scores, missing, alpha=slope)


TAKEN = "slope * (lengths - usual)"

WITHOUT_LENGTH = Exercise(
    id="13.8",
    answer=without_length,
    why="What has been measured can be taken off, before a policy lives on it.",
    difficulty=1,
    importance=4,
    minutes=3,
    hints=(
        "If a token is worth `slope` to this model, what has it paid for those beyond "
        "the usual?",
        r"$s - \text{slope} \cdot (\text{length} - \text{usual})$",
        "One line.",
    ),
    bonus="The slope was measured on answers of SFT. Measure it again on answers of "
    "the trained policy: does the correction still fit? If not, which way does it err?",
    cases=without_length_cases,
    oracle=without_length_oracle,
    traps=(
        Trap(
            "Now it pays twice for length. What the model pays for a token is to be "
            "taken off.",
            (f"scores - {TAKEN}", f"scores + {TAKEN}"),
        ),
        Trap(
            "Without `usual` every score falls: an answer of usual length should keep "
            "its own, so that β and the penalty for a missing end mean what they did.",
            ("(lengths - usual)", "lengths"),
        ),
        Trap(
            "A score for each token is another thing: it makes long answers pay even "
            "where length had no price. Subtract.",
            (f"scores - {TAKEN}", "scores * usual / lengths"),
        ),
        Trap(
            "That is the score of a mean token, another reward. The price of the "
            "tokens beyond the usual is to be taken off.",
            (f"scores - {TAKEN}", "scores / lengths"),
        ),
        Trap(
            "Only long answers are charged. Short ones have been paid too little, by "
            "the same slope.",
            ("(lengths - usual)", "(lengths - usual).clamp(min=0)"),
        ),
        Trap(
            "A distance from the usual length is charged, in both directions: that is "
            "a new price, for being unusual.",
            ("(lengths - usual)", "(lengths - usual).abs()"),
        ),
        Trap(
            "The slope is already score a token: do not divide by the usual length.",
            ("(lengths - usual)", "(lengths / usual - 1)"),
        ),
        Trap(
            "Slope and usual have changed roles.",
            (TAKEN, "usual * (lengths - slope)"),
        ),
        Trap(
            "The slope must multiply the tokens beyond the usual.",
            (TAKEN, "(lengths - usual)"),
        ),
        Trap(
            "The scores are cut off from what they came from: a gradient should flow "
            "on through them.",
            ("return scores", "return scores.detach()"),
        ),
        Trap(
            "The mean length of this batch is taken as the usual one: then an answer's "
            "score depends on its neighbours. `usual` is given.",
            ("lengths - usual", "lengths - lengths.float().mean()"),
        ),
    ),
    twins=(Twin(without_by_sum), Twin(without_by_bonus)),
)

EXERCISES = (
    PPO_COLUMNS,
    FIT_LAW,
    PPO_PEAK,
    STOP_AT,
    WORST_CASE,
    UNCERTAINTY_WEIGHTED,
    LENGTH_EFFECT,
    WITHOUT_LENGTH,
)
