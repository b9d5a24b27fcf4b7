"""The compiled losses and their gradients against the float64 reference."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ontogeny import devices, settings
from ontogeny.crosscoder import model, native, pairs, reference, train
from ontogeny.crosscoder.ranks import Ranks

B, D = 12, 5
CASES = {
    "batch_topk": {"activation": "batch_topk", "per_site": False},
    "batch_topk per site": {"activation": "batch_topk", "per_site": True},
    "jumprelu": {"activation": "jumprelu", "per_site": False},
    "jumprelu per site": {"activation": "jumprelu", "per_site": True},
    "penalty per snapshot": {"activation": "jumprelu", "per_site": True, "penalty": "per_snapshot"},
    "refit": {"activation": "jumprelu", "per_site": True, "refit": True},
    "relu": {"activation": "relu", "per_site": False},
}
SPARSITY, BANDWIDTH, K = 0.3, 0.7, 2
SPACES = ["full", "hybrid"]


def problem(sites: int, features: int, dtype: torch.dtype, space: str = "full", width: int = D):
    """Random weights and a batch whose input is not its target (a transcoder)."""
    rng = np.random.default_rng(sites * 100 + features)
    inputs = sites * width if space == "full" else 4
    arrays = {
        "W_enc": rng.normal(size=(features, inputs)) / inputs**0.5,
        "b_enc": 0.1 * rng.normal(size=features),
        "W_dec": rng.normal(size=(features, sites, width)),
        "b_dec": 0.1 * rng.normal(size=(sites, width)),
        "log_threshold": np.log(rng.uniform(0.05, 0.8, features)),
    }
    x, target = rng.normal(size=(B, inputs)), rng.normal(size=(B, sites, width))
    # The same numbers for all: those of the type that is tested.
    numbers = {n: a.astype(str(dtype)[6:]).astype(float) for n, a in arrays.items()}
    x, target = (a.astype(str(dtype)[6:]).astype(float) for a in (x, target))
    tensors = {n: torch.tensor(a, dtype=dtype) for n, a in numbers.items()}
    tensors["W_dec"] = model.by_block(tensors["W_dec"])
    tensors["b_dec"] = tensors["b_dec"].flatten()
    weights = model.Weights(**tensors)
    return (
        numbers,
        x,
        target,
        weights,
        torch.tensor(x, dtype=dtype),
        torch.tensor(target, dtype=dtype),
    )


def section(case: dict, **changes) -> settings.Crosscoder:
    """The settings of a case."""
    gate = "snapshot" if case["per_site"] else "feature"
    own = {k: v for k, v in case.items() if k != "per_site"}
    given = {"gate": gate, "bandwidth": BANDWIDTH, "aux_k": 2, "aux_weight": 0.5, "basis": "full"}
    return settings.Crosscoder(
        inputs={"layers": [0]}, features=99, steps=1, **given | own | changes
    )


def run(case, sites, features, dtype, how, dead=(), space="full", width=D):
    """Loss and gradients of a batch, and the reference's. how : eager, compiled or core."""
    arrays, x, target, W, x_t, target_t = problem(sites, features, dtype, space, width)
    dead_t = torch.tensor(dead, dtype=torch.long)
    per_site = case["per_site"]
    count = K * B * (sites if per_site else 1)
    # Buffers hold what the step before left there.
    G = model.Weights(**{n: torch.full_like(t, 7.0) for n, t in W.named().items()})
    every, target_t = torch.arange(B), target_t.transpose(0, 1)
    if how == "core":
        core = native.Core(native.library(), section(case), sites)
        out = core(W, G, x_t, target_t, SPARSITY, every, count, backward=True)
    else:
        torch.compiler.reset()  # every call here is another function to the compiler
        loss = train.make_loss(section(case), sites)
        function = devices.compiled(loss, torch.device("cpu")) if how == "compiled" else loss
        sparsity = torch.tensor(SPARSITY, dtype=dtype)
        is_dead = torch.ones(len(dead), dtype=torch.bool)
        out = function(W, G, x_t, target_t, dead_t, is_dead, sparsity, every, count)
    expected, gradients = reference.step(
        arrays, x, target, **case, k=K, sparsity=SPARSITY, bandwidth=BANDWIDTH,
        dead=np.array(dead, int), aux_k=2, aux_weight=0.5,
    )  # fmt: skip
    if case["activation"] != "jumprelu":
        del gradients["log_threshold"]
    return out, {n: t.numpy() for n, t in G.named().items()}, expected, gradients


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("sites", "features"), [(3, 16), (1, 13), (4, 9)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses_equal_the_reference_to_float64_rounding(case, sites, features, space):
    out, found, expected, gradients = run(case, sites, features, torch.float64, "eager", (), space)
    assert out.loss.item() == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients.items():
        wanted = gradient.reshape(found[name].shape)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_compiled_losses_equal_the_reference_to_float32_rounding(case):
    close(*run(case, 3, 13, torch.float32, "compiled", (), "hybrid"))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("case", [c for c in CASES.values() if c["activation"] != "relu"])
def test_the_core_equals_the_reference_to_float32_rounding(case, sites, space):
    close(*run(case, sites, 13, torch.float32, "core", (), space))


@pytest.mark.parametrize("width", [1, 16, 37, 128, 300])
@pytest.mark.parametrize("case", [c for c in CASES.values() if c["activation"] != "relu"])
def test_the_core_is_right_at_any_width_and_the_same_on_any_number_of_threads(case, width):
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):  # fewer than sites, and more
            torch.set_num_threads(threads)
            seen.append(run(case, 3, 40, torch.float32, "core", (), "hybrid", width))
            close(*seen[-1])
    finally:
        torch.set_num_threads(before)
    for out, found, *_ in seen[1:]:
        assert torch.equal(out.errors, seen[0][0].errors)
        for name, gradient in found.items():
            assert np.array_equal(gradient, seen[0][1][name]), name


def close(out, found, expected, gradients):
    """Hold a float32 loss and its gradients against the reference's."""
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max()
        gap = np.abs(found[name] - gradient.reshape(found[name].shape)).max()
        assert gap <= 2e-5 * scale + 1e-12, name


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_auxk_equals_the_reference_and_reaches_only_the_dead(how):
    dtype = torch.float32 if how == "compiled" else torch.float64
    dead, case = (1, 4, 6, 7), CASES["batch_topk"]
    out, with_aux, expected, gradients = run(case, 3, 13, dtype, how, dead)
    _, without, _, _ = run(case, 3, 13, dtype, "eager")
    close(out, with_aux, expected, gradients)
    changed = np.flatnonzero(~np.isclose(with_aux["b_enc"], without["b_enc"], atol=1e-6))
    assert set(changed) <= set(dead)
    assert len(changed)


@pytest.mark.parametrize("penalty", ["pooled", "per_snapshot"])
def test_reference_gradients_are_the_derivatives_of_its_loss(penalty):
    arrays, x, target, *_ = problem(3, 7, torch.float64)
    options = CASES["jumprelu per site"] | {"penalty": penalty, "sparsity": 0.3, "bandwidth": 0.7}
    _, gradients = reference.step(arrays, x, target, **options)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):  # the threshold's is no true derivative
        place = tuple(s // 2 for s in arrays[name].shape)
        moved = []
        for sign in (1, -1):
            there = {n: a.copy() for n, a in arrays.items()}
            there[name][place] += sign * 1e-7
            moved.append(reference.step(there, x, target, **options)[0])
        assert (moved[0] - moved[1]) / 2e-7 == pytest.approx(gradients[name][place], rel=1e-4)


def test_batch_topk_keeps_k_features_a_token_on_average():
    out, *_ = run(CASES["batch_topk"], 3, 16, torch.float64, "eager")
    assert out.l0.item() == pytest.approx(2.0)


def test_without_a_compiler_training_is_eager_and_says_so(monkeypatch, capsys):
    def function():
        return 1

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(devices, "_said", [])  # it is said once a process
    assert devices.compiled(function, torch.device("cpu")) is function
    assert capsys.readouterr().err == (
        "no C++ compiler (install g++): training runs eagerly, which is slower\n"
    )


@pytest.mark.parametrize("case", list(CASES.values())[:5], ids=list(CASES)[:5])
def test_one_graph_serves_every_batch(case):
    *_, W, x, target = problem(3, 13, torch.float32)
    G = model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})
    none, every = torch.zeros(0, dtype=torch.long), torch.arange(B)
    rest = (none, none > 0, torch.tensor(0.3), every, K * B * (3 if case["per_site"] else 1))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = devices.compiled(train.make_loss(section(case), 3), torch.device("cpu"))
    found = {compiled(W, G, x * s, target.transpose(0, 1), *rest).l0.item() for s in (1, 3, 0.5, 2)}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    if case["activation"] == "jumprelu":
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


@pytest.mark.parametrize("case", ["batch_topk per site", "jumprelu per site"])
def test_a_gate_per_site_makes_no_tensor_of_tokens_sites_and_features(case):
    tokens, sites, features = 64, 16, 96
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(features, sites, 2, generator=generator)
    W = model.Weights(
        W_dec.flatten(1), torch.zeros(features), model.by_block(W_dec), torch.zeros(sites * 2),
        torch.full((96,), 4.0),
    )  # fmt: skip
    G = model.Weights(**{n: torch.zeros_like(t) for n, t in W.named().items()})
    x = torch.randn(tokens, sites * 2, generator=generator)
    none, sample = torch.zeros(0, dtype=torch.long), torch.arange(tokens // 8)
    loss = train.make_loss(section(CASES[case], bandwidth=1.0), sites)
    with Largest() as largest:
        rest = (none, none > 0, torch.tensor(0.1), sample, 2 * tokens * sites)
        out = loss(W, G, x, x.view(tokens, sites, 2).transpose(0, 1), *rest)
    assert 0 < out.l0 < 6
    assert largest.size <= tokens * features * 4  # and not 16 times


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
    position, cut = pairs.largest(h, r, count, 0)
    score = (h * r.T).flatten()
    wanted = torch.topk(score, count).values
    assert torch.equal(position, position.unique())
    found = score[position].sort(descending=True).values
    assert torch.equal(found[:count], wanted)
    assert (found[count:] == wanted[-1]).all()  # ties at the cut are kept
    assert cut == wanted[-1]


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name().removeprefix("aten::").split(".")[0])
        return function(*args, **(kwargs or {}))


ATOMIC = {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "bincount"}
WAITING = {"nonzero", "item", "_local_scalar_dense", "unique", "masked_select", "is_nonzero"}


@pytest.mark.parametrize(
    ("case", "dead"),
    [*((case, 0) for case in CASES.values()), (CASES["batch_topk"], 4)],
    ids=[*CASES, "AuxK"],
)
def test_on_a_gpu_no_step_waits_for_the_device_or_adds_atomically(case, dead):
    """On tensors that have shapes alone: an operation that asks for a value raises.

    PyTorch without CUDA cannot make fake CUDA tensors of all operations; these take the same way.
    """
    sites, features, tokens = 3, 16, 12
    gates = sites if case["per_site"] else 1
    with Operations() as done:
        W, G = (
            model.Weights(
                torch.empty(features, 4, device="meta"),
                torch.empty(features, device="meta"),
                model.by_block(torch.empty(features, sites, D, device="meta")),
                torch.empty(sites * D, device="meta"),
                torch.empty(features, device="meta"),
            )
            for _ in range(2)
        )
        x = torch.empty(tokens, 4, device="meta")
        target = torch.empty(tokens, sites, D, device="meta").transpose(0, 1)
        aux = torch.arange(dead, device="meta")
        sample = torch.arange(tokens, device="meta")
        sparsity = torch.empty((), device="meta")
        ranks = Ranks(room=4 * tokens * K)
        loss = train.make_loss(section(case), sites, ranks)
        out = loss(W, G, x, target, aux, aux >= 0, sparsity, sample, K * tokens * gates)
        assert out.loss.device.type == "meta"
        assert out.errors.shape == (sites,)
        assert (out.full is None) == (case["activation"] == "relu")
    assert {"mm", "addmm"} & done.names
    assert not done.names & (ATOMIC | WAITING)


@pytest.mark.parametrize("case", list(CASES.values())[:6], ids=list(CASES)[:6])
def test_fixed_shapes_give_the_same_as_the_batchs_own(case, monkeypatch):
    """What runs elsewhere than on a CPU, with room for more candidates than there are."""
    close(*run(case, 3, 13, torch.float32, "eager"))
    monkeypatch.setattr(pairs, "of_any_size", lambda device: False)
    monkeypatch.setattr(train.losses.ALONE, "room", 10_000)
    close(*run(case, 3, 13, torch.float32, "eager"))
