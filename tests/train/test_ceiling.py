"""What a GPU could do, by the name that its driver gives."""

import pytest

from minipalm.scale.gpu import GPUS
from minipalm.train.ceiling import NAMES, known_ceiling


def test_cards_of_the_planner_are_known_by_their_exact_names():
    for name, card in NAMES.items():
        assert known_ceiling(name) == GPUS[card].flops
    assert set(NAMES.values()) == set(GPUS)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA H200 MIG 1g.18gb",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3070 Ti",
        "AMD Instinct MI250X 128GB",
        "h200",
        "",
        None,
    ],
)
def test_a_card_that_only_looks_like_one_has_no_ceiling(name):
    assert known_ceiling(name) is None
