"""What runs again, and what does not: the real DAG on the tiny experiment."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest
from conftest import RESULTS, WORKFLOW, Checkout

from ontogeny import lineage
from ontogeny.experiment import Experiment
from ontogeny.summary import gather, summarise

pytestmark = pytest.mark.slow

SOURCES = [
    "src/ontogeny/snapshots/pretrain.py",
    "src/ontogeny/activations/extract.py",
    "src/ontogeny/crosscoder/train.py",
    "src/ontogeny/figures/peaks.py",
    "src/ontogeny/figures/style.py",
    "src/ontogeny/files.py",
]
NUMBERS = """
    snapshots pretrain_tokens final_loss unigram_cross_entropy bigram_cross_entropy
    unigram_crossing_step bigram_crossing_step features explained_variance_total_mean
    explained_variance_min l0_mean dead_fraction matched_feature_share pca_explained_variance
    loss_recovered_last turning_point_step turning_point_low turning_point_high
    within_block_cosine between_block_cosine initialisation_features emergent_features
    explained_variance_beyond_mean token_explained_variance pair_explained_variance
    least_median_strength least_median_strength_step median_strength_dip median_strength_dip_step
    transient_features wall_seconds wall_seconds_atlas peak_memory_bytes disk_bytes
""".split()
BEFORE_TRAINING = {
    "fetch",
    "corpus",
    "pretrain",
    "snapshot",
    "extract",
    "stack",
    "token_table",
    "basis",
    "project",
    "phases",
    "losses",
} | {"training_log"}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time stamp and content of all files under a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def figures_among(jobs: Counter[str]) -> set[str]:
    return {rule for rule in jobs if rule.startswith("figure_")}


def test_a_finished_experiment_holds_everything_and_has_nothing_to_do(finished):
    for name in ("summary.json", "provenance.json", "config.yaml", "figures/training.pdf",
                 "atlas/index.html"):  # fmt: skip
        assert (finished / RESULTS / name).stat().st_size > 0
    numbers = json.loads((finished / RESULTS / "summary.json").read_text())
    assert set(NUMBERS) <= set(numbers)
    assert numbers["snapshots"] == 5
    assert numbers["pretrain_tokens"] == 40 * 8 * 64
    assert numbers["living_features"] + 64 * numbers["dead_fraction"] == pytest.approx(64, abs=5)
    assert (
        numbers["initialisation_features"] + numbers["emergent_features"]
        == (numbers["living_features"])
    )
    assert not list((finished / "results").rglob("*.part"))
    assert not list((finished / RESULTS / "state").glob("*"))
    assert finished.would_run() == {}


def test_a_dictionary_without_histories_has_a_summary_too(experiment):
    folder = experiment / RESULTS
    before = json.loads((folder / "summary.json").read_text())
    shutil.rmtree(folder / "features")
    gather(Experiment.open(folder))
    summarise(Experiment.open(folder))
    after = json.loads((folder / "summary.json").read_text())
    missing = {key for key in before if key not in after}
    assert {"turning_point_step", "emergent_features", "matched_feature_share"} <= missing
    assert {key: before[key] for key in after if key != "disk_bytes"} == {
        key: after[key] for key in after if key != "disk_bytes"
    }


def test_touched_sources_run_nothing(experiment):
    for source in [*SOURCES, "Snakefile", "config.yaml", "envs/corpus-requirements.txt"]:
        os.utime(experiment / source)
    assert experiment.would_run() == {}


def test_comments_and_docstrings_run_nothing(experiment):
    for source in SOURCES:
        text = (experiment / source).read_text()
        assert text.startswith('"""')
        text = text.replace('"""', '"""Anew. ', 1).replace(":\n", ":  # as before\n", 1)
        (experiment / source).write_text(text + "\n\n# The end.\n")
    assert experiment.would_run() == {}


def test_a_figures_code_redraws_that_figure(experiment):
    with (experiment / "src/ontogeny/figures/peaks.py").open("a") as source:
        source.write("\nCHANGED = True\n")
    jobs = experiment.would_run()
    del jobs["summary"]
    assert jobs == {"figure_peaks": 1}


def test_a_text_beside_each_figure_says_what_it_found(finished):
    from ontogeny import registry, running

    figures = finished / RESULTS / "figures"
    drawn = sorted(path.stem for path in figures.glob("*.pdf"))
    assert drawn == sorted(path.stem for path in figures.glob("*.txt"))
    for name in drawn:
        text = " ".join((figures / f"{name}.txt").read_text(encoding="utf-8").split())
        declared = registry.figures()[name]
        assert text.endswith(
            " ".join(running.caption(declared).read_text(encoding="utf-8").split())
        )
    peaks = " ".join((figures / "peaks.txt").read_text().split())
    assert peaks.startswith(
        ("More features peak at step", "Features peak at all snapshots about equally often")
    )


def test_the_style_redraws_the_figures_alone(experiment, finished):
    with (experiment / "src/ontogeny/figures/style.py").open("a") as source:
        source.write("\nCHANGED = True\n")
    jobs = experiment.would_run()
    drawn = {path.stem for path in (finished / RESULTS / "figures").glob("*.pdf")}
    assert len(drawn) >= 8
    assert figures_among(jobs) == {f"figure_{name}" for name in drawn}
    # The atlas has the style's colours.
    assert set(jobs) - figures_among(jobs) <= {"summary", "atlas"}


def test_a_stages_code_runs_that_stage_and_what_follows(experiment):
    with (experiment / "src/ontogeny/phases/ngrams.py").open("a") as source:
        source.write("\nCHANGED = True\n")
    jobs = experiment.would_run()
    assert jobs["phases"] == jobs["figure_divergence"] == jobs["figure_training"] == 1
    assert set(jobs) - figures_among(jobs) <= {"phases", "atlas", "numbers", "summary"}


def test_a_crosscoder_setting_runs_from_training_on(experiment):
    experiment.configure({"crosscoders.batchtopk.k": 5})
    jobs = experiment.would_run()
    assert (jobs["train"], jobs["fidelity"], jobs["features"]) == (2, 2, 1)
    assert {"figure_fidelity", "figure_peaks", "summary"} <= set(jobs)
    assert not set(jobs) & BEFORE_TRAINING
    assert not {"figure_training", "figure_divergence"} & set(jobs)


def test_another_scale_stacks_anew_and_extracts_nothing(experiment):
    before = lineage.training(Experiment.open(experiment / RESULTS), "batchtopk")
    experiment.configure({"activations.scale": "mean_norm"})
    jobs = experiment.would_run()
    after_extraction = ["stack", "token_table", "basis", "project"]
    assert [jobs[rule] for rule in (*after_extraction, "train", "features")] == [1, 1, 1, 1, 2, 1]
    assert not set(jobs) & (BEFORE_TRAINING - set(after_extraction))
    experiment.snakemake(f"{RESULTS}/activations/residual.0/stack.h5")
    after = Experiment.open(experiment / RESULTS)
    assert lineage.training(after, "batchtopk") != before
    with h5py.File(after.path("stack", site="residual.0")) as stack:
        for step, scale in zip(stack.attrs["steps"], stack.attrs["scales"], strict=True):
            with h5py.File(after.path("held_out", site="residual.0", step=step)) as file:
                assert scale == pytest.approx(32**0.5 / file.attrs["mean_norm"])


def test_a_token_table_makes_other_rows_and_all_that_follows(experiment):
    experiment.configure({"crosscoders.batchtopk.token_table": True, "analyses": ["tokens"]})
    jobs = experiment.would_run()
    assert (jobs["basis"], jobs["project"], jobs["train"], jobs["fidelity"]) == (1, 1, 2, 2)
    assert not set(jobs) & (BEFORE_TRAINING - {"basis", "project"})
    experiment.snakemake()
    assert experiment.would_run() == {}
    done = Experiment.open(experiment / RESULTS)
    numbers = done.json("summary")
    explained = numbers["token_explained_variance"], numbers["explained_variance_total_mean"]
    assert 0.5 < explained[0] < explained[1] < 1
    assert numbers["explained_variance_beyond_mean"] > 0.2
    assert numbers["token_table_last"] == pytest.approx(
        done.table("fidelity")["token_explained_variance"].iloc[-1]
    )
    assert done.crosscoder().about.token_table
    assert (done.path("atlas") / "index.html").exists()


def test_one_more_seed_trains_that_seed(experiment):
    experiment.configure({"crosscoders.batchtopk.seeds": [0, 1, 2]})
    jobs = experiment.would_run()
    assert (jobs["train"], jobs["fidelity"], jobs["features"]) == (1, 1, 1)
    assert not set(jobs) & BEFORE_TRAINING


def test_another_model_runs_everything_from_pretraining_on(experiment, finished):
    experiment.configure({"snapshots.pretrain.learning_rate": 1e-3})
    jobs = experiment.would_run()
    assert (jobs["pretrain"], jobs["snapshot"], jobs["extract"], jobs["train"]) == (1, 5, 5, 2)
    assert {"training_log", "phases", "stack", "basis", "fidelity"} <= set(jobs)
    assert not {"fetch", "corpus"} & set(jobs)


def test_a_threshold_of_the_tables_runs_the_tables_and_figures(experiment):
    experiment.configure({"analysis.presence": 0.6})
    jobs = experiment.would_run()
    assert jobs["features"] == jobs["summary"] == 1
    others = {"features", "baselines", "measure_dimensionality", "atlas", "numbers", "summary"}
    assert set(jobs) - figures_among(jobs) == others


def test_a_threshold_of_the_kinds_runs_the_kinds_alone(experiment):
    experiment.configure({"kinds.share": 0.3})
    jobs = experiment.would_run()
    assert set(jobs) == {"measure_kinds", "figure_kinds", "atlas", "numbers", "summary"}


def test_an_analysis_left_out_is_a_target_still(experiment):
    experiment.configure({"analyses": ["dimensionality"]})
    assert set(experiment.would_run()) == {"atlas", "numbers", "summary"}
    for made in ("features/batchtopk/kinds.parquet", "figures/kinds.pdf"):
        (experiment / RESULTS / made).unlink()
    assert set(experiment.would_run()) == {"atlas", "numbers", "summary"}
    assert set(experiment.would_run("kinds")) == {"kinds", "measure_kinds", "figure_kinds"}


NAMED = {"figure_ranges", "figure_examples", "figure_abilities", "atlas"}  # what shows names
ANALYSES = {  # a setting of each, and what it runs again
    "kinds": ("kinds.share", 0.3, {"measure_kinds", "figure_kinds", "atlas"}),
    "contexts": ("contexts.top", 3, {"measure_contexts", "measure_names"} | NAMED),
    "names": ("names.agreement", 0.9, {"measure_names"} | NAMED),
    "complexity": (
        "complexity.keep",
        0.8,
        {"measure_span", "measure_complexity", "figure_complexity", "atlas"},
    ),
    "presence": ("presence.absent", 0.2, {"measure_presence", "figure_presence"}),
    "induction": ("induction.least_gain", 0.2, {"measure_induction", "figure_induction"}),
    "circuits": ("circuits.draws", 3, {"measure_ablation", "figure_ablations"}),
}
# What judges kinds is read by the figures and tables that show features by kind.
OF_KINDS = {"measure_induction", "figure_induction", "figure_examples"}
OF_KINDS |= {"measure_names", "figure_ranges", "figure_abilities"}


def test_every_analysis_runs_and_reruns_alone(experiment):
    every = {"analyses": ["dimensionality", *ANALYSES], "circuits.pairs": 16}
    experiment.configure(every)
    before = set(experiment.would_run())
    assert not before & (BEFORE_TRAINING | {"train", "fidelity", "features", "measure_kinds"})
    experiment.snakemake()
    assert experiment.would_run() == {}
    for name, (key, value, wanted) in ANALYSES.items():
        experiment.configure(every | {key: value})
        others = OF_KINDS if name == "kinds" else set()
        assert set(experiment.would_run()) - others == wanted | {"numbers", "summary"}, name
    assert set(experiment.would_run("circuits")) == wanted | {"circuits"}  # the last: a target
    numbers = json.loads((experiment / RESULTS / "summary.json").read_text())
    assert {"kind_current_token", "dimensionality_least"} <= set(numbers)


def test_one_more_snapshot_extracts_one_snapshot(experiment, only_tokens):
    steps = [0, 2, 8, 10, 20, 40]
    kept = [
        f"{folder}/step{s}" for folder in ("snapshots", "activations/residual.0") for s in steps
    ]
    earlier = state(experiment / RESULTS)
    experiment.configure({"snapshots.steps": steps})
    jobs = experiment.would_run()
    assert (jobs["snapshot"], jobs["extract"], jobs["stack"], jobs["train"]) == (1, 1, 1, 2)
    assert not {"fetch", "corpus", "pretrain"} & set(jobs)
    experiment.snakemake(
        f"{RESULTS}/activations/residual.0/stack.h5", f"{RESULTS}/pretrain/log.csv"
    )
    later = state(experiment / RESULTS)
    for name in later:
        if any(name.startswith(k) for k in kept) and "step10" not in name:
            assert later[name] == earlier[name], name

    fresh = only_tokens
    fresh.configure({"snapshots.steps": steps})
    fresh.snakemake(f"{RESULTS}/activations/residual.0/step10.h5", f"{RESULTS}/pretrain/log.csv")
    for name in ("snapshots/step10/model.safetensors", "activations/residual.0/step10.h5"):
        assert (fresh / RESULTS / name).read_bytes() == later[name][1], name
    assert (fresh / RESULTS / "pretrain/log.csv").read_bytes() == later["pretrain/log.csv"][1]


def test_training_rows_can_go_once_projected_and_nothing_misses_them(experiment):
    experiment.configure({"activations.keep": False})
    assert set(experiment.would_run()) == {"summary"}  # which records all settings
    (experiment / RESULTS / "basis/residual.0.rows0.h5").unlink()
    experiment.snakemake(f"{RESULTS}/basis/residual.0.rows0.h5")
    assert not list((experiment / RESULTS).glob("activations/*/*.rows*.h5"))
    assert len(list((experiment / RESULTS).glob("activations/*/step*.h5"))) == 5
    assert not {"extract", "stack", "basis", "project"} & set(experiment.would_run())
    experiment.snakemake(f"{RESULTS}/crosscoders/batchtopk/seed0/fidelity.csv")


def test_another_experiment_beside_it_leaves_the_first_alone(experiment):
    earlier = state(experiment / RESULTS)
    experiment.configure({"name": "other", "corpus.vocabulary": 300}, "other.yaml")
    experiment.snakemake("results/other/corpus/tokens.h5", "--configfile", "other.yaml")
    assert state(experiment / RESULTS) == earlier
    assert experiment.would_run() == {}
    assert (experiment / "results/other/config.yaml").exists()


def test_every_kind_of_dictionary_has_its_place_in_the_workflow(finished):
    def place(streams: list[str], layers: tuple[int, ...] = (0,), **more: object) -> dict:
        return {"layers": list(layers), "streams": streams, **more}

    common = {"features": 64, "steps": 10, "batch_rows": 256, "seeds": [0]}
    common |= {"aux_features": 16, "aux_k": 4, "k": 4}
    finished.configure(
        {
            "activations": place(["residual", "mlp_in", "mlp_out"], (0, 1)),
            "crosscoders.sae": common | {"inputs": place(["residual"], snapshots=[40])},
            "crosscoders.transcoder": common
            | {
                "inputs": place(["mlp_in"], snapshots=[40]),
                "outputs": place(["mlp_out"], snapshots=[40]),
                "basis": "full",
            },
            "crosscoders.cross_layer": common | {"inputs": place(["residual"], (0, 1))},
        },
        "kinds.yaml",
    )
    jobs = finished.would_run("--configfile", "kinds.yaml")
    assert jobs["train"] == jobs["fidelity"] == 2 + 3
    assert jobs["extract"] == 5  # every stream and layer of a snapshot in one pass
    assert jobs["stack"] == jobs["token_table"] == 4  # of six, those that a dictionary reads
    assert jobs["basis"] == 3  # the histories', the SAE's and the cross-layer crosscoder's
    assert jobs["features"] == 1  # histories need several snapshots of one place


def test_lint_is_clean(finished):
    done = finished.command("snakemake", "--lint")
    assert done.returncode == 0, done.stderr
    assert "good condition" in done.stdout + done.stderr


def killed_when(checkout: Checkout, there: Callable[[], object], *words: str) -> None:
    """Run the workflow and kill it, jobs and all, as soon as something is there."""
    run = subprocess.Popen(
        [WORKFLOW[0], *words, *WORKFLOW[1:]],
        cwd=checkout.folder,
        env=checkout.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not there():
            assert run.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def without_rates(path: Path) -> Iterator[dict[str, str]]:
    for row in csv.DictReader(path.read_text().splitlines()):
        del row["rows_per_second"]
        yield row


def test_killed_runs_end_where_an_unbroken_one_ends(finished, only_tokens):
    broken = only_tokens
    broken.edit("src/ontogeny/crosscoder/sizes.py", "SAVE_SECONDS = 60.0", "SAVE_SECONDS = 0.0")
    target = f"{RESULTS}/crosscoders/batchtopk/seed0/metrics.csv"
    here = broken / RESULTS

    killed_when(broken, lambda: list(here.glob("pretrain/archive-*/step8")), target)
    assert not list(here.glob("pretrain/trained-*"))
    assert not list(here.glob("pretrain/archive-*/step40"))

    killed_when(broken, lambda: list(here.glob("activations/residual.0/.*.part")), target)
    assert len(list(here.glob("activations/residual.0/step*.rows0.h5"))) < 5
    drafts = list(here.glob("activations/residual.0/.*.part"))
    assert drafts  # killed in the middle of writing

    killed_when(broken, lambda: list(here.glob("state/*/state.h5")), target)
    assert not list(here.glob("crosscoders/**/crosscoder.safetensors"))

    broken.snakemake(target, f"{RESULTS}/pretrain/log.csv")
    assert not list(here.rglob("*.part"))
    unbroken = finished / RESULTS
    steps = (0, 2, 8, 20, 40)
    names = [f"snapshots/step{s}/model.safetensors" for s in steps]
    names += [f"activations/residual.0/step{s}{end}" for s in steps for end in (".h5", ".rows0.h5")]
    names += ["basis/residual.0.h5", "basis/residual.0.rows0.h5", "pretrain/log.csv"]
    names += [f"crosscoders/batchtopk/seed0/{n}" for n in ("crosscoder.safetensors", "config.json")]
    for name in names:
        assert (here / name).read_bytes() == (unbroken / name).read_bytes(), name
    metrics = "crosscoders/batchtopk/seed0/metrics.csv"
    rows = list(without_rates(here / metrics))
    assert len(rows) == 600 / 50
    assert rows == list(without_rates(unbroken / metrics))


def test_two_runs_of_one_experiment_keep_out_of_each_others_way(experiment):
    experiment.configure({"analysis.presence": 0.6})
    with open(experiment / RESULTS / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a running workflow holds it
        done = experiment.command(*WORKFLOW)
    assert done.returncode == 1
    assert f"{RESULTS}: another run works here; wait for it or end it" in done.stderr
    assert experiment.would_run()["features"] == 1
