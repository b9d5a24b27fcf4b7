"""The map of an experiment, as rules, commands and notebooks use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import RESULTS, ROOT, tiny

import ontogeny
from ontogeny import registry, settings
from ontogeny.analyses.frontier.settings import Frontier
from ontogeny.experiment import Experiment
from ontogeny.files import InputError

FRONTIER = {"features": [16], "k": [2], "steps": 10}


def mapped(changes: dict | None = None) -> Experiment:
    return Experiment("results/tiny", settings.load(tiny(changes)))


def test_paths_are_of_the_primary_crosscoder_and_its_first_seed_unless_said():
    experiment = mapped({"crosscoders.batchtopk.seeds": [3, 1]})
    assert str(experiment.path("weights")).endswith("batchtopk/seed3/crosscoder.safetensors")
    assert "seed1/" in str(experiment.path("weights", seed=1))
    assert experiment.pattern("features") == "results/tiny/features/{crosscoder}/features.parquet"
    assert [p.parent.name for p in experiment.seeds_of("fidelity", "batchtopk")] == [
        "seed3",
        "seed1",
    ]
    with pytest.raises(InputError, match=r"nothing: no product"):
        experiment.path("nothing")
    with pytest.raises(InputError, match=r"feature: .* similar ones are features"):
        experiment.table("feature")


def test_no_two_products_share_a_path():
    paths = [product.path for product in registry.products().values()]
    assert len(set(paths)) == len(paths)


def test_what_an_experiment_has_follows_its_settings():
    experiment = mapped()
    assert list(experiment.analyses()) == ["dimensionality", "kinds"]
    assert experiment.has("kinds")
    assert not experiment.has("contexts")
    assert experiment.has("contexts", reader="contexts")
    assert not experiment.has("grades", reader="complexity")
    grader = {"url": "http://localhost/v1", "model": "judge"}
    graded = mapped({"analyses": ["complexity"], "complexity.grader": grader})
    assert graded.has("grades")
    assert {"training", "peaks", "kinds"} <= set(experiment.figures())
    assert "examples" not in experiment.figures()

    # Directions turn between two blocks of two; two snapshots have no history, and are compared.
    three, two = mapped({"snapshots.steps": [0, 20, 40]}), mapped({"snapshots.steps": [0, 40]})
    assert {"histories", "comparison"} <= set(three.figures())
    assert {"directions", "comparison"} & set(experiment.figures()) == {"directions"}
    expected = ["training", "divergence", "fidelity", "stability", "comparison", "dimensionality"]
    assert two.figures() == [*expected, "kinds"]
    assert "stability" not in mapped({"crosscoders.batchtopk.seeds": [0]}).figures()

    one = mapped({"snapshots.steps": [40]})
    assert one.with_histories == []
    assert list(one.analyses()) == []
    assert one.figures() == ["training", "divergence", "fidelity"]
    assert not one.has("features")
    assert one.has("phases")

    asked = mapped({"frontier": FRONTIER})
    assert set(asked.settings.all_crosscoders) > {"batchtopk", "frontier-F16-k2"}
    assert set(asked.settings.crosscoders_to_train) == {"batchtopk"}
    with pytest.raises(LookupError, match="frontier: not given"):
        experiment.settings.section(Frontier)


def test_opening_imports_neither_torch_nor_snakemake(tmp_path):
    (tmp_path / "config.yaml").write_text((ROOT / "tests/tiny.yaml").read_text())
    code = (
        "import sys, ontogeny; ontogeny.open(sys.argv[1]).path('features');"
        "print({'torch', 'snakemake', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_folder_without_an_experiment_is_told_so(tmp_path):
    with pytest.raises(InputError, match=r"not the folder of an experiment; name its folder$"):
        ontogeny.open(tmp_path / "none")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/config.yaml").write_text("[]")
    with pytest.raises(
        InputError, match=r"none: not the folder of an experiment; .* there are there$"
    ):
        ontogeny.open(tmp_path / "none")
    with pytest.raises(InputError, match=rf"name its folder; in {tmp_path} there are there$"):
        ontogeny.open(tmp_path)  # the folder of all results
    with pytest.raises(InputError, match=r"config\.yaml: .*run the experiment again"):
        ontogeny.open(tmp_path / "there")


@pytest.mark.slow
def test_a_finished_experiment_reads_as_tables(finished):
    experiment = ontogeny.open(finished / RESULTS)
    features = experiment.table("features")
    assert len(features) == 64
    strengths = experiment.table("strengths")
    number = strengths["step"].map({step: i + 1 for i, step in enumerate(experiment.steps)})
    assert (number == strengths["snapshot_index"]).all()
    first, second = experiment.crosscoder(), experiment.crosscoder(seed=1)
    assert (first.about.seed, second.about.seed) == (0, 1)
    norms = strengths.pivot(index="feature", columns="step", values="strength").to_numpy()
    np.testing.assert_allclose(first.strength.numpy(), norms, rtol=1e-5)
    assert experiment.tokens().context == 64
    assert experiment.json("levels")["unigram_cross_entropy"] > 0
    with pytest.raises(InputError, match=r"no crosscoder; there are batchtopk/seed0, .*seed1$"):
        experiment.crosscoder("other")
    with pytest.raises(InputError, match="not made yet; run the experiment"):
        experiment.table("span")
    assert Path(experiment.path("summary")) in set(experiment.files())


@pytest.mark.slow
def test_every_column_of_every_table_is_documented(finished):
    experiment = ontogeny.open(finished / RESULTS)
    seen = set()
    for name, product in registry.products().items():
        if not product.path.endswith((".csv", ".parquet")) or not experiment.path(name).exists():
            continue
        documented = experiment.columns(name)
        assert list(documented) == list(experiment.table(name).columns)
        assert all(documented.values()), (name, documented)
        assert isinstance(experiment.table(name), pd.DataFrame)
        seen.add(name)
    assert {"features", "fidelity", "metrics", "phases", "kinds", "kinds_control"} <= seen
