"""The GPU check: what it finds on a CPU, and what it says where there is no GPU."""

import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu_check
from ontogeny.cost import machines
from ontogeny.files import InputError


def test_its_checks_hold_on_a_cpu(tmp_path):
    output = tmp_path / "found.json"
    done = CliRunner().invoke(gpu_check.main, ["--cpu", "--output", str(output)])
    assert done.exit_code == 0, done.output
    found = json.loads(output.read_text())
    assert all(found["checks"].values())
    for kind in gpu_check.KINDS:
        assert f"reference: {kind}, hybrid, in float64" in found["checks"]
    assert "one graph: batch_topk per snapshot, hybrid" in found["checks"]
    rates = machines.table(str(output))  # a machine file of `ontogeny plan`
    assert (rates.name, rates.memory) == ("CPU", 0)
    assert 1e9 < rates.products32 < 1e13
    assert rates.how.startswith("measured (found.json): forward ")
    del found["rates"]["forward"]
    output.write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"^--device: .*found\.json has no rates of this version"):
        machines.table(str(output))
    with pytest.raises(InputError, match=r"^--device: nowhere\.json: No such file"):
        machines.table("nowhere.json")


def test_a_wrong_gradient_is_found(tmp_path, monkeypatch):
    right = gpu_check.reference.step

    def wrong(*arguments, **options):
        loss, gradients = right(*arguments, **options)
        return loss, gradients | {"W_dec": 1.01 * gradients["W_dec"]}

    monkeypatch.setattr(gpu_check.reference, "step", wrong)
    distance = gpu_check.gap("jumprelu", "hybrid", torch.float64, False, torch.device("cpu"), False)
    assert distance == pytest.approx(0.01, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = CliRunner().invoke(gpu_check.main, [])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "there is no CUDA GPU here" in done.output
