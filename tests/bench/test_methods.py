"""The table of what methods cost at full size, and where it stands."""

import json

import pytest

from bench import methods
from minipalm.train.progress import write_machine
from minipalm.train.stage import StageError

ROW = {"updates": 3, "answers": 64, "seconds": 2.5, "memory": None}


def run_of(tmp_path, rows):
    stage = tmp_path / "15_offline"
    stage.mkdir()
    (stage / "methods.json").write_text(json.dumps(rows), "utf-8")
    write_machine(tmp_path, 2, "Card X")
    (stage / "done.json").write_text('{"scale": "full:3", "seed": 0}', "utf-8")
    return tmp_path


def test_a_run_becomes_a_table(tmp_path):
    rows = {
        "dpo": {**ROW, "phases": {"update": 2.25}, "proxy": 0.5},
        "ppo": {**ROW, "phases": {"rollout": 1.0, "update": 1.5}, "memory": 48.34},
        "sft": {"updates": 0},
        "best_of_n": {"updates": 0, "n": 16},
    }
    results = methods.kept(run_of(tmp_path, rows))
    assert (results["gpu"], results["ranks"]) == ("Card X", 2)
    assert results["scale"] == "full:3"
    assert set(results["methods"]) == {"ppo", "dpo"}  # and no word of quality
    assert set(results["methods"]["dpo"]) == {*ROW, "phases"}
    head, _, columns, _, *lines = methods.markdown(results).splitlines()
    assert head.endswith("2 × Card X, `full:3`; an update of each:")
    assert columns == "| | answers | seconds | policy answers | learning | GiB |"
    assert lines == [
        "| PPO | 64 | 2.50 | 1.00 | 1.50 | 48.3 |",
        "| DPO | 64 | 2.50 | – | 2.25 | – |",
    ]
    page = f"before\n{methods.BEGIN}\nold\n{methods.END}\nafter"
    text = methods.placed(results, page)
    assert "old" not in text and text.startswith("before") and text.endswith("after")
    assert methods.placed(results, text) == text


def test_a_run_that_has_not_ended_is_refused(tmp_path):
    run = run_of(tmp_path, {})
    (run / "15_offline" / "done.json").unlink()
    with pytest.raises(StageError, match="not run to its end"):
        methods.kept(run)


def test_the_page_has_the_table_of_what_is_kept():
    results = json.loads(methods.RESULTS.read_text("utf-8"))
    assert set(results["methods"]) >= {"ppo", "offline", "dpo", "rloo", "grpo"}
    text = methods.PAGE.read_text("utf-8")
    assert methods.placed(results, text) == text
