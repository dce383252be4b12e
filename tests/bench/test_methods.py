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


def in_folder(monkeypatch, folder):
    """Kept numbers and a page of this test's own."""
    results, page = folder / "kept.json", folder / "page.md"
    results.write_text("{}", "utf-8")
    page.write_text(f"a\n{methods.BEGIN}\nold\n{methods.END}\nz\n", "utf-8")
    monkeypatch.setattr(methods, "RESULTS", results)
    monkeypatch.setattr(methods, "PAGE", page)
    return results, page


def test_a_run_at_full_size_is_kept_and_says_where(tmp_path, monkeypatch, capsys):
    results, page = in_folder(monkeypatch, tmp_path)
    run = run_of(tmp_path, {"dpo": {**ROW, "phases": {"update": 2.25}}})
    assert methods.main([str(run)]) == 0
    said = capsys.readouterr().out
    assert json.loads(results.read_text("utf-8")) == methods.kept(run)
    assert "| DPO | 64 |" in page.read_text("utf-8") and "| DPO | 64 |" in said
    assert f"Wrote {results}\nWrote {page}\n" in said
    assert methods.main([]) == 0  # again, from what was kept
    said = capsys.readouterr().out
    assert f"Wrote {page}\n" in said and f"Wrote {results}" not in said


@pytest.mark.parametrize(
    "scale, gpu, why",
    [
        ("smoke", "Card X", "the scale is smoke"),
        ("small:3", "Card X", "the scale is small:3"),
        ("full:3", None, "not on a GPU"),
    ],
)
def test_a_smaller_run_is_only_printed(tmp_path, monkeypatch, capsys, scale, gpu, why):
    files = in_folder(monkeypatch, tmp_path)
    before = [path.read_text("utf-8") for path in files]
    run = run_of(tmp_path, {"dpo": {**ROW, "phases": {"update": 2.25}}})
    write_machine(run, 1, gpu)
    done = json.dumps({"scale": scale, "seed": 0})
    (run / "15_offline" / "done.json").write_text(done, "utf-8")
    assert methods.main([str(run)]) == 0
    assert [path.read_text("utf-8") for path in files] == before
    table, _, last = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    assert "| DPO | 64 |" in table and f"1 × {gpu or 'CPU'}, " in table
    assert last.startswith("Nothing was written: ") and why in last


def test_a_run_without_lesson_15_gets_one_line(tmp_path, monkeypatch, capsys):
    files = in_folder(monkeypatch, tmp_path)
    before = [path.read_text("utf-8") for path in files]
    for run in (tmp_path, tmp_path / "none"):
        assert methods.main([str(run)]) == 2
        out, said = capsys.readouterr()
        assert not out and said.count("\n") == 1 and "15_offline" in said
    assert [path.read_text("utf-8") for path in files] == before
