"""The page of a run that goes on, or was stopped: how far it is, its curves so far."""

from html import escape
from textwrap import shorten

from minipalm import plot
from minipalm.evaluate.page import (
    course_run,
    document,
    paragraph,
    picture,
    section,
)
from minipalm.plot.batch import machine_panels, phase_bars
from minipalm.plot.training import PANELS
from minipalm.train.progress import (
    STAGES,
    Progress,
    Row,
    Stage,
    Training,
    duration,
)

LOSSES = {  # training -> its panel in the figure of the stages, and what it shows
    "06_palm/policy": ("pretrain", "loss"),
    "06_palm/trunk": ("trunk", "loss"),
    "07_sft/policy": ("sft", "loss"),
    "08_reward_model/training": ("reward_model", "loss"),
}


def live_page(progress: Progress, halted: str | None = None) -> str:
    """The whole page. halted: see `headline`."""
    body = [
        header(progress, halted),
        section("The stages", stage_table(progress)),
        section("How it goes", *curves(progress)),
        section("The machine", *machine(progress)),
        footer(progress),
    ]
    return document(f"minipalm, {progress.scale}, in progress", "".join(body))


# --- words --------------------------------------------------------------------------


def where(training: Training) -> str:
    """ "policy, step 120 of 1,000"."""
    word = "iteration" if training.name.startswith("11_ppo") else "step"
    run = training.name.partition("/")[2]
    return f"{run}, {word} {training.done:,} of {training.steps:,}"


def headline(progress: Progress, halted: str | None = None) -> str:
    """How far the run is, in one sentence, and why it does not go on in another.

    halted: None where it goes on; where not, why, and "" where that is not known.
    """
    stage = progress.current
    if stage is None:
        return "All stages are complete."
    number = [s.name for s in progress.stages].index(stage.name) + 1
    title = f"Stage {number} of {len(progress.stages)}, {STAGES[stage.name]}"
    training = stage.current
    if stage.state == "waiting":
        alone = "" if halted is None else ", and nobody runs it"
        return f"{title}: has not begun{alone}."
    why = f" The cause: {shorten(halted, 200)}" if halted else ""
    if training is None:
        return f"{title}: {stage.state}; no step has been made yet.{why}"
    if stage.state == "stopped":
        kept = "; nothing is kept yet"
        if training.kept is not None:
            kept = f"; it goes on from {training.kept:,}"
        return f"{title}: stopped at {where(training)}{kept}.{why}"
    left = training.seconds_left
    then = f", about {duration(left)} left" if left else ""
    return f"{title}: {where(training)}{then}."


def numbers(training: Training) -> list[tuple[str, str]]:
    """The newest numbers of a training, each with what it is."""
    row: Row = training.with_shares()[-1]
    known = {
        "loss": ("{:.3f}", "loss, nats"),
        "score": ("{:.2f} sd", "reward"),
        "kl": ("{:.1f} nats", "per answer away from SFT"),
        "accuracy": ("{:.0%}", "of the batch’s pairs judged right"),
        "tokens_per_second": ("{:,.0f}", "tokens a second"),
        "share_of_ceiling": ("{:.0%}", "of what the GPUs can do"),
        "memory": ("{:.0f} GiB", "of each GPU at most"),
    }
    shown = [
        (form.format(row[key]), name)
        for key, (form, name) in known.items()
        if key in row and (row[key] or key != "memory")
    ]
    left = training.seconds_left
    return shown + ([(duration(left), "left in this training")] if left else [])


def header(progress: Progress, halted: str | None) -> str:
    here = [f"minipalm · scale {progress.scale}"]
    if progress.seed is not None:
        here.append(f"seed {progress.seed}")
    if progress.gpu:
        here.append(f"{progress.ranks} × {progress.gpu}")
    elif progress.ranks > 1:
        here.append(f"{progress.ranks} processes")
    stage = progress.current
    training = stage.current if stage else None
    tiles = numbers(training) if training else []
    shown = "".join(f"<li><b>{escape(n)}</b> {escape(t)}</li>" for n, t in tiles)
    return f"""<header>
<p class="origin">{escape(" · ".join(here))}</p>
<h1>{escape(headline(progress, halted))}</h1>
{f'<ul class="tiles">{shown}</ul>' if tiles else ""}
</header>
"""


# --- the stages ---------------------------------------------------------------------


def stage_table(progress: Progress) -> str:
    rows = []
    for stage in progress.stages:
        rows.append(
            f'<tr><th scope="row">{escape(STAGES[stage.name])}</th>'
            f"<td></td><td>{stage.state}</td></tr>"
        )
        rows += [training_row(stage, each) for each in stage.trainings]
    return f"""<div class="wide"><table>
<thead><tr><td></td><th scope="col">steps</th><td></td></tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>"""


def training_row(stage: Stage, training: Training) -> str:
    name = escape(training.name.partition("/")[2])
    done = f'<progress max="{training.steps}" value="{training.done}"></progress>'
    left = training.seconds_left
    said = done if training.rows else ""
    if left and stage.state == "running":
        said = f"{duration(left)} left {done}"
    return (
        f'<tr class="part"><th scope="row">{name}</th>'
        f"<td>{training.done:,} of {training.steps:,}</td><td>{said}</td></tr>"
    )


# --- figures ------------------------------------------------------------------------


def curves(progress: Progress) -> list[str]:
    """What each stage minimised so far, and the state of PPO."""
    losses, ppo = {}, {}
    for training in progress.trainings:
        if training.name in LOSSES:
            panel, key = LOSSES[training.name]
            points = [[r["step"], r[key]] for r in training.rows if key in r]
            if points:
                losses[panel] = points
        elif training.name.startswith("11_ppo/"):
            rows = [r for r in training.rows if all(key in r for key in PANELS)]
            if rows:
                ppo[training.name.partition("beta-")[2]] = rows
    shown = []
    if losses:
        figure = plot.stage_curves(losses)
        shown.append(picture(figure, "stages", "Pale: each step. Strong: a mean."))
    if ppo:
        figure = plot.ppo_dashboard(ppo)
        shown.append(picture(figure, "ppo", "Each point is an iteration."))
    return shown or [paragraph("There are no curves yet.")]


def machine(progress: Progress) -> list[str]:
    """What the trainings asked of the machine; nothing where that is not logged."""
    runs = {
        each.name: each.with_shares()
        for each in progress.trainings
        if "seconds" in each.rows[-1]
    }
    if not runs:
        return []
    shown = []
    panels = machine_panels(runs)
    if panels:
        text = "Each line is a mean over neighbouring steps."
        if any("share_of_ceiling" in rows[-1] for rows in runs.values()):
            text += (
                " The ceiling is what the GPUs multiply in bfloat16 for seconds on end;"
                " operations count that the method needs, none that is done twice."
            )
        shown.append(picture(panels, "machine", text))
    name, rows = list(runs.items())[-1]
    bars = phase_bars(rows)
    if bars:
        shown.append(picture(bars, "phases", f"{name}, mean of the last 20 steps."))
    return shown


def footer(progress: Progress) -> str:
    command = progress.command or course_run(progress.scale, progress.seed or 0)
    return f"""<footer>
<h2>How to go on</h2>
<p><code>{escape(command)}</code></p>
<p>The command that it was begun with skips complete stages and goes on from the last
checkpoint of the one that is not. This page shows the moment when it was made.</p>
</footer>"""
