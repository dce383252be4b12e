"""Measuring for the planner: each setting by itself, kept as the planner reads."""

import json

import pytest

from bench import measure_plan
from bench.full.measure import tiny_sizes
from minipalm.scale.measured import comparison, merged, settings_of


def test_settings_differ_in_all_that_is_planned():
    settings = (*measure_plan.ONE_GPU, *measure_plan.TWO_GPUS)
    keys = {(o.name, o.rows, o.parts, o.gpus, o.recompute) for o in settings}
    assert len(keys) == len(settings) >= 6
    for name in ("rows", "parts", "gpus", "recompute", "lora_rank"):
        assert len({getattr(one, name) for one in settings}) == 2


@pytest.mark.parametrize("lora_rank, parts", [(0, 1), (4, 1), (0, 3)])
def test_a_setting_is_measured_by_the_packages_own_steps(lora_rank, parts):
    how = {"lora_rank": lora_rank, "parts": parts, "compile": False}
    one = measure_plan.setting("some", 2, **how)
    found = measure_plan.measured(one, tiny_sizes())
    assert found["seconds"] > 0 and found["spread"] >= 0 and "error" not in found


def test_a_run_leaves_what_the_planner_reads_and_a_failure_costs_nobody_else(
    tmp_path, monkeypatch
):
    good = measure_plan.setting("all weights", 2, compile=False)
    bad = measure_plan.setting("adapters", 2, lora_rank=-1, compile=False)
    monkeypatch.setattr(measure_plan, "ONE_GPU", (bad, good))
    out = tmp_path / "one.json"
    assert measure_plan.main(["--tiny", "--out", str(out)]) == 1
    result = json.loads(out.read_text("utf-8"))
    assert "rank" in result["settings"][0]["error"]
    kept = merged([result])
    assert [one.name for one in settings_of(kept)] == ["all weights"]
    assert "seconds" not in result["settings"][0]
    kept["settings"][0]["gib"] = 1.0  # a processor's memory is not measured
    kept["ceilings"] |= {"flops": 1e12, "bandwidth": 1e11}
    assert "all weights" in comparison(kept)


def test_no_setting_is_begun_when_the_time_is_over(tmp_path):
    out = tmp_path / "one.json"
    assert measure_plan.main(["--tiny", "--out", str(out), "--seconds", "0"]) == 0
    assert not out.exists()
