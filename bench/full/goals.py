"""What the numbers are held against: floors by arithmetic, and the table of goals."""

from typing import Any

from bench.full.measure import full_sizes
from bench.full.sampling import lengths
from minipalm.model.palm import count_parameters

Results = dict[str, Any]


def policy_weights() -> float:
    return float(count_parameters(full_sizes().policy))


def step_floor_ms(rows: float, limits: Results) -> float:
    """A decode step: read every weight once, or multiply with it, what takes longer."""
    read = 2 * policy_weights() / (limits["copy_gbs"] * 1e9)
    multiply = 2 * policy_weights() * rows / (limits["sustained_tflops"] * 1e12)
    return 1e3 * max(read, multiply)


def realistic_floor(decode: Results) -> float:
    """Seconds, if each step cost what the rows that have not ended make it cost."""
    sizes = full_sizes()
    rows, limits = sizes.batches[-1], decode["limits"]
    ends = lengths(rows, sizes.preset.max_response)
    prompts = sizes.preset.max_prompt * step_floor_ms(rows, limits)
    steps = sum(
        step_floor_ms(float((ends > t).sum()), limits)
        for t in range(1, int(ends.max()))
    )
    return (prompts + steps) / 1e3


def phase_floors(limits: Results, lora: bool) -> Results:
    """Seconds of each phase of a PPO iteration on one GPU at the sustained rate."""
    sizes = full_sizes()
    preset = sizes.preset
    rows, P, T = preset.ppo.batch_size, preset.max_prompt, preset.max_response
    rate = limits["sustained_tflops"] * 1e12
    policy = 2 * policy_weights() / rate  # seconds a token, forward
    trunk = 2 * count_parameters(sizes.trunk) / rate
    tokens = rows * (P + T)
    rollout = rows * P * policy + (T - 1) * step_floor_ms(rows, limits) / 1e3
    return {
        "rollout": rollout,
        "logprobs": tokens * policy,
        "reference": tokens * policy,
        "values": tokens * trunk,
        "reward": tokens * trunk,
        "update": tokens * (policy * (2 if lora else 3) + 3 * trunk),
    }


def rows_of(results: Results) -> list[tuple[str, float, str, float, str]]:
    """(what, measured, at least or at most, goal, unit), where it was measured."""
    found: list[tuple[str, float, str, float, str]] = []

    def add(what: str, value: Any, sign: str, goal: float, unit: str = "") -> None:
        """Value is worked out only if all that it needs was measured."""
        try:
            found.append((what, float(value()), sign, goal, unit))
        except (KeyError, TypeError, ZeroDivisionError):
            return

    def share(part: str, key: str = "tflops") -> Any:
        return lambda: results[part][key] / results[part]["limits"]["sustained_tflops"]

    ours, r = "tokens_per_second", results
    add(
        "bf16 AdamW: forward + backward, of the sustained rate",
        share("train_bf16", "forward_backward_tflops"),
        ">=",
        0.90,
    )
    add("bf16 AdamW: the whole step", share("train_bf16"), ">=", 0.84)
    add("adapters of rank 16 (4 a weight credited)", share("train_lora"), ">=", 0.88)
    add("float32 weights: the whole step", share("train_fp32"), ">=", 0.78)
    for part, name, goal in (
        ("train_palm_rlhf", "palm-rlhf-pytorch", 1.35),
        ("train_llama", "compiled Llama", 1.03),
    ):
        for rows in full_sizes().peer_rows:
            tokens = rows * full_sizes().window
            add(
                f"8 blocks, {tokens:,} tokens: tokens a second, ours / {name}",
                lambda part=part, key=f"{ours}_{tokens}": (
                    r["train_ours_short"][key] / r[part][key]
                ),
                ">=",
                goal,
            )
    add(
        "two GPUs: tokens a second a GPU, of one GPU's",
        lambda: r["two_train"][ours] / r["train_fp32"][ours],
        ">=",
        0.90,
    )
    for rows, goal in (1, 0.78), (64, 0.72):
        add(
            f"decode step, batch {rows}: floor / measured",
            lambda n=rows: (
                step_floor_ms(n, r["decode"]["limits"]) / r["decode"][f"step_ms_{n}"]
            ),
            ">=",
            goal,
        )
    add(
        "sampling, batch 256",
        lambda: r["decode"]["tokens_per_second_256"],
        ">=",
        20_000,
        "tokens/s",
    )
    add(
        "sampling answers of realistic lengths, batch 256: floor / time",
        lambda: realistic_floor(r["decode"]) / r["decode"]["realistic_seconds"],
        ">=",
        0.6,
    )
    add(
        "decode step, batch 64, palm-rlhf-pytorch / ours",
        lambda: r["decode_palm_rlhf"]["step_ms_64"] / r["decode"]["step_ms_64"],
        ">=",
        60,
    )
    for rows, goal in (1, 1.6), (64, 2.0), (256, 2.2):
        add(
            f"decode step, batch {rows}, transformers static cache / ours",
            lambda n=rows: (
                r["decode_llama"][f"step_ms_{n}"] / r["decode"][f"step_ms_{n}"]
            ),
            ">=",
            goal,
        )
    add(
        "PPO, adapters, micro-batches of 16: time / floors",
        lambda: (
            r["ppo_lora"]["seconds"]
            / sum(phase_floors(r["ppo_lora"]["limits"], True).values())
        ),
        "<=",
        1.20,
    )
    add("PPO, adapters: memory", lambda: r["ppo_lora"]["peak_gib"], "<=", 60, "GiB")
    add(
        "PPO, all weights, 2 GPUs, recomputing: time / floors",
        lambda: (
            r["two_ppo"]["seconds"]
            / (sum(phase_floors(r["two_ppo"]["limits"], False).values()) / 2)
        ),
        "<=",
        1.6,
    )
    add(
        "PPO, all weights: memory of each GPU",
        lambda: r["two_ppo"]["peak_gib"],
        "<=",
        75,
        "GiB",
    )
    return found


def table(results: Results) -> str:
    """Goals, phases and raw numbers, as text."""
    lines = [f"{'':68}{'measured':>10}{'goal':>12}  met"]
    for what, value, sign, goal, unit in rows_of(results):
        met = value >= goal if sign == ">=" else value <= goal
        digits = 0 if goal >= 100 else 2
        lines.append(
            f"{what:68}{value:>10.{digits}f}{sign + ' ' + format(goal, 'g'):>12}"
            f"  {'yes' if met else 'NO'} {unit}"
        )
    for part, lora in ("ppo_lora", True), ("two_ppo", False):
        if "seconds" in results.get(part, {}):
            lines += ["", f"{part}: seconds of each phase, and its floor"]
            gpus = results[part]["gpus"]
            for phase, floor in phase_floors(results[part]["limits"], lora).items():
                took = results[part].get(f"seconds/{phase}", 0.0)
                lines.append(f"    {phase:12}{took:8.2f}{floor / gpus:8.2f}")
    for part in OLD_PARTS:
        rows = old_logprobs_rows(results, part)
        lines += ["", f"{part:68}recomputed      reused"] * bool(rows)
        lines += [f"    {what:64}{one:>10}{other:>12}" for what, one, other in rows]
    for part, numbers in results.items():
        if "error" in numbers:
            lines += ["", f"{part} FAILED: {numbers['error']}"]
    return "\n".join(lines)


OLD_PARTS = ("old_logprobs", "old_logprobs_again")  # a second run, kept by hand
OLD = {  # of old_logprobs: how it is written
    "seconds": ("seconds of an iteration", ".2f"),
    "pass_seconds": ("of these, for the pass", ".2f"),
    "gap": ("log ratio before the first step, whatever its sign, nats a token", ".4f"),
    "farthest": ("at the farthest token", ".3f"),
    "ratio": ("mean ratio before the first step", ".5f"),
    "outside": ("share of tokens outside the clip range", ".4f"),
    "clip_fraction": ("the same, over the update's steps", ".4f"),
    "approx_kl": ("approx_kl of the update, nats a token", ".5f"),
}


def old_logprobs_rows(results: Results, part: str) -> list[tuple[str, str, str]]:
    """(what, recomputed, reused), if that was measured."""
    found = results.get(part, {})
    if "recomputed/seconds" not in found:
        return []

    def shown(key: str, form: str) -> str:
        return format(found[key], form) if key in found else "–"

    return [
        (what, shown(f"recomputed/{key}", form), shown(f"reused/{key}", form))
        for key, (what, form) in OLD.items()
    ]


BEGIN = "<!-- written by python -m bench.full_size --readme: begin -->"
END = "<!-- written by python -m bench.full_size --readme: end -->"


def markdown(results: Results, phases: bool = True) -> str:
    """The goals, and the phases of PPO if asked for, as tables; machine and date."""
    machines = sorted(
        {
            f"{one['date']}, {one['machine']['gpu']}, torch {one['machine']['torch']}"
            for one in results.values()
            if "machine" in one
        }
    )
    lines = [
        f"{'; '.join(machines)}.",
        "",
        "| what | measured | goal | met |",
        "| --- | --- | --- | --- |",
    ]
    for what, value, sign, goal, unit in rows_of(results):
        met = value >= goal if sign == ">=" else value <= goal
        shown = (
            f"{value:,.0f}" if goal >= 100 else f"{value:.{1 if goal >= 10 else 3}f}"
        )
        relation = "≥" if sign == ">=" else "≤"
        answer = "yes" if met else "**no**"
        cells = what.strip(), f"{shown} {unit}", f"{relation} {goal:,g}", answer
        lines.append("| " + " | ".join(cell.strip() for cell in cells) + " |")
    for part in ("ppo_lora", "two_ppo"):
        if not phases or "seconds" not in results.get(part, {}):
            continue
        gpus = results[part]["gpus"]
        lines += ["", f"| {part}: phase | seconds | floor |", "| --- | --- | --- |"]
        floors = phase_floors(results[part]["limits"], part == "ppo_lora")
        for phase, floor in floors.items():
            took = results[part].get(f"seconds/{phase}", 0.0)
            lines.append(f"| {phase} | {took:.2f} | {floor / gpus:.2f} |")
    for part in OLD_PARTS:
        if phases and (rows := old_logprobs_rows(results, part)):
            lines += ["", f"| {part}: π_old is | recomputed | the sampler's |"]
            lines.append("| --- | --- | --- |")
            lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def placed(results: Results, readme: str, phases: bool = True) -> str:
    """The README's text with these tables in place of the last ones.

    Raises:
        ValueError: it lacks the marks between which they stand.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{markdown(results, phases)}\n{END}{after}"
