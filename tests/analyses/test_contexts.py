"""Contexts of features: chosen as by hand, stored and read back whole, and the logit lens."""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models
from transformers import AutoConfig, AutoModelForCausalLM

from ontogeny import settings
from ontogeny.activations import store
from ontogeny.analyses.contexts import collect, lens, measure, together
from ontogeny.analyses.contexts.settings import Contexts
from ontogeny.corpus import build, pieces
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.features import contexts
from ontogeny.files import InputError
from ontogeny.snapshots import sites

BLOCKS, CONTEXT, F = 9, 12, 7
TOP, SAMPLE, NEAR, WINDOW = 3, 6, 2, 2


# What is chosen


@pytest.fixture(scope="module")
def seen() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Pre-activations with many ties (N, F), and block and offset of each; some have no row."""
    rng = np.random.default_rng(0)
    h = np.round(rng.normal(size=(BLOCKS * CONTEXT, F)) * 4) / 4
    h[:, 1] = np.where(rng.random(len(h)) < 0.02, 3, 0.25)  # seldom active
    h[:, 2] = 0.25  # never
    h[:, 3] = 2  # always
    block, offset = (x.ravel() for x in np.indices((BLOCKS, CONTEXT)))
    kept = (rng.random(len(h)) < 0.9) & (block != 4)  # a block without a row
    return torch.from_numpy(h[kept]).float(), block[kept] + 20, offset[kept]


def companions(f: np.ndarray, least: int, k: int) -> list[list[tuple[int, float]]]:
    """The features most often active together with each, by a plain count over f (N, F)."""
    found = []
    for i in range(f.shape[1]):
        shares = []
        for j in range(f.shape[1]):
            both, either = ((f[:, [i, j]] > 0).all(1).sum(), (f[:, [i, j]] > 0).any(1).sum())
            if j != i and both >= least:
                shares.append((j, both / either))
        found.append(sorted(shares, key=lambda one: (-one[1], one[0]))[:k])
    return found


def gate(kind: str) -> collect.Gate:
    one = torch.ones(F)
    if kind == "snapshot":
        return collect.Gate(torch.linspace(1, 2, F), torch.linspace(0, 1, F), one)
    return collect.Gate(one, one, one * (0.5 if kind == "feature" else 0))


def chosen(h, block, offset, g, bounds) -> collect.Collector:
    found = collect.Collector(g, CONTEXT, TOP, SAMPLE, NEAR, WINDOW, seed=5)
    for low, high in pairwise(bounds):
        found.add(h[low:high], block[low:high], offset[low:high])
    return found


def entries(best: collect.Best) -> list[tuple[int, int, float]]:
    one = best.settled()
    return list(zip(*(one[name].tolist() for name in ("feature", "row", "value")), strict=True))


def by_hand(h, block, offset, g):
    """(top, near misses), as lists of (feature, row, value), a position at a time."""
    top, near = [], []
    for i in range(F):
        score = [x * float(g.high[i] if x > 0 else g.low[i]) for x in h[:, i].tolist()]
        open_ = [s > max(0.0, float(g.threshold[i])) for s in score]
        largest, closest = {}, {}
        for row, (b, o) in enumerate(zip(block.tolist(), offset.tolist(), strict=True)):
            value = float(h[row, i])
            if open_[row] and value > largest.get(b, (-np.inf, 0))[0]:
                largest[b] = value, row
            apart = not any(
                open_[other] and block[other] == b and abs(int(offset[other]) - o) <= WINDOW
                for other in range(len(h))
            )
            if apart and score[row] > closest.get(b, (-np.inf, 0))[0]:
                closest[b] = score[row], row
        for best, k, into in ((largest, TOP, top), (closest, NEAR, near)):
            ranked = sorted(best.values(), key=lambda one: (-one[0], one[1]))[:k]
            into += [(i, row, value) for value, row in ranked]
    return top, near


@pytest.mark.parametrize("entries", [1, 3 * F, 1 << 20])
@pytest.mark.parametrize("kind", ["feature", "snapshot", "relu"])
def test_features_that_are_active_together(seen, kind, entries, monkeypatch):
    h, block, offset = seen
    g, first, k = gate(kind), len(h) // 2, 3
    monkeypatch.setattr(together, "ENTRIES", entries)
    monkeypatch.setattr(collect, "Together", lambda features: together.Together(features, first))
    bounds = [0, *(np.flatnonzero(np.diff(block)) + 1)[::2], len(h)]
    numbers, shares = chosen(h, block, offset, g, bounds).together.nearest(k)
    f = torch.where(g.opened(g.scores(h, slice(None)), slice(None)), h, 0).numpy()[:first]
    wanted = companions(f, together.LEAST, k)
    assert max(map(len, wanted)) == k
    assert (wanted[2] == []) == (kind != "relu")  # its threshold keeps it closed
    for i, own in enumerate(wanted):
        assert numbers[i, : len(own)].tolist() == [j for j, _ in own]
        assert shares[i].tolist() == pytest.approx([x for _, x in own] + [0] * (k - len(own)))


def test_without_text_no_features_are_active_together():
    numbers, shares = together.Together(3).nearest(2)
    assert numbers.tolist() == shares.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("kind", ["feature", "snapshot", "relu"])
def test_what_is_chosen_is_what_a_search_by_hand_finds(seen, kind):
    h, block, offset = seen
    g = gate(kind)
    found = chosen(h, block, offset, g, [0, len(h)])
    top, near = by_hand(h, block, offset, g)
    assert len(top) > 9
    assert len(near) > 3
    assert entries(found.top) == top
    assert entries(found.near) == near
    f = torch.where(g.opened(g.scores(h, slice(None)), slice(None)), h, 0).numpy()
    assert found.active.tolist() == (f > 0).sum(0).tolist()
    assert found.total.tolist() == pytest.approx(f.sum(0).tolist())
    edges = contexts.bin_edges()
    for i in range(F):
        assert found.histogram[i].tolist() == np.histogram(f[f[:, i] > 0, i], edges)[0].tolist()
    row_at = {(b, o): row for row, (b, o) in enumerate(zip(block, offset, strict=True))}
    for one in (found.top.settled(), found.sample.settled()):
        for i, row, window in one[["feature", "row", "window"]]:
            b, o = block[row], offset[row]
            around = range(max(0, o - WINDOW), min(CONTEXT, o + WINDOW + 1))
            wanted = [f[row_at[b, x], i] if (b, x) in row_at else np.nan for x in around]
            wanted += [0] * (2 * WINDOW + 1 - len(wanted))
            np.testing.assert_array_equal(window, np.float16(wanted))


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_pieces_of_any_size_give_the_same(seen, blocks, monkeypatch):
    h, block, offset = seen
    wanted = chosen(h, block, offset, gate("snapshot"), [0, len(h)])
    monkeypatch.setattr(collect, "PIECE_ENTRIES", 3 * CONTEXT)  # features apart, too
    monkeypatch.setattr(collect, "SLACK", 4)
    numbers = np.unique(block)[::blocks]
    found = chosen(h, block, offset, gate("snapshot"), [*np.searchsorted(block, numbers), len(h)])
    for name in ("top", "sample", "near"):
        one, other = getattr(found, name).settled(), getattr(wanted, name).settled()
        for field in ("feature", "row", "key", "value", "window"):
            np.testing.assert_array_equal(one[field], other[field])
    for name in ("active", "total", "histogram", "rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_the_sample_is_even_and_repeats_by_seed():
    """Each of 2,000 active positions has a chance of 1 in 20, and no two features the same draw."""
    features, rows, size = 400, 2000, 100
    found = collect.Collector(
        collect.Gate(*torch.tensor([1.0, 1.0, 0.5])[:, None].expand(3, features)),
        rows, 1, size, 1, 1, seed=7,
    )  # fmt: skip
    found.add(torch.ones(rows, features), np.zeros(rows, int), np.arange(rows))
    drawn = found.sample.settled()
    assert np.bincount(drawn["feature"]).tolist() == [size] * features
    times = np.bincount(drawn["row"], minlength=rows)  # binomial: mean 20, variance 19
    assert ((times - 20) ** 2 / 19).mean() == pytest.approx(1, abs=5 * (2 / rows) ** 0.5)
    shared = len(set(drawn["row"][:size]) & set(drawn["row"][size : 2 * size]))
    assert shared < 20  # 5 expected
    again = collect._priority(7, drawn["feature"], drawn["row"])
    np.testing.assert_array_equal(again, drawn["key"])
    assert (collect._priority(8, drawn["feature"], drawn["row"]) != drawn["key"]).all()


def test_quantiles_take_one_of_each_part():
    count = [40, 5, 0, 1]
    feature = np.repeat(np.arange(4), count)
    rng = np.random.default_rng(1)
    value = rng.permutation(len(feature)).astype(np.float32)
    sample = collect.entries(
        feature, np.arange(len(feature)), rng.random(len(feature)), value,
        np.zeros((len(feature), 1), np.float16),
    )  # fmt: skip
    found, quantile = collect.over_quantiles(sample, 4, 8)
    assert np.bincount(found["feature"], minlength=4).tolist() == [8, 5, 0, 1]
    ranked = np.sort(value[:40])
    for part in range(8):
        inside = ranked[5 * part : 5 * part + 5]
        best = max(np.flatnonzero(np.isin(value, inside)), key=lambda i: sample["key"][i])
        assert found["value"][part] == value[best]
        assert quantile[part] == (np.searchsorted(ranked, value[best]) + 0.5) / 40
    assert found["value"][8:13].tolist() == sorted(value[40:45])
    assert quantile[13] == 0.5


def test_pieces_are_whole_blocks():
    block = np.repeat([3, 4, 5, 9, 10], [2, 7, 1, 3, 3])
    assert measure._whole_blocks(block, 1) == [0, 2, 9, 10, 13, 16]
    assert measure._whole_blocks(block, 9) == [0, 9, 16]
    assert measure._whole_blocks(block, 100) == [0, 16]


def dictionary(activation="batch_topk", by="feature", seed=0, **more) -> Crosscoder:
    """A random crosscoder of 3 snapshots, d = 6, of F features, two of which are dead."""
    N, d = 3, 6
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    places = [(step, 0, "residual") for step in (0, 10, 100)]
    about = Description(
        activation, by, F, d, places, places, "full", 0.8 if activation == "batch_topk" else 0.0,
        seed, {"dead_after_rows": 50}, "digest", "0", "0",
    )  # fmt: skip
    tensors = {
        "W_enc": random(F, N * d), "b_enc": random(F), "W_dec": random(F, N * d),
        "b_dec": random(N * d), "log_threshold": random(F) * 0.3, "mean_in": random(N * d),
        "mean_out": random(N * d), "scales_in": random(N).abs(), "scales_out": random(N).abs(),
        "silent_rows": torch.tensor([0, 60, 0, 49, 50, 0, 0]),
    }  # fmt: skip
    return Crosscoder(about, tensors | more)


@pytest.mark.parametrize(
    ("activation", "by"),
    [
        ("batch_topk", "feature"),
        ("batch_topk", "snapshot"),
        ("jumprelu", "feature"),
        ("jumprelu", "snapshot"),
        ("relu", "feature"),
    ],
)
def test_the_gate_is_the_crosscoders_own(activation, by):
    c = dictionary(activation, by)
    x = torch.randn(500, 3, 6, generator=torch.Generator().manual_seed(1))
    some = torch.tensor([0, 2, 6])
    g = collect.Gate.of(c, some)
    h = c.pre_activations(x)[:, some]
    for part in (slice(None), slice(1, 3)):
        opened = g.opened(g.scores(h[:, part], part), part)
        f = c.encode(x)
        f = (f if f.ndim == 2 else f.amax(2))[:, some][:, part]
        assert 0.1 < opened.float().mean() < 0.9
        torch.testing.assert_close(torch.where(opened, h[:, part], 0), f, rtol=0, atol=0)


# Token strings


HOSTILE = "A\x00\x07 <script>alert('é—🦜')</script>\r\n\t中文 $\\frac{1}{2}$ \u202egnp\x7f"


@pytest.fixture(scope="module")
def byte_level() -> tuple[Tokenizer, pieces.Vocabulary]:
    tokenizer = build.train_tokenizer([HOSTILE * 3, "the cat sat " * 9], 270)
    return tokenizer, pieces.Vocabulary(pieces.token_bytes(tokenizer, 270))


def test_pieces_of_a_byte_level_tokenizer_join_to_the_text(byte_level):
    tokenizer, vocabulary = byte_level
    ids = tokenizer.encode(HOSTILE).ids
    texts = vocabulary.texts(ids)
    assert "".join(texts) == HOSTILE
    assert "" in texts  # characters of several tokens
    assert [len(token) for token in vocabulary.tokens[1:257]] == [1] * 256
    assert vocabulary.one(0) == "<|endoftext|>"
    assert pieces.Vocabulary([b"a", b"\xf0\x9f", b"\xa6\x9c", b"z"]).texts([1, 2, 3]) == [
        "🦜", "", "z",
    ]  # fmt: skip


def test_broken_utf8_is_written_out(byte_level):
    vocabulary = pieces.Vocabulary([b"a\xc3", b"\xa9b", b"\xff", b"\xf0\x9f\xa6", b"\n", b"\x00"])
    assert vocabulary.texts([0, 1]) == ["aé", "b"]
    assert vocabulary.texts([1, 0]) == [r"\xa9b", r"a\xc3"]
    assert vocabulary.texts([2, 3, 4, 5]) == [r"\xff", r"\xf0\x9f\xa6", "\n", "\x00"]


def test_visible_leaves_nothing_that_does_not_show():
    assert pieces.visible("a\n\t\r\x00\x1b\x7f\x85é") == r"a↵⇥\x0d\x00\x1b\x7f\x85é"
    assert pieces.visible("\u202e\u200b\ud800\ue000") == r"\u{202e}\u{200b}\u{d800}\u{e000}"
    shown = pieces.visible("".join(map(chr, range(0x2100))))
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)


def test_pieces_of_other_tokenizers():
    names = ["<unk>", "▁the", "<0x0A>", "<0xE2>", "s"]
    sentencepiece = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    sentencepiece.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    sentencepiece.add_special_tokens(["<|▁|>"])
    assert pieces.token_bytes(sentencepiece, 7) == [
        b"<unk>", b" the", b"\n", b"\xe2", b"s", "<|▁|>".encode(), b"<6>",
    ]  # fmt: skip
    names = ["[UNK]", "the", "##s"]
    wordpiece = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    wordpiece.decoder = decoders.WordPiece()
    assert pieces.token_bytes(wordpiece, 3) == [b" [UNK]", b" the", b"s"]
    nameless = Tokenizer(models.WordLevel({"▁a": 0, "b": 1}, "b"))
    assert pieces.token_bytes(nameless, 2) == [b" a", b"b"]


# The logit lens

D, V = 16, 40
COMMON = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0, "head_dim": 8,
}  # fmt: skip
SHAPES = {
    "gpt_neox": COMMON,  # LayerNorm
    "llama": COMMON,  # RMSNorm
    "gemma": COMMON,  # RMSNorm of gain 1 + w, tied, scaled embeddings
    "gpt2": COMMON | {"n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 32},  # tied
    "phi": COMMON,  # LayerNorm, output embedding with a bias
}


def tiny_model(kind: str, **more) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SHAPES.get(kind, COMMON) | more))
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, 0.5, 0.5)
    return model


IDS = (torch.arange(24).view(2, 12) * 7) % V


@pytest.mark.parametrize("kind", list(SHAPES))
def test_the_lens_is_the_models_own_derivative(kind):
    """Along directions that leave the norm's denominator as it is, to first order."""
    model = tiny_model(kind)
    head = lens.unembedding(model, V, IDS)
    assert head.centred == (kind in ("gpt_neox", "gpt2", "phi"))
    x = sites.read(model, IDS, [(1, "residual")])[1, "residual"]
    v = torch.randn(*x.shape, generator=torch.Generator().manual_seed(1))
    about = x - x.mean(2, keepdim=True) if head.centred else x
    v = v - about * (v * about).sum(2, keepdim=True) / (about * about).sum(2, keepdim=True)

    def logits(scale):
        with sites.replaced(model, 1, "residual", x + scale * v):
            return model(input_ids=IDS, use_cache=False).logits

    _, change = torch.func.jvp(logits, (torch.zeros(()),), (torch.ones(()),))
    change = change - change.mean(2, keepdim=True)
    spread = about.square().mean(2, keepdim=True).sqrt()
    mean_inverse = (1 / spread).mean()  # the model's ε is 1e-5 or less, of spreads of about 1
    wanted = (change * spread * mean_inverse).flatten(0, 1)
    torch.testing.assert_close(head.logits(v.flatten(0, 1)), wanted, rtol=1e-3, atol=2e-4)


def test_the_lens_in_the_mean_over_a_text():
    """The same direction at all positions, each with its own denominator, held still."""
    model = tiny_model("llama")
    head = lens.unembedding(model, V, IDS)
    v = torch.randn(D, generator=torch.Generator().manual_seed(2))
    x = sites.read(model, IDS, [(1, "residual")])[1, "residual"]
    gain = model.model.norm.weight
    epsilon = model.model.norm.variance_epsilon
    inverse = 1 / (x.square().mean(2, keepdim=True) + epsilon).sqrt()
    wanted = ((gain * v * inverse) @ model.lm_head.weight.T).mean((0, 1))
    torch.testing.assert_close(
        head.logits(v[None])[0], wanted - wanted.mean(), rtol=1e-4, atol=1e-5
    )
    ids, values = head.extremes(torch.stack([v, -v]), 3)
    order = (wanted - wanted.mean()).argsort(descending=True)
    assert ids[0].tolist() == [order[:3].tolist(), order.flip(0)[:3].tolist()]
    assert ids[1, 0].tolist() == ids[0, 1].tolist()
    torch.testing.assert_close(values[1], -values[0].flip(0))


def test_ids_that_the_tokenizer_lacks_are_no_tokens():
    head = lens.unembedding(tiny_model("gpt_neox"), 30, IDS)
    assert head.matrix.shape == (30, D)
    assert head.matrix.mean(0).abs().max() < 1e-6
    # A padding token that was added to the tokenizer alone: no row, and nothing promotes it.
    assert lens.unembedding(tiny_model("gpt_neox"), 41, IDS).matrix.shape == (40, D)


def test_a_model_without_a_final_norm_and_one_with_another():
    model = tiny_model("llama")
    model.model.norm = torch.nn.Identity()
    assert lens.final_norm(model) is None
    head = lens.unembedding(model, V, IDS)
    weight = model.lm_head.weight
    torch.testing.assert_close(head.matrix, weight - weight.mean(0))
    model.model.norm = torch.nn.Tanh()
    with pytest.raises(InputError, match=r"neither an RMSNorm nor a LayerNorm.*lens_snapshots: 0"):
        lens.final_norm(model)


# The file


STEPS = (0, 10, 100)
HELD_OUT = (2, 11)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A random crosscoder over the activations of a random model; the arguments of `measure`."""
    folder = tmp_path_factory.mktemp("experiment")
    rng = np.random.default_rng(3)
    c = dictionary()
    tokenizer = build.train_tokenizer([HOSTILE * 3, "the cat sat " * 9], 270)
    tokenizer.save(str(folder / "tokenizer.json"))
    with h5py.File(folder / "tokens.h5", "w") as file:
        ids = rng.integers(0, 270, (14, CONTEXT)).astype(np.uint16)
        ids[3, 4] = 0
        file["tokens"] = ids
        about = {"held_out": HELD_OUT, "train": (11, 13), "pretrain": (13, 14), "end_of_text": 0}
        about |= {"vocabulary": 270, "tokenizer": "t", "corpus": "c", "digest": "digest"}
        file.attrs.update(about)
    block, offset = np.nonzero(ids[2:11] != 0)
    position = np.stack([block + 2, offset], 1).astype(np.uint32)
    values = rng.normal(size=(len(STEPS), len(position), 6)).astype(np.float16)
    values[:, 31] = values[:, 7]  # equal activations in two blocks
    place = folder / "activations" / "residual.0"
    place.mkdir(parents=True)
    for step, one in zip(STEPS, values, strict=True):
        with h5py.File(place / f"step{step}.h5", "w") as file:
            store.Writer(file, "held_out/activations", *one.shape, "float16").write(one)
            file["held_out/position"] = position
            file["held_out/token"] = np.stack([ids[block + 2, offset]] * 2, 1).astype(np.int32)
            more = {"layer": 0, "stream": "residual", "dtype": "float16", "tokens": "digest"}
            more |= {"seed": 0, "shard_rows": [0], "step": step, "centred_norm": 6**0.5}
            more |= {"mean_norm": 6**0.5}
            store.describe(file, more)
        model = tiny_model("gpt_neox", vocab_size=300, hidden_size=6, num_attention_heads=1)
        torch.manual_seed(step)
        torch.nn.init.normal_(model.lm_head.weight)
        model.save_pretrained(folder / "snapshots" / f"step{step}")
    store.stack([place / f"step{s}.h5" for s in STEPS], list(STEPS), place / "stack.h5", False)
    c.save(folder / "crosscoder")
    s = settings.load(
        {
            "name": "x",
            "device": "cpu",
            "snapshots": {"steps": [0, 10, 100], "pretrain": {}},
            "activations": {"layers": [0]},
            "crosscoders": {"a": {"inputs": {"layers": [0]}, "features": 200, "steps": 1}},
            "primary": "a",
            "contexts": {
                "top": TOP, "quantiles": 2, "near_misses": NEAR, "window": WINDOW,
                "lens_snapshots": 2, "lens_tokens": 4,
            },
        }
    )  # fmt: skip
    names = ("crosscoder", "activations", "snapshots", "tokens.h5", "tokenizer.json")
    paths = [folder / name for name in names]
    measure.measure(s, *paths, folder / "contexts.h5", folder / "contexts.parquet")
    x = torch.from_numpy(values.transpose(1, 0, 2).astype(np.float32))
    f = c.encode(x * c.scales_in[:, None]).numpy()
    return s, paths, folder, c, ids, position.astype(int), f


def test_the_store_tells_what_was_there(experiment):
    _, _, folder, c, ids, position, f = experiment
    found = contexts.Store(folder / "contexts.h5")
    assert found.features.tolist() == [0, 2, 3, 5, 6]
    assert (len(found), found.dictionary, found.rows) == (5, F, len(position))
    block = position[:, 0]
    at = {tuple(where): row for row, where in enumerate(position.tolist())}
    g = collect.Gate.of(c, torch.arange(F))
    living = found.features.tolist()
    beside = companions(f[:, living], together.LEAST, contexts.TOGETHER)
    assert any(beside)
    for number, others in zip(living, beside, strict=True):
        one = found.feature(number)
        own = f[:, number]
        assert [j for j, _ in one.together] == [living[j] for j, _ in others]
        assert [x for _, x in one.together] == pytest.approx([x for _, x in others])
        assert one.active == (own > 0).sum()
        assert one.density == pytest.approx((own > 0).mean())
        assert one.mean == pytest.approx(own[own > 0].mean(), rel=1e-5)
        assert one.histogram.sum() == one.active
        assert one.threshold == pytest.approx(float(g.threshold[number]))
        largest = [own[block == b].max() for b in range(*HELD_OUT)]
        wanted = sorted((x for x in largest if x > 0), reverse=True)[:TOP]
        assert [x.value for x in one.top] == pytest.approx(wanted, rel=1e-5)
        assert len(one.quantiles) == min(2, one.active)
        if len(one.quantiles) == 2:
            assert one.quantiles[0].quantile < 0.5 < one.quantiles[1].quantile
        for kind in ("top", "quantiles", "near_misses"):
            for x in getattr(one, kind):
                span = range(x.start, x.start + len(x.ids))
                assert (span[0], span[-1]) == (max(0, x.offset - 2), min(11, x.offset + 2))
                assert x.ids.tolist() == ids[x.block, list(span)].tolist()
                assert x.texts == found.vocabulary.texts(x.ids)
                there = [own[at[x.block, o]] if (x.block, o) in at else np.nan for o in span]
                assert x.activations == pytest.approx(there, rel=1e-3, nan_ok=True)
                if kind == "near_misses":
                    assert np.nansum(x.activations) == 0
                    assert contexts.NEARLY * one.threshold <= x.value <= one.threshold
                else:
                    assert x.value == pytest.approx(own[at[x.block, x.offset]], rel=1e-5)


def test_the_store_has_the_lens_of_each_snapshot_and_of_the_peak(experiment):
    _, paths, folder, c, _, _, _ = experiment
    found = contexts.Store(folder / "contexts.h5")
    strength = c.strength.numpy()
    for number in found.features.tolist():
        one = found.feature(number)
        peak = int(strength[number].argmax())
        assert [(x.step, x.peak) for x in one.lens] == [
            (0, False), (100, False), (STEPS[peak], True),
        ]  # fmt: skip
        for x in one.lens:
            n = STEPS.index(x.step)
            weights = load_file(paths[2] / f"step{x.step}" / "model.safetensors")
            v = c.W_dec[number, n] / c.scales_out[n]
            v = weights["gpt_neox.final_layer_norm.weight"] * (v - v.mean())
            logits = (weights["embed_out.weight"][:270] @ v).numpy()
            logits -= logits.mean()
            assert x.strength == pytest.approx(strength[number, n] / strength[number].max())
            assert [t for _, t, _ in x.promoted] == np.argsort(-logits)[:4].tolist()
            assert [t for _, t, _ in x.suppressed] == np.argsort(logits)[:4].tolist()
            ratio = np.array([v for *_, v in x.promoted]) / np.sort(logits)[::-1][:4]
            assert np.ptp(ratio) < 1e-3 * ratio.mean()  # the same denominator for all tokens
            assert x.promoted[0][0] == found.vocabulary.one(x.promoted[0][1])


def test_the_table_has_the_largest_activations_as_text(experiment):
    _, _, folder, *_ = experiment
    table = pd.read_parquet(folder / "contexts.parquet")
    found = contexts.Store(folder / "contexts.h5")
    one = table[table["feature"] == 3]
    wanted = found.feature(3)
    assert one["rank"].tolist() == list(range(1, len(wanted.top) + 1))
    assert one["activation"].tolist() == [x.value for x in wanted.top]
    assert one["block"].tolist() == [x.block for x in wanted.top]
    for row, x in zip(one.to_dict("records"), wanted.top, strict=True):
        assert list(row["tokens"]) == [pieces.visible(t) for t in x.texts]
        assert row["activations"] == pytest.approx(x.activations, nan_ok=True)
        assert row["position"] == x.offset - x.start
        assert list(row["promoted"]) == [pieces.visible(t) for t, _, _ in wanted.lens[-1].promoted]
    assert set(table["feature"]) == {n for n in found.features if found.feature(int(n)).active}


def test_again_gives_the_same_records(experiment, tmp_path, monkeypatch):
    """In small pieces, without the lens; another seed draws other positions."""
    s, paths, folder, *_ = experiment
    wanted = contexts.Store(folder / "contexts.h5")
    for name, value in (("PIECE_VALUES", 1), ("RECORDS", 2), ("BLOCKS", 2)):
        monkeypatch.setattr(measure, name, value)
    quiet = s.model_copy(
        update={"contexts": s.section(Contexts).model_copy(update={"lens_snapshots": 0})}
    )
    measure.measure(quiet, *paths, tmp_path / "a.h5", tmp_path / "a.parquet")
    found = contexts.Store(tmp_path / "a.h5")
    for number in found.features.tolist():
        one, other = found.record(number), wanted.record(number)
        for name in one.dtype.names:
            close = {"rtol": 1e-5} if name in ("mean", "value") else {"rtol": 2e-3}
            np.testing.assert_allclose(one[name], other[name], **close)
    assert found.feature(3).lens == []
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert [len(x) for x in table["promoted"]] == [0] * len(table)


def test_no_such_feature(experiment):
    found = contexts.Store(experiment[2] / "contexts.h5")
    for number in (1, 4):
        with pytest.raises(InputError, match=rf"contexts\.h5: feature {number} is dead"):
            found.feature(number)
    for number in (-1, F):
        with pytest.raises(InputError, match=rf"no feature {number}; they are numbered 0 to 6"):
            found.feature(number)


def test_spoiled_files(experiment, tmp_path):
    whole = (experiment[2] / "contexts.h5").read_bytes()
    (tmp_path / "short.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"short\.h5: truncated, or not a contexts file"):
        contexts.Store(tmp_path / "short.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = [1]
    with pytest.raises(InputError, match=r"other\.h5: truncated, or not a contexts file"):
        contexts.Store(tmp_path / "other.h5")
    with h5py.File(experiment[2] / "contexts.h5") as file:
        place = file["features"].id.get_chunk_info(0).byte_offset
    flipped = bytearray(whole)
    flipped[place + 200] ^= 1
    (tmp_path / "flipped.h5").write_bytes(flipped)
    with pytest.raises(InputError, match=r"flipped\.h5: truncated, or not a contexts file"):
        contexts.Store(tmp_path / "flipped.h5").feature(0)


def test_files_that_do_not_belong_together(experiment, tmp_path):
    s, paths, *_ = experiment
    outputs = (tmp_path / "a.h5", tmp_path / "a.parquet")
    dictionary(silent_rows=torch.full((F,), 60)).save(tmp_path / "dead")
    with pytest.raises(InputError, match="no living feature; train it for longer"):
        measure.measure(s, tmp_path / "dead", *paths[1:], *outputs)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer; delete it"):
        measure.measure(s, *paths[:4], tmp_path / "tokenizer.json", *outputs)
    assert not list(tmp_path.glob("*a.*"))
