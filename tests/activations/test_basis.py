"""A subspace that is too small is told of and refused before anything is made in it."""

import pytest
import yaml
from click.testing import CliRunner
from runs import Run

from ontogeny.activations.basis_file import Kept
from ontogeny.cli import main


def test_nothing_is_projected_or_trained_in_too_small_a_subspace(tmp_path):
    run = Run(tmp_path, {"basis.dimensions": 3, "basis.least_kept": 0.95})
    run.stages("corpus", "pretrain", "extract", "basis")
    sites = run.map.basis_of("topk")
    kept = Kept.read(run.map.path("basis", sites=sites))
    assert kept.dimensions == 3
    assert 0 < kept.least < 0.95
    folder = str(run.map.folder)
    said = (
        f"basis.dimensions: the 3 dimensions keep {kept.least:.3f} of the variance of {kept.worst}"
    )
    for words in (["project", folder, sites, "0"], ["train", folder, "topk", "--seed", "0"]):
        if words[0] == "train":  # the rows of another basis are there
            run.map.path("projected", sites=sites, shard=0).touch()
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 1
        assert said in refused.output
    run.map.path("projected", sites=sites, shard=0).unlink()
    config = run.map.path("config")
    given = yaml.safe_load(config.read_text())
    given["basis"]["least_kept"] = kept.least - 1e-6
    config.write_text(yaml.safe_dump(given))
    run.stages("project", "train")
    assert run.map.path("weights", crosscoder="topk", seed=0).exists()


@pytest.mark.slow
def test_the_summary_says_what_the_subspace_keeps(finished):
    import ontogeny

    experiment = ontogeny.open(finished / "results/tiny")
    kept = Kept.read(experiment.path("basis", sites="residual.0"))
    numbers = experiment.json("summary")
    assert numbers["basis_dimensions"] == kept.dimensions
    assert numbers["basis_kept_least"] == min(numbers["basis_kept"].values()) == kept.least
    assert numbers["basis_kept"][numbers["basis_kept_least_site"]] == kept.least
    assert list(numbers["basis_kept"]) == [f"residual.0/step{step}" for step in experiment.steps]
    assert 0.998 < kept.least <= 1.000001  # 0.001 may be lost
