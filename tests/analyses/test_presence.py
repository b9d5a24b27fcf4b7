"""Presence: β and w are least squares, and planted absences, artefacts and turns are told apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats

from ontogeny.analyses.presence import figure, measure, probes, scaling, verdicts
from ontogeny.analyses.presence.settings import Presence
from ontogeny.crosscoder.model import Crosscoder, Description
from ontogeny.features.held_out import own_activations
from ontogeny.figures import style
from ontogeny.files import InputError

CPU = torch.device("cpu")
SITES, WIDTH, BLOCKS, CONTEXT = 5, 24, 40, 128
N = BLOCKS * CONTEXT
# What is planted, by feature; the others are there throughout, with their norms.
ABSENT, ZEROED, TURNED, TURNED_AND_ZEROED, TOKEN = range(5)
AT = 1  # the snapshot where it is so


def crosscoder(W: np.ndarray, **about: object) -> Crosscoder:
    """A crosscoder with decoders W (F, n, d), that reads its inputs as features' activations."""
    F, n, d = W.shape
    described: dict[str, object] = {
        "activation": "relu", "gate": "feature", "features": F, "width": d,
        "inputs": [(step, 0, "residual") for step in range(n)],
        "outputs": [(step, 0, "residual") for step in range(n)],
        "basis": "full", "threshold": 0.0, "seed": 0, "settings": {"dead_after_rows": 10},
        "tokens": "", "ontogeny": "", "torch": "",
    }  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(F, n * d, generator=rng),
        "b_enc": torch.zeros(F),
        "W_dec": torch.from_numpy(W.reshape(F, -1).astype(np.float32)),
        "b_dec": torch.full((n * d,), 0.3),
        "log_threshold": torch.linspace(-1, 1.5, F),
        "scales_in": torch.ones(n), "scales_out": torch.ones(n),
        "mean_in": torch.zeros(n * d), "mean_out": torch.zeros(n * d),
        "silent_rows": torch.zeros(F),
    }  # fmt: skip
    return Crosscoder(Description(**(described | about)), tensors)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planted():
    """What features make with true decoders, and a crosscoder with some of the norms zeroed."""
    rng = np.random.default_rng(0)
    F = 10
    tokens = rng.choice(30, N, p=1 / np.arange(1, 31) / (1 / np.arange(1, 31)).sum())
    on = rng.random((N, F)) < 0.05
    on[:, TOKEN] = np.isin(tokens, (4, 9))
    f = np.where(on, 1 + rng.random((N, F)), 0).astype(np.float32)
    unit = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].T
    true = np.repeat(3 * unit[:F, None], SITES, 1)
    true[:, -1] *= 1.05  # the peak is the last
    true[ABSENT, AT] = 0
    true[TURNED, AT] = 3 * unit[F]
    true[TURNED_AND_ZEROED, AT] = 3 * unit[F + 1]
    W = true.copy()
    W[ZEROED, AT] *= 0.01
    W[TURNED_AND_ZEROED, AT] *= 0.01
    W[ABSENT, AT] = 0.03 * unit[ABSENT]
    noise = rng.standard_normal((SITES, N, WIDTH))
    a = (np.einsum("nf,ftd->tnd", f, true) + 0.5 * noise + 0.3).astype(np.float32)
    position = np.stack([x.ravel() for x in np.indices((BLOCKS, CONTEXT))], 1)
    about = pd.DataFrame({"alive": np.arange(F) < F - 1, "density": f.mean(0)})
    about["matched"] = np.arange(F) % 2 == 0
    about["initialisation"] = about["transient"] = False
    return crosscoder(W), sparse.csr_array(f), position, tokens, a, about


@pytest.fixture(scope="module")
def tested(planted) -> pd.DataFrame:
    trained, f, position, tokens, a, about = planted
    p = Presence(features=64)
    table = measure.run_tests(trained, f, position, tokens, lambda n: a[n], about, p, seed=0)
    return table.set_index(["feature", "site"])


def test_planted_presence_is_told(tested):
    one = tested.xs(AT, level="site")
    assert set(one.index) == set(range(9))  # the last is dead
    assert (one.loc[[ABSENT, ZEROED, TURNED_AND_ZEROED], "normalised_strength"] < 0.011).all()
    assert abs(one["scaling"][ABSENT]) < 0.03
    assert abs(one["free"][ABSENT]) < 0.1  # noise of 0.5
    assert one["scaling"][ZEROED] == pytest.approx(1 / 1.05, abs=0.03)
    assert one["free"][ZEROED] == pytest.approx(1 / 1.05, abs=0.03)
    # A concept that turned is not along its peak's direction, whatever the norm says.
    assert one["normalised_strength"][TURNED] == pytest.approx(1 / 1.05)
    for turned in (TURNED, TURNED_AND_ZEROED):
        assert abs(one["scaling"][turned]) < 0.03
        assert one["free"][turned] == pytest.approx(1 / 1.05, abs=0.03)
    rest = tested.drop(index=[(i, AT) for i in range(4)])
    expected = np.where(rest["peak"], 1, 1 / 1.05)
    assert rest["free"].to_numpy() == pytest.approx(expected, abs=0.03)
    assert rest["beta"].to_numpy() == pytest.approx(expected, abs=0.03)


def test_nothing_is_there_once_positions_are_permuted(tested):
    """But for what two sparse activations have in common by chance, 0.05 here."""
    assert tested["scaling_permuted"].abs().max() < 0.15
    assert tested["free_permuted"].abs().max() < 0.2
    assert tested.xs(AT, level="site")["free_permuted"][[ABSENT, ZEROED]].abs().max() < 0.1


def test_verdicts_count_the_planted(tested):
    p = Presence()
    table = tested.reset_index()
    found = verdicts.find_verdicts(table, p, verdicts.Resampled(9, 200, 0))
    found = found.set_index(["measure", "test", "group", "threshold"]).sort_index()
    # Feature 1 of the zeroed ones is odd, so not matched; 3 as well.
    absent = found.xs("absent").droplevel(["test", "threshold"])
    assert absent.loc["all", "value"] == pytest.approx(3 / (9 * 4))
    assert absent.loc["matched", "pairs"] == 5 * 4
    contradicted = found.xs("contradicted").xs(0.25, level="threshold")
    assert contradicted.loc[("scaling", "all"), "value"] == pytest.approx(1 / 3)
    assert contradicted.loc[("free", "all"), "value"] == pytest.approx(2 / 3)
    assert contradicted.loc[("free", "matched"), "value"] == 0
    assert contradicted.loc[("free", "matched"), "high"] == pytest.approx(0.975)  # one feature
    assert contradicted.loc[("free_permuted", "all"), "value"] == 0
    assert found.loc[("contradicted", "free", "all", 0.95), "value"] <= 2 / 3
    converse = found.xs("converse").xs(0.25, level="threshold")
    assert converse.loc[("scaling", "all"), "value"] == pytest.approx(1 / 33)  # the turned one
    assert converse.loc[("free", "all"), "value"] == 0


def test_a_peak_that_scaling_does_not_find_has_no_verdicts(planted):
    trained, f, position, tokens, a, about = planted
    other = a.copy()
    other[-1] -= 0.7 * np.asarray(f[:, [TURNED]].toarray()) * trained.W_dec[TURNED, -1].numpy()
    p = Presence(features=1)
    table = measure.run_tests(trained, f, position, tokens, lambda n: other[n], about, p, seed=0)
    one = table.set_index(["feature", "site"]).loc[TURNED]
    assert one["beta"][SITES - 1] == pytest.approx(0.3, abs=0.03)
    assert one[["scaling", "free", "free_permuted"]].isna().to_numpy().all()
    found = verdicts.find_verdicts(table, p, verdicts.Resampled(9, 50, 0)).set_index(
        ["measure", "test", "group", "threshold"]
    )
    assert found.xs("unfounded")["value"].iloc[0] == pytest.approx(1 / 9)
    assert found.xs(("absent", "all"), level=("measure", "group"))["pairs"].iloc[0] == 8 * 4


def test_probes_read_what_is_there(tested):
    one = tested.xs(AT, level="site")
    assert abs(one["probe"][ABSENT] - 0.5) < 0.06
    assert one["probe"].drop(ABSENT).min() > 0.97
    assert (tested["shuffled"] - 0.5).abs().max() < 0.1
    assert tested["shuffled"].mean() == pytest.approx(0.5, abs=0.01)
    assert tested["current_token"].xs(TOKEN).iloc[0] > 0.9
    assert tested["current_token"].drop(index=TOKEN).max() < 0.05
    # No other token is written anywhere in these activations, so that no control is readable.
    assert tested["control"].mean() == pytest.approx(0.5, abs=0.03)
    table = tested.reset_index()
    found = verdicts.correlations(table, verdicts.Resampled(9, 50, 0))
    found = found.set_index(["measure", "test", "group"])
    assert found.loc[("mean", "shuffled", "all"), "value"] == pytest.approx(0.5, abs=0.01)
    assert found.loc[("mean", "control", "beyond_token"), "pairs"] == 8 * SITES
    assert found.loc[("mean", "probe", "token"), "pairs"] == SITES


def test_scalings_are_least_squares(monkeypatch):
    """β and w by brute force over every position, ‖w‖² over every pair of folds."""
    monkeypatch.setattr(scaling, "BLOCK_ENTRIES", 3 * 4 * 6)  # three features at a time
    rng = np.random.default_rng(1)
    rows, F, d = 90, 7, 6
    bounds = np.array([0, 20, 50, 61, 90])
    dense = (rng.random((rows, F)) * (rng.random((rows, F)) < 0.3)).astype(np.float32)
    dense[bounds[2] :, 5] = 0  # nowhere in two folds
    own = dense * (rng.random((rows, F)) < 0.7)  # another gate
    E = rng.standard_normal((rows, d)).astype(np.float32)
    W, peak = rng.standard_normal((2, F, d)).astype(np.float32)
    regressor = scaling.Regressor(sparse.csr_array(dense), bounds, CPU)
    overlap = regressor.overlap(sparse.csr_array(own))
    beta, free = regressor.scalings(*map(torch.from_numpy, (E,)), overlap,
                                    torch.from_numpy(W), torch.from_numpy(peak))  # fmt: skip
    for i in range(F):
        y = E + own[:, i, None] * W[i]
        x = np.outer(dense[:, i], peak[i]).ravel()
        assert beta[i].item() == pytest.approx(
            np.linalg.lstsq(x[:, None], y.ravel())[0][0], rel=1e-4
        )
        g = [dense[a:b, i] @ y[a:b] for a, b in pairwise(bounds)]
        S = [np.square(dense[a:b, i]).sum() for a, b in pairwise(bounds)]
        pairs = [(k, other) for k in range(4) for other in range(4) if k != other]
        squared = sum(g[k] @ g[m] for k, m in pairs) / sum(S[k] * S[m] for k, m in pairs)
        assert free[i].item() == pytest.approx(np.sign(squared) * abs(squared) ** 0.5, rel=1e-3)
        w = np.linalg.lstsq(dense[:, i, None], y)[0][0]
        assert (sum(g) / sum(S)) == pytest.approx(w, rel=1e-4)


def test_noise_has_no_norm():
    """√‖w‖² of residuals that hang on nothing has mean 0, where the plain norm is far from it."""
    rng = np.random.default_rng(2)
    rows, F, d = 800, 300, 16
    f = sparse.csr_array((rng.random((rows, F)) < 0.03).astype(np.float32))
    E = torch.from_numpy(rng.standard_normal((rows, d)).astype(np.float32))
    regressor = scaling.Regressor(f, np.arange(0, 801, 100), CPU)
    zero = torch.zeros(8, F), torch.zeros(F, d), torch.ones(F, d)
    _, free = regressor.scalings(E, *zero)
    squared = (free.sign() * free.square()).numpy()
    plain = np.square(np.asarray(f.T @ E.numpy()) / np.asarray(f.sum(0))[:, None]).sum(1)
    assert plain.mean() == pytest.approx(d / 24, rel=0.1)
    assert abs(squared.mean()) < 3 * squared.std() / F**0.5
    assert squared.std() < 0.3


@pytest.mark.parametrize("activation", ["jumprelu", "batch_topk"])
def test_own_activations_are_the_gate_of_each_site(activation):
    rng = np.random.default_rng(3)
    W = rng.standard_normal((12, 4, 6)) * rng.random((12, 4, 1))
    trained = crosscoder(W, activation=activation, gate="snapshot", threshold=0.8)
    f = trained.encode(torch.from_numpy(rng.standard_normal((50, 4, 6)).astype(np.float32)) * 0.3)
    assert 0 < (f > 0).float().mean() < 0.9
    at_peak = sparse.csr_array(f.amax(2).numpy())
    for site in range(4):
        own = own_activations(trained, at_peak, site).toarray()
        assert np.array_equal(own, f[:, :, site].numpy())


def test_areas_are_the_share_of_ordered_pairs():
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 6, (3, 40)).astype(np.float32)  # ties
    active = [np.arange(9), rng.permutation(40)[:20], np.array([], int)]
    found = probes.areas(scores, active, np.arange(40))
    for j in range(2):
        own = scores[j, active[j]]
        rest = np.delete(scores[j], active[j])
        above = (own[:, None] > rest).mean() + 0.5 * (own[:, None] == rest).mean()
        assert found[j] == pytest.approx(above)
    assert np.isnan(found[2])
    some = rng.permutation(40)[:15]
    rest = scores[0, np.setdiff1d(some, active[0])]
    own = scores[0, :9]
    above = (own[:, None] > rest).mean() + 0.5 * (own[:, None] == rest).mean()
    assert probes.areas(scores, active, some)[0] == pytest.approx(above)


def test_control_tasks_are_sets_of_other_tokens_of_like_frequency():
    rng = np.random.default_rng(5)
    tokens = rng.permutation(np.repeat(np.arange(35), 40 + np.arange(35)))
    of_tokens = np.stack([np.isin(tokens, (3, 17, 30)), rng.random(len(tokens)) < 0.1], 1)
    control = probes.control_task(sparse.csr_array(of_tokens), tokens, rng).toarray()
    stand_ins = np.unique(tokens[control[:, 0]])
    assert len(stand_ins) == 3
    assert not set(stand_ins) & {3, 17, 30}
    assert np.isin(tokens, stand_ins).tolist() == control[:, 0].tolist()  # whole tokens
    assert np.abs(stand_ins - [3, 17, 30]).max() < probes.NEIGHBOURS
    overlap = (control[:, 1] & of_tokens[:, 1]).sum() / control[:, 1].sum()
    assert control[:, 1].mean() == pytest.approx(0.1, abs=0.02)
    assert overlap == pytest.approx(0.1, abs=0.06)


def test_samples_hold_every_stratum_in_its_share():
    rng = np.random.default_rng(6)
    strata = rng.permutation(np.repeat([0, 1, 3], [600, 300, 100]))
    density = rng.random(1000)
    drawn = probes.stratified(strata, density, 100, seed=0)
    assert len(np.unique(drawn)) == 100
    assert np.abs(np.bincount(strata[drawn]) - [60, 30, 0, 10]).max() <= 1
    within = density[drawn][strata[drawn] == 0]
    assert np.quantile(within, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
    assert probes.stratified(strata, density, 2000, seed=0).tolist() == list(range(1000))


def test_intervals():
    rng = np.random.default_rng(7)
    drawn = verdicts.Resampled(200, 500, 0)
    x = rng.integers(0, 9, (200, 3)).astype(float)
    y = x + rng.standard_normal((200, 3)) * 3
    y[5, 1] = np.nan
    found = drawn.spearman(x, y)
    known = np.isfinite(y)
    assert found["value"] == pytest.approx(stats.spearmanr(x[known], y[known]).statistic)
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(
        4 * (1 - found["value"] ** 2) / 600**0.5, rel=0.6
    )
    # Counting pairs is repeating them.
    times = np.array([1, 0, 3, 2])
    a, b = np.array([0, 1, 2, 1]), np.array([2, 0, 1, 1])
    repeated = stats.spearmanr(np.repeat(a, times), np.repeat(b, times)).statistic
    assert verdicts._spearman(a, b, times) == pytest.approx(repeated)
    share = drawn.share(np.repeat([0, 1], 100), np.ones(200))
    assert share["high"] - share["low"] == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.15)
    assert drawn.share(np.zeros(200), np.ones(200))["high"] == pytest.approx(0.0183, abs=1e-3)
    assert np.isnan(drawn.share(np.zeros(200), np.zeros(200))["value"])


def test_too_few_active_positions(planted):
    trained, f, position, tokens, a, about = planted
    with pytest.raises(InputError, match=r"presence\.active: no living feature .* lower it"):
        measure.run_tests(
            trained, f, position, tokens, lambda n: a[n], about, Presence(active=4000), 0
        )


@pytest.fixture
def written(tested, planted, tmp_path, monkeypatch):
    """The tables of the planted features, as the stage writes them, for five crosscoders."""
    monkeypatch.setattr(style, "PNG_DPI", 40)
    monkeypatch.setattr(figure, "LEAST", 2)
    table = tested.reset_index()
    drawn = verdicts.Resampled(9, 50, 0)
    p = Presence()
    pd.concat(
        [verdicts.find_verdicts(table, p, drawn), verdicts.correlations(table, drawn)]
    ).to_csv(tmp_path / "presence.csv", index=False)
    table.to_parquet(tmp_path / "presence.parquet")
    about = planted[-1].assign(matched_cosine=0.8).rename_axis("feature").reset_index()
    about.to_parquet(tmp_path / "features.parquet")
    return tmp_path


def draw(folder, count: int) -> pd.DataFrame:
    names = [f"c{i}" for i in range(count)]
    files = [[folder / f] * count for f in ("features.parquet", "presence.parquet", "presence.csv")]
    figure.draw(names, *files, folder / "figure")
    return pd.read_csv(folder / "figure.csv").set_index(["crosscoder", "panel"]).sort_index()


@pytest.mark.parametrize("count", [1, 5])
def test_figure(written, tested, count):
    table = draw(written, count)
    assert (written / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (written / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert set(table.index.get_level_values(0)) == {f"c{i}" for i in range(count)}
    one = table.loc["c0"]
    assert one.loc["density", "pairs"].sum() == 9 * 4  # all pairs off the peak
    median = one.loc["median"].set_index(["test", "group"]).loc[("free", "all")]
    off = tested[~tested["peak"]]
    lowest = off["free"][off["normalised_strength"] < 0.1]
    assert median["pairs"].iloc[0] == len(lowest) == 3
    assert median["value"].iloc[0] == pytest.approx(lowest.median())
    verdict = one.loc["verdict"].set_index(["measure", "test", "group"])
    assert verdict.loc[("contradicted", "free", "all"), "value"] == pytest.approx(2 / 3)
    assert verdict.loc[("converse", "scaling", "all"), "pairs"] == 33
    assert set(one.loc["threshold", "test"]) == {"free", "scaling", "free_permuted"}
    probes = one.loc["probe"].set_index(["test", "group"])
    assert probes.loc[("control", "beyond_token"), "value"].between(0.4, 0.6).all()


def test_figure_of_one_seed_and_of_nothing_absent(written):
    about = pd.read_parquet(written / "features.parquet").assign(matched=False, matched_cosine=None)
    about.to_parquet(written / "features.parquet")
    table = pd.read_parquet(written / "presence.parquet").assign(matched=False)
    table["normalised_strength"] = table["normalised_strength"].clip(0.3)
    table.to_parquet(written / "presence.parquet")
    said = verdicts.find_verdicts(table, Presence(), verdicts.Resampled(9, 50, 0))
    said.to_csv(written / "presence.csv", index=False)
    drawn = draw(written, 1)
    assert "threshold" not in drawn.loc["c0"].index
    assert not (drawn["group"] == "matched").any()


def test_figure_without_a_column(written):
    table = pd.read_parquet(written / "presence.parquet").drop(columns="control")
    table.to_parquet(written / "presence.parquet")
    with pytest.raises(InputError, match=r"presence\.parquet: no column control;"):
        draw(written, 1)
