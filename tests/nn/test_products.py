from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from relocal_pyg.nn import products


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """Small products take the way of large ones."""
    monkeypatch.setattr(products, "SMALL_WITH_GRADIENTS", products.SMALL)


def test_switching_onednn_off_is_obeyed(monkeypatch):
    monkeypatch.setattr(products, "OPERATOR", lambda *_: pytest.fail("oneDNN was asked"))
    x, weight = torch.randn(700, 40), torch.randn(30, 40)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(products.project(x, weight), F.linear(x, weight))
        assert torch.equal(products.linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("shape", [(700, 40), (10, 70, 40), (3, 40)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_and_its_gradients_are_those_of_torch(shape, with_bias):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(30, 40, requires_grad=True)
    bias = torch.randn(30, requires_grad=True) if with_bias else None
    inputs = [x, weight] + ([bias] if with_bias else [])
    ours, theirs = products.linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(ours)
    for one, two in zip(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(theirs, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)


def test_a_loop_opts_in_and_its_backward_pass_follows(monkeypatch):
    operator, calls = products.OPERATOR, []
    monkeypatch.setattr(products, "OPERATOR", lambda *given: calls.append(1) or operator(*given))
    net = torch.nn.Sequential(torch.nn.Linear(40, 300), torch.nn.Tanh(), torch.nn.Linear(300, 9))
    x = torch.randn(700, 40, requires_grad=True)
    plain = net(x)
    wanted = torch.autograd.grad(plain.square().sum(), [x, *net.parameters()])
    assert not calls
    with products.FastProducts():
        fast = net(x)
    assert len(calls) == 2
    found = torch.autograd.grad(fast.square().sum(), [x, *net.parameters()])
    assert len(calls) == 6
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_torch_func_gradients_inside_the_mode():
    x, weight = torch.randn(700, 40), torch.randn(30, 40)

    def loss(weight):
        return torch.tanh(F.linear(x, weight)).square().mean()

    with products.FastProducts():
        found = torch.func.grad(loss)(weight)
    torch.testing.assert_close(found, torch.func.grad(loss)(weight), atol=1e-6, rtol=1e-4)


def test_second_derivatives():
    x, weight = torch.randn(700, 40, requires_grad=True), torch.randn(30, 40, requires_grad=True)
    results = []
    for linear, tanh in ((products.linear, products.tanh), (F.linear, torch.tanh)):
        (first,) = torch.autograd.grad(tanh(linear(x, weight)).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().mean(), weight)[0])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_autocast_is_obeyed():
    x, weight = torch.randn(700, 40), torch.randn(30, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 700])
def test_project(dtype, rows):
    x, weight = torch.randn(rows, 40).to(dtype) / 6, torch.randn(300, 40).to(dtype)
    bias, add = torch.randn(300).to(dtype), torch.randn(rows, 300).to(dtype)
    exact = x.double() @ weight.double().T + bias.double()
    tolerance = {"atol": {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 5e-2), "rtol": 0}
    torch.testing.assert_close(products.project(x, weight, bias).double(), exact, **tolerance)
    torch.testing.assert_close(
        products.project(x, weight, bias, act="tanh").double(), exact.tanh(), **tolerance
    )
    torch.testing.assert_close(
        products.project(x, weight, bias, add=add.clone()).double(), exact + add, **tolerance
    )


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tanh(size, dtype):
    x = (3 * torch.randn(size)).to(dtype)
    wanted = torch.tanh(x.double())
    tolerance = {"atol": 4e-3 if dtype == torch.bfloat16 else 1e-6, "rtol": 0}
    torch.testing.assert_close(products.tanh(x).double(), wanted, **tolerance)
    torch.testing.assert_close(products.tanh_(x).double(), wanted, **tolerance)


def test_bfloat16_falls_back_where_onednn_has_no_products_of_it(monkeypatch):
    x, weight = torch.randn(400, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    bias, full = torch.randn(64).bfloat16(), (x.float() @ weight.float().T).double()
    for act, change in (("none", lambda y: y), ("tanh", torch.tanh)):
        found = products.project(x, weight, bias, act=act)
        assert found.dtype == torch.bfloat16
        wanted = change(full + bias.double())
        torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=2**-8)
