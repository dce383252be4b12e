"""The plan held against a GPU: predicted and measured memory and seconds.

python -m minipalm.scale.measured        the table of data/results/plan.json
python -m minipalm.scale.measured FILES  first keep these measurements there: of
                                         bench/measure_plan.py on one GPU and on two,
                                         and data/results/full_size.json
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minipalm.config import MachineConfig, PaLMConfig, get_preset
from minipalm.data.files import write_text
from minipalm.scale.decoding import decode_seconds
from minipalm.scale.gpu import GIB, GPU, H200
from minipalm.scale.iteration import ppo_memory, ppo_seconds
from minipalm.scale.memory import LOGIT_BYTES, Parts, total, training_peak
from minipalm.scale.reserve import coming_and_going
from minipalm.scale.seconds import training_seconds
from minipalm.scale.stages import networks

RESULTS = Path(__file__).parents[2] / "data" / "results" / "plan.json"
PROTOTYPES = RESULTS.with_name("plan_prototypes.json")  # they have set the constants
LENGTH = 2048  # tokens of a row, in every setting


@dataclass(frozen=True)
class Setting:
    """One way to train a full-size network, and what it took.

    Attributes:
        name: what is trained.
        network: "policy" or "trunk" (of reward model and critic).
        depth: blocks; fewer than the preset's to try something out.
        rows: of 2,048 tokens in a micro-batch, on each GPU.
        gpus: that share the network.
        weights, lora_rank, recompute, compile: see MachineConfig.
        gib: measured peak of what is allocated on one GPU, 2³⁰ bytes.
        seconds: measured time of an optimizer step, median.
        fitted: whether the planner's constants were set by it.
        logit_bytes: see training_peak.
        spread: of the timed steps, (slowest − fastest) / median.
        reserved: GiB that PyTorch had taken for it; 0 where nobody has looked.
        parts: micro-batches of a step.
    """

    name: str
    network: str
    depth: int
    rows: int
    gpus: int
    weights: str
    lora_rank: int
    recompute: bool
    compile: bool
    gib: float
    seconds: float
    fitted: bool = False
    logit_bytes: int = LOGIT_BYTES
    spread: float = 0.0
    reserved: float = 0.0
    parts: int = 1

    @property
    def config(self) -> PaLMConfig:
        preset = get_preset("full")
        shape = preset.policy if self.network == "policy" else preset.reward_trunk
        return replace(shape, vocab_size=preset.vocab_size, depth=self.depth)

    @property
    def machine(self) -> MachineConfig:
        return MachineConfig(
            device="auto",
            compute="bfloat16",
            weights=self.weights,
            compile=self.compile,
            recompute=self.recompute,
            lora_rank=self.lora_rank,
        )

    @property
    def label(self) -> str:
        """Rows of a step: "4", or "2 × 4" of two micro-batches."""
        return f"{self.parts} × {self.rows}" if self.parts > 1 else str(self.rows)

    @property
    def memory(self) -> Parts:
        """What the planner says, part by part."""
        small, tokens = self.lora_rank > 0, self.rows * LENGTH
        how = self.config, self.machine, tokens, self.gpus, small, self.parts > 1
        return training_peak(*how, logit_bytes=self.logit_bytes)

    def predicted(self, gpu: GPU) -> tuple[float, float]:
        """GiB and seconds that the planner says."""
        step = self.parts * self.rows, LENGTH, gpu, self.gpus, self.parts
        small = self.lora_rank > 0
        seconds = training_seconds(self.config, self.machine, *step, small)
        return total(self.memory) / GIB, seconds


def read_results(path: Path = RESULTS) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def settings_of(results: Mapping[str, Any]) -> list[Setting]:
    return [Setting(**one) for one in results["settings"]]


def gpu_of(results: Mapping[str, Any]) -> GPU:
    """An H200 with the rates that were measured in the same run."""
    return replace(H200, **results["ceilings"])


def decoding_predicted(rows: int, gpu: GPU) -> float:
    """Seconds of a decoding step of the full policy, half-way through an answer."""
    full = get_preset("full")
    policy = replace(full.policy, vocab_size=full.vocab_size)
    seen = full.max_prompt + full.max_response / 2
    return decode_seconds(policy, full.machine, rows, seen, gpu)


HEAD = "trained|rows|GPUs|recompute|GiB said|measured|off by"
HEAD += "|seconds said|measured|off by|"


def comparison(results: Mapping[str, Any]) -> str:
    """Predicted against measured, as a table of Markdown with even columns."""
    gpu, lines = gpu_of(results), [tuple(HEAD.split("|"))]
    for one in settings_of(results):
        gib, seconds = one.predicted(gpu)
        again, remark = "yes" * one.recompute, "fitted" * one.fitted
        what = (one.name, one.label, str(one.gpus), again)
        if one.spread > 0.15:  # more than it is held to
            remark = f"its steps differ by {one.spread:.0%}"
        memory = (f"{gib:.1f}", f"{one.gib:.1f}", f"{gib / one.gib - 1:+.1%}")
        lines.append((*what, *memory, *held(seconds, one.seconds), remark))
    for row in results.get("iterations", []):
        gib, seconds = iteration_predicted(row, gpu)
        name = "PPO, adapters" if row["lora_rank"] else "PPO, all weights"
        what = (name, "256", str(row["gpus"]), "yes" * row["recompute"])
        memory = (f"{gib:.1f}", f"{row['gib']:.1f}", f"{gib / row['gib'] - 1:+.1%}")
        lines.append((*what, *memory, *held(seconds, row["seconds"]), ""))
    for row in results.get("decoding", []):
        seconds, fitted = decoding_predicted(row["rows"], gpu), row.get("fitted")
        what = ("a decoding step", str(row["rows"]), "1", "")
        times = held(seconds, row["seconds"])
        lines.append((*what, "", "", "", *times, "fitted" if fitted else ""))
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = [[c.ljust(w) for c, w in zip(line, widths)] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def held(said: float, was: float) -> tuple[str, str, str]:
    """Seconds that were said, that it took, and how far they are apart."""
    return f"{said:.4f}", f"{was:.4f}", f"{said / was - 1:+.1%}"


def iteration_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `ppo_memory` and `ppo_seconds` are asked of an iteration at full size."""
    full = get_preset("full-lora" if row["lora_rank"] else "full")
    policy, trunk = networks(full)
    machine = replace(full.machine, weights="float32", recompute=row["recompute"])
    sizes = {"max_prompt": full.max_prompt, "max_response": full.max_response}
    nets = {"policy": policy, "trunk": trunk}
    return {**nets, **sizes, "machine": machine, "ppo": full.ppo, "gpus": row["gpus"]}


def iteration_predicted(row: Mapping[str, Any], gpu: GPU) -> tuple[float, float]:
    """GiB and seconds of one iteration of PPO."""
    asked = iteration_of(row)
    memory = ppo_memory(**asked)
    seconds = sum(ppo_seconds(**asked, gpu=gpu).values())
    return sum(map(total, memory.values())) / GIB, seconds


@dataclass(frozen=True)
class Wasted:
    """What PyTorch held beside what was allocated, all in GiB on one GPU.

    Attributes:
        name: what was trained.
        kind: GPUs (2: several), and whether a step samples, reads and learns by turns.
        gib: allocated, measured.
        stays: of that, weights and moments, as the planner counts them.
        reserved: measured.
    """

    name: str
    kind: tuple[int, bool]
    gib: float
    stays: float
    reserved: float

    @property
    def share(self) -> float:
        """Of what comes and goes."""
        return (self.reserved - self.gib) / (self.gib - self.stays)


def wasted(*measured: Mapping[str, Any]) -> list[Wasted]:
    """Every measurement for which somebody has looked what was reserved.

    A name ends in * where PyTorch's allocator was as it is by default.
    """
    found = []
    for results in measured:
        star = " *" * ("allocator" not in results)
        for one in settings_of(results):
            name = f"{one.name}, {one.label} rows{', recomputed' * one.recompute}{star}"
            kind = min(one.gpus, 2), False
            stays = staying({name: one.memory})
            found.append(Wasted(name, kind, one.gib, stays, one.reserved))
        for row in results.get("iterations", []):
            name = f"PPO, {'adapters' if row['lora_rank'] else 'all weights'}"
            name += ", recomputed" * row["recompute"]
            kind = min(row["gpus"], 2), True
            stays = staying(ppo_memory(**iteration_of(row)))
            reserved = row.get("reserved", 0.0)
            found.append(Wasted(name, kind, row["gib"], stays, reserved))
    return [one for one in found if one.reserved]


def staying(memory: Mapping[str, Parts]) -> float:
    """GiB of what is there all the time."""
    return (sum(map(total, memory.values())) - coming_and_going(memory)) / GIB


def waste_table(*measured: Mapping[str, Any]) -> str:
    """`wasted` as a table of Markdown, the worst shares first."""
    lines = ["| trained | GPUs | allocated | of it comes and goes | reserved | share |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for one in sorted(wasted(*measured), key=lambda one: -one.share):
        numbers = one.gib, one.gib - one.stays, one.reserved
        sizes = " | ".join(f"{number:.1f}" for number in numbers)
        lines.append(f"| {one.name} | {one.kind[0]} | {sizes} | {one.share:.2f} |")
    return "\n".join(lines)


def of_benchmark(full: Mapping[str, Any]) -> dict[str, Any]:
    """What bench/full_size.py measured of sampling and of PPO, as measurements here."""
    decode, iterations = full.get("decode", {}), []
    rows = [int(key[8:]) for key in decode if key.startswith("step_ms_")]
    for part, rank in (("ppo_lora", 16), ("two_ppo", 0)):
        found = full.get(part, {})
        if "seconds" in found:
            kept = {"gpus": found["gpus"], "lora_rank": rank, "recompute": rank == 0}
            kept |= {"seconds": found["seconds"], "gib": found["peak_gib"]}
            kept |= {"reserved": found.get("reserved_gib", 0.0)}
            iterations.append(kept)
    return {
        "ceilings": {},
        "settings": [],
        "decoding": [
            {"rows": n, "seconds": decode[f"step_ms_{n}"] / 1e3} for n in rows
        ],
        "iterations": iterations,
    }


def merged(measurements: list[dict[str, Any]]) -> dict[str, Any]:
    """Measurements of several runs as one; what failed is left out.

    The rates of products and memory are those of the first run, the wire's of the one
    that had two GPUs.
    """
    result = dict(measurements[0], settings=[], decoding=[], iterations=[], ceilings={})
    for one in measurements:
        one = one if "settings" in one else of_benchmark(one)
        result["ceilings"] = {**one["ceilings"], **result["ceilings"]}
        result["decoding"] += [row for row in one["decoding"] if "seconds" in row]
        result["iterations"] += one.get("iterations", [])
        result["settings"] += [row for row in one["settings"] if "seconds" in row]
    return result


def main(paths: list[str]) -> None:
    if paths:
        results = merged([read_results(Path(path)) for path in paths])
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    print(comparison(read_results()))


if __name__ == "__main__":
    main(sys.argv[1:])
