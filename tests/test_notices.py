"""What a run says first and last is true of the experiment, and names what there is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import ROOT, tiny

from ontogeny import notices, settings
from ontogeny.cost import bill
from ontogeny.experiment import Experiment


def test_a_new_run_says_what_it_makes_and_how_long_it_takes(tmp_path):
    given = settings.load(tiny({"device": "cpu"}))
    lines = notices.opening(given, tmp_path, 2)
    assert lines[0] == (
        f"{tmp_path}/tiny: 5 snapshots of a model that is trained here, steps 0 to 40; the "
        "crosscoder batchtopk with 64 features"
    )
    assert " minutes on 2 idle cores, and " in lines[1]
    assert lines[-1].endswith(f"{tmp_path}/tiny/figures")


@pytest.mark.parametrize(
    ("file", "least", "most"), [("config.yaml", 15, 22), ("experiments/demo.yaml", 2.2, 4)]
)
def test_the_estimate_is_near_what_a_run_took(tmp_path, file, least, most):
    """The default took 17 to 19 minutes on two cores, the demo three."""
    given = settings.load(ROOT / file).model_copy(update={"device": "cpu"})
    planned = bill.bill(given, tmp_path, notices.rates(0, "CPU"))
    assert least < 60 * notices.hours(planned, 2) < most
    assert notices.hours(planned, 64) < notices.hours(planned, 2)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA Quadro P400", None),
    ],
)
def test_a_gpu_is_found_in_the_table_by_its_drivers_name(driver, name):
    rates = notices.rates(1 << 30, driver)
    assert (rates and rates.name) == name


def test_a_gpu_that_is_not_in_the_table_has_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(notices, "rates", lambda device, name: None)
    lines = notices.opening(settings.load(tiny()), tmp_path, 2)
    assert lines[1].endswith("of disk; `ontogeny plan` estimates the time")


@pytest.mark.slow
def test_a_finished_run_says_what_to_open(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    given = Experiment.open("results/tiny").settings
    lines = notices.closing(given, "results", time.monotonic() - 90)
    assert lines[0] == "results/tiny: finished in 1 min 30 s"
    named = [line.split()[1] for line in lines[1:4]]
    assert named == [
        "results/tiny/atlas/index.html",
        "results/tiny/figures/histories.png",
        "results/tiny/summary.json",
    ]
    assert all(Path(path).is_file() for path in named)
    again = notices.opening(given, "results", 2)
    assert not any("about" in line for line in again)
    assert again[-1].endswith(f"look at meanwhile: {', '.join(named[:2])}")
