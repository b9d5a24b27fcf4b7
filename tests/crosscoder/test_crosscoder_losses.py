"""The compiled losses and their gradients against the float64 reference."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ontogeny import devices
from ontogeny.crosscoder import losses, model, pairs, reference

B, D = 12, 5
CASES = [
    ("batch_topk", False),
    ("batch_topk", True),
    ("jumprelu", False),
    ("jumprelu", True),
    ("relu", False),
]


def problem(sites: int, features: int, dtype: torch.dtype):
    """Random weights and a batch whose input is not its target (a transcoder)."""
    rng = np.random.default_rng(sites * 100 + features)
    inputs = sites * D
    arrays = {
        "W_enc": rng.normal(size=(features, inputs)) / inputs**0.5,
        "b_enc": 0.1 * rng.normal(size=features),
        "W_dec": rng.normal(size=(features, sites, D)),
        "b_dec": 0.1 * rng.normal(size=(sites, D)),
        "log_threshold": np.log(rng.uniform(0.05, 0.8, features)),
    }
    x, target = rng.normal(size=(B, inputs)), rng.normal(size=(B, sites, D))
    tensors = {n: torch.tensor(a, dtype=dtype) for n, a in arrays.items()}
    tensors["W_dec"] = tensors["W_dec"].flatten(1)
    tensors["b_dec"] = tensors["b_dec"].flatten()
    weights = model.Weights(**tensors)
    return (
        arrays,
        x,
        target,
        weights,
        torch.tensor(x, dtype=dtype),
        torch.tensor(target, dtype=dtype),
    )


def run(activation, per_site, sites, features, dtype, compiled, dead=(), native=True):
    arrays, x, target, W, x_t, target_t = problem(sites, features, dtype)
    dead_t = torch.tensor(dead, dtype=torch.long)
    options = {"sites": sites, "per_site": per_site, "native": native}

    def loss(W, G, x, target, sparsity, sample):
        if activation == "batch_topk":
            return losses.batch_topk(
                W, G, x, target, dead_t, torch.ones(len(dead), dtype=torch.bool),
                k=2, aux_k=2, aux_weight=0.5, **options,
            )  # fmt: skip
        if activation == "jumprelu":
            return losses.jumprelu(W, G, x, target, sparsity, sample, bandwidth=0.7, **options)
        return losses.relu(W, G, x, target, sparsity, sites=sites)

    torch.compiler.reset()  # every call here is another function to the compiler
    function = devices.compiled(loss, torch.device("cpu")) if compiled else loss
    # Buffers hold what the step before left there.
    G = model.Weights(**{n: torch.full_like(t, 7.0) for n, t in W.named().items()})
    every = torch.arange(B)
    out = function(W, G, x_t, target_t.flatten(1), torch.tensor(0.3, dtype=dtype), every)
    expected, gradients = reference.step(
        arrays, x, target, activation=activation, per_site=per_site, k=2, sparsity=0.3,
        bandwidth=0.7, dead=np.array(dead, int), aux_k=2, aux_weight=0.5,
    )  # fmt: skip
    if activation != "jumprelu":
        del gradients["log_threshold"]
    return out, {n: t.numpy() for n, t in G.named().items()}, expected, gradients


@pytest.mark.parametrize(("sites", "features"), [(3, 16), (1, 13), (4, 9)])
@pytest.mark.parametrize(("activation", "per_site"), CASES)
@pytest.mark.parametrize("native", [True, False])
def test_losses_equal_the_reference_to_float64_rounding(
    activation, per_site, sites, features, native
):
    out, found, expected, gradients = run(
        activation, per_site, sites, features, torch.float64, compiled=False, native=native
    )
    assert out.loss.item() == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            found[name].reshape(gradient.shape), gradient, rtol=1e-9, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize(("activation", "per_site"), CASES)
@pytest.mark.parametrize(
    ("sites", "features", "native"), [(3, 13, True), (1, 13, True), (3, 13, False)]
)
def test_compiled_losses_equal_the_reference_to_float32_rounding(
    activation, per_site, sites, features, native
):
    out, found, expected, gradients = run(
        activation, per_site, sites, features, torch.float32, compiled=True, native=native
    )
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            found[name].reshape(gradient.shape),
            gradient,
            rtol=0,
            atol=1e-5 * np.abs(gradient).max() + 1e-12,
            err_msg=name,
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_auxk_equals_the_reference_and_reaches_only_the_dead(compiled):
    dtype = torch.float32 if compiled else torch.float64
    dead = (1, 4, 6, 7)
    _, with_aux, _, gradients = run("batch_topk", False, 3, 13, dtype, compiled, dead)
    _, without, _, _ = run("batch_topk", False, 3, 13, dtype, False)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            with_aux[name].reshape(gradient.shape),
            gradient,
            rtol=0,
            atol=1e-5 * np.abs(gradient).max() + 1e-12,
            err_msg=name,
        )
    changed = np.flatnonzero(~np.isclose(with_aux["b_enc"], without["b_enc"], atol=1e-6))
    assert set(changed) <= set(dead)
    assert len(changed)


def test_reference_gradients_are_the_derivatives_of_its_loss():
    arrays, x, target, *_ = problem(3, 7, torch.float64)
    options = {"activation": "jumprelu", "per_site": True, "sparsity": 0.3, "bandwidth": 0.7}
    _, gradients = reference.step(arrays, x, target, **options)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):  # the threshold's is no true derivative
        place = tuple(s // 2 for s in arrays[name].shape)
        moved = []
        for sign in (1, -1):
            there = {n: a.copy() for n, a in arrays.items()}
            there[name][place] += sign * 1e-7
            moved.append(reference.step(there, x, target, **options)[0])
        assert (moved[0] - moved[1]) / 2e-7 == pytest.approx(gradients[name][place], rel=1e-5)


def test_batch_topk_keeps_k_features_a_token_on_average():
    out, *_ = run("batch_topk", False, 3, 16, torch.float64, compiled=False)
    assert out.l0.item() == pytest.approx(2.0)


def test_without_a_compiler_training_is_eager_and_says_so(monkeypatch, capsys):
    def function():
        return 1

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert devices.compiled(function, torch.device("cpu")) is function
    assert capsys.readouterr().err == (
        "no C++ compiler (install g++): training runs eagerly, slower\n"
    )


@pytest.mark.parametrize(("activation", "per_site"), CASES[:4])
def test_one_graph_serves_every_batch(activation, per_site):
    *_, W, x, target = problem(3, 13, torch.float32)
    G = model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})
    none, every = torch.zeros(0, dtype=torch.long), torch.arange(B)
    options = {"sites": 3, "per_site": per_site, "native": True}

    def loss(W, G, x, target):
        if activation == "batch_topk":
            return losses.batch_topk(
                W, G, x, target, none, none > 0, k=2, aux_k=2, aux_weight=0.5, **options
            )
        sparsity = torch.tensor(0.3)
        return losses.jumprelu(W, G, x, target, sparsity, every, bandwidth=0.7, **options)

    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = devices.compiled(loss, torch.device("cpu"))
    found = {compiled(W, G, x * scale, target.flatten(1)).l0.item() for scale in (1, 3, 0.5, 2)}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    if activation == "jumprelu":
        assert len(found) > 1  # with another number of pairs each time


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


@pytest.mark.parametrize("activation", ["batch_topk", "jumprelu"])
def test_a_gate_per_site_makes_no_tensor_of_tokens_sites_and_features(activation):
    tokens, sites, features = 64, 16, 96
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(features, sites * 2, generator=generator)
    W = model.Weights(
        W_dec.clone(), torch.zeros(features), W_dec, torch.zeros(sites * 2), torch.full((96,), 4.0)
    )
    G = model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})
    x = torch.randn(tokens, sites * 2, generator=generator)
    options = {"sites": sites, "per_site": True, "native": True}
    with Largest() as largest:
        if activation == "batch_topk":
            none = torch.zeros(0, dtype=torch.long)
            out = losses.batch_topk(
                W, G, x, x, none, none > 0, k=2, aux_k=1, aux_weight=0.0, **options
            )
        else:
            sample = torch.arange(tokens // 8)
            out = losses.jumprelu(W, G, x, x, torch.tensor(0.1), sample, bandwidth=1.0, **options)
    assert 0 < out.l0 < 6
    assert largest.size <= tokens * features


@pytest.mark.parametrize(
    ("tokens", "features", "count"),
    [(3, 7, 1), (3, 7, 21), (70, 1000, 800), (257, 1031, 5000), (3, pairs.PASS_ENTRIES + 5, 900)],
)
@pytest.mark.parametrize("scores", ["alike", "one token's", "tied", "not finite"])
def test_selection_is_that_of_a_full_sort(tokens, features, count, scores):
    generator = torch.Generator().manual_seed(count)
    h = torch.randn(tokens, features, generator=generator)
    r = torch.rand(features, 1, generator=generator) + 0.5
    if scores == "one token's":  # a sample is then a bad guess at the cut
        h[0] += 100
    elif scores == "tied":
        h, r = h.round(), torch.ones_like(r)
    elif scores == "not finite":
        h[0, 0], h[-1, -1] = torch.inf, -torch.inf
    position, cut = pairs.largest(h, r, count, native=True)
    score = (h * r.T).flatten()
    wanted = torch.topk(score, count).values
    assert torch.equal(position, position.unique())
    assert torch.equal(score[position].sort(descending=True).values, wanted)
    assert cut == wanted[-1]
