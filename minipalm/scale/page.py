"""docs/planner.md: what the pipeline costs, and whether the plan is true.

python -m minipalm.scale.page       writes it anew; a test holds it to the planner
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minipalm.config import get_preset
from minipalm.data.files import write_text
from minipalm.model.palm import count_parameters
from minipalm.scale.batch_run import RUN, stages_table
from minipalm.scale.gpu import GIB, GPUS
from minipalm.scale.measured import (
    PROTOTYPES,
    comparison,
    gpu_of,
    read_results,
    waste_table,
)
from minipalm.scale.plan import plan
from minipalm.scale.report import (
    budget,
    disk_table,
    network_table,
    phase_table,
    short,
    stage_table,
)
from minipalm.scale.reserve import (
    ALTERNATING,
    GROWING,
    NAMES,
    ONE_GPU,
    OUTSIDE,
    TRAINING,
)
from minipalm.scale.stages import networks

PAGE = Path(__file__).parents[2] / "docs" / "planner.md"
HOURS = 5000.0  # of an A100: a figure often quoted

TEXT = """# What the pipeline costs at full size

`python -m minipalm.scale` plans it: memory, seconds, hours and money for a preset, a
kind of GPU and a number of them. Lesson 16 builds the arithmetic. This page is written
by `python -m minipalm.scale.page`.

## Eight A100-80G

Prices are assumptions (here ${price:.2f} a GPU-hour; give yours with `--price`), and so
are the rates of cards that nobody here has measured:
{source}.

```
{stages}
```

*trunk* is what reward model and critic start from: lessons 06 and 07 train it after the
policy, with as many steps. *08 answers* are those that are compared: the policy writes
them, two to each prompt. Memory is that of all networks that lie there, at work or not,
at the stage's worst moment:

```
{networks}
```

A network's number is all that is there for it: weights, gradients, moments and
activations. *sampling* is the copy that answers, with keys and values, and *passes* are
those that only read.

Fits has three answers. *NO*: what is allocated is too much, with {outside:.1f} GiB for
what is not PyTorch's. *tight*: it fits, but not with what PyTorch may hold besides:
*held* ([below](#what-pytorch-holds-besides)). *yes*: it fits with that, too. Two
A100-80G are tight for PPO, recomputing: {two:.1f} GiB, and {held:.1f} held.

One iteration of PPO, all answers of the greatest length:

```
{phases}
```

The run's folder on the disk, of all stages together:

```
{disk}
```

A checkpoint has weights and AdamW's two moments; the last of a loop, weights only. A
new one is whole before the one before it goes, so a loop that writes several has two
for a moment. Lesson 15 runs if it is asked for. `./course full` refuses to begin where
there is not so much room.

## {hours:,.0f} A100-hours

The figure is often quoted for such a run. On eight of these GPUs it buys

- {pipelines:.1f} times all of the above, or
- {after:,.0f} times all but pretraining, or
- pretraining on {tokens} tokens ({each:.1f} a weight), and the rest once, or
- {iterations:,.0f} iterations of PPO.

## Said and measured

{where}.

A row is 2,048 tokens of a step on each GPU. 4 × 4 are four micro-batches of four rows:
their gradients wait, as they do in pretraining and SFT. In PPO and in decoding a row is
an answer. None of these lines has set a constant of what is allocated, or of time:
prototypes of the same shapes have, before (below). They are the planner's test: memory
within 5 %, seconds within 15 % (`tests/scale/test_plan.py`). One formula was corrected
after they were seen: a compiled block that is computed again leaves out its last
products, which made steps with recomputing up to an eighth faster than the planner had
said. The shares of what PyTorch holds besides are the worst of these lines
([below](#what-pytorch-holds-besides)).

{comparison}

And every training of a batch run ({run[date]}, torch {run[torch]}), a few steps each,
with all networks that lie on the first {run[gpu]}:

    ./course full --scale {run[scale]} --gpus {run[gpus]}

{run_table}

## What PyTorch holds besides

PyTorch keeps what it has taken from the GPU, and what one moment gives back does not
always suit the next. So more is *reserved* than is allocated, and a card is full when
reserved is. What stays (weights, moments) is not held twice; the share is of what comes
and goes. The planner takes the worst of each kind: one GPU {one_gpu:.2f}; several that
train {training:.2f}; several that sample and learn by turns {alternating:.2f}.

{waste}

Measured with `{allocator}`, which `./course full` and the
benchmarks set unless you do; the prototype marked * had PyTorch's default.

## The prototypes

{before}. *Fitted* lines have set the constants.

{prototypes}
"""


def origin(results: Mapping[str, Any]) -> str:
    """Where and when the measurements were made, and what the GPU could do then."""
    parts = [results["source"], results.get("date")]
    if "torch" in results:
        parts.append(f"torch {results['torch']}")
    rates = gpu_of(results)
    parts.append(
        f"where the rates were {rates.flops / 1e12:.0f} TFLOP/s, "
        f"{rates.bandwidth / 1e12:.2f} TB/s and {rates.link / 1e9:.0f} GB/s"
    )
    return "Measured by " + ", ".join(part for part in parts if part)


def page() -> str:
    """The text of docs/planner.md."""
    full, gpu = get_preset("full"), GPUS["a100-80g"]
    results, prototypes = read_results(), read_results(PROTOTYPES)
    run = read_results(RUN)
    stages = plan(full, gpu, 8)
    [ppo] = [one for one in stages if one.phases]
    bought = budget(stages, 8, HOURS)
    again = replace(full, machine=replace(full.machine, recompute=True))
    [two] = [one for one in plan(again, gpu, 2) if one.phases]
    return TEXT.format(
        price=gpu.price,
        source=gpu.source,
        stages=stage_table(stages, gpu, 8),
        networks=network_table(stages),
        outside=OUTSIDE / GIB,
        two=two.peak / GIB,
        held=two.held / GIB,
        one_gpu=ONE_GPU,
        training=TRAINING,
        alternating=ALTERNATING,
        waste=waste_table(results, prototypes),
        allocator=f"{NAMES[0]}={GROWING}",
        phases=phase_table(ppo),
        disk=disk_table(full),
        hours=HOURS,
        pipelines=bought["pipelines"],
        after=bought["after pretraining"],
        tokens=short(bought["tokens"]).replace("B", "billion"),
        each=bought["tokens"] / count_parameters(networks(full)[0]),
        iterations=bought["iterations"],
        where=origin(results),
        comparison=comparison(results),
        run=run,
        run_table=stages_table(run),
        before=origin(prototypes),
        prototypes=comparison(prototypes),
    )


if __name__ == "__main__":
    write_text(PAGE, page())
    print(f"written to {PAGE}")
