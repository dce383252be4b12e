"""pyproject.toml, constraints.txt and environment.yml say the same."""

import re
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from minipalm.course import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [
    Requirement(text)
    for text in PROJECT["dependencies"] + EXTRAS["course"] + EXTRAS["full"]
]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize("need", DECLARED, ids=str)
def test_every_dependency_is_pinned_within_its_range(need):
    pins = [
        p for p in PINS if canonicalize_name(p.name) == canonicalize_name(need.name)
    ]
    assert pins
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "==" and exact.version in need.specifier


def test_constraints_hold_exact_versions_for_every_platform_and_no_address():
    text = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in text
    assert not re.search(r"://|\+cpu|--(extra-)?index|--find-links", text)
    assert "rfc3987-syntax==" not in text
    systems = {p.name for p in PINS if p.marker and "win32" in str(p.marker)}
    assert systems  # resolved for other systems than the one that made it


def test_every_dependency_has_its_reason_beside_it():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for need in DECLARED:
        found = [line for line in lines if line.strip().startswith(f'"{need.name}>')]
        assert found
        for line in found:  # one for each extra that names it
            assert re.search(r",\s+# \w+", line), f"{line}: say why"


def test_conda_brings_python_and_pip_and_pip_installs_what_pyproject_says():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = conda["dependencies"]
    assert packages == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[course]"]}
    assert conda["name"] == PROJECT["name"]


def test_this_python_is_one_of_those_declared():
    version = ".".join(map(str, sys.version_info[:3]))
    assert version in SpecifierSet(PROJECT["requires-python"])
