"""The stage notebooks on one process and on two: the same numbers, figures on one."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from safetensors.torch import load_file

from minipalm.course import ROOT
from minipalm.course.inputs import FURTHER, STAGES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun is not for Windows")
EVERY = (*STAGES, *FURTHER)
METHODS = ("offline", "dpo", "rloo", "grpo")  # of stage 15: each leaves a result
TIMES = ("seconds", "checkpoint_", "tokens_per_second", "memory", "ranks", "sampler_")


def cells(stage):
    """Those of a batch run."""
    for cell in nbformat.read(ROOT / "solutions" / f"{stage}.ipynb", 4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "classroom" not in tags:
            yield cell.source, tags


def run_here(out, *stages):
    """The notebooks' cells in this process, one notebook after the other."""
    for stage in stages:
        names = {"__name__": "__main__"}
        for source, tags in cells(stage):
            exec(compile(source, stage, "exec"), names)
            if "parameters" in tags:
                names |= {"scale": "smoke", "out": out}


def python(*arguments):
    """A Python of its own: the tests' one checks types, which notebooks replace."""
    said = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All stages in one process, and by ./course full on two gloo ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    one, two = folder / "one", folder / "two"
    python(__file__, one, *EVERY)
    full = ("-m", "minipalm.course.full", "--scale", "smoke", "--until", EVERY[-1])
    python(*full, "--cpus", "2", "--out", two)
    return one, two


def numbers(x):
    """All leaves, by path."""
    if isinstance(x, dict):
        pairs = x.items()
    elif isinstance(x, list):
        pairs = enumerate(x)
    else:
        return {"": x}
    return {f".{key}{k}": v for key, one in pairs for k, v in numbers(one).items()}


def same(one, two, tolerance=1e-5):
    """Equal, or floating-point numbers that differ by a sum's order."""
    one, two = numbers(one), numbers(two)
    assert one.keys() == two.keys()
    for key, a in one.items():
        if isinstance(a, float):
            assert two[key] == pytest.approx(a, rel=tolerance, abs=tolerance), key
        else:
            assert two[key] == a, key


METRICS = (
    "06_palm/policy",
    "06_palm/trunk",
    "07_sft/policy",
    "07_sft/trunk",
    "08_reward_model/training",
    "11_ppo/beta-0.15",
    "11_ppo/beta-0",
    *(f"15_offline/{method}" for method in METHODS),
)


@pytest.mark.parametrize("run", METRICS)
def test_metrics_of_every_step_are_those_of_one_process(runs, run):
    """Losses, gradient norms; of PPO score, KL, entropy, what whitening takes away."""
    one, two = (
        [
            {k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)}
            for line in (out / run / "metrics.jsonl").read_text().splitlines()
        ]
        for out in runs
    )
    assert len(one) > 1
    assert not run.startswith("11") or all(line["advantage_sd"] > 0 for line in one)
    if run == "15_offline/dpo":  # both answers of a pair have gained nothing yet, so
        for lines in (one, two):  # which is ahead is rounding
            lines[0].pop("accuracy")
    same(one, two)


@pytest.mark.parametrize("stage", EVERY)
def test_stages_end_with_the_same_summary(runs, stage):
    same(*(json.loads((out / stage / "done.json").read_text()) for out in runs))


def test_the_evaluation_is_the_same_to_the_last_sample(runs):
    one, two = (
        json.loads((out / "12_evaluation/evaluation.json").read_text()) for out in runs
    )
    assert one["samples"] == two["samples"]
    same(one, two, 1e-4)


def test_methods_are_judged_alike_and_logged_once(runs):
    one, two = (
        json.loads((out / "15_offline/methods.json").read_text()) for out in runs
    )
    assert set(one) == {"sft", "ppo", *METHODS, "best_of_n"}
    for method, row in two.items():
        for costs in (one[method], row):
            timed = [costs.pop(key, None) for key in ("seconds", "phases", "memory")]
            assert method in ("sft", "best_of_n") or timed[1] is not None
        same(one[method], row, 1e-4)
    one, two = (
        [json.loads(x) for x in (out / "15_offline/log/log.jsonl").open()]
        for out in runs
    )
    assert len(one) == 32
    same(one, two)  # to the last token


@pytest.mark.parametrize(
    "stage", [*STAGES[:4], *(f"15_offline/{method}" for method in METHODS)]
)
def test_weights_after_a_stage_are_those_of_one_process(runs, stage):
    """Two processes have no weight twice: what they leave are parts of one network.

    Adam divides by the size of a gradient: where it is nothing but rounding, as at a
    reward model's bias, weights part by a share of a step, which is up to 1e-2.
    """
    one, two = (out / stage / "result" for out in runs)
    whole = load_file(one / "tensors.safetensors")
    first, second = {}, {}
    for path in two.glob("shard-*"):  # of the first process or the second
        (first if path.name.startswith("shard-00001") else second).update(
            load_file(path)
        )
    assert first.keys() | second.keys() == whole.keys()
    for name, tensor in whole.items():
        parts = [part[name].flatten() for part in (first, second) if name in part]
        size = sum(len(part) for part in parts)
        assert size == tensor.numel(), name
        start = 0
        for part in parts:
            mine = tensor.flatten()[start : start + len(part)]
            assert ((part - mine).abs() < 5e-4).all(), name
            assert (part - mine).norm() < 1e-3 * max(tensor.norm(), 1), name
            start += len(part)


@pytest.mark.parametrize("stage", EVERY)
def test_each_process_leaves_its_notebook_and_the_first_its_figures(runs, stage):
    pictures = []
    for name in (f"{stage}.ipynb", f"{stage}.rank-1.ipynb"):
        notebook = nbformat.read(runs[1] / stage / name, 4)
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        assert not any(o.output_type == "error" for o in outputs)
        ran = [c for c in notebook.cells if c.get("execution_count")]
        assert len(ran) >= sum(1 for _ in cells(stage))
        pictures.append(sum("image/png" in o.get("data", {}) for o in outputs))
    assert pictures[0] > 0 and pictures[1] == 0


def test_one_process_reads_what_two_have_left(runs):
    """Lesson 12 again, from the sharded results."""
    path = runs[1] / "12_evaluation/evaluation.json"
    kept = json.loads(path.read_text())
    python(__file__, runs[1], "12_evaluation")
    same(kept, json.loads(path.read_text()), 1e-4)


if __name__ == "__main__":
    run_here(*sys.argv[1:])
