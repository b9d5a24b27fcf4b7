"""Every figure's three files, the numbers in its CSV, and what it does with poor tables."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from ontogeny import settings
from ontogeny.activations.basis_file import FORMAT
from ontogeny.analyses.dimensionality import figure as dimensionality
from ontogeny.analyses.kinds import figure as kinds
from ontogeny.analyses.tokens import figure as tokens
from ontogeny.figures import (
    comparison,
    directions,
    divergence,
    fidelity,
    histories,
    lifetimes,
    peaks,
    stability,
    style,
    timeline,
    training,
)
from ontogeny.files import InputError

STEPS = [0, 1, 2, 8, 32, 100]
LEVELS = {
    "unigram_cross_entropy": 5.5,
    "unigram_crossing_step": 4.5,
    "bigram_cross_entropy": 2.0,
    "bigram_crossing_step": None,
}


def features(matching: str) -> pd.DataFrame:
    """Twelve features, the last dead; every class, with its peak at a snapshot of its own."""
    n = 12
    peak = np.array([1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 6, 1])
    alive = np.arange(n) < n - 1
    cosine = np.where(alive, np.linspace(0.3, 0.95, n), np.nan)
    if matching == "none":
        cosine = cosine * 0.5
    if matching == "one seed":
        cosine = np.full(n, np.nan)
    initial = peak <= 2
    return pd.DataFrame(
        {
            "feature": np.arange(n),
            "alive": alive,
            "density": np.linspace(0, 0.02, n),
            "peak_snapshot_index": peak,
            "peak_step": np.array(STEPS)[peak - 1],
            "onset_step": np.where(initial, 0.0, np.array(STEPS)[peak - 1] * 0.7),
            "lifetime": np.linspace(0.2, 1, n),
            "initialisation": initial & alive,
            "emergent": ~initial & alive,
            "transient": np.isin(np.arange(n), [1, 4, 5]),
            "matched_cosine": cosine,
            "matched": np.nan_to_num(cosine) >= 0.7,
        }
    )


def write_tables(folder, matching: str = "some"):
    """The tables of a small run, as the stages write them; returns each figure's arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    numbers = np.arange(1, len(STEPS) + 1)
    table = features(matching)
    table.to_parquet(folder / "features.parquet")

    apart = np.abs(numbers[None] - table["peak_snapshot_index"].to_numpy()[:, None])
    strengths = pd.DataFrame(
        {
            "feature": np.repeat(table["feature"], len(STEPS)),
            "snapshot_index": np.tile(numbers, len(table)),
            "step": np.tile(STEPS, len(table)),
            "normalised_strength": (0.6**apart).ravel(),
        }
    )
    strengths.to_parquet(folder / "strengths.parquet")

    measured = np.isin(np.arange(0, 101), STEPS)
    log = pd.DataFrame({"step": np.arange(0, 101)})
    log["learning_rate"] = 1e-3
    log["loss"] = np.where(log["step"] > 0, 7 * 0.98 ** log["step"], np.nan)
    for i, name in enumerate(["held_out_loss", "copying_gain", "copying_gain_near", "random_gain"]):
        log[name] = np.where(measured, 6.0 / (i + 1), np.nan)
    log.to_csv(folder / "log.csv", index=False)

    phases = pd.DataFrame({"snapshot_index": numbers, "step": STEPS})
    phases["kl_unigram"], phases["kl_bigram"] = numbers / 3, 3 / numbers
    phases["loss"] = 3.0
    phases.to_csv(folder / "phases.csv", index=False)
    (folder / "levels.json").write_text(json.dumps(LEVELS))

    for seed in (0, 1, 2):
        site = pd.DataFrame({"snapshot_index": numbers, "step": STEPS, "layer": 0})
        site["stream"] = "residual"
        site["explained_variance"] = 0.9 - 0.1 * seed
        site["pca_explained_variance"] = 0.5
        site["token_explained_variance"], site["pair_explained_variance"] = 0.8, 0.85
        site["l0"], site["l0_present"] = 8.0, 7.0
        site["loss"] = 3.0
        site["loss_ablated"] = 3.0 + np.array([0, 0.01, 0.04, 1, 2, 3])
        site["loss_recovered"] = [-np.inf, -40, 0.97, 0.8, 0.9, 0.95]
        site["loss_recovered_low"] = site["loss_recovered"] - 0.02
        site["loss_recovered_high"] = site["loss_recovered"] + 0.01
        site.to_csv(folder / f"fidelity{seed}.csv", index=False)

    with h5py.File(folder / "basis.h5", "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["sites"] = [f"residual.0/step{step}" for step in STEPS]
        file["basis"], file["kept"] = np.eye(24, 4), np.linspace(0.9, 1, 6)

    living = table[table["alive"]]
    matches = pd.DataFrame(
        {
            "seed": 0,
            "other_seed": 1,
            "feature": living["feature"],
            "partner": np.where(living["feature"] == 0, -1, living["feature"]),
            "cosine": living["matched_cosine"].where(living["feature"] != 0),
            "density": living["density"],
            "peak_snapshot_index": living["peak_snapshot_index"],
            "partner_peak_index": np.r_[living["peak_snapshot_index"][:-1], 1],
        }
    )
    if matching == "one seed":
        matches = matches.iloc[:0]
    matches.to_csv(folder / "matches.csv", index=False)
    token_cosine = np.linspace(0.2, 0.9, len(living))
    baselines = {"token_cosine": token_cosine, "token_matched_cosine": token_cosine - 0.05}
    baselines = pd.DataFrame({"feature": living["feature"], **baselines, "row_matched_cosine": 0.4})
    baselines.to_parquet(folder / "baselines.parquet")

    sweep = pd.DataFrame({"presence": [0.3, 0.5, 0.7]})
    sweep["initialisation"], sweep["emergent"], sweep["transient"] = [4, 3, 2], [7, 8, 9], [1, 3, 5]
    sweep.to_csv(folder / "classes.csv", index=False)

    groups = ["all", "matched"] if matching == "some" else ["all"]
    i, j = (x.ravel() for x in np.indices((len(STEPS), len(STEPS))))
    cosine = np.where((i < 3) == (j < 3), 0.9, 0.1) - 0.01 * rng.random(len(i))
    cosine[(i == 0) & (j == 5) | (i == 5) & (j == 0)] = np.nan
    square = pd.DataFrame(
        {
            "snapshot_index": numbers[i],
            "other_index": numbers[j],
            "step": np.array(STEPS)[i],
            "other_step": np.array(STEPS)[j],
            "cosine": cosine,
        }
    )
    pd.concat([square.assign(group=g) for g in groups]).to_csv(
        folder / "directions.csv", index=False
    )
    about = {"features": 11, "step": 4.2, "low": 1.0, "high": 8.0}
    about |= {"snapshot_before": 2.0, "snapshot_after": 8.0, "within": 0.9, "between": 0.1}
    (folder / "turning_point.json").write_text(json.dumps(dict.fromkeys(groups, about)))

    of_class = {"all": 11, "initialisation": 3, "emergent": 5, "transient": 3}
    counts = {(seed, group): n for seed in (0, 1) for group, n in of_class.items()}
    counts[0, "matched"] = 4 if matching == "some" else 0
    size = pd.DataFrame(
        [
            {"seed": seed, "group": g, "features": n, "snapshot_index": i, "step": step}
            for (seed, g), n in counts.items()
            for i, step in enumerate(STEPS, 1)
        ]
    )
    apart = [step == STEPS[2] for step in STEPS]
    pd.DataFrame({"step": STEPS, "loss": 3.0, "out_of_place": apart}).to_csv(
        folder / "losses.csv", index=False
    )
    ends = pd.DataFrame({"feature": living["feature"], "first_step": 0, "last_step": 128})
    ends["relative_norm"] = np.linspace(0, 1, len(living))
    ends["group"] = ["only_first", *["between"] * 3, *["shared"] * 3, *["between"] * 3, "only_last"]
    ends = ends.assign(cosine=0.5, matched=living["matched"].to_numpy(), density=0.1)
    ends.to_parquet(folder / "comparison.parquet")

    size["total"] = size["features"] * 0.5
    size["share"], size["mean"] = size["total"] / 16, size["total"] / size["features"]
    if matching == "one seed":
        size = size[size["seed"] == 0]
    size.to_csv(folder / "dimensionality.csv", index=False)

    means = {"layer": 0, "stream": "residual", "snapshot_index": numbers, "step": STEPS}
    means |= dict.fromkeys(("explained", "explained_by_pairs", "cosine_last", "distinct"), 0.8)
    pd.DataFrame(means | {"norm": 2.0, "left_norm": 1.0}).to_csv(
        folder / "token_means.csv", index=False
    )

    of_kind = ["current_token"] * 3 + ["previous_token"] * 3 + ["context"] * 2 + ["position"]
    losses = {f"{name}_loss": np.linspace(-1, 1, 9) for name in ("previous_token", "context")}
    losses |= {"induction_loss": [np.nan] * 8 + [0.9], "induction_control": [np.nan] * 8 + [0.05]}
    pd.DataFrame({"feature": living["feature"][:9], "kind": of_kind} | losses).to_parquet(
        folder / "kinds.parquet"
    )
    names = ["current_token", "previous_token", "induction", "context", "position", "none"]
    pd.DataFrame(
        {"kind": names, "rule": [4, 2, 0, 2, 1, 0], "permuted": [0, 0, 0, 1, 0, 8]}
    ).to_csv(folder / "control.csv", index=False)

    f, s = folder / "features.parquet", folder / "strengths.parquet"
    seeds = [0] if matching == "one seed" else [0, 1]
    return {
        training: (
            folder / "log.csv",
            folder / "phases.csv",
            folder / "levels.json",
            folder / "losses.csv",
        ),
        divergence: (folder / "phases.csv", folder / "levels.json"),
        fidelity: (
            [folder / f"fidelity{seed}.csv" for seed in seeds],
            seeds,
            [] if matching == "one seed" else [folder / "fidelity2.csv"],
            None if matching == "one seed" else folder / "basis.h5",
            True,
        ),
        histories: (f, s),
        peaks: (f, s),
        lifetimes: (f, folder / "classes.csv"),
        directions: (f, folder / "directions.csv", folder / "turning_point.json"),
        comparison: (f, folder / "comparison.parquet"),
        dimensionality: (f, folder / "dimensionality.csv"),
        kinds: (settings.load(tiny()), f, s, folder / "kinds.parquet", folder / "control.csv"),
        stability: (
            settings.load(tiny()),
            folder / "matches.csv",
            s,
            folder / "baselines.parquet",
        ),
        tokens: (settings.load(tiny()), folder / "token_means.csv"),
    }


FIGURES = [training, divergence, fidelity, histories, peaks, lifetimes, directions]
FIGURES += [comparison, dimensionality, kinds, stability, tokens]
OF_FEATURES = [histories, peaks, lifetimes, directions, comparison, dimensionality, kinds]
OF_FEATURES += [stability]


def name_of(figure) -> str:
    """Of the module, or of the folder of an analysis."""
    return figure.__name__.removesuffix(".figure").rsplit(".", 1)[1]


def draw_all(folder) -> None:
    """Coarse in PNG: its pixels take the longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "PNG_DPI", 40)
        for figure, arguments in write_tables(folder / "tables").items():
            figure.draw(*arguments, folder / name_of(figure))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Every figure of one run; the folder with the files, and that with the tables."""
    folder = tmp_path_factory.mktemp("figures")
    draw_all(folder)
    return folder


def csv(drawn, figure) -> pd.DataFrame:
    return pd.read_csv(drawn / f"{name_of(figure)}.csv")


@pytest.mark.parametrize("figure", FIGURES, ids=name_of)
def test_three_files_appear(drawn, figure):
    stem = drawn / name_of(figure)
    assert stem.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(csv(drawn, figure)) > 0
    assert not list(drawn.glob(".*.part"))


def test_training_numbers(drawn):
    table = csv(drawn, training).set_index(["panel", "series"])
    assert len(table.loc[("loss", "loss")]) == 100
    assert list(table.loc[("loss", "held_out_loss"), "step"]) == STEPS
    assert (table.loc[("gain", "copying_gain"), "value"] == 3).all()
    assert table.loc[("crossing", "unigram"), "step"].item() == 4.5
    assert np.isnan(table.loc[("crossing", "bigram"), "step"].item())


def test_divergence_numbers(drawn):
    table = csv(drawn, divergence).set_index("series")
    assert list(table.loc["kl_bigram", "value"]) == [3 / k for k in range(1, 7)]
    assert table.loc["unigram_crossing", "step"] == 4.5


def test_fidelity_tells_meaningless_ratios(drawn):
    table = csv(drawn, fidelity)
    recovered = table[
        (table["series"] == "crosscoder, seed 1") & table["measure"].eq("loss_recovered")
    ]
    assert list(recovered["meaningful"]) == [False] * 3 + [True] * 3
    assert list(recovered["high"])[3:] == pytest.approx([0.81, 0.91, 0.96])
    assert list(recovered["low"])[3:] == pytest.approx([0.78, 0.88, 0.93])
    variance = table[table["measure"] == "explained_variance"].groupby("series")["value"].mean()
    assert variance["random directions"] == pytest.approx(0.7)
    assert variance["PCA, as many coefficients"] == 0.5
    assert variance["token table"] == pytest.approx(0.8)
    assert variance["token pair table"] == pytest.approx(0.85)
    inside = table.loc[table["series"] == "principal subspace", "value"]
    assert list(inside) == pytest.approx(1 - 0.2 * (1 - np.linspace(0.9, 1, 6)))


def test_histories_rows_and_examples(drawn):
    table = csv(drawn, histories)
    rows = table.drop_duplicates("row")
    assert list(rows["feature"]) == [1, 0, 2, 4, 3, 6, 5, 7, 10, 9, 8]
    assert rows.set_index("feature").loc[9, "matched"]
    assert (table.groupby("row")["normalised_strength"].max() == 1).all()
    kept = set(rows.loc[rows["example"] == "emergent", "feature"])
    assert kept == {7, 8, 9, 10}  # matched, and active often enough
    # no transient feature is matched: unmatched ones stand in
    assert set(rows.loc[rows["example"] == "transient", "feature"]) == {1, 4, 5}


def test_peaks_numbers(drawn):
    table = csv(drawn, peaks)
    assert list(table["step"]) == STEPS
    assert list(table["matched"]) == [0, 0, 0, 0, 1, 3]
    assert list(table["unmatched"]) == [2, 1, 2, 2, 0, 0]


def test_lifetimes_numbers(drawn):
    table = csv(drawn, lifetimes)
    counts = table[table["panel"] == "lifetime"].groupby(["group", "class"])["value"].sum()
    assert counts[:, "transient"].sum() == 3
    assert counts["matched", "emergent"] == 4
    for kind in style.KINDS:  # every onset is in a bin, the last one's edge included
        binned = table[table["panel"] == f"onset_{kind}"].groupby("group")["value"].sum()
        assert dict(binned) == {"matched": 4, "unmatched": 4}
    sweep = table[(table["panel"] == "sweep") & (table["class"] == "transient")]
    assert list(sweep["value"]) == [1, 3, 5]


def test_directions_numbers(drawn):
    table = csv(drawn, directions)
    pd.testing.assert_frame_equal(
        table, pd.read_csv(drawn / "tables" / "directions.csv")[list(table.columns)]
    )
    assert table["cosine"].isna().sum() == 4


def test_dimensionality_numbers(drawn):
    table = csv(drawn, dimensionality)
    share = table[table["panel"] == "share"].groupby(["seed", "group"])["value"].mean()
    assert share[0, "all"] == share[1, "all"] == pytest.approx(11 * 0.5 / 16)
    assert share[0, "matched"] == pytest.approx(4 * 0.5 / 16)
    assert set(table.loc[table["panel"] == "mean", "group"]) == {
        "initialisation", "emergent", "transient",
    }  # fmt: skip


def test_kinds_numbers(drawn):
    table = csv(drawn, kinds)
    counts = table[table["panel"] == "count"].pivot(index="kind", columns="group", values="value")
    assert counts["all"].to_dict() == {
        "current_token": 3, "previous_token": 3, "induction": 0, "context": 2, "position": 1,
        "none": 2,
    }  # fmt: skip
    assert counts.loc["context", "permuted"] == 1
    assert counts.loc["current_token", "rule"] == 4
    lost = table[table["panel"] == "context"].set_index("feature")
    assert (lost["value"] == lost["against"]).all()
    assert len(lost) == 9
    (induction,) = table[table["panel"] == "induction"].to_dict("records")
    assert (induction["kind"], induction["value"], induction["against"]) == ("position", 0.9, 0.05)
    strength = table[table["panel"] == "strength"]
    assert set(strength["kind"]) == {"current_token", "previous_token", "context", "position"}
    assert set(strength["group"]) == {"matched", "unmatched"}
    assert (strength["low"] <= strength["high"]).all()
    onset = table[table["panel"] == "onset"]
    assert (onset.groupby(["kind", "group"])["value"].max() == 1).all()


def test_stability_numbers(drawn):
    table = csv(drawn, stability)
    assert 0 not in set(table["feature"])  # it has no partner
    assert table["matched"].sum() == 4
    assert table["among_most_frequent"].all()
    assert (table["row_matched_cosine"] == 0.4).all()


def test_every_figure_of_features_names_the_matched_share(drawn, tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr(
        style,
        "save",
        lambda figure, *_: texts.append(
            " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))
        ),
    )
    arguments = write_tables(tmp_path)
    for figure in OF_FEATURES:
        figure.draw(*arguments[figure], tmp_path / "x")
    shares = ["36%"] * 7 + ["40%"]  # stability leaves out the one without partner
    for figure, share, text in zip(OF_FEATURES, shares, texts, strict=True):
        assert share in text, name_of(figure)


@pytest.mark.parametrize("matching", ["none", "one seed"])
def test_without_matched_features(tmp_path, matching, monkeypatch):
    tables = []

    def render(figure, table, _, finding):
        finding(table)
        figure.set_layout_engine("none")
        figure.savefig(tmp_path / "x.png", dpi=30)
        tables.append(table)

    monkeypatch.setattr(style, "save", render)
    arguments = write_tables(tmp_path, matching)
    for figure in [fidelity, *OF_FEATURES]:
        figure.draw(*arguments[figure], tmp_path / "x")
    assert tables[1 + OF_FEATURES.index(peaks)]["matched"].sum() == 0
    assert not tables[1 + OF_FEATURES.index(stability)]["matched"].any()
    groups = {"living", "all"} if matching == "one seed" else {"matched", "unmatched", "all"}
    assert set(tables[1 + OF_FEATURES.index(lifetimes)]["group"]) == groups


def test_same_bytes_again(drawn, tmp_path):
    """In a process of its own, with other hashes."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_figures as t\n"
        "t.draw_all(pathlib.Path(sys.argv[2]))\n"
    )
    here = os.path.dirname(__file__)
    paths = [here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path)],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(paths)},
    )
    for figure in FIGURES:
        for ending in ("pdf", "png", "csv"):
            file = f"{name_of(figure)}.{ending}"
            assert (tmp_path / file).read_bytes() == (drawn / file).read_bytes(), file


@pytest.mark.parametrize(
    ("figure", "file", "column"),
    [
        (training, "log.csv", "copying_gain"),
        (divergence, "phases.csv", "kl_bigram"),
        (fidelity, "fidelity0.csv", "l0_present"),
        (histories, "features.parquet", "onset_step"),
        (peaks, "features.parquet", "peak_snapshot_index"),
        (lifetimes, "classes.csv", "presence"),
        (directions, "directions.csv", "cosine"),
        (comparison, "comparison.parquet", "cosine"),
        (dimensionality, "dimensionality.csv", "share"),
        (kinds, "control.csv", "permuted"),
        (stability, "matches.csv", "partner"),
        (tokens, "token_means.csv", "distinct"),
    ],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_missing_column(tmp_path, figure, file, column):
    arguments = write_tables(tmp_path)
    path = tmp_path / file
    if file.endswith(".parquet"):
        pd.read_parquet(path).drop(columns=column).to_parquet(path)
    else:
        pd.read_csv(path).drop(columns=column).to_csv(path, index=False)
    with pytest.raises(InputError, match=rf"{file}: no column {column};"):
        figure.draw(*arguments[figure], tmp_path / "x")


def test_missing_key(tmp_path):
    arguments = write_tables(tmp_path)
    (tmp_path / "levels.json").write_text("{}")
    with pytest.raises(InputError, match=r"levels\.json: no key unigram_crossing_step"):
        divergence.draw(*arguments[divergence], tmp_path / "x")


def test_no_living_feature(tmp_path):
    arguments = write_tables(tmp_path)
    table = pd.read_parquet(tmp_path / "features.parquet").assign(alive=False)
    table.to_parquet(tmp_path / "features.parquet")
    with pytest.raises(InputError, match="no living feature"):
        peaks.draw(*arguments[peaks], tmp_path / "x")


def test_step_axis_shows_step_zero():
    with style.paper():
        axis = style.new_figure(80, 60).subplots()
        style.step_axis(axis, 1500, "log")
        ticks = list(axis.get_xticks())
        labels = [axis.xaxis.get_major_formatter()(t) for t in ticks]
    assert ticks == [0, 1, 10, 100, 1000]
    assert labels == ["0", "1", "10", "100", "1000"]
    assert axis.get_xlim()[0] < 0


def test_failed_save_leaves_nothing(tmp_path):
    with style.paper():
        figure = style.new_figure(40, 40)
        figure.subplots().set_title(r"$\broken{$")
        with pytest.raises(ValueError, match="broken"):
            style.save(figure, pd.DataFrame({"x": [1]}), tmp_path / "x")
    assert not list(tmp_path.glob("*.p*"))


def finished_jobs(folder, jobs):
    """Benchmark files of jobs (name, start, seconds), as old as if written at the jobs' ends."""
    for name, start, seconds in jobs:
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\tmax_rss\tcpu_time\n{seconds}\t100\t{'NA' if seconds < 1 else 9}\n")
        os.utime(path, (1e9 + start + seconds,) * 2)
    return folder


def test_a_timeline_has_each_job_where_it_worked(tmp_path):
    made = [("corpus", 100, 20), ("pretrain/8", 120, 60), ("extract/0", 130, 30),
            ("extract/2", 150, 40), ("measure_kinds/b", 5000, 0.5)]  # fmt: skip
    folder = finished_jobs(tmp_path / "benchmarks", made)
    text = timeline.draw(folder, tmp_path / "timeline")
    table = pd.read_csv(tmp_path / "timeline.csv")
    assert list(table["stage"] + "/" + table["job"].fillna("")) == [
        "corpus/", "pretrain/8", "extract/0", "extract/2", "measure_kinds/b",
    ]  # fmt: skip
    # The last job came with a second run, 4,810 s after the first had ended at 190.
    assert list(table["start"]) == pytest.approx([0, 20, 30, 50, 150], abs=1e-3)
    parts = ["data", "snapshots", "activations", "activations", "analyses"]
    assert list(table["part"]) == parts
    assert list(timeline.lanes(table[table["stage"] == "extract"])) == [0, 1]
    assert np.isnan(table["cpu_seconds"].iloc[-1])
    spans = timeline.at_work(table)
    expected = {0: 60, 1: 20 + 10 + 10 + 0.5, 2: 20 + 20, 3: 10}
    assert spans == pytest.approx(expected, abs=1e-3)
    assert text == "5 jobs in 2.5 min; for 0.7 min only one job was running; extract took longest"
    for ending in ("pdf", "png"):
        assert (tmp_path / f"timeline.{ending}").stat().st_size > 5000
    with pytest.raises(InputError, match="no benchmark files; run the experiment first"):
        timeline.draw(tmp_path / "nowhere", tmp_path / "timeline")
