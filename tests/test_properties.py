"""The table in README.md is true: every property once, every test there is."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d", line)
]


def named_in(cell):
    """`file::test` and, for another test of the same file, `::test`."""
    file = ""
    for name in re.findall(r"`(.*?)`", cell):
        own, test = name.split("::")
        file = own or file
        yield file, test


def functions_of(file):
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_property_has_one_row_in_order():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 54))


def test_a_row_names_tests_or_says_when_they_come():
    later = [int(n) for n, _, cell in ROWS if cell.startswith("later: ")]
    assert later == [48, 50]
    assert all(list(named_in(cell)) for n, _, cell in ROWS if int(n) not in later)


def test_every_test_that_the_table_names_exists_and_has_the_number():
    for number, _, cell in ROWS:
        for file, test in named_in(cell):
            functions = functions_of(file)
            assert test in functions, f"{number}: {file} has no {test}"
            if file.startswith(("model/", "rlhf/")):
                first = functions[test].partition(".")[0].partition(":")[0]
                assert number in re.findall(r"\d+", first), f"{file}::{test}"


def test_every_property_that_a_docstring_names_is_in_the_table():
    numbers = {int(number) for number, *_ in ROWS}
    for file in sorted([*HERE.glob("model/test_*.py"), *HERE.glob("rlhf/test_*.py")]):
        for test, docstring in functions_of(file.relative_to(HERE)).items():
            if re.match(r"Propert(y|ies) \d", docstring):
                head = re.match(r"[^.:(]*", docstring).group()
                found = {int(n) for n in re.findall(r"\d+", head)}
                assert found and found <= numbers, f"{file.name}::{test}"
