"""./course seeds: what it collects."""

import json

from minipalm.course.seeds import collect, numbers, show


def test_numbers_are_found_at_any_depth_and_nothing_else():
    tree = {"a": {"b": 1, "c": "text", "d": True}, "e": [1, 2], "f": 0.5, "g": None}
    assert numbers(tree) == {"a.b": 1.0, "f": 0.5}


def test_mean_and_spread_over_seeds(tmp_path):
    outs = {}
    for seed, rate in ((1, 0.7), (2, 0.9)):
        outs[seed] = tmp_path / str(seed)
        folder = outs[seed] / "12_evaluation"
        folder.mkdir(parents=True)
        found = {"win": {"rate": rate}, f"only_{seed}": 1}
        (folder / "evaluation.json").write_text(json.dumps(found))
    results = collect(outs)
    assert results["seeds"] == [1, 2]
    (row,) = results["numbers"].items()
    assert row[0] == "win.rate" and row[1]["values"] == [0.7, 0.9]
    assert abs(row[1]["mean"] - 0.8) < 1e-12
    assert abs(row[1]["sd"] - 0.02**0.5) < 1e-12
    assert "0.800 ± 0.141" in show(results)
