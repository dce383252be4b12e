"""A folder of thirty submissions of all kinds: each costs only itself."""

import csv
import json
import sys
import time

import nbformat
import pytest

from minipalm.course import ROOT, checks, grade
from minipalm.course.exercise import of_lesson
from minipalm.course.source import source_of
from minipalm.course.submission import SubmissionError, read_submission

LESSON = "10_gae"
EXERCISES = list(of_lesson(LESSON))
IDS = [one.id for one in EXERCISES]
WHITEN = next(one for one in EXERCISES if one.name == "whiten")
GAE = next(one for one in EXERCISES if one.name == "gae")
FIRST = EXERCISES[0]


def notebook(change=None, **written):
    """The student's notebook with all answers right, but for those given by name."""
    book = nbformat.read(ROOT / "notebooks" / f"{LESSON}.ipynb", 4)
    for cell in book.cells:
        if "exercise" in cell.metadata.get("tags", []):
            one = next(e for e in EXERCISES if e.id == cell.metadata["exercise"])
            cell.source = written.get(one.name, source_of(one.answer))
    if change is not None:
        change(book)
    return nbformat.writes(book)


def cell_of(book, exercise, tag="exercise"):
    return next(
        cell
        for cell in book.cells
        if cell.metadata.get("exercise") == exercise.id
        and tag in cell.metadata.get("tags", [])
    )


def whiten(body):
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"def whiten(x, mask, shift_mean=True):\n{lines}\n"


def untouched():
    return (ROOT / "notebooks" / f"{LESSON}.ipynb").read_text("utf-8")


def forged_checks(book):
    for cell in book.cells:
        if "check" in cell.metadata.get("tags", []):
            cell.source = f"print('{cell.metadata['exercise']} anything: ok')"
            cell.outputs = [nbformat.v4.new_output("stream", text="all: ok\n")]


def deleted(book):
    book.cells.remove(cell_of(book, WHITEN))


def all_deleted(book):
    book.cells = [c for c in book.cells if "exercise" not in c.metadata]


def plain_metadata(book):
    for cell in book.cells:
        cell.metadata = {}


def moved_to_the_end(book):
    cell = cell_of(book, WHITEN)
    book.cells.remove(cell)
    book.cells.append(cell)


def own_helper_elsewhere(book):
    book.cells.insert(3, nbformat.v4.new_code_cell("def helper(x):\n    return x"))


def written_in_another_cell(book):
    right = cell_of(book, WHITEN).source
    cell_of(book, WHITEN).source = "raise NotImplementedError"
    book.cells.append(nbformat.v4.new_code_cell(right))


def broken_imports(book):
    for cell in book.cells:
        if cell.cell_type == "code" and cell.source.startswith("import"):
            cell.source = "import nothing_of_the_kind"


OK, NOT = "ok", "not yet"

# name: (text of the file, verdict on whiten or None if nothing is judged, words of why)
SUBMISSIONS = {
    "all_right": (notebook(), OK, ""),
    "untouched": (untouched(), "todo", ""),
    "wrong_and_named": (
        notebook(whiten=source_of(WHITEN.answer).replace("x[mask]", "x.flatten()")),
        NOT,
        "Padding is counted",
    ),
    "wrong_otherwise": (notebook(whiten=whiten("return x * 7")), NOT, "expected"),
    "loops_in_the_function": (notebook(whiten=whiten("while True: pass")), NOT, "loop"),
    "loops_in_the_cell": (notebook(whiten="while True: pass"), NOT, "come to an end"),
    "catches_everything": (
        notebook(whiten=whiten("while True:\n  try:\n    1 / 0\n  except:\n    pass")),
        NOT,
        "loop",
    ),
    "sleeps": (notebook(whiten=whiten("import time\ntime.sleep(9999)")), NOT, "loop"),
    "forks": (
        notebook(whiten=whiten("import os\nwhile True: os.fork()")),
        NOT,
        "PermissionError",
    ),
    "starts_programs": (
        notebook(whiten="import subprocess\nsubprocess.run(['sleep', '1000'])"),
        NOT,
        "PermissionError",
    ),
    "fills_the_disk": (
        notebook(whiten="open('big', 'w').write('x' * 10**9)"),
        NOT,
        "PermissionError",
    ),
    "writes_elsewhere": (
        notebook(whiten="open('/tmp/minipalm_was_here', 'w').write('x')"),
        NOT,
        "PermissionError",
    ),
    "deletes_files": (
        notebook(whiten="import os\nos.remove('README.md')"),
        NOT,
        "Error",
    ),
    "calls_home": (
        notebook(whiten="import socket\nsocket.create_connection(('127.0.0.1', 9))"),
        NOT,
        "PermissionError",
    ),
    "kills_its_process": (notebook(whiten=whiten("import os\nos._exit(0)")), NOT, ""),
    "kills_the_grader": (
        notebook(whiten=whiten("import os\nos.kill(os.getppid(), 9)")),
        NOT,
        "PermissionError",
    ),
    "crashes": (
        notebook(whiten=whiten("import ctypes\nctypes.string_at(0)")),
        NOT,
        "signal",
    ),
    "takes_all_memory": (
        notebook(whiten=whiten("return [bytearray(10**8) for _ in range(10**4)]")),
        NOT,
        "",
    ),
    "recurses": (
        notebook(whiten=whiten("return whiten(x, mask)")),
        NOT,
        "RecursionError",
    ),
    "prints_a_fake_verdict": (
        notebook(whiten=whiten(f"print('{WHITEN.id} whiten: ok')\nreturn x * 7")),
        NOT,
        "expected",
    ),
    "floods_the_output": (
        notebook(whiten=whiten("import os\nwhile True: os.write(2, b'x' * 65536)")),
        NOT,
        "",
    ),
    "edits_the_checks": (
        notebook(forged_checks, whiten=whiten("return x * 7")),
        NOT,
        "expected",
    ),
    "deletes_a_cell": (notebook(deleted), NOT, "missing"),
    "deletes_all_cells": (notebook(all_deleted), None, "no exercise"),
    "loses_the_metadata": (notebook(plain_metadata), OK, ""),
    "moves_a_cell": (notebook(moved_to_the_end), OK, ""),
    "writes_in_another_cell": (notebook(written_in_another_cell), OK, ""),
    "breaks_the_imports": (notebook(broken_imports), OK, ""),
    "slips_in_syntax": (notebook(whiten="def whiten(x, mask:"), NOT, "SyntaxError"),
    "replaces_torch": (
        notebook(whiten="torch.isclose = lambda *a, **k: torch.tensor(True)\n"
                 + whiten("return x * 7")),
        NOT,
        "expected",
    ),
    "helper_outside": (
        notebook(own_helper_elsewhere, whiten=whiten("return helper(x)")),
        NOT,
        "NameError",
    ),
    "is_text": ("this is no notebook", None, "not a Jupyter notebook"),
    "is_empty": ("", None, "not a Jupyter notebook"),
    "is_other_json": (json.dumps({"cells": 3}), None, "not a Jupyter notebook"),
    "is_of_another_course": (
        nbformat.writes(nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("print(1)")]
        )),
        None,
        "no exercise",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    for name, (text, *_) in SUBMISSIONS.items():
        (folder / name).mkdir()
        (folder / name / f"{LESSON}.ipynb").write_text(text, "utf-8")
    (folder / "not_utf8").mkdir()
    (folder / "not_utf8" / f"{LESSON}.ipynb").write_bytes(b"\xff\xfe\x00garbage")
    assert grade.main([str(folder)]) == 0
    with (folder / "grades" / "grades.csv").open(encoding="utf-8") as file:
        rows = {row["file"].split("/")[0]: row for row in csv.DictReader(file)}
    return folder, rows


pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="doors close on Linux only"),
]


def test_there_are_at_least_thirty_and_each_has_a_row(graded):
    _, rows = graded
    assert len(rows) == len(SUBMISSIONS) + 1 >= 31


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_each_gets_what_it_deserves(graded, name):
    folder, rows = graded
    _, verdict, why = SUBMISSIONS[name]
    row = rows[name]
    page = (folder / "grades" / "reports" / f"{name}__{LESSON}.md").read_text("utf-8")
    if verdict is None:
        assert row["of"] == "0" and why in row["note"] and why in page
        return
    assert row[WHITEN.id] == verdict, page
    assert why in page
    others = [row[one] for one in IDS if one != WHITEN.id]
    expected = "todo" if name == "untouched" else OK
    assert set(others) == {expected}, page  # the rest is graded
    right = [*others, row[WHITEN.id]].count(OK)
    assert (int(row["right"]), int(row["of"])) == (right, len(IDS))


def test_a_file_that_is_no_text_has_a_row(graded):
    assert "not a Jupyter notebook" in graded[1]["not_utf8"]["note"]


def test_nothing_was_left_behind(graded):
    from pathlib import Path

    assert not Path("/tmp/minipalm_was_here").exists()
    assert (ROOT / "README.md").exists()


def test_misconceptions_are_counted_most_frequent_first(graded):
    with (graded[0] / "grades" / "misconceptions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = [int(row["made by"]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    [padding] = [row for row in rows if row["mistake"].startswith("Padding is counted")]
    assert padding["exercise"] == WHITEN.id
    assert padding["files"] == f"wrong_and_named/{LESSON}.ipynb"
    assert int(padding["made by"]) == 1


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_submissions_is_said(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert grade.main([str(tmp_path / name)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err


# --- ./course check -----------------------------------------------------------------


def test_check_prints_the_verdicts_of_a_notebook(tmp_path, capsys):
    path = tmp_path / "mine.ipynb"
    path.write_text(notebook(whiten=whiten("return x * 7")), "utf-8")
    assert checks.main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"◐ {WHITEN.id}" in shown and "expected" in shown
    assert f"{len(IDS) - 1} of {len(IDS)} right" in shown


def test_check_names_what_it_does_not_find(capsys):
    assert checks.main(["77"]) == 2
    assert "no notebook 77" in capsys.readouterr().err


def test_check_finds_notebooks_by_number_and_name():
    [path] = checks.notebooks(["10"])
    assert path.name == f"{LESSON}.ipynb"
    assert checks.notebooks([LESSON]) == [path] == checks.notebooks([str(path)])
    assert path in checks.notebooks([])


def test_a_copied_cell_counts_as_the_learner_left_it_last(tmp_path):
    def copied(book):
        cell = nbformat.from_dict(json.loads(json.dumps(cell_of(book, WHITEN))))
        cell.id, cell.source = "copy", whiten("return 1")
        book.cells.append(cell)

    path = tmp_path / "copy.ipynb"
    path.write_text(notebook(copied), "utf-8")
    assert read_submission(path).cells[WHITEN.id] == whiten("return 1")


def test_a_giant_file_is_not_read(tmp_path):
    path = tmp_path / "big.ipynb"
    with path.open("wb") as file:
        file.truncate(10**8)
    begin = time.monotonic()
    with pytest.raises(SubmissionError, match="larger than 20 MB"):
        read_submission(path)
    assert time.monotonic() - begin < 5
