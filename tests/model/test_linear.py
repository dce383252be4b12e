"""Products through convolutions, against float64, and where they are not used."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from minipalm.config import PaLMConfig
from minipalm.model import linear as module
from minipalm.model.linear import Linear, linear
from minipalm.model.palm import PaLM

ROWS, WEIGHTS = module.LEAST_ROWS, module.LEAST_WEIGHTS


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Every machine that runs the tests goes the way of convolutions."""
    monkeypatch.setattr(module, "WIDE", True)


@pytest.fixture
def convolutions(monkeypatch):
    """How many there were."""
    seen = []
    real = F.conv2d

    def counted(*args, **options):
        seen.append(args[0].shape)
        return real(*args, **options)

    monkeypatch.setattr(F, "conv2d", counted)
    return seen


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [(ROWS, 256), (2, 400, 256), (ROWS + 1, 256), (3, 5, 67, 256)]
)
def test_values_and_gradients_are_those_of_float64(shape, threads, convolutions):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = draw(*shape), draw(320, 256, seed=1)
        pull = draw(*shape[:-1], 320, seed=2)
        x.requires_grad_(), weight.requires_grad_()
        y = linear(x, weight)
        (y * pull).sum().backward()
    finally:
        torch.set_num_threads(before)
    assert len(convolutions) == 1
    assert y.shape == pull.shape and y.dtype == torch.float32
    exact = x.detach().double().requires_grad_(), weight.detach().double()
    exact[1].requires_grad_()
    z = exact[0] @ exact[1].T
    (z * pull.double()).sum().backward()
    for found, wanted in (
        (y, z),
        (x.grad, exact[0].grad),
        (weight.grad, exact[1].grad),
    ):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * scale)


def test_views_of_larger_tensors(convolutions):
    x, weight = draw(ROWS, 512)[:, 100:356], draw(512, 256, seed=1)[7:327]
    torch.testing.assert_close(linear(x, weight), x @ weight.T, rtol=0, atol=1e-3)
    turned = draw(256, ROWS).T
    torch.testing.assert_close(
        linear(turned, weight), turned @ weight.T, rtol=0, atol=1e-3
    )
    assert len(convolutions) == 2


@pytest.mark.parametrize(
    "rows, outputs, dtype",
    [
        (ROWS - 1, 256, torch.float32),
        (ROWS, WEIGHTS // 256 - 1, torch.float32),
        (ROWS, 256, torch.float64),
        (ROWS, 256, torch.bfloat16),
        (0, 256, torch.float32),
        (ROWS, 0, torch.float32),
    ],
)
def test_other_products_stay_what_they_are(rows, outputs, dtype, convolutions):
    x, weight = draw(rows, 256, dtype=dtype), draw(outputs, 256, seed=1, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert not convolutions


def test_shapes_that_do_not_fit_are_named_as_those_of_matrices():
    plain = inspect.unwrap(linear)  # without the checks of shapes that tests run under
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        plain(draw(ROWS, 256), draw(320, 255))


def test_nothing_to_multiply(convolutions):
    assert linear(torch.ones(ROWS, 0), torch.ones(3, 0)).eq(0).all()
    assert not convolutions


@pytest.mark.filterwarnings("ignore:TF32")
def test_where_onednn_is_switched_off_or_another_type_is_asked_for(convolutions):
    x, weight = draw(ROWS, 256), draw(256, 256, seed=1)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert not convolutions


def test_a_processor_without_wide_vectors(monkeypatch, convolutions):
    monkeypatch.setattr(module, "WIDE", False)
    x, weight = draw(ROWS, 256), draw(256, 256, seed=1)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert not convolutions


def test_the_module_is_a_matrix_without_a_bias():
    torch.manual_seed(0)
    ours = Linear(5, 3)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(5, 3, bias=False)
    assert list(ours.state_dict()) == ["weight"] and ours.bias is None
    assert torch.equal(ours.weight, theirs.weight)
    x = draw(4, 5)
    assert torch.equal(ours(x), theirs(x))


def test_a_network_that_is_large_enough_uses_them_everywhere(convolutions, monkeypatch):
    config = PaLMConfig(vocab_size=300, dim=256, depth=2, heads=4, head_dim=64)
    model = PaLM(config, torch.Generator().manual_seed(0))
    ids = torch.randint(300, (2, ROWS), generator=torch.Generator().manual_seed(1))
    logits = model(ids)
    assert len(convolutions) == 3 * config.depth + 1  # in, two out; the head
    logits.square().mean().backward()
    gradient = model.blocks[0].w_in.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr(module, "WIDE", False)
    plain = model(ids)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-4)
    plain.square().mean().backward()
    torch.testing.assert_close(
        gradient, model.blocks[0].w_in.weight.grad, rtol=1e-3, atol=1e-6
    )
