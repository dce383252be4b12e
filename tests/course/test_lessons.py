"""The text of the lessons: short cells, plain words, no number that no cell prints."""

import ast
import re

import jupytext
import nbformat
import pytest

from minipalm.course import ROOT
from minipalm.course.documents import lessons
from minipalm.course.exercise import exercises, of_lesson
from minipalm.spmd import CLASSROOM
from minipalm.train.progress import STAGES

LESSONS = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))
EVERY = [pytest.param(path, id=path.stem) for path in LESSONS]

MOST_LINES = 30  # of a cell of code, what it imports from the package left out
MOST_IMPORTS = 45
MOST_WORDS = 80  # of a cell of text; lists and tables apart
MOST_WORDS_IN_ALL = 2500
SCALES = r"\b(?:smoke|full size|full-size|toy scale|scale)\b"
ASKED = {  # headings or tags that a lesson must have
    "what real systems do": r"what real systems do",
    "what was left out": r"left out",
    "further reading": r"further reading",
    "predict": r"\bpredict",
    "break it": r"break it",
    "what changed": r"what changed",
}


def cells(path):
    return jupytext.read(path, fmt="py:percent").cells


def tags(cell):
    return cell.metadata.get("tags", [])


def prose(text):
    """The words of a text: no formulas, code, links, references or headings."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|```.*?```|`[^`]*`", " ", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"arXiv[: ]?\d{4}\.\d{4,5}", " ", text)


def texts(path):
    return [cell.source for cell in cells(path) if cell.cell_type == "markdown"]


@pytest.mark.parametrize("path", EVERY)
def test_cells_are_short(path):
    for cell in cells(path):
        if cell.cell_type == "markdown":
            plain = re.sub(
                r"^\s*(?:[-*|]|\d+\.).*(?:\n(?![\n-]).*)*",
                "",
                prose(cell.source),
                flags=re.M,
            )
            assert len(plain.split()) <= MOST_WORDS, cell.source
        elif not {"define", "exercise"} & set(tags(cell)):
            body = ast.parse(cell.source).body
            imports = all(isinstance(one, ast.Import | ast.ImportFrom) for one in body)
            lines = len(cell.source.splitlines())
            assert lines <= (MOST_IMPORTS if imports else MOST_LINES), cell.source


@pytest.mark.parametrize("path", EVERY)
def test_a_lesson_is_not_a_book(path):
    assert sum(len(prose(text).split()) for text in texts(path)) <= MOST_WORDS_IN_ALL


@pytest.mark.parametrize("path", EVERY)
def test_numbers_in_prose_come_from_cells(path):
    """A decimal, a percentage or a thousand in prose is a claim that no cell prints.

    References give sections and equations; they stand in "Further reading".
    """
    for text in texts(path):
        if "further reading" in text.lower():
            continue
        claims = re.findall(
            r"(?<![\w.])\d*\.\d+\b|\d+ ?%|\d{1,3},\d{3}|\d{4,}", prose(text)
        )
        claims = [one for one in claims if not re.fullmatch(r"20\d\d|19\d\d", one)]
        assert not claims, f"{claims} in: {text}"


@pytest.mark.parametrize("path", EVERY)
def test_no_scale_is_spoken_of_outside_the_parameters(path):
    for cell in cells(path):
        if cell.cell_type == "code" and "parameters" not in tags(cell):
            assert not re.search(r"[\"'](?:smoke|toy|small|full)[\"']", cell.source)


@pytest.mark.parametrize("path", EVERY)
def test_links_lead_somewhere(path):
    for text in texts(path):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if not target.startswith(("https://", "http://", "#")):
                place = ROOT / "notebooks" / target.split("#")[0]
                assert place.resolve().exists(), target


@pytest.mark.parametrize("path", EVERY)
def test_a_lesson_has_its_parts(path):
    whole = "\n".join(texts(path)).lower()
    missing = [name for name, part in ASKED.items() if not re.search(part, whole)]
    assert not missing
    code = "\n".join(cell.source for cell in cells(path) if cell.cell_type == "code")
    assert "interactive(" in code or "interactive_" in code
    assert "progress()" in code


@pytest.mark.parametrize("path", EVERY)
def test_a_lesson_asks_for_its_exercises_in_order(path):
    asked = [
        ast.parse(cell.source).body[0].names[0].name
        for cell in cells(path)
        if "exercise" in tags(cell)
    ]
    assert asked == [one.name for one in of_lesson(path.stem)]


def test_every_lesson_fits_into_class():
    for lesson in lessons():
        assert 20 <= lesson.minutes <= 75, lesson


def test_the_course_has_at_least_45_exercises():
    assert len(exercises()) >= 45


# --- the stages of a batch run ------------------------------------------------------

MACHINERY = {"rank", "ranks", "world", "is_first", "barrier", "distributed"}
MACHINERY |= {"device", "device_of", "cuda", "is_available"}


class NotOfAnother(ast.NodeTransformer):
    """Drops `device=x.device`: a new tensor beside an old one is no matter of size."""

    def visit_keyword(self, node):
        return None if node.arg == "device" else node


@pytest.mark.parametrize("stage", STAGES)
def test_no_cell_of_a_stage_knows_scale_rank_or_device(stage):
    cells = nbformat.read(ROOT / "solutions" / f"{stage}.ipynb", 4).cells
    batch = [
        cell.source
        for cell in cells
        if cell.cell_type == "code" and CLASSROOM not in cell.metadata.get("tags", [])
    ]
    assert len(batch) > 5
    for source in batch:
        tree = NotOfAnother().visit(ast.parse(source))
        nodes = list(ast.walk(tree))
        names = {n.id for n in nodes if isinstance(n, ast.Name)}
        names |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
        names |= {n.name for n in nodes if isinstance(n, ast.alias)}
        assert not names & MACHINERY, source
        asked = [n.test for n in nodes if isinstance(n, ast.If | ast.IfExp | ast.While)]
        used = {n.id for test in asked for n in ast.walk(test) if hasattr(n, "id")}
        assert "scale" not in used, source
