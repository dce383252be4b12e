"""Lesson 12: intervals, pairs, power, length, perplexity, diversity, pass@k."""

import itertools
import math
import statistics
from typing import Any

import torch
from torch import Tensor

from minipalm.course.exercise import Candidate, Case, Exercise, Trap, Twin
from minipalm.evaluate.comparison import (
    length_controlled,
    logistic_fit,
    paired_bootstrap,
    samples_needed,
)
from minipalm.evaluate.isolated import pass_at_k
from minipalm.evaluate.statistics import Interval, wilson, win_rate
from minipalm.evaluate.texts import distinct_n, perplexity


def whole(low: int, high: int, draw: torch.Generator) -> int:
    """A whole number from low to high, both of them included."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def normal_quantile(share: float) -> float:
    """By halving: where the normal law has this share to its left."""
    low, high = -10.0, 10.0
    for _ in range(80):
        z = (low + high) / 2
        if (1 + math.erf(z / math.sqrt(2))) / 2 < share:
            low = z
        else:
            high = z
    return low


# --- 12.1 wilson --------------------------------------------------------------------


def wilson_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    n = whole(11, 30, draw)
    return [
        Case("the example of the docstring", 8, 10),
        Case("no success", 0, n),
        Case("nothing but successes", n, n),
        Case("some, and half a tie", whole(2, 8, draw) + 0.5, n),
        Case("level 0.8", whole(2, 8, draw), n, level=0.8),
        Case("level 0.99", whole(2, 8, draw), n, level=0.99),
        Case("one trial", 1, 1),
        Case("no trials", 0, 0),
        Case("more successes than trials", n + 1, n),
        Case("fewer than none", -0.5, n),
        Case("successes are not a number", math.nan, n),
    ]


def wilson_oracle(successes: float, n: int, level: float = 0.95) -> Interval:
    """Halve the way from the measured share to 0, and to 1, till the test rejects."""
    if n == 0 or not 0 <= successes <= n:
        raise ValueError
    z, share = normal_quantile((1 + level) / 2), successes / n

    def rejected(p: float) -> bool:
        return abs(share - p) > z * math.sqrt(p * (1 - p) / n)

    ends = []
    for outer in (0.0, 1.0):
        inner = share
        for _ in range(60):
            middle = (inner + outer) / 2
            if rejected(middle):
                outer = middle
            else:
                inner = middle
        ends.append(inner)
    return Interval(share, ends[0], ends[1], n)


def wilson_by_roots(successes, n, level=0.95):
    """The two roots of a quadratic in p."""
    if not n > 0 or not (successes >= 0 and successes <= n):
        raise ValueError("what was counted?")
    q = statistics.NormalDist().inv_cdf(0.5 + level / 2) ** 2
    a, b, c = n + q, -(2 * successes + q), successes**2 / n
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
    return Interval(successes / n, low, high, n)


def wilson_with_tensors(successes, n, level=0.95):
    if n <= 0 or math.isnan(successes) or successes < 0 or successes > n:
        raise ValueError(f"{successes} of {n}")
    share = torch.tensor(successes / n, dtype=torch.float64)
    z = torch.special.ndtri(torch.tensor(1 - (1 - level) / 2, dtype=torch.float64))
    weight = n / (n + z**2)  # the middle is drawn towards one half
    middle = weight * share + (1 - weight) / 2
    variance = weight * share * (1 - share) + (1 - weight) / 4
    half = z * (variance / (n + z**2)).sqrt()
    ends = torch.stack([middle - half, middle + half]).clamp(0, 1).tolist()
    return Interval(successes / n, *ends, n)


def wald(successes, n, level=0.95):
    if n < 1 or not 0 <= successes <= n:
        raise ValueError
    z, rate = statistics.NormalDist().inv_cdf((1 + level) / 2), successes / n
    half = z * math.sqrt(rate * (1 - rate) / n)
    return Interval(rate, max(0.0, rate - half), min(1.0, rate + half), n)


def agresti_coull(successes, n, level=0.95):
    if n < 1 or not 0 <= successes <= n:
        raise ValueError
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    more = n + z**2
    p = (successes + z**2 / 2) / more
    half = z * math.sqrt(p * (1 - p) / more)
    return Interval(successes / n, max(0.0, p - half), min(1.0, p + half), n)


WILSON = Exercise(
    id="12.1",
    answer=wilson,
    why="A share without an interval is not a result: nobody can tell it from luck.",
    difficulty=2,
    importance=5,
    minutes=6,
    hints=(
        "How far may a measured share lie from the true share p? Whose standard error "
        "is that, of the measured one or of p?",
        "$\\frac{\\hat p + z^2/2n \\pm z\\sqrt{\\hat p(1-\\hat p)/n + z^2/4n^2}}"
        "{1 + z^2/n}$",
        "`z = NormalDist().inv_cdf((1 + level) / 2)`",
    ),
    bonus="A policy has won all of 30 pairs. What does p̂ ± 2 standard errors say, and "
    "what does yours? Show that for 0 of n the upper end is z²/(n + z²).",
    cases=wilson_cases,
    oracle=wilson_oracle,
    traps=(
        Trap(
            "This is p̂ ± z standard errors of p̂. With 0 or n successes it is empty: "
            "Wilson asks which true shares p are z of *their* standard errors away.",
            wald,
        ),
        Trap(
            "This is Agresti and Coull's interval: z²/2 successes and z² trials are "
            "added first. The middle is right, but it is wider than Wilson's.",
            agresti_coull,
        ),
        Trap(
            "z leaves all of 1 − level above it. An interval has two ends: half of "
            "that must lie beyond each, so the quantile is (1 + level)/2.",
            ("inv_cdf((1 + level) / 2)", "inv_cdf(level)"),
        ),
        Trap(
            "`level` has no effect: z = 1.96 belongs to 0.95 only.",
            ("NormalDist().inv_cdf((1 + level) / 2)", "1.959964"),
        ),
        Trap(
            "The middle is the measured share. Wilson's is drawn towards one half, the "
            "more the fewer trials there are.",
            ("    half =", "    center = rate\n    half ="),
        ),
        Trap(
            "The middle is divided by 1 + z²/n, the half width is not. Both are.",
            ("** 2) / (1 + z**2 / n)\n    return", "** 2)\n    return"),
        ),
        Trap(
            "The half width is divided by 1 + z²/n, the middle is not. Both are.",
            ("(rate + z**2 / (2 * n)) / (1 + z**2 / n)", "(rate + z**2 / (2 * n))"),
        ),
        Trap(
            "The middle moves by z²/2n before it is divided; here by z²/n, so it ends "
            "up on the wrong side of one half.",
            ("(rate + z**2 / (2 * n))", "(rate + z**2 / n)"),
        ),
        Trap(
            "Under the root stands z²/4n², which is (z/2n)². Here it is (z/n)².",
            ("(z / (2 * n)) ** 2", "(z / n) ** 2"),
        ),
        Trap(
            "The root is missing: what stands there is a variance.",
            ("math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)",
             "(rate * (1 - rate) / n + (z / (2 * n)) ** 2)"),
        ),
        Trap(
            "A share of no trials, or of more successes than trials, must be refused "
            "with a ValueError; NaN, too.",
            ("if n < 1 or not 0 <= successes <= n:", "if n < 0:"),
        ),
    ),
    twins=(Twin(wilson_by_roots), Twin(wilson_with_tensors)),
    equivalent={
        "max(0.0, center - half) → max(center - half, 0.0)": "the larger of two",
        "min(1.0, center + half) → min(center + half, 1.0)": "the smaller of two",
        "min(1.0, center + half) → min(2.5, center + half)": (
            "beyond 1 it goes by rounding only"
        ),
    },
)  # fmt: skip

# --- 12.2 win_rate ------------------------------------------------------------------


def win_rate_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def points(n: int) -> Tensor:
        return torch.randint(0, 4, (n,), generator=draw).float()

    b = points(9)
    mixed = b + torch.tensor([2.0, 1, 1, 0, 0, 0, -2, -1, 3])
    known = torch.tensor([3.0, 1, 2]), torch.tensor([1.0, 1, 5])
    rare = torch.rand(7, generator=draw)
    return [
        Case("the example of the docstring", *known),
        Case("three ties among nine", mixed, b),
        Case("the other way round", b, mixed),
        Case("against itself", points(5) + rare[:5], points(5) * 0 + 1),
        Case("all are ties", rare, rare.clone()),
        Case("one large win and many small losses", rare - 0.1, rare * 1.0),
        Case("whole numbers", mixed.long(), b.long()),
    ]


def win_rate_oracle(a: Tensor, b: Tensor) -> Interval:
    """Count, prompt by prompt."""
    points = 0.0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        if x == y:
            points += 0.5
        elif x > y:
            points += 1
    return wilson_oracle(points, len(a))


def win_rate_by_signs(a, b):
    return wilson(((a - b).sign().sum().item() + len(a)) / 2, len(a))


def win_rate_by_counts(a, b):
    lost, won = int((a < b).sum()), int((a > b).sum())
    return wilson(won + (len(a) - won - lost) / 2, len(a))


def without_ties(a, b):
    kept = a != b
    won = (a[kept] > b[kept]).sum().item()
    return wilson(won, int(kept.sum())) if kept.any() else wilson(0.5, 1)


WIN_RATE = Exercise(
    id="12.2",
    answer=win_rate,
    why="It is what leaderboards report, and what is done with ties decides who leads.",
    difficulty=1,
    importance=5,
    minutes=3,
    hints=(
        "What win rate should a policy have against itself, if all its answers are "
        "equal?",
        "$\\frac1N \\sum_n \\mathbb{1}[a_n > b_n] + \\frac12 \\mathbb{1}[a_n = b_n]$",
        "`won = (a > b).double() + ...`",
    ),
    bonus="The interval treats a tie as a coin that was tossed. Work out the true "
    "variance of a trial with ties: by how much is the interval too wide?",
    cases=win_rate_cases,
    oracle=win_rate_oracle,
    traps=(
        Trap(
            "A tie counts as a loss here: a policy would lose all of its games against "
            "itself. It is half a win.",
            ("(a > b).double() + 0.5 * (a == b).double()", "(a > b).double()"),
        ),
        Trap(
            "A tie counts as a win here, so both policies could claim to be the "
            "better one. It is half a win.",
            ("(a > b).double() + 0.5 * (a == b).double()", "(a >= b).double()"),
        ),
        Trap(
            "Ties are left out. Then two policies that nearly always tie may seem far "
            "apart, and `n` hides how many prompts were asked.",
            without_ties,
        ),
        Trap(
            "It counts the wins of b. The first argument is the policy whose win rate "
            "it is; larger judgements are better.",
            ("(a > b)", "(a < b)"),
        ),
        Trap(
            "Every answer of a meets every answer of b. The comparison is paired: row "
            "n against row n, the same prompt.",
            (
                "won = (a > b).double() + 0.5 * (a == b).double()",
                "won = ((a[:, None] > b).double()"
                " + 0.5 * (a[:, None] == b).double()).mean(1)",
            ),
        ),
        Trap(
            "The wins are rounded to whole ones, which hides half a tie. `wilson` "
            "takes halves.",
            ("won.sum().item()", "float(int(won.sum()))"),
        ),
        Trap(
            "It compares the two means: one large win then outweighs many losses. Each "
            "prompt has one vote.",
            (
                "won = (a > b).double() + 0.5 * (a == b).double()",
                "x, y = a.double().mean(), b.double().mean()\n"
                "    won = ((x > y).double() + 0.5 * (x == y).double())"
                ".expand(len(a))",
            ),
        ),
    ),
    twins=(Twin(win_rate_by_signs), Twin(win_rate_by_counts)),
)

# --- 12.3 paired_bootstrap ----------------------------------------------------------


def bootstrap_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def fresh(number: int) -> torch.Generator:
        return torch.Generator().manual_seed(10 * seed + number)

    difficulty = 4 * torch.randn(9, generator=draw)
    a, b = difficulty + torch.randn(2, 9, generator=draw)
    known = torch.tensor([3.0, 5, 9]), torch.tensor([1.0, 3, 7])
    return [
        Case("the example of the docstring", *known, fresh(0)),
        Case("prompts of unequal difficulty", a + 0.4, b, fresh(1)),
        Case("the other way round", b, a + 0.4, fresh(2)),
        Case("301 resamples", a, b, fresh(3), resamples=301),
        Case("level 0.6", a, b, fresh(4), resamples=200, level=0.6),
        Case("two pairs", a[:2], b[:2], fresh(5), resamples=50),
        Case("one pair", a[:1], b[:1], fresh(6)),
        Case("unequal numbers", a, b[:1], fresh(7)),
    ]


def resampled(
    a: Tensor,
    b: Tensor,
    generator: torch.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Resample by resample, pair by pair; then sort and interpolate."""
    N = len(a)
    if N != len(b) or N == 1:
        raise ValueError
    x, y = a.tolist(), b.tolist()
    found = []
    for row in torch.randint(N, (resamples, N), generator=generator).tolist():
        found.append(sum(x[i] - y[i] for i in row) / N)
    found.sort()

    def at(share: float) -> float:
        place = share * (resamples - 1)
        left = math.floor(place)
        right = min(left + 1, resamples - 1)
        return found[left] + (place - left) * (found[right] - found[left])

    outside = (1 - level) / 2
    gain = sum(i - j for i, j in zip(x, y)) / N
    return gain, at(outside), at(1 - outside)


def bootstrap_oracle(
    a: Tensor, b: Tensor, generator: torch.Generator, **how: Any
) -> dict[str, Any]:
    return run_bootstrap(resampled, a, b, generator, **how)


def run_bootstrap(
    candidate: Candidate, a: Tensor, b: Tensor, generator: torch.Generator, **how: Any
) -> dict[str, Any]:
    """What comes back, and what the generator draws next: it was used as agreed."""
    return {
        "the result": candidate(a, b, generator, **how),
        "what the generator draws next": torch.rand((), generator=generator).item(),
    }


def bootstrap_by_counts(a, b, generator, resamples=2000, level=0.95):
    """How often each pair was drawn, times its difference."""
    N = len(a)
    if N < 2 or N != len(b):
        raise ValueError("pairs")
    drawn = torch.randint(N, (resamples, N), generator=generator)
    counts = torch.zeros(resamples, N, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    d = a.double() - b.double()
    tails = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
    low, high = torch.quantile(counts @ d / N, tails).tolist()
    return float(d.mean()), low, high


def bootstrap_of_both(a, b, generator, resamples=2000, level=0.95):
    """The same rows of both, and then the difference of two means."""
    if a.shape != b.shape or a.numel() <= 1:
        raise ValueError("pairs")
    rows = torch.randint(a.numel(), (resamples, a.numel()), generator=generator)
    one, two = (x.double()[rows].sum(1) / a.numel() for x in (a, b))
    moved = sorted((one - two).tolist())
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        place = share * (len(moved) - 1)
        i = min(int(place), len(moved) - 2)
        ends.append(moved[i] + (place - i) * (moved[i + 1] - moved[i]))
    return (a.double().mean() - b.double().mean()).item(), ends[0], ends[1]


DRAWN = "torch.randint(len(gains), (resamples, len(gains)), generator=generator)"

BOOTSTRAP = Exercise(
    id="12.3",
    answer=paired_bootstrap,
    why="It gives an interval for any mean of pairs, and it shows what is random: "
    "which prompts were asked.",
    difficulty=2,
    importance=5,
    minutes=6,
    hints=(
        "You can ask these N prompts only. How could you see what other N prompts, "
        "drawn as these were, would have said?",
        "$\\bar d^{(r)} = \\frac1N \\sum_i d_{k_{ri}}$ with $d = a - b$ and $k$ drawn "
        "from $0 \\dots N-1$; then the quantiles over $r$.",
        "`gains = (a - b).double()`",
    ),
    bonus="Resample whole prompts, with all answers to each: how much wider is the "
    "interval on the held-out prompts of this lesson, and which is the honest one?",
    cases=bootstrap_cases,
    oracle=bootstrap_oracle,
    run=run_bootstrap,
    traps=(
        Trap(
            "The pairs are torn apart: a and b are drawn on their own, so what both "
            "owe to the prompt no longer cancels. Draw one set of rows for both.",
            (
                "means = gains[rows].mean(dim=1)",
                f"other = {DRAWN}\n"
                "    means = (a.double()[rows] - b.double()[other]).mean(1)",
            ),
        ),
        Trap(
            "Each end cuts off 1 − level. An interval has two ends: (1 − level)/2 "
            "beyond each of them.",
            ("quantile((1 - level) / 2)", "quantile(1 - level)"),
            ("quantile((1 + level) / 2)", "quantile(level)"),
        ),
        Trap(
            "`level` has no effect: the quantiles 0.025 and 0.975 belong to 0.95 only.",
            ("quantile((1 - level) / 2)", "quantile(0.025)"),
            ("quantile((1 + level) / 2)", "quantile(0.975)"),
        ),
        Trap(
            "The sign is turned round: it is a less b.",
            ("(a - b)", "(b - a)"),
        ),
        Trap(
            "These are quantiles of single differences: how much the pairs vary, not "
            "how well their mean is known. Take the mean of each resample first.",
            ("means = gains[rows].mean(dim=1)", "means = gains[rows].flatten()"),
        ),
        Trap(
            "Drawn without replacement: each resample is the same N pairs in another "
            "order, and the interval has no width.",
            (
                DRAWN,
                "torch.stack([torch.randperm(len(gains), generator=generator)"
                " for _ in range(resamples)])",
            ),
        ),
        Trap(
            "The generator is not used: nobody can draw the same resamples again.",
            (DRAWN, DRAWN.replace(", generator=generator", "")),
        ),
        Trap(
            "The gain itself is no matter of luck: return the mean of a − b, not the "
            "mean of the resamples.",
            ("return gains.mean().item(),", "return means.mean().item(),"),
        ),
        Trap(
            "This is mean ± z standard errors. The bootstrap takes the quantiles of "
            "the resampled means, which need not lie evenly about the mean.",
            (
                "means.quantile((1 - level) / 2).item()",
                "gains.mean().item() - NormalDist().inv_cdf((1 + level) / 2)"
                " * gains.std().item() / math.sqrt(len(gains))",
            ),
            (
                "means.quantile((1 + level) / 2).item()",
                "gains.mean().item() + NormalDist().inv_cdf((1 + level) / 2)"
                " * gains.std().item() / math.sqrt(len(gains))",
            ),
        ),
        Trap(
            "This is mean ± z standard errors, and nothing is drawn. Draw N pairs many "
            "times with `generator`, and take quantiles of their means.",
            (f"rows = {DRAWN}", "z = NormalDist().inv_cdf((1 + level) / 2)"),
            (
                "means = gains[rows].mean(dim=1)",
                "half = z * gains.std().item() / math.sqrt(len(gains))",
            ),
            (
                "low = means.quantile((1 - level) / 2).item()",
                "low = gains.mean().item() - half",
            ),
            (
                "high = means.quantile((1 + level) / 2).item()",
                "high = gains.mean().item() + half",
            ),
        ),
        Trap(
            "A pair more or less changes how sure one may be: every resample must have "
            "N pairs, as many as there are.",
            ("(resamples, len(gains))", "(resamples, len(gains) - 1)"),
        ),
        Trap(
            "Unequal numbers of answers, or a single pair, must be refused with a "
            "ValueError; otherwise b is silently used again for every a.",
            ("if len(a) != len(b) or len(a) < 2:", "if False:"),
        ),
    ),
    twins=(Twin(bootstrap_by_counts), Twin(bootstrap_of_both)),
)

# --- 12.4 samples_needed ------------------------------------------------------------


def samples_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    gain, sd = (0.2 + 0.2 * torch.rand(2, generator=draw)).tolist()
    return [
        Case("the example of the docstring", 0.5, 2.0),
        Case("a loss of the same size", -0.5, 2.0),
        Case("a small gain", gain, 3.0 + sd),
        Case("a large gain", 2.0 + gain, 3.0 + sd),
        Case("another spread", 1.0, 2.2 + sd),
        Case("level 0.99", 0.5, 2.0 + sd, level=0.99),
        Case("power 0.95", 0.5, 2.0 + sd, power=0.95),
        Case("power 0.5", 0.5, 2.0 + sd, power=0.5),
        Case("no doubt at all", 3.0, 0.1 + sd / 10),
        Case("no gain", 0.0, 2.0),
    ]


def samples_oracle(
    gain: float, sd: float, level: float = 0.95, power: float = 0.8
) -> int:
    """One pair more, until the gain is found often enough."""
    if gain == 0.0:
        raise ValueError
    z, n = normal_quantile((1 + level) / 2), 2
    while True:
        beyond = abs(gain) / (sd / math.sqrt(n)) - z
        if (1 + math.erf(beyond / math.sqrt(2))) / 2 >= power:
            return n
        n += 1


def samples_by_tensor(gain, sd, level=0.95, power=0.8):
    if not gain:
        raise ValueError("nothing to find")
    tails = torch.tensor([1 - (1 - level) / 2, power], dtype=torch.float64)
    errors = torch.special.ndtri(tails).sum()  # standard errors from 0
    return max(int(torch.ceil((errors / (gain / sd)) ** 2)), 2)


def samples_by_doubling(gain, sd, level=0.95, power=0.8):
    """Far enough, then halve the way."""
    if gain == 0:
        raise ValueError("nothing to find")
    law = statistics.NormalDist()

    def enough(n):
        z = law.inv_cdf(0.5 + level / 2)
        return law.cdf(abs(gain) * n**0.5 / sd - z) >= power

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


Z = "law.inv_cdf((1 + level) / 2) + law.inv_cdf(power)"

SAMPLES = Exercise(
    id="12.4",
    answer=samples_needed,
    why="Ask before you look: with too few prompts the question has no answer, "
    "whatever the numbers say.",
    difficulty=2,
    importance=4,
    minutes=5,
    hints=(
        "The measured gain scatters around the true one. If the true gain lies just at "
        "the edge of the interval's half width, how often is it found?",
        "$N = \\lceil ((z_{(1+\\text{level})/2} + z_\\text{power})\\, sd / "
        "\\text{gain})^2 \\rceil$",
        "`law = NormalDist()`",
    ),
    bonus="For a win rate near one half a trial has variance ¼ at most. How many pairs "
    "tell a true 52 from 50 in a hundred? How many did your favourite leaderboard ask?",
    cases=samples_cases,
    oracle=samples_oracle,
    traps=(
        Trap(
            "z_level leaves all of 1 − level above it. The interval has two ends: "
            "the quantile is (1 + level)/2.",
            ("law.inv_cdf((1 + level) / 2)", "law.inv_cdf(level)"),
        ),
        Trap(
            "`power` has no effect: with the gain just as far as the interval is wide, "
            "it is found only every other time. Add z_power.",
            (Z, "law.inv_cdf((1 + level) / 2)"),
        ),
        Trap(
            "z_power leaves 1 − power above it, so more power needs more pairs. Here "
            "it leaves power above it, and is subtracted.",
            ("law.inv_cdf(power)", "law.inv_cdf(1 - power)"),
        ),
        Trap(
            "The two z are squared one by one. They are two parts of one distance: add "
            "them, then square.",
            (
                "(z * sd / gain) ** 2",
                "(law.inv_cdf((1 + level) / 2) ** 2 + law.inv_cdf(power) ** 2)"
                " * (sd / gain) ** 2",
            ),
        ),
        Trap(
            "Twice as many: that is for two groups that share no prompts. Here sd is "
            "that of the differences, one for each pair.",
            ("(z * sd / gain) ** 2", "2 * (z * sd / gain) ** 2"),
        ),
        Trap(
            "The square is missing: the standard error falls with √N, so half the gain "
            "needs four times as many pairs.",
            ("(z * sd / gain) ** 2", "abs(z * sd / gain)"),
        ),
        Trap(
            "sd is a standard deviation already; here it is squared once more.",
            ("(z * sd / gain) ** 2", "(z * sd**2 / gain) ** 2"),
        ),
        Trap(
            "It is rounded down: one pair too few. The smallest number that is enough "
            "lies above.",
            ("math.ceil(", "math.floor("),
        ),
        Trap(
            "One pair more than needed: round up, and leave it there.",
            ("math.ceil((z * sd / gain) ** 2)", "math.floor((z * sd / gain) ** 2) + 2"),
        ),
        Trap(
            "A single pair has no standard deviation: never fewer than 2.",
            ("max(2, ", "max(1, "),
        ),
        Trap(
            "A gain of 0 must be refused with a ValueError that says why; a "
            "ZeroDivisionError does not.",
            ("if gain == 0:", "if False:"),
        ),
    ),
    twins=(Twin(samples_by_tensor), Twin(samples_by_doubling)),
    equivalent={
        "max(2, math.ceil((z * sd / gain) ** 2)) → "
        "max(math.ceil((z * sd / gain) ** 2), 2)": "the larger of two",
    },
)

# --- 12.5 length_controlled ---------------------------------------------------------


def length_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def game(n: int, longer: float, bias: float, tie: float) -> tuple[Tensor, Tensor]:
        d = (longer + 4 * torch.randn(n, generator=draw)).round().long()
        better = 0.4 + bias * d + torch.randn(n, generator=draw)
        return (better > tie).double() / 2 + (better > -tie).double() / 2, d

    known = torch.tensor([1.0, 1, 0, 1, 0]), torch.tensor([5, 3, 4, -1, -2])
    won, d = game(41, 6.0, 0.3, 0.5)
    far = d.clone()
    far[0] = 90
    return [
        Case("the example of the docstring", *known),
        Case("the longer one is preferred", won, d),
        Case("the shorter one is preferred", *game(33, 5.0, -0.4, 0.0)),
        Case("shorter answers", *game(37, -6.0, 0.3, 0.3)),
        Case("one is far longer", won, far),
        Case("lengths of another type", won.float(), 0.5 * d.float()),
        Case("all pairs won", torch.ones(11), d[:11]),
        Case("equal differences", won[:6], torch.full((6,), 3)),
    ]


def length_oracle(won: Tensor, longer_by: Tensor) -> tuple[float, float]:
    """Newton's method for two unknowns, written out."""
    d = [float(x) for x in longer_by]
    mean = sum(d) / len(d)
    spread = math.sqrt(sum((one - mean) ** 2 for one in d) / len(d))
    if spread == 0:
        raise ValueError
    pairs = [(math.tanh(one / spread), float(w)) for one, w in zip(d, won)]
    alpha = gamma = 0.0
    for _ in range(80):
        up, across = -0.01 * alpha, -0.01 * gamma
        aa, ag, gg = 0.01, 0.0, 0.01
        for x, w in pairs:
            p = 1 / (1 + math.exp(-(alpha + gamma * x)))
            up, across = up + w - p, across + (w - p) * x
            v = p * (1 - p)
            aa, ag, gg = aa + v, ag + v * x, gg + v * x * x
        det = aa * gg - ag * ag
        alpha += 0.5 * (gg * up - ag * across) / det
        gamma += 0.5 * (aa * across - ag * up) / det
    return 1 / (1 + math.exp(-alpha)), gamma


def length_by_sigmoid(won, longer_by):
    """tanh as a sigmoid, and the columns the other way round."""
    d = longer_by.double()
    variance = (d**2).mean() - d.mean() ** 2
    if d.max() == d.min():
        raise ValueError("of one length")
    x = 2 * torch.sigmoid(2 * d / variance.sqrt()) - 1
    w = logistic_fit(torch.stack((x, x * 0 + 1), dim=-1), won)
    return 1 / (1 + math.exp(-w[1].item())), w[0].item()


def length_by_search(won, longer_by):
    """Without the given fit: PyTorch's own optimiser."""
    d = longer_by.double()
    sd = d.var(unbiased=False).sqrt()
    if len(set(d.tolist())) == 1:
        raise ValueError("of one length")
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [w], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        search.zero_grad()
        logits = w[0] + w[1] * (d / sd).tanh()
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, won.double(), reduction="sum"
        )
        value = value + 0.005 * w.square().sum()
        value.backward()
        return value

    search.step(loss)
    return w[0].sigmoid().item(), w[1].item()


def equal_lengths_only(won, longer_by):
    if (longer_by == longer_by[0]).all():
        raise ValueError
    near = longer_by.abs() <= longer_by.double().std()
    return won[near].double().mean().item(), 0.0


RESULT = "return torch.sigmoid(alpha).item(), gamma.item()"
FIT = "alpha, gamma = logistic_fit(features, won)"

LENGTH = Exercise(
    id="12.5",
    answer=length_controlled,
    why="Judges, people and models alike, like long answers; a policy finds that out "
    "sooner than you.",
    difficulty=3,
    importance=4,
    minutes=8,
    hints=(
        "If you draw the share of wins against how much longer the answer was, where "
        "on that curve are both of equal length?",
        "$p = \\sigma(\\alpha + \\gamma \\tanh(d / s))$, so at $d = 0$: "
        "$\\sigma(\\alpha)$.",
        "`d = longer_by.double()`, then `x = torch.tanh(d / d.std(correction=0))`",
    ),
    bonus="Bootstrap it: draw the pairs again, fit again, and give the length-"
    "controlled win rate an interval. Where is it wide, and why?",
    cases=length_cases,
    oracle=length_oracle,
    traps=(
        Trap(
            "The differences are centred first. Then x = 0 is the usual difference, "
            "not equal length, and the bias stays in: only divide by s.",
            ("torch.tanh(d / ", "torch.tanh((d - d.mean()) / "),
        ),
        Trap(
            "tanh is missing: a single answer that is far longer then bends the whole "
            "curve.",
            ("torch.tanh(d / d.std(correction=0))", "d / d.std(correction=0)"),
        ),
        Trap(
            "The differences are not divided by their standard deviation: after a "
            "few tokens tanh is flat, and all lengths look alike.",
            ("d / d.std(correction=0)", "d"),
        ),
        Trap(
            "Nearly: s divides by N here, by N − 1 in yours.",
            ("d.std(correction=0)", "d.std()"),
        ),
        Trap(
            "s is the spread about the mean difference; here it is the root of the "
            "mean square, which is larger if one policy is longer on average.",
            ("d.std(correction=0)", "d.square().mean().sqrt()"),
        ),
        Trap(
            "d is divided by its variance. The standard deviation is the root of it.",
            ("d.std(correction=0)", "d.var(correction=0)"),
        ),
        Trap(
            "This is the mean of the fitted chances, at the lengths that were seen: "
            "the plain win rate again. Ask the curve at d = 0.",
            (
                RESULT,
                "return torch.sigmoid(features @ logistic_fit(features, won))"
                ".mean().item(), gamma.item()",
            ),
        ),
        Trap(
            "The curve has no constant, so at d = 0 it says one half for every policy. "
            "Add a column of ones.",
            (FIT, "alpha = d.new_zeros(())\n"
             "    gamma = logistic_fit(features[:, 1:], won)[0]"),
        ),
        Trap(
            "α and γ are confused: the weight of the column of ones is what is left at "
            "equal length.",
            (FIT, "gamma, alpha = logistic_fit(features, won)"),
        ),
        Trap(
            "α is in nats of odds; a win rate is σ(α).",
            ("torch.sigmoid(alpha).item()", "alpha.item()"),
        ),
        Trap(
            "The sign of the difference is turned round: γ is positive where *longer* "
            "answers win.",
            ("torch.tanh(d / ", "torch.tanh(-d / "),
        ),
        Trap(
            "Ties are dropped before the fit. `logistic_fit` takes a half for what it "
            "is.",
            (FIT, "kept = won != 0.5\n"
             "    alpha, gamma = logistic_fit(features[kept], won[kept])"),
        ),
        Trap(
            "Ties are counted as wins. `logistic_fit` takes a half for what it is.",
            (FIT, "alpha, gamma = logistic_fit(features, (won > 0).double())"),
        ),
        Trap(
            "Only pairs of about equal length are kept: that throws most of them away. "
            "The curve uses all, and is read at d = 0.",
            equal_lengths_only,
        ),
        Trap(
            "If all pairs differ by the same length, quality and length cannot be told "
            "apart. Raise a ValueError.",
            ("if (d == d[0]).all():", "if False:"),
        ),
    ),
    twins=(Twin(length_by_sigmoid), Twin(length_by_search)),
    equivalent={
        "(d == d[0]).all → (d == d[1]).all": "all equal one of them, whichever it is",
        "(d == d[0]).all → (d == d[-1]).all": "all equal one of them, whichever it is",
    },
)  # fmt: skip

# --- 12.6 perplexity ----------------------------------------------------------------


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def perplexity_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def logs(B: int, T: int) -> Tensor:
        return -2 * torch.rand(B, T, generator=draw) - 0.1

    known = torch.tensor([[0.5, 0.25, 0.125]]).log()
    unknown = logs(2, 4)
    unknown[1, 2:] = torch.nan
    return [
        Case("the example of the docstring", known, ragged([3], 3)),
        Case("texts of unequal lengths", logs(3, 6), ragged([6, 2, 1], 6)),
        Case("full rows", logs(2, 5), ragged([5, 5], 5)),
        Case("one text is empty", logs(3, 4), ragged([3, 0, 2], 4)),
        Case("no number in the padding", unknown, ragged([4, 2], 4)),
        Case("in bfloat16", logs(2, 7).bfloat16(), ragged([7, 4], 7)),
        Case("no token", logs(2, 3), ragged([0, 0], 3)),
    ]


def perplexity_oracle(logprobs: Tensor, mask: Tensor) -> float:
    """Token by token."""
    total, count = 0.0, 0
    for row, seen in zip(logprobs.tolist(), mask.tolist()):
        for logprob, here in zip(row, seen):
            if here:
                total, count = total - logprob, count + 1
    if count == 0:
        raise ValueError
    return math.e ** (total / count)


def perplexity_by_product(logprobs, mask):
    """The geometric mean of 1/p."""
    chances = torch.where(mask, logprobs.double(), 0.0).exp()
    if mask.sum() == 0:
        raise ValueError("empty")
    return chances.prod().item() ** (-1 / int(mask.sum()))


def perplexity_by_bits(logprobs, mask):
    picked = [row[seen].double() for row, seen in zip(logprobs, mask)]
    lengths = sum(len(one) for one in picked)
    if not lengths:
        raise ValueError("empty")
    return 2 ** (-sum(one.sum().item() for one in picked) / math.log(2) / lengths)


PICKED = "logprobs[mask].double().mean()"

PERPLEXITY = Exercise(
    id="12.6",
    answer=perplexity,
    why="Reward is not all that a policy has: this tells how much of the language it "
    "was taught it still knows.",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "How probable is a text of three tokens? What equal probability for each token "
        "would give the same?",
        "$\\exp(-\\frac{1}{\\sum m} \\sum_{b,t} m_{bt} \\log p_{bt})$",
        "`logprobs[mask]`",
    ),
    bonus="Two tokenizers cut a text into 10 and into 14 tokens. Which unit makes "
    "their perplexities comparable?",
    cases=perplexity_cases,
    oracle=perplexity_oracle,
    traps=(
        Trap(
            "Each text has its own mean first, so a token of a short text counts for "
            "more. The mean is over all tokens.",
            (
                PICKED,
                "(sum(x[m].double().mean() for x, m in zip(logprobs, mask) if m.any())"
                " / mask.any(1).sum())",
            ),
        ),
        Trap(
            "Each text has its own mean first, so a token of a short text counts for "
            "more, and an empty text is 0/0. The mean is over all tokens.",
            (
                PICKED,
                "(logprobs.masked_fill(~mask, 0.0).double().sum(1) / mask.sum(1))"
                ".mean()",
            ),
        ),
        Trap(
            "Each text has its own perplexity, and these are averaged. One mean over "
            "all tokens comes first, then exp.",
            (
                f"return {PICKED}.neg().exp().item()",
                "each = [x[m].double().mean().neg().exp().item()"
                " for x, m in zip(logprobs, mask) if m.any()]\n"
                "    return sum(each) / len(each)",
            ),
        ),
        Trap(
            "This is the mean of 1/p. Perplexity takes the mean of log p first: one "
            "token of tiny probability would rule all others.",
            (
                f"{PICKED}.neg().exp().item()",
                "logprobs[mask].double().neg().exp().mean().item()",
            ),
        ),
        Trap(
            "This is the mean surprise in nats. Perplexity is exp of it: a number of "
            "choices.",
            (".neg().exp().item()", ".neg().item()"),
        ),
        Trap(
            "The sign is missing: this is the mean probability of a token, not one "
            "over it.",
            (".neg().exp()", ".exp()"),
        ),
        Trap(
            "The logs are natural ones, so it is exp(...), not 2 to the power.",
            (".neg().exp().item()", ".neg().exp2().item()"),
        ),
        Trap(
            "The padding counts, too. Only tokens inside the mask do.",
            ("logprobs[mask]", "logprobs"),
        ),
        Trap(
            "The sum runs over tokens of the mask, but the divisor counts the padding.",
            (
                PICKED,
                "(logprobs.masked_fill(~mask, 0.0).double().sum() / mask.numel())",
            ),
        ),
        Trap(
            "Multiplying by the mask does not silence the padding: 0 times NaN is NaN. "
            "Pick the tokens with logprobs[mask].",
            (PICKED, "((logprobs * mask).double().sum() / mask.sum())"),
        ),
        Trap(
            "The sum over all tokens, not the mean: it would grow with the number of "
            "texts.",
            (".mean().neg()", ".sum().neg()"),
        ),
        Trap(
            "With no token at all there is nothing to tell: raise a ValueError, rather "
            "than return NaN.",
            ("if not mask.any():", "if False:"),
        ),
    ),
    twins=(Twin(perplexity_by_product), Twin(perplexity_by_bits)),
)

# --- 12.7 distinct_n ----------------------------------------------------------------

WORDS = "the fox sighed . it was sad".split()


def distinct_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def text(n: int) -> str:
        return " ".join(WORDS[whole(0, 6, draw)] for _ in range(n))

    texts = [text(7), "it was", text(12), "was it the the the", text(2), ""]
    short = ["fox fox it", "it fox", "was"]
    return [
        Case("the example of the docstring", ["a b a b", "b a"]),
        Case("one word at a time", texts, 1),
        Case("two words", texts),
        Case("three words", texts, n=3),
        Case("an order more", short),
        Case("a word more than once in a text", ["a a", "a b", "b b b"], 1),
        Case("texts too short to have a run", ["a b", "c", ""], 3),
        Case("no texts", []),
    ]


def distinct_oracle(texts: list[str], n: int = 2) -> float:
    """Write every run down; strike out those seen before."""
    seen: list[list[str]] = []
    runs = 0
    for text in texts:
        words = text.split()
        for start in range(len(words)):
            run = words[start : start + n]
            if len(run) == n:
                runs += 1
                if run not in seen:
                    seen.append(run)
    return len(seen) / runs if runs > 0 else 0.0


def distinct_by_zip(texts, n=2):
    split = [text.split() for text in texts]
    runs = [run for w in split for run in zip(*(w[k:] for k in range(n)))]
    return len({*runs}) / max(1, len(runs))


def distinct_by_text(texts, n=2):
    """Runs as texts, one word longer at a time."""
    count, known = 0, {}
    for text in texts:
        words = text.split()
        while len(words) >= n:
            known[" ".join(words[:n])] = True
            count += 1
            words = words[1:]
    return 0.0 if count == 0 else len(known) / count


RUNS = "[tuple(words[i : i + n]) for i in range(len(words) - n + 1)]"

DISTINCT = Exercise(
    id="12.7",
    answer=distinct_n,
    why="A policy that tells one good story over and over has a high reward and "
    "nothing to say.",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "How many pairs of neighbouring words has a text of 5 words? And how many "
        "different ones has “a b a b a”?",
        "$|\\text{set of runs}| / |\\text{list of runs}|$, over all texts together",
        "`words[i : i + n]`",
    ),
    bonus="Double the number of texts by drawing more of them. What happens to the "
    "number, and how would you compare 100 texts with 1000?",
    cases=distinct_cases,
    oracle=distinct_oracle,
    traps=(
        Trap(
            "Each text has a share of its own, and these are averaged. A policy that "
            "says the same to everybody would look varied: pool the runs.",
            (
                "return len(set(runs)) / len(runs) if runs else 0.0",
                "each = []\n"
                "    for text in texts:\n"
                "        words = text.split()\n"
                f"        mine = {RUNS}\n"
                "        each += [len(set(mine)) / len(mine)] if mine else []\n"
                "    return sum(each) / len(each) if each else 0.0",
            ),
        ),
        Trap(
            "The texts are joined first, so that runs go across from one text to the "
            "next.",
            ("for text in texts:", 'for text in [" ".join(texts)]:'),
        ),
        Trap(
            "The order within a run is lost: “a b” and “b a” are two runs.",
            ("tuple(words[i : i + n])", "tuple(sorted(words[i : i + n]))"),
        ),
        Trap(
            "These are runs of letters. Split the text into words first.",
            ("words = text.split()", "words = list(text)"),
        ),
        Trap(
            "It divides by the number of words. That is how Li et al. count; here it "
            "is the number of runs, which is smaller for n > 1.",
            (
                "/ len(runs) if runs",
                "/ sum(len(text.split()) for text in texts) if runs",
            ),
        ),
        Trap(
            "The last run of each text is missing: a text of W words has W − n + 1.",
            ("len(words) - n + 1", "len(words) - n"),
        ),
        Trap(
            "At the end of a text there are runs of fewer than n words. They do not "
            "count.",
            ("range(len(words) - n + 1)", "range(len(words))"),
        ),
        Trap(
            "This is how many different runs there are, not their share of all runs.",
            ("/ len(runs) if runs", "* 1.0 if runs"),
        ),
        Trap(
            "It counts runs that occur only once. A run that occurs three times is one "
            "different run, not none.",
            ("len(set(runs))", "sum(runs.count(one) == 1 for one in runs)"),
        ),
        Trap(
            "The runs do not overlap: after “a b” comes “c d”. A run begins at every "
            "word.",
            ("range(len(words) - n + 1)", "range(0, len(words) - n + 1, n)"),
        ),
        Trap(
            "Where there is no run at all, the answer is 0.0, not an error.",
            (" if runs else 0.0", ""),
        ),
    ),
    twins=(Twin(distinct_by_zip), Twin(distinct_by_text)),
)

# --- 12.8 pass_at_k -----------------------------------------------------------------


def pass_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    n, c = whole(8, 10, draw), whole(2, 3, draw)
    return [
        Case("the example of the docstring", 5, 2, 2),
        Case("one try", n, c, 1),
        Case("four tries", n, c, 4),
        Case("as many tries as programs", n, c, n),
        Case("fewer wrong ones than tries", n, n - 2, 4),
        Case("none is right", n, 0, 3),
        Case("all are right", n, n, 3),
        Case("more tries than programs", n, c, n + 1),
        Case("no try", n, c, 0),
        Case("more right ones than programs", n, n + 1, 2),
        Case("fewer right ones than none", n, -1, 2),
    ]


def pass_oracle(n: int, c: int, k: int) -> float:
    """All choices of k programs, of which the first c are right."""
    if min(c, k - 1, n - c, n - k) < 0:
        raise ValueError
    choices = list(itertools.combinations(range(n), k))
    found = [choice for choice in choices if min(choice) < c]
    return len(found) / len(choices)


def pass_by_product(n, c, k):
    """The tries one after the other, each of which must fail."""
    if k < 1 or k > n or c < 0 or c > n:
        raise ValueError("out of range")
    failing = 1.0
    for tried in range(k):
        failing *= max(0, n - c - tried) / (n - tried)
    return 1 - failing


def pass_by_logs(n, c, k):
    """With log-factorials, for large n."""
    if not 0 < k <= n or not 0 <= c <= n:
        raise ValueError("out of range")
    if n - c < k:
        return 1.0
    log_f = math.lgamma
    log_none = log_f(n - c + 1) + log_f(n - k + 1) - log_f(n - c - k + 1) - log_f(n + 1)
    return 1 - math.exp(log_none)


NONE = "math.comb(n - c, k) / math.comb(n, k)"

PASS = Exercise(
    id="12.8",
    answer=pass_at_k,
    why="Where an answer can be tested, one may try k times: code, proofs, and stories "
    "with a bar to clear.",
    difficulty=2,
    importance=3,
    minutes=3,
    hints=(
        "Of 10 choices of 2 among 5 programs, how many hold no right one, if 2 of the "
        "5 are right?",
        "$1 - \\binom{n-c}{k} / \\binom{n}{k}$",
        "`math.comb(n - c, k)`",
    ),
    bonus="Show that the mean of yours over all c (binomial, true chance p) is "
    "1 − (1 − p)^k. Is that so for 1 − (1 − c/n)^k?",
    cases=pass_cases,
    oracle=pass_oracle,
    traps=(
        Trap(
            "This draws with replacement: 1 − (1 − c/n)^k says too little, since the "
            "same wrong program may be drawn twice. Count choices of k different ones.",
            (NONE, "(1 - c / n) ** k"),
        ),
        Trap(
            "This is pass@1, the share of right programs, whatever k is.",
            (f"1 - {NONE}", "c / n"),
        ),
        Trap(
            "k times the share of right ones: several right ones in one choice are "
            "counted more than once, and it goes beyond 1.",
            (f"1 - {NONE}", "k * c / n"),
        ),
        Trap(
            "Cutting k·c/n off at 1 does not mend it: several right ones in one choice "
            "are still counted more than once.",
            (f"1 - {NONE}", "min(1.0, k * c / n)"),
        ),
        Trap(
            "This is the chance that *all* k pass. One is enough.",
            (f"1 - {NONE}", "math.comb(c, k) / math.comb(n, k)"),
        ),
        Trap(
            "This is the chance that *none* passes. Take it from 1.",
            (f"1 - {NONE}", NONE),
        ),
        Trap(
            "This is one less the chance that all k pass: how often any fails.",
            (NONE, "math.comb(c, k) / math.comb(n, k)"),
        ),
        Trap(
            "What cannot be must be refused with a ValueError: c from 0 to n, and k "
            "from 1 to n.",
            ("if not (0 <= c <= n and 1 <= k <= n):", "if n < 1:"),
        ),
    ),
    twins=(Twin(pass_by_product), Twin(pass_by_logs)),
)

EXERCISES = (
    WILSON,
    WIN_RATE,
    BOOTSTRAP,
    SAMPLES,
    LENGTH,
    PERPLEXITY,
    DISTINCT,
    PASS,
)
