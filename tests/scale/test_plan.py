"""The plan of the whole pipeline, and the plan held to measurement."""

import datetime
import inspect
import json
import re
from dataclasses import replace

import pytest
import torch

from minipalm.config import FULL, MachineConfig, get_preset
from minipalm.model.palm import PaLM, count_parameters
from minipalm.model.place import fine_tuned, place
from minipalm.rlhf.answers import answer
from minipalm.scale.__main__ import main
from minipalm.scale.batch_run import LOOPS, RUN, of_run, said
from minipalm.scale.batch_run import main as keep_run
from minipalm.scale.gpu import GIB, GPUS, H200
from minipalm.scale.measured import (
    PROTOTYPES,
    comparison,
    decoding_predicted,
    gpu_of,
    iteration_predicted,
    merged,
    of_benchmark,
    read_results,
    settings_of,
    wasted,
)
from minipalm.scale.page import PAGE, page
from minipalm.scale.plan import plan
from minipalm.scale.report import Trial, advice, budget, network_table, table
from minipalm.scale.reserve import (
    ALTERNATING,
    GROWING,
    NAMES,
    ONE_GPU,
    TRAINING,
    coming_and_going,
    let_memory_grow,
    verdict,
)
from minipalm.scale.stages import networks
from minipalm.train.progress import write_machine

RESULTS, BEFORE = read_results(), read_results(PROTOTYPES)
SETTINGS = settings_of(RESULTS)
EVERY = [
    pytest.param(one, gpu_of(results), id=f"{one.name}-{one.rows}-{one.gpus}-{i}")
    for results in (RESULTS, BEFORE)
    for i, one in enumerate(settings_of(results))
]


@pytest.mark.parametrize("setting, gpu", EVERY)
def test_predicted_memory_is_within_5_percent_and_time_within_15(setting, gpu):
    gib, seconds = setting.predicted(gpu)
    assert gib == pytest.approx(setting.gib, rel=0.05)
    assert seconds == pytest.approx(setting.seconds, rel=0.15)


@pytest.mark.parametrize("row", RESULTS["decoding"], ids=lambda row: str(row["rows"]))
def test_predicted_decoding_steps_are_within_15_percent(row):
    predicted = decoding_predicted(row["rows"], gpu_of(RESULTS))
    assert predicted == pytest.approx(row["seconds"], rel=0.15)


@pytest.mark.parametrize("row", RESULTS["iterations"], ids=lambda r: str(r["gpus"]))
def test_a_predicted_iteration_of_ppo_is_as_near(row):
    gib, seconds = iteration_predicted(row, gpu_of(RESULTS))
    assert gib == pytest.approx(row["gib"], rel=0.05)
    assert seconds == pytest.approx(row["seconds"], rel=0.15)


def test_the_stages_of_a_batch_run_take_the_memory_that_is_planned():
    run = read_results(RUN)
    planned, found = said(run), run["gib"]
    assert list(planned) == list(found) == list(LOOPS)
    assert planned == pytest.approx(found, rel=0.05)


def test_a_batch_run_tells_what_it_took(tmp_path):
    for stage, path in LOOPS.items():
        rows = [{"step": 1, "memory": 3.0}, {"step": 2, "memory": len(stage)}]
        folder = tmp_path / path.replace("*", "0.05")
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "06_palm" / "done.json").write_text('{"scale": "full:2"}')
    write_machine(tmp_path, 2, "NVIDIA H200")
    assert of_run(tmp_path) == {
        "scale": "full:2",
        "gpus": 2,
        "gpu": "NVIDIA H200",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "gib": {stage: len(stage) for stage in LOOPS},
    }
    (tmp_path / "07_sft" / "trunk" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="expected all trainings, found none of 07 tr"):
        of_run(tmp_path)
    for machine in ('{"ranks": 1, "gpu": null}', "{}"):
        (tmp_path / "machine.json").write_text(machine)
        with pytest.raises(ValueError, match="H200.* it was on none"):
            of_run(tmp_path)
    assert keep_run([str(tmp_path)]) == keep_run([str(tmp_path / "none")]) == 2


def test_what_was_measured_covers_what_is_planned():
    held = [one for one in SETTINGS if not one.fitted]
    assert len(held) >= 6  # that set no constant
    for name in ("gpus", "recompute", "rows", "parts"):
        assert len({getattr(one, name) for one in SETTINGS}) >= 2
    assert {one.lora_rank > 0 for one in SETTINGS} == {True, False}


def test_the_table_has_a_line_for_every_measurement():
    lines = comparison(RESULTS).splitlines()
    others = RESULTS["decoding"] + RESULTS.get("iterations", [])
    assert len(lines) == 2 + len(SETTINGS) + len(others)
    assert len({line.count("|") for line in lines}) == 1


def test_hours_are_steps_times_seconds_and_what_surrounds_them():
    for one in plan(FULL, GPUS["a100-80g"], 8):
        seconds = one.steps * one.step_seconds + one.checkpoint_seconds
        assert 3600 * one.hours == pytest.approx(seconds, abs=300)


def test_every_loop_of_the_notebooks_is_planned():
    """All hours of a GPU, counted by hand: six operations a weight and token."""
    a100 = GPUS["a100-80g"]
    stages = {one.name: one for one in plan(FULL, a100, 8)}
    with torch.device("meta"):
        nets = [PaLM(config) for config in networks(FULL)]
    policy, trunk = (sum(w.numel() for w in net.parameters()) for net in nets)
    text = 20_000 * 256 * 2048
    demos, compared = 1_000 * 64 * 2048, 800 * 64 * 2 * 256
    for name, weights, tokens in (
        ("06 pretraining", policy, text),
        ("06 trunk", trunk, text),
        ("07 SFT", policy, demos),
        ("07 trunk", trunk, demos),
        ("08 reward model", trunk, compared),
    ):
        one = stages.pop(name)
        floor = 6 * weights * tokens / (8 * a100.flops)
        assert floor < one.steps * one.step_seconds < 1.6 * floor, name
        assert one.steps * one.tokens == tokens
    assert list(stages) == ["08 answers", "11 PPO", "12 evaluation"]


def test_a_second_beta_is_as_many_steps_and_checkpoints_again():
    a100 = GPUS["a100-80g"]
    twice = replace(FULL, ppo=replace(FULL.ppo, kl_coefs=(0.1, 0.0)))
    [one], [two] = (
        [s for s in plan(preset, a100, 8) if s.phases] for preset in (FULL, twice)
    )
    assert two.steps == 2 * one.steps
    assert two.checkpoint_seconds == pytest.approx(2 * one.checkpoint_seconds)


def test_every_answer_of_lesson_08_is_planned():
    lesson = (PAGE.parents[1] / "lessons" / "08_reward_model.py").read_text("utf-8")
    at_once = inspect.signature(answer).parameters["batch_size"].default
    [fresh] = re.findall(r"torch.randint\(len\(asked\), \((\d+),\)", lesson)
    calls = [51_200 + 2_000] * 2 + [int(fresh)] * (lesson.count("fresh_scores()") - 1)
    batches = [range(0, number, at_once) for number in calls]
    a100 = GPUS["a100-80g"]
    [one] = [s for s in plan(FULL, a100, 8) if s.name == "08 answers"]
    assert one.steps == sum(map(len, batches))
    reads = 127 * 2 * count_parameters(networks(FULL)[0]) / a100.bandwidth
    assert reads < one.step_seconds < 2.5 * reads  # few rows: reading counts


@pytest.mark.parametrize("rank", [0, 2])
def test_memory_counts_every_network_that_a_notebook_keeps(rank):
    """Their bytes, placed as lessons 06, 07, 08 and 12 place them."""
    machine = MachineConfig(compute="bfloat16", lora_rank=rank)
    preset = replace(get_preset("smoke"), machine=machine)
    policy, trunk = map(PaLM, networks(preset))
    frozen, tuned = place(policy, machine, False), fine_tuned(policy, machine)
    asked, trained = place(trunk, machine, False), place(trunk, machine)
    kept = {
        "06 pretraining": (place(policy, machine), trained),
        "06 trunk": (place(policy, machine), trained),
        "07 SFT": (tuned, trained),
        "07 trunk": (tuned, trained),
        "08 answers": (frozen, trained),
        "08 reward model": (frozen, trained),
        "12 evaluation": (*[frozen] * (1 + len(preset.ppo.kl_coefs)), asked),
    }
    stages = {one.name: one for one in plan(preset, H200)}
    for name, nets in kept.items():
        held = sum(w.numel() * w.element_size() for n in nets for w in n.parameters())
        planned = sum(parts.get("weights", 0) for parts in stages[name].memory.values())
        assert planned == pytest.approx(held), name


def answers(preset, gpu, gpus=1):
    return {one.name: one.fits(gpu) for one in plan(preset, gpu, gpus)}


def test_all_stages_fit_eight_a100s_and_with_adapters_one():
    a100 = GPUS["a100-80g"]
    assert set(answers(FULL, a100, 8).values()) == {"yes"}
    assert set(answers(get_preset("full-lora"), a100).values()) == {"yes"}
    assert answers(FULL, a100)["11 PPO"] == "NO"


def test_two_a100s_are_tight_for_ppo():
    """70.9 GiB were allocated there, and 87.7 reserved, on two H200s."""
    less = replace(FULL, machine=replace(FULL.machine, recompute=True))
    assert answers(less, GPUS["a100-80g"], 2)["11 PPO"] == "tight"
    assert answers(less, H200, 2)["11 PPO"] == "yes"
    assert answers(FULL, GPUS["a100-80g"], 2)["06 pretraining"] == "NO"


def test_what_is_held_besides_is_the_worst_that_was_measured():
    for kind, share in (
        ((1, False), ONE_GPU),
        ((1, True), ONE_GPU),
        ((2, False), TRAINING),
        ((2, True), ALTERNATING),
    ):
        seen = [one for one in wasted(RESULTS, BEFORE) if one.kind == kind]
        worst = max(one.share for one in seen)
        assert worst <= share
        if kind != (1, True):  # there adapters' PPO is better than training is
            assert worst > share - 0.01


def test_memory_fits_with_what_is_held_tightly_or_not_at_all():
    assert verdict(70 * GIB, 5 * GIB, 80 * GIB) == "yes"
    assert verdict(70 * GIB, 9 * GIB, 80 * GIB) == "tight"
    assert verdict(79 * GIB, 0, 80 * GIB) == "NO"
    memory = {"a": {"weights": 1.0, "moments": 2.0, "gradients": 4.0}, "b": {"x": 8.0}}
    assert coming_and_going(memory) == 12


@pytest.mark.parametrize("given", [{}, {NAMES[0]: "x"}, {NAMES[1]: "x"}])
def test_the_allocator_is_set_unless_it_has_been(given):
    environ = dict(given)
    said = let_memory_grow(environ)
    assert environ == given if given else environ == {NAMES[0]: GROWING}
    assert said == ("x" if given else GROWING) and let_memory_grow(environ) == said


def test_a_table_has_the_memory_of_every_network_in_every_stage():
    stages = plan(FULL, GPUS["a100-80g"], 8)
    lines = network_table(stages).splitlines()
    assert len(lines) == 1 + len(stages)
    for one, line in zip(stages, lines[1:]):
        numbers = [float(n) for n in line.removeprefix(one.name).split()]
        assert len(numbers) == len(one.memory) + 2
        assert sum(numbers[:-2]) == pytest.approx(numbers[-2], abs=0.3)
        assert numbers[-2] == pytest.approx(one.peak / GIB, abs=0.06)


def test_the_small_preset_fits_a_card_of_8_gb():
    assert set(answers(get_preset("small"), GPUS["8g"]).values()) == {"yes"}


def test_recomputing_takes_less_memory_and_more_time():
    less = replace(FULL, machine=replace(FULL.machine, recompute=True))
    for plain, again in zip(plan(FULL, H200, 2)[:4], plan(less, H200, 2)[:4]):
        assert again.peak < plain.peak
        assert again.step_seconds > plain.step_seconds


def test_more_gpus_hold_less_each():
    peaks = [plan(FULL, H200, n)[0].peak for n in (1, 2, 4, 8)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] / GIB > 100


def test_a_budget_is_spent_to_the_last_hour():
    stages = plan(FULL, GPUS["a100-80g"], 8)
    bought = budget(stages, 8, 5000.0)
    hours = [8 * one.hours for one in stages]
    assert bought["pipelines"] * sum(hours) == pytest.approx(5000)
    assert bought["after pretraining"] * sum(hours[2:]) == pytest.approx(5000)
    policy, trunk = stages[:2]  # both read the same tokens
    steps = bought["tokens"] / policy.tokens
    each = policy.step_seconds + trunk.step_seconds
    assert steps * each / 3600 * 8 + sum(hours[2:]) == pytest.approx(5000)
    assert budget(stages, 8, 1.0)["tokens"] == 0


def test_advice_names_the_stage_and_what_is_missing():
    a100 = GPUS["a100-80g"]
    stages = plan(FULL, a100, 1)
    lines = advice(stages, FULL, a100, [])
    assert lines[0].startswith("06 pretraining does not fit: ")
    assert lines[0].endswith("No option helps by itself.")
    assert "minipalm/config.py" in lines[-1]
    eight = plan(FULL, a100, 8)
    assert advice(eight, FULL, a100, []) == []
    more = [Trial(f"{n}", a100, plan(FULL, a100, n)) for n in (1, 2, 8)]
    assert "\nFits with 8." in advice(stages, FULL, a100, [more])[0]
    assert (
        "\nLess, but not enough, with 2." in advice(stages, FULL, a100, [more[:2]])[0]
    )
    less = replace(FULL, machine=replace(FULL.machine, recompute=True))
    line, _ = advice(plan(less, a100, 2), less, a100, [[more[1]], [more[2]]])
    assert line.startswith("11 PPO is tight: ") and line.endswith("\nFits with 8.")


def test_a_preset_for_a_cpu_is_refused():
    with pytest.raises(ValueError, match="float32"):
        plan(get_preset("toy"), H200)
    with pytest.raises(ValueError, match="1 GPU or more"):
        plan(FULL, H200, 0)


def test_the_command_prints_the_plan(capsys):
    assert main(["--preset", "full", "--gpu", "a100-80g", "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    for part in ("A100 SXM 80G", "assumed", "06 pretraining", "5,000 GPU-hours"):
        assert part in said


def test_the_command_says_what_does_not_fit(capsys):
    assert main(["--preset", "full", "--gpu", "24g", "--gpus", "1"]) == 1
    assert "11 PPO does not fit" in capsys.readouterr().out


def test_the_command_takes_other_dials(capsys):
    dials = ["--gpus", "1", "--gpu", "h200", "--price", "2", "--micro-batch", "2"]
    assert main([*dials, "--preset", "full-lora", "--recompute", "--budget", "10"]) == 0
    said = capsys.readouterr().out
    assert "$2.00 a GPU-hour (yours)" in said and "10 GPU-hours ($20)" in said


def test_the_command_refuses_nonsense_in_one_line(capsys):
    assert main(["--gpus", "2", "--lora", "16"]) == 2
    assert "adapters are for one GPU" in capsys.readouterr().err
    assert main(["--gpus", "3"]) == 2
    assert "3 ranks cannot share" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "--preset toy",
        "--gpus 0",
        "--gpus 16",
        "--lora -1",
        "--micro-batch 0",
        "--disk 0",
        "--price nan",
        "--budget -5",
        "--budget many",
    ],
)
def test_no_number_that_cannot_be_is_planned_with(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    assert f"argument {words.split()[0]}" in capsys.readouterr().err


def test_a_plan_of_adapters_says_what_pretraining_in_bfloat16_is_worth(capsys):
    main(["--preset", "full-lora"])
    assert "--pretrained" in capsys.readouterr().out
    main(["--preset", "small", "--gpu", "8g"])
    assert capsys.readouterr().out.startswith("1 × ")


def test_the_page_says_what_the_planner_says():
    assert PAGE.read_text("utf-8") == page(), "python -m minipalm.scale.page"


def test_benchmarks_of_sampling_and_ppo_are_read():
    found = of_benchmark(
        {
            "decode": {"step_ms_1": 4.0, "step_ms_64": 5.0, "seconds_1": 9.9},
            "ppo_lora": {"seconds": 9.0, "peak_gib": 60.0, "gpus": 1},
            "two_ppo": {"error": "lost"},
        }
    )
    assert [row["seconds"] for row in found["decoding"]] == [0.004, 0.005]
    assert [row["lora_rank"] for row in found["iterations"]] == [16]
    gib, seconds = iteration_predicted(found["iterations"][0], H200)
    assert 45 < gib < 65 and 8 < seconds < 10
    empty = {"settings": [], "decoding": [], "ceilings": {"flops": 1.0}}
    both = merged([empty, {"ppo_lora": {}}])
    assert both["ceilings"] == {"flops": 1.0} and both["iterations"] == []


def test_columns_line_up():
    assert table(["a", "bb"], [["cc", "1"]]) == "a   bb\ncc   1"


def test_measurements_of_several_runs_become_one():
    def one(**more):
        keys = {"name": "all weights", "rows": 4, "gpus": 1, "recompute": False}
        return {**keys, **more}

    first = {
        "date": "d",
        "ceilings": {"flops": 1.0, "bandwidth": 2.0},
        "settings": [one(seconds=1.0), one(rows=8, error="out of memory")],
        "decoding": [{"rows": 1, "seconds": 0.1}, {"rows": 2, "error": "lost"}],
    }
    second = {
        "ceilings": {"flops": 9.0, "link": 3.0},
        "settings": [one(gpus=2, seconds=2.0)],
        "decoding": [],
    }
    both = merged([first, second])
    assert both["ceilings"] == {"flops": 1.0, "bandwidth": 2.0, "link": 3.0}
    assert [s["gpus"] for s in both["settings"]] == [1, 2]
    assert both["decoding"] == [{"rows": 1, "seconds": 0.1}] and both["date"] == "d"
