"""The table of the benchmark at full size, on numbers made up; and its parts, tiny."""

import json

import pytest

from bench import full_size
from bench.full import measure
from bench.full.goals import (
    BEGIN,
    END,
    markdown,
    old_logprobs_rows,
    phase_floors,
    placed,
    rows_of,
    step_floor_ms,
    table,
)
from bench.full.measure import full_sizes, tiny_sizes
from bench.full.ppo import old_logprobs
from bench.full.training import train_ours_short
from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.model.palm import count_parameters
from minipalm.scale.measured import comparison, read_results
from minipalm.scale.reserve import let_memory_grow

LIMITS = {"sustained_tflops": 685.0, "copy_gbs": 4300.0}


def test_a_decode_step_reads_or_multiplies():
    weights = 6_862_000_000  # to a thousandth
    read = 2e3 * weights / 4300e9
    assert step_floor_ms(1, LIMITS) == pytest.approx(read, rel=1e-3)
    multiply = 2e3 * weights * 256 / 685e12
    assert step_floor_ms(256, LIMITS) == pytest.approx(multiply, rel=1e-3)


def test_the_floors_of_an_iteration_are_those_of_the_first_measurements():
    """7.8 s with adapters, 9.1 s without: shared/full-size.md, section 6."""
    assert sum(phase_floors(LIMITS, True).values()) == pytest.approx(7.8, abs=0.1)
    assert sum(phase_floors(LIMITS, False).values()) == pytest.approx(9.1, abs=0.1)
    preset = get_preset("full")
    assert preset.ppo.batch_size == 256 and preset.max_prompt == 128


def test_only_what_was_measured_is_in_the_table():
    assert rows_of({}) == []
    results = {
        "train_lora": {"tflops": 600.0, "limits": LIMITS},
        "decode": {"error": "RuntimeError: no kernel", "limits": LIMITS},
    }
    ((what, value, sign, goal, _),) = rows_of(results)
    assert "adapters" in what and (sign, goal) == (">=", 0.88)
    assert value == pytest.approx(600 / 685)
    text = table(results)
    assert "decode FAILED: RuntimeError: no kernel" in text
    assert " NO" in text.splitlines()[1]  # 0.876 is not 0.88


def test_parts_run_tiny_and_are_kept_and_merged(tmp_path, capsys):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    assert (
        full_size.main(["--tiny", "--parts", "train_lora", "--results", str(one)]) == 0
    )
    kept = json.loads(one.read_text())["train_lora"]
    assert kept["machine"]["allocator"] == let_memory_grow()
    assert kept["tokens"] == 128 and kept["limits"]["sustained_tflops"] > 0
    assert full_size.main(["--merge", str(one), "--results", str(other)]) == 0
    assert json.loads(other.read_text()) == {"train_lora": kept}
    assert "adapters of rank 16" in capsys.readouterr().out


def test_old_log_probabilities_are_measured_each_way():
    """On a processor the pass without gradients is training's to the last bit."""
    found = old_logprobs(tiny_sizes())
    assert found["recomputed/ratio"] == pytest.approx(1, abs=1e-6)
    assert found["recomputed/gap"] < 1e-6 < 1e-4 < found["reused/gap"] < 1e-2
    assert found["recomputed/sampler_gap"] == pytest.approx(found["reused/gap"], rel=1)
    assert 0 < found["recomputed/pass_seconds"] < found["recomputed/seconds"]
    assert "reused/pass_seconds" not in found
    kept = {"old_logprobs": {**found, "limits": LIMITS}}
    assert old_logprobs_rows(
        {}, "old_logprobs"
    ) == [] and "old_logprobs" not in markdown({})
    assert len(old_logprobs_rows(kept, "old_logprobs")) == 8 and "| – |" in markdown(
        kept
    )
    assert "recomputed" not in markdown(kept, phases=False)


def test_a_burst_below_the_sustained_rate_is_not_shown(monkeypatch):
    for seconds, there in ((1.0, False), (1e-4, True)):
        clock = {"at": 0.0, "products": 0}

        def mm(a, b, out, clock=clock, seconds=seconds):
            clock["products"] += 1
            slow = 50 < clock["products"] <= 100  # those of the burst
            clock["at"] += seconds if slow else 0.01

        monkeypatch.setattr(measure, "now", lambda clock=clock: clock["at"])
        monkeypatch.setattr(measure.torch, "mm", mm)
        monkeypatch.setattr(measure, "median_seconds", lambda *_: 1.0)
        found = measure.ceilings(tiny_sizes())
        assert ("burst_tflops" in found) == there


def test_peers_are_measured_at_each_number_of_tokens():
    sizes = tiny_sizes()
    found = train_ours_short(sizes)
    for rows in sizes.peer_rows:
        tokens = rows * sizes.window
        rate = tokens / found[f"seconds_{tokens}"]
        assert found[f"tokens_per_second_{tokens}"] == pytest.approx(rate)
    assert found["parameters"] == found["ours"]
    full = full_sizes()
    keys = [f"tokens_per_second_{rows * full.window}" for rows in full.peer_rows]
    results = {
        "train_ours_short": dict.fromkeys(keys, 3.0),
        "train_llama": dict(zip(keys, (2.0, 4.0))),
    }
    few, many = rows_of(results)
    assert "8,192 tokens" in few[0] and few[1] == 1.5
    assert "16,384 tokens" in many[0] and many[1] == 0.75


def test_a_tiny_run_leaves_the_results_as_they_are(capsys):
    before = full_size.RESULTS.read_bytes()
    assert full_size.main(["--tiny", "--parts", "train_lora"]) == 0
    assert full_size.RESULTS.read_bytes() == before
    assert "adapters of rank 16" in capsys.readouterr().out


def test_the_readme_gets_the_table_between_its_marks():
    machine = {"gpu": "X", "torch": "2"}
    lora = {"tflops": 617.0, "limits": LIMITS, "date": "2026-11-22", "machine": machine}
    readme = f"before\n{BEGIN}\nold\n{END}\nafter"
    text = placed({"train_lora": lora}, readme)
    assert "old" not in text and text.startswith("before") and text.endswith("after")
    assert "2026-11-22, X, torch 2." in text
    assert (
        "| adapters of rank 16 (4 a weight credited) | 0.901 | ≥ 0.88 | yes |" in text
    )
    assert placed({"train_lora": lora}, text) == text
    with pytest.raises(ValueError, match="needs the lines"):
        placed({}, "nothing")


@pytest.mark.parametrize(
    ("path", "phases"), [(full_size.README, True), (full_size.SHORT, False)]
)
def test_the_tables_are_of_the_results_that_are_kept(path, phases):
    text = path.read_text("utf-8")
    assert text == placed(full_size.kept(full_size.RESULTS), text, phases)


def test_a_part_that_fails_is_reported(tmp_path, monkeypatch):
    def broken(sizes):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(full_size.PARTS, "decode", broken)
    path = tmp_path / "one.json"
    assert full_size.main(["--tiny", "--parts", "decode", "--results", str(path)]) == 1
    assert json.loads(path.read_text())["decode"]["error"].endswith("out of memory")


def test_peers_have_as_many_weights_as_ours():
    """Llama's feed-forward is cut so; the arithmetic of bench.full.peers.llama."""
    config = full_size.full_sizes().policy
    D, K = 4096, 128
    for kv_heads in (32, 1):
        attention = D * (2 * 32 + 2 * kv_heads) * K
        a_layer = D * (config.qkv_dim + 1024 + 3 * config.ff_dim)
        width = (a_layer - attention) // (3 * D) // 8 * 8
        weights = 32 * (attention + 3 * D * width + 2 * D) + 32_768 * D + D
        assert weights == pytest.approx(count_parameters(config), rel=1e-3)


def test_lesson_16_shows_the_tables_of_the_results_that_are_kept():
    notebook = ROOT / "solutions" / "16_full_size.ipynb"
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    shown = [
        "".join(output["data"]["text/markdown"])
        for cell in cells
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    results = full_size.kept(full_size.RESULTS)
    said = comparison(read_results())
    assert [text.strip() for text in shown] == [said, markdown(results)]
