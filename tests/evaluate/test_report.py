"""The terminal's table and the page: complete, honest about what is missing, sound."""

import json
import re
from html.parser import HTMLParser
from random import Random

import pytest
from fixture import SAMPLES, all_alike, make_evaluation, without_gold

from minipalm.evaluate.report import terminal_table, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


def write(out, evaluation):
    path = out / "12_evaluation" / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(evaluation), "utf-8")
    return out


def as_it_is(evaluation):
    return evaluation


@pytest.fixture(params=[as_it_is, all_alike, without_gold])
def out(request, tmp_path):
    return write(tmp_path, request.param(make_evaluation()))


@pytest.fixture
def gold_out(tmp_path):
    return write(tmp_path, make_evaluation())


class Page(HTMLParser):
    """Tags in order; a tag that is closed out of order fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


# --- the table ----------------------------------------------------------------------


@pytest.mark.parametrize("width", [78, 80, 110])
def test_no_line_is_wider_than_the_terminal(out, width):
    lines = terminal_table(out, width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_the_table_says_all_that_was_asked(gold_out):
    text = terminal_table(gold_out, 80)
    seen, heldout = make_evaluation()["prompts"].values()
    for both in (seen, heldout):
        for policy in ("sft", "ppo"):
            for part in ("gold", "topic", "mood", "grammar", "fresh", "length", "kl"):
                assert f"{both[policy][part]:z.2f}" in text
    for share in ("81.9%", "78.4% to 84.9%", "79.2%", "1.6%", "65.4%", "81.7%"):
        assert share in text
    for prompt, _, *answers in SAMPLES:
        assert prompt in text
        for answer, _ in answers[:2]:
            assert all(word in text for word in answer.split())


def test_columns_stand_below_each_other(gold_out):
    lines = terminal_table(gold_out, 80).splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"-"})
    ends = [[m.end() for m in re.finditer(r"\S+", lines[rule - 1])]]
    for line in lines[rule + 1 : rule + 11]:
        ends.append([m.end() for m in re.finditer(r"\S+", line[23:])])
        ends[-1] = [end + 23 for end in ends[-1]]
    assert all(row == ends[0] for row in ends)


def test_the_table_follows_the_terminal(gold_out, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    wide = terminal_table(gold_out)
    assert 80 < max(map(len, wide.splitlines())) <= 100


# --- the page -----------------------------------------------------------------------


def test_the_page_needs_nothing_else(out):
    path = write_report(out)
    text = path.read_text("utf-8")
    assert path == out / "report.html"
    assert len(text.encode()) < 600_000
    page = Page(text)
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"#|data:", attrs.get(name) or "#")
    assert not re.search(r"@import|url\((?!#)", text)


def test_a_long_run_makes_no_long_page(tmp_path):
    evaluation = make_evaluation()
    noise = Random(0)
    for name in evaluation["losses"]:
        points = [[step, 2 + noise.gauss(0, 1)] for step in range(1, 20_001)]
        evaluation["losses"][name] = points
    path = write_report(write(tmp_path, evaluation))
    assert path.stat().st_size < 600_000


def test_ids_are_unique_and_every_reference_has_one(out):
    text = write_report(out).read_text("utf-8")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([^")]+)', text)
    assert used and set(used) <= set(ids)


def test_figures_speak_and_follow_the_theme(out):
    text = write_report(out).read_text("utf-8")
    drawn = [attrs for tag, attrs in Page(text).tags if tag == "svg"]
    assert len(drawn) >= 3
    assert all(len(attrs["aria-label"]) > 20 for attrs in drawn)
    figures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", figures)  # all are variables
    declared = set(re.findall(r"--(\w+):", text))
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= declared


def test_the_page_shows_every_answer(gold_out):
    text = Page(write_report(gold_out).read_text("utf-8")).text
    for prompt, _, *answers in SAMPLES:
        assert prompt in text
        for answer, gold in answers:
            assert (answer or "says nothing") in text and f"gold {gold:.1f}" in text
    assert "./course run --scale toy --seed 0" in text
    assert "beats SFT’s 79% of the time" in text


def test_without_gold_nothing_is_claimed_about_it(tmp_path):
    out = write(tmp_path, without_gold(make_evaluation()))
    for text in (terminal_table(out, 80), write_report(out).read_text("utf-8")):
        assert "no gold reward" in text
        for word in ("None", "nan", "beats SFT", "peaks at", "of 10."):
            assert word not in text


@pytest.mark.filterwarnings("error")
def test_where_all_answers_are_alike_no_gain_is_told(tmp_path):
    out = write(tmp_path, all_alike(make_evaluation()))
    told, page = terminal_table(out, 80), write_report(out).read_text("utf-8")
    assert re.search(r"gain in gold, SFT sd +none +none\n", told)
    assert "50% of the time" in page and "gold reward gained" not in page
    for text in (told, page):
        assert "None" not in text and "nan" not in text


def test_texts_are_escaped(tmp_path):
    evaluation = make_evaluation()
    evaluation["samples"][0]["prompt"] = "<script>alert(1)</script> & more"
    evaluation["samples"][0]["ppo"]["text"] = "a <b> c"
    del evaluation["samples"][0]["unpenalised"]
    page = Page(write_report(write(tmp_path, evaluation)).read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script> & more" in page.text and "a <b> c" in page.text


def test_the_same_evaluation_makes_the_same_page(gold_out):
    one = write_report(gold_out).read_bytes()
    assert write_report(gold_out).read_bytes() == one
    assert sorted(path.name for path in gold_out.iterdir()) == [
        "12_evaluation",
        "report.html",
    ]


# --- what is not there --------------------------------------------------------------


@pytest.mark.parametrize("make", [terminal_table, write_report])
def test_a_missing_evaluation_says_how_to_make_it(tmp_path, make):
    with pytest.raises(FileNotFoundError, match=r"evaluation.json.*\./course run"):
        make(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_evaluation_is_named(tmp_path):
    out = write(tmp_path, {})
    (out / "12_evaluation" / "evaluation.json").write_text('{"scale": "to')
    with pytest.raises(ValueError, match=r"evaluation.json: expected a JSON object"):
        terminal_table(out)
