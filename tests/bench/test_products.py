"""The table of matrix products, at a few rows."""

import torch

from bench import products


def test_a_line_for_each_shape_with_both_rates(capsys, monkeypatch):
    monkeypatch.setattr(products, "ROWS", 32)
    before = torch.get_num_threads()
    try:
        products.main()
    finally:
        torch.set_num_threads(before)
    head, *lines = capsys.readouterr().out.splitlines()[-1 - len(products.SHAPES) :]
    assert head.split() == ["32", "rows", "F.linear", "linear", "ratio"]
    assert [line[:21].strip() for line in lines] == list(products.SHAPES)
    for line in lines:
        plain, ours, ratio = map(float, line[21:].split())
        assert plain > 0 and ours > 0
        assert abs(ratio - ours / plain) < 0.1 + 1.0 / plain + ours / plain**2


def test_the_time_is_that_of_the_step(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(products.time, "process_time", lambda: float(next(clock)))
    assert products.seconds(lambda: None, times=3, calls=4) == 0.25
