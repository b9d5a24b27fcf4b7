"""The fidelity frontier: its dictionaries, what is read off them, and who asks for them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from ontogeny import preflight, registry, running, settings
from ontogeny.analyses.frontier import figure, measure
from ontogeny.analyses.frontier.dictionaries import crosscoders
from ontogeny.experiment import Experiment
from ontogeny.figures import style
from ontogeny.files import InputError

SECTION = {"features": [32, 8], "k": [2, 6], "steps": 30, "seeds": [0, 3]}
STEPS = [0, 2, 8, 20, 40]


def load(**changes: object) -> settings.Settings:
    """The tiny experiment with a frontier whose keys are changed."""
    return settings.load(tiny({"frontier": SECTION | changes}))


def test_the_dictionaries_are_the_primary_but_for_what_is_named():
    s = load(sae_snapshots=[40, 2], sae_learning_rate=7e-3)
    made = {n: c for n, c in s.all_crosscoders.items() if n not in s.crosscoders}
    grid = ["F32-k2", "F32-k6", "F8-k2", "F8-k6"]
    kinds = ["frontier", "sae-40", "sae-2"]
    assert list(made) == [f"{kind}-{point}" for kind in kinds for point in grid]
    primary = s.crosscoders["batchtopk"]
    for name, c in made.items():
        features, k = map(int, re.findall(r"F(\d+)-k(\d+)", name)[0])
        expected = {"features": features, "k": k, "steps": 30, "seeds": [0, 3]}
        if features == 8:  # fewer than the features that AuxK may look at
            expected["aux_features"] = 8
        if name.startswith("sae"):
            expected |= {"basis": "full", "learning_rate": 7e-3}
            expected["inputs"] = {
                "layers": [0],
                "streams": ["residual"],
                "snapshots": [int(name.split("-")[1])],
            }
        assert c.model_dump(mode="json") == primary.model_dump(mode="json") | expected, name
        assert settings.Crosscoder.model_validate(c.model_dump(mode="json")) == c
    assert s.all_crosscoders["batchtopk"] is primary


def test_left_out_there_are_no_dictionaries():
    s = settings.load(tiny())
    assert s.frontier is None
    assert s.all_crosscoders == s.crosscoders


def test_the_bill_has_them_where_the_default_target_trains_them(tmp_path):
    from ontogeny.cost import bill

    asked = settings.load(tiny({"frontier": SECTION, "analyses": ["frontier"]}))
    named = {line.name for line in bill.bill(asked, tmp_path).lines}
    assert {f"train {name}" for name in asked.all_crosscoders} < named
    left_out = bill.bill(load(), tmp_path)
    trained = {line.name for line in left_out.lines if line.stage == "train"}
    assert trained == {"train batchtopk"}
    assert left_out.line("kinds batchtopk").left == 1


def test_a_replicate_of_the_model_has_none():
    changes = {"frontier": SECTION, "analyses": ["kinds", "frontier"]}
    s = settings.load(
        tiny(changes | {"replicates": {"other": {"snapshots.pretrain.seed": 1}}})
    ).replicate("other")
    assert (list(s.all_crosscoders), s.analyses) == (["batchtopk"], ["kinds"])
    assert settings.load(s.model_dump(mode="json")) == s


def test_last_is_the_last_snapshot_of_the_primary():
    assert [n for n in load().all_crosscoders if n.startswith("sae-40-")]
    inputs = {"layers": [0], "snapshots": [2, 20, 8]}
    s = settings.load(tiny({"frontier": SECTION, "crosscoders.batchtopk.inputs": inputs}))
    saes = {n: c for n, c in s.all_crosscoders.items() if n.startswith("sae")}
    assert {c.inputs.snapshots[0] for c in saes.values()} == {20}
    assert all(n.startswith("sae-20-") for n in saes)


def test_an_saes_counterpart_of_a_transcoder_is_one():
    changes = {
        "frontier": SECTION,
        "activations.streams": ["mlp_in", "mlp_out"],
        "crosscoders.batchtopk.inputs": {"layers": [0], "streams": ["mlp_in"]},
        "crosscoders.batchtopk.outputs": {"layers": [0], "streams": ["mlp_out"]},
        "crosscoders.batchtopk.basis": "full",
    }
    c = settings.load(tiny(changes)).all_crosscoders["sae-40-F8-k2"]
    assert (c.inputs.streams, c.inputs.snapshots) == (["mlp_in"], [40])
    assert (c.outputs.streams, c.outputs.snapshots) == (["mlp_out"], [40])


def test_lambda_sets_the_sparsity_of_other_losses():
    section = {"features": [32], "sparsity": [0.1, 1.0]}
    s = settings.load(tiny({"frontier": section, "crosscoders.batchtopk.activation": "jumprelu"}))
    found = {n: c.sparsity for n, c in s.all_crosscoders.items() if n not in s.crosscoders}
    assert found == {
        "frontier-F32-lambda0.1": 0.1,
        "frontier-F32-lambda1": 1.0,
        "sae-40-F32-lambda0.1": 0.1,
        "sae-40-F32-lambda1": 1.0,
    }


FAULTS = {
    "k beyond the smallest F": ({"k": [2, 9]}, "frontier.k: 9 exceeds the 8 features"),
    "no k": ({"k": []}, "frontier.k: missing, and crosscoders.batchtopk is batch_topk; list"),
    "λ of BatchTopK": ({"sparsity": [0.1]}, "frontier.sparsity: has no effect if"),
    "a value twice": ({"features": [32, 8, 32]}, "frontier.features: a value repeats; remove it"),
    "a snapshot that is not there": (
        {"sae_snapshots": [40, 39]},
        "frontier.sae_snapshots: 39 is not in snapshots.steps; add it there",
    ),
    "no snapshot": ({"sae_snapshots": []}, "frontier.sae_snapshots: the list is empty; name"),
    "another word": ({"sae_snapshots": "first"}, "frontier.sae_snapshots: input should be 'last'"),
    "an unknown key": (
        {"ks": [1]},
        "frontier.ks: unknown key; did you mean k? Otherwise remove it or use one of ['features'",
    ),
    "no features": ({"features": []}, "frontier.features: list should have at least 1 item"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(case):
    changes, message = FAULTS[case]
    with pytest.raises(settings.SettingsError) as raised:
        load(**changes)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_faults_of_the_whole():
    named = tiny({"frontier": SECTION})
    named["crosscoders"]["frontier-F8-k2"] = named["crosscoders"]["batchtopk"]
    with pytest.raises(settings.SettingsError, match=r"^crosscoders\.frontier-F8-k2: this name is"):
        settings.load(named)
    with pytest.raises(settings.SettingsError, match=r"^analyses: frontier needs the section"):
        settings.load(tiny({"analyses": ["frontier"]}))
    of_some = {"layers": [0], "snapshots": [0, 2]}
    changes = {"frontier": SECTION | {"sae_snapshots": [40]}}
    with pytest.raises(settings.SettingsError, match=r"40 is not in the snapshots of crosscoders"):
        settings.load(tiny(changes | {"crosscoders.batchtopk.inputs": of_some}))
    changes = {
        "frontier": SECTION | {"sae_basis": "principal"},
        "crosscoders.batchtopk.basis": "full",
        "crosscoders.batchtopk.gate": "snapshot",
        "crosscoders.batchtopk.aux_features": 0,
    }
    with pytest.raises(settings.SettingsError, match=r"^frontier\.sae_basis: principal needs one"):
        settings.load(tiny(changes))


def test_rows_that_go_shard_by_shard_need_saes_in_a_subspace(tmp_path):
    """And a learning rate is blamed where it is set."""
    shards = {"activations.budget": 0.002, "activations.window": 1024, "basis.rows": 1024}

    def check(section: dict[str, object]) -> settings.Settings:
        s = settings.load(tiny({"frontier": section} | shards))
        preflight.check(s, tmp_path)
        return s

    with pytest.raises(InputError, match=r"^frontier\.sae_basis: full needs all training rows"):
        check(SECTION)
    s = check(SECTION | {"sae_basis": "principal"})
    assert s.key_of("sae-40-F8-k2", "learning_rate") == "frontier.sae_learning_rate"
    assert s.key_of("frontier-F8-k2", "learning_rate") == "crosscoders.batchtopk.learning_rate"
    assert s.key_of("batchtopk", "learning_rate") == "crosscoders.batchtopk.learning_rate"


def test_a_curve_is_read_straight_in_log_l0():
    l0 = np.array([16.0, 4.0, 8.0])
    value = np.array([0.9, 0.5, 0.7])  # 0.2 a doubling
    wanted = np.array([4, 4 * 2**0.5, 11.0, 16, 4 / 1.09, 16 * 1.09, 4 / 1.11, 16 * 1.11, 0.0])
    found = measure.read_at(l0, value, wanted)
    assert found[:6] == pytest.approx(0.5 + 0.2 * np.log2(wanted[:6] / 4))
    assert np.isnan(found[6:]).all()
    assert np.isnan(measure.read_at(l0[:1], value[:1], wanted)).all()
    assert np.isnan(measure.read_at(l0, np.array([np.nan, 0.5, np.nan]), wanted)).all()


def write_run(folder: Path, s: settings.Settings) -> Experiment:
    """Fidelity tables in which SAEs gain 0.1 of EV a doubling of L0, and crosscoders have more.

    By 0.02 at the last snapshot, 0.03 at seed 3; a tenth of their active features are absent there.
    """
    experiment = Experiment(folder, s)
    for name, (c, _) in crosscoders(s).items():
        own = name.startswith("sae")
        steps = c.inputs.snapshots if own else STEPS
        for seed in c.seeds:
            experiment.path("trained", crosscoder=name, seed=seed).mkdir(parents=True)
            l0 = c.k * 1.02
            gain = 0 if own else 0.02 + 0.01 * (seed == 3)
            table = pd.DataFrame({"step": steps})
            table.insert(0, "snapshot_index", [STEPS.index(step) + 1 for step in steps])
            table["layer"], table["stream"] = 0, "residual"
            table["explained_variance"] = 0.4 + 0.1 * np.log2(l0) + gain - 0.01 * (4 - table.index)
            if own:
                table["explained_variance"] = 0.4 + 0.1 * np.log2(l0)
            table["pca_explained_variance"] = 0.3 if own else 0.2
            table["l0"], table["l0_present"] = l0, l0 * (1 if own else 0.9)
            table["loss"], table["loss_ablated"] = 3.0, np.where(table["step"] < 8, 3.01, 5.0)
            table["loss_recovered"] = np.where(table["step"] < 8, -30, 0.8 + 0.01 * c.k + gain)
            path = experiment.path("fidelity", crosscoder=name, seed=seed)
            table.to_csv(path, index=False)
            dead = np.arange(c.features) < c.features // 4
            density = pd.DataFrame({"feature": range(c.features), "dead": dead})
            density.to_parquet(experiment.path("density", crosscoder=name, seed=seed))
    return experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Experiment:
    experiment = write_run(tmp_path_factory.mktemp("frontier"), load(sae_snapshots=[40, 8]))
    running.call(experiment, registry.stages()["frontier"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "PNG_DPI", 40)
        running.call(experiment, registry.figures()["frontier"])
    return experiment


def test_every_dictionary_seed_and_snapshot_is_a_point(run):
    table = run.table("frontier")
    assert len(table) == 4 * 2 * (len(STEPS) + 2)
    assert dict(table.groupby("kind")["dictionary"].nunique()) == {"crosscoder": 4, "sae": 8}
    one = table.set_index(["dictionary", "seed", "step"]).loc[("sae-8-F32-k6", 3, 8)]
    assert (one["features"], one["sparsity"], one["snapshot_index"]) == (32, 6, 3)
    assert one["l0"] == pytest.approx(6.12)
    assert (table["dead"] == 0.25).all()


def test_crosscoders_are_compared_at_their_own_l0(run):
    found = run.table("frontier_comparison")
    assert len(found) == 4 * 2 * 2 * 2 * 2
    last = found[(found["step"] == 40) & (found["measure"] == "explained_variance")]
    for seed, gain in ((0, 0.02), (3, 0.03)):
        some = last[last["seed"] == seed]
        every, present = (some[some["counted"] == n] for n in ("l0", "l0_present"))
        assert every["difference"].to_numpy() == pytest.approx(gain)
        # at nine tenths of the L0 the SAE would have less; beyond its lowest point, not known
        small = present["l0"] < 2
        assert present.loc[~small, "difference"].to_numpy() == pytest.approx(
            gain - 0.1 * np.log2(0.9)
        )
        assert small.any()
        assert present.loc[small, "sae"].isna().all()
    earlier = found[(found["step"] == 8) & (found["measure"] == "explained_variance")]
    some = earlier[(earlier["seed"] == 0) & (earlier["counted"] == "l0")]
    assert some["difference"].to_numpy() == pytest.approx(0.0)  # 0.02 less two snapshots' 0.01


def test_a_table_that_is_missing_or_of_other_snapshots(run, tmp_path):
    experiment, stage = write_run(tmp_path, run.settings), registry.stages()["frontier"]
    density = experiment.path("density", crosscoder="sae-8-F8-k2", seed=3)
    density.rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"seed3/density\.parquet: missing; make it"):
        running.call(experiment, stage)
    (tmp_path / "kept").rename(density)
    other = experiment.table("fidelity", "sae-40-F8-k2", seed=3)
    path = experiment.path("fidelity", crosscoder="sae-8-F8-k2", seed=3)
    other.to_csv(path, index=False)
    with pytest.raises(
        InputError, match=r"sae-8-F8-k2/seed3/fidelity\.csv: made for other snapshots"
    ):
        running.call(experiment, stage)


def test_the_figures_numbers(run):
    assert run.figure("frontier", "pdf").read_bytes().startswith(b"%PDF")
    assert run.figure("frontier", "png").read_bytes().startswith(b"\x89PNG")
    drawn = pd.read_csv(run.figure("frontier", "csv"))
    assert list(drawn["panel"].drop_duplicates()) == ["40", "8", "mean"]
    points = drawn.set_index(["panel", "measure", "series", "features", "sparsity"]).sort_index()
    base = 0.4 + 0.1 * np.log2(2.04)
    ours = points.loc[("40", "explained_variance", "crosscoder", 32, 2)].squeeze()
    assert ours[["value", "low", "high"]].tolist() == pytest.approx(
        [base + 0.025, base + 0.02, base + 0.03]
    )
    assert (ours["seeds"], ours["l0"], ours["l0_present"]) == (2, 2.04, pytest.approx(1.836))
    theirs = points.loc[("8", "explained_variance", "sae", 32, 2)].squeeze()
    assert theirs[["value", "low", "high"]].tolist() == pytest.approx([base] * 3)
    mean = points.loc[("mean", "explained_variance", "crosscoder", 32, 2)].squeeze()
    assert mean["value"] == pytest.approx(base + 0.025 - 0.02)
    recovered = points.loc[("mean", "loss_recovered", "crosscoder", 8, 6)].squeeze()
    assert recovered["value"] == pytest.approx(0.86 + 0.025)  # without the two early snapshots
    assert "sae" not in set(drawn.loc[drawn["panel"] == "mean", "series"])
    pca = drawn[drawn["series"] == "pca_sae"]
    assert set(pca["panel"]) == {"40", "8"}
    assert set(pca["l0"]) == {2, 6}
    assert (pca["value"] == 0.3).all()


def test_the_axes_hold_all_points_and_little_else(run, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(style, "save", lambda made, table, *_: figures.append((made, table)))
    figure.draw(run.path("frontier"), tmp_path / "x")
    (made, table), *_ = figures
    axes = made.axes
    assert len(axes) == 6
    low, high = axes[0].get_xlim()
    assert 1.6 < low < 2.04 * 0.9
    assert 6.12 < high < 7
    low, high = axes[0].get_ylim()
    most = table.loc[table["measure"] == "explained_variance", "value"].max()
    assert low < 0.2 < most < high < 1
    titles = [a.get_title(loc="left").split("  ")[1] for a in axes]
    assert titles[::2] == ["snapshot 5, step 40", "snapshot 3, step 8", "mean over all snapshots"]


def test_the_figure_with_one_size_one_seed_and_a_missing_column(run, tmp_path, monkeypatch):
    table = run.table("frontier")
    one = table[(table["features"] == 8) & (table["seed"] == 0) & (table["sparsity"] == 2)]
    one = one.assign(loss_recovered=np.nan)
    one.to_csv(tmp_path / "one.csv", index=False)
    monkeypatch.setattr(style, "PNG_DPI", 30)
    figure.draw(tmp_path / "one.csv", tmp_path / "figure")
    drawn = pd.read_csv(tmp_path / "figure.csv")
    assert set(drawn["seeds"].dropna()) == {1}
    table.drop(columns="l0_present").to_csv(tmp_path / "less.csv", index=False)
    with pytest.raises(InputError, match="no column l0_present"):
        figure.draw(tmp_path / "less.csv", tmp_path / "figure")


def test_frontier_trains_its_dictionaries_and_nothing_else_does(new_checkout):
    checkout = new_checkout()
    checkout.configure({"frontier": SECTION | {"sae_snapshots": [40, 2]}})
    asked = checkout.would_run("frontier")
    assert asked["train"] == asked["fidelity"] == 3 * 4 * 2
    assert (asked["basis"], asked["project"], asked["extract"]) == (1, 1, 5)
    assert asked["measure_frontier"] == asked["figure_frontier"] == 1
    assert not set(asked) & {"features", "phases", "summary", "measure_kinds"}
    default = checkout.would_run()
    assert (default["train"], default["fidelity"], default["features"]) == (2, 2, 1)
    assert not set(default) & {"measure_frontier", "figure_frontier"}
    section = SECTION | {"sae_basis": "principal", "seeds": [0]}
    checkout.configure({"frontier": section, "analyses": ["frontier"]})
    both = checkout.would_run()
    assert (both["train"], both["fidelity"]) == (2 + 8, 2 + 8)
    assert (both["basis"], both["project"]) == (2, 2)  # the SAEs' own subspace beside
    assert both["figure_frontier"] == both["summary"] == 1
