"""A folder of thirty submissions of all kinds: each costs only itself."""

import csv
import json
import os
import sys
import time
from pathlib import Path

import nbformat
import pytest

from minipalm.course import ROOT, apart, checks, grade
from minipalm.course.apart import JudgingError, Verdict, judge_apart, judge_plan
from minipalm.course.exercise import of_lesson
from minipalm.course.source import source_of
from minipalm.course.submission import SubmissionError, plain_python, read_submission
from minipalm.sandbox import Finished, Limits

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


def written_in_the_check(book):
    right = cell_of(book, WHITEN).source
    cell_of(book, WHITEN).source = "raise NotImplementedError"
    check = cell_of(book, WHITEN, "check")
    check.source = f"{right}\n{check.source}"


OK, NOT = "ok", "not yet"
FORGE = "import minipalm.course.judge as j\nj.compare = lambda *a: ''\n"

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
        "PermissionError in line 2 of the cell",
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
    "slips_in_syntax": (notebook(whiten="def whiten(x, mask:"), NOT, "in line 1 of"),
    "replaces_torch": (
        notebook(whiten="torch.isclose = lambda *a, **k: torch.tensor(True)\n"
                 + whiten("return x * 7")),
        NOT,
        "expected",
    ),
    "helper_outside": (
        notebook(own_helper_elsewhere, whiten=whiten("return helper(x)")),
        NOT,
        "the exercise's own cell",
    ),
    "fails_in_the_cell": (
        notebook(whiten="\n\nx = 1\nraise ValueError('no')"),
        NOT,
        "ValueError in line 4 of the cell: no",
    ),
    "uses_magics_and_overwrites": (
        notebook(
            whiten="%%time\n%matplotlib inline\n" + source_of(WHITEN.answer),
            deltas=source_of(FIRST.answer) + "\nTensor = Float = None",
        ),
        OK,
        "",
    ),
    "installs": (
        notebook(whiten="!pip install x\n" + source_of(WHITEN.answer)),
        NOT,
        "`pip install x` is not run",
    ),
    "forges_the_judge": (
        notebook(whiten=FORGE + whiten("return x * 7")),
        NOT,
        "replaces minipalm.course.judge.compare",
    ),
    "forges_when_called": (
        notebook(whiten=whiten(FORGE + "return x * 7")),
        NOT,
        "replaces minipalm.course.judge.compare",
    ),
    "writes_in_the_check": (
        notebook(written_in_the_check),
        NOT,
        "stands in the cell of the check",
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
    assert int(row["percent"]) == {4: 100, 3: 75, 0: 0}[right]
    first, *later = WHITEN.hints
    assert (f"To go on: {first}" in page) == (verdict != OK)
    assert not any(hint in page for hint in later)


def test_rows_are_sorted_by_the_files_paths(graded):
    names = [*graded[1]]
    assert names == sorted(names)


def test_a_file_that_is_no_text_has_a_row(graded):
    assert "not a Jupyter notebook" in graded[1]["not_utf8"]["note"]


def test_nothing_was_left_behind(graded):
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


def test_a_mistake_with_a_slip_besides_counts_as_that_mistake(tmp_path):
    traps = GAE.traps
    slips = [n for n, trap in enumerate(traps) if trap.variant]
    plain = slips[0] - 1
    assert traps[slips[0]].sentence.startswith(traps[plain].sentence)
    grades = [
        grade.Grade(file, LESSON, {GAE.id: Verdict("not yet", "as told", number)})
        for file, number in (("a", plain), ("b", slips[0]), ("c", None))
    ]
    grade.write_misconceptions(grades, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["mistake"], row["files"]) for row in rows] == [
        (traps[plain].sentence, "a b"),
        ("(no known mistake)", "c"),
    ]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_submissions_is_said(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert grade.main([str(tmp_path / name)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err


# --- odd files ----------------------------------------------------------------------


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_no_file_costs_the_others_their_grades(tmp_path, capsys):
    (tmp_path / "a" / "grades").mkdir(parents=True)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    graded = ["n" * 249 + ".ipynb", "\udce9.ipynb", "=1+1.ipynb", "a/b.ipynb"]
    graded += ["a__b.ipynb", "X.IPYNB", "a/grades/c.ipynb", "line\nbreak.ipynb"]
    ignored = ["__MACOSX/d.ipynb", "._e.ipynb", ".ipynb_checkpoints/f.ipynb", ".DS"]
    for name in [*graded, *ignored, "notes.py"]:
        (tmp_path / name).write_text("none", "utf-8")
    os.mkfifo(tmp_path / "pipe.ipynb")
    (tmp_path / "zero.ipynb").symlink_to("/dev/zero")

    assert grade.main([str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "grades" / "grades.csv")
    shown = {*map(grade.plain, graded), "pipe.ipynb", "zero.ipynb"}
    assert {row["file"].removeprefix("'") for row in rows} == shown
    assert all(row["note"] and row["percent"] == "0" for row in rows)
    assert "'=1+1.ipynb" in {row["file"] for row in rows}
    pages = [*(tmp_path / "grades" / "reports").iterdir()]
    assert len(pages) == len(shown) and all(page.name.isascii() for page in pages)
    said = capsys.readouterr().out
    assert "not graded, as they are no submitted notebooks: notes.py\n" in said


def test_only_the_folder_of_the_grades_is_left_out(tmp_path):
    for name in ("grades", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.ipynb").write_text("none", "utf-8")
    found, others = grade.submissions(tmp_path, tmp_path / "elsewhere")
    assert found == [tmp_path / "grades" / "x.ipynb"]
    assert others == [tmp_path / "elsewhere" / "x.ipynb"]


def test_submissions_are_sorted(tmp_path):
    for i in (5, 3, 9, 1, 7, 2, 8, 4, 6, 0):
        (tmp_path / f"folder{i}").mkdir()
        (tmp_path / f"folder{i}" / f"{9 - i}.ipynb").touch()
    found, _ = grade.submissions(tmp_path, tmp_path / "grades")
    assert [path.stem for path in found] == [str(9 - i) for i in range(10)]


def test_each_path_has_a_page_of_its_own():
    paths = ["a/b.ipynb", "a__b.ipynb", "a_/b.ipynb", "a/_b.ipynb", "a/b.IPYNB", "é.x"]
    paths += ["e.ipynb", "x" * 200 + ".ipynb", "x" * 201 + ".ipynb", "a b.ipynb"]
    pages = {grade.page_name(path) for path in paths}
    assert len(pages) == len(paths)
    assert all(page.isascii() and len(page) < 100 for page in pages)
    assert grade.page_name("alice/10_gae.ipynb") == "alice__10_gae"


@pytest.mark.parametrize("first", "=+-@")
def test_no_cell_of_a_table_is_a_formula(first):
    assert grade.table_row([f"{first}1+1", "1+1", -1]) == [f"'{first}1+1", "1+1", -1]


def test_a_page_that_cannot_be_written_costs_only_itself(tmp_path, monkeypatch):
    def write(path, text):
        if path.name == "a.md":
            raise OSError("disk full")
        path.write_text(text, "utf-8")

    monkeypatch.setattr(grade, "write_text", write)
    for name in ("a", "b"):
        (tmp_path / f"{name}.ipynb").write_text("none", "utf-8")
    assert grade.main([str(tmp_path)]) == 1
    assert len(rows_of(tmp_path / "grades" / "grades.csv")) == 2
    assert (tmp_path / "grades" / "reports" / "b.md").exists()


# --- which cell counts --------------------------------------------------------------


def read(tmp_path, change=None, **written):
    path = tmp_path / "mine.ipynb"
    path.write_text(notebook(change, **written), "utf-8")
    return read_submission(path)


def appended(source):
    return lambda book: book.cells.append(nbformat.v4.new_code_cell(source))


def test_a_later_cell_does_not_replace_an_answer_in_its_place(tmp_path):
    other = whiten("return 1")
    mine = source_of(WHITEN.answer)
    assert read(tmp_path, appended(other)).cells[WHITEN.id] == mine
    for left in ("raise NotImplementedError", "def whiten(:", "# see below"):
        assert read(tmp_path, appended(other), whiten=left).cells[WHITEN.id] == other
    stub = whiten("raise NotImplementedError")
    assert read(tmp_path, appended(other), whiten=stub).cells[WHITEN.id] == other


def test_a_cell_marked_for_an_exercise_need_not_define_it(tmp_path):
    assert read(tmp_path, whiten="x = 1").cells[WHITEN.id] == "x = 1"


def test_tags_that_are_none_are_no_tags(tmp_path):
    book = json.loads(notebook())
    for cell in book["cells"]:
        cell["metadata"] = {"tags": None, "exercise": 3}
    (tmp_path / "n.ipynb").write_text(json.dumps(book), "utf-8")
    assert [*read_submission(tmp_path / "n.ipynb").cells] == IDS


@pytest.mark.parametrize("first, second", [("whiten", "rope"), ("swiglu", "whiten")])
def test_of_two_lessons_the_first_counts(tmp_path, first, second):
    cells = [f"def {name}(): pass" for name in (first, second)]
    book = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(book, tmp_path / "two.ipynb")
    lesson = read_submission(tmp_path / "two.ipynb").lesson
    assert lesson == {"whiten": "10_gae", "swiglu": "04_swiglu"}[first]


def test_magics_are_calls_and_lines_stay_where_they_are():
    source = "\n%%time\n%cd x\ny = !ls\ndef f(): pass"
    lines = plain_python(source).split("\n")
    assert lines[:2] == ["", ""] and lines[4] == "def f(): pass"
    assert plain_python("a = 5 %b\n") == "a = 5 %b\n"


# --- what is no learner's fault -----------------------------------------------------


def process_that_says(*lines, status=0, stderr=""):
    """In the place of run_task."""

    def run_task(task, limits):
        token, told = json.loads(task)["token"], json.loads(task)["limits"]
        assert told == vars(limits)
        out = "".join(f"{token}{json.dumps(line)}\n" for line in lines)
        return Finished(status, out, stderr, "it ended its process" if status else "")

    return run_task


def all_right(*doors):
    verdicts = [{"exercise": one, **vars(Verdict("ok"))} for one in IDS]
    return process_that_says({"open": doors}, *verdicts)


def test_what_stays_open_is_said_once_and_in_each_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(apart, "run_task", all_right("the code can fly"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.ipynb").write_text(notebook(), "utf-8")
    assert grade.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("on this machine: the code can fly") == 1
    for name in ("a", "b"):
        page = tmp_path / "grades" / "reports" / f"{name}.md"
        assert "the code can fly." in page.read_text("utf-8")


@pytest.mark.parametrize(
    "process, why",
    [
        (process_that_says(status=1, stderr="a\nImportError: x"), "begin: ImportError"),
        (process_that_says({"fault": "NameError: y"}, status=1), "10_gae fails: Name"),
    ],
)
def test_a_fault_of_ours_is_no_verdict(tmp_path, monkeypatch, capsys, process, why):
    monkeypatch.setattr(apart, "run_task", process)
    path = tmp_path / "a.ipynb"
    path.write_text(notebook(), "utf-8")
    with pytest.raises(JudgingError, match=why):
        judge_apart(LESSON, {WHITEN.id: "x"}, Limits())
    assert checks.main([str(path)]) == 2
    shown = capsys.readouterr()
    assert (
        shown.err.count("\n") == 1 and why in shown.err and WHITEN.id not in shown.out
    )
    assert grade.main([str(tmp_path)]) == 1
    [row] = rows_of(tmp_path / "grades" / "grades.csv")
    assert why in row["note"] and row["of"] == "0" and row["lesson"] == LESSON


def test_a_lesson_whose_code_fails_is_a_fault_of_ours():
    said = []
    assert judge_plan([("", "1 / 0")], {}, {}, said.append) == 1
    assert said == [{"fault": "ZeroDivisionError: division by zero"}]


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


def test_check_does_not_take_the_courses_notebook_for_one_that_is_missing(capsys):
    assert checks.main([f"nowhere/{LESSON}.ipynb"]) == 2
    assert f"no notebook nowhere/{LESSON}.ipynb" in capsys.readouterr().err


def test_check_goes_on_after_a_broken_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(apart, "run_task", all_right())
    (tmp_path / "broken.ipynb").write_text("none", "utf-8")
    (tmp_path / "good.ipynb").write_text(notebook(), "utf-8")
    paths = [str(tmp_path / name) for name in ("broken.ipynb", "good.ipynb")]
    assert checks.main(paths) == 2
    shown = capsys.readouterr()
    assert "broken.ipynb: it is not a Jupyter notebook" in shown.err
    assert f"{len(IDS)} of {len(IDS)} right" in shown.out


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
