"""A run that is interrupted, copied, or started from elsewhere, as the workflow has it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import RESULTS, ROOT, WORKFLOW, Checkout, tiny

pytestmark = pytest.mark.slow
TARGET = f"{RESULTS}/crosscoders/batchtopk/seed0/crosscoder.safetensors"


def begun(checkout: Checkout, mark: Path) -> subprocess.Popen[str]:
    """A run that has come as far as the mark."""
    run = subprocess.Popen(
        [WORKFLOW[0], TARGET, *WORKFLOW[1:]],
        cwd=checkout.folder,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not mark.exists():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.01)
    return run


def test_an_interrupted_run_ends_in_seconds_and_goes_on(only_tokens, finished):
    here = only_tokens / RESULTS
    for number, mark in (
        (signal.SIGTERM, here / "logs/pretrain/40.log"),
        (signal.SIGINT, here / "logs/extract/40.log"),
        (signal.SIGTERM, here / "logs/train/batchtopk-0.log"),
    ):
        run = begun(only_tokens, mark)
        since = time.monotonic()
        run.send_signal(number)
        said = run.communicate(timeout=30)[0]
        assert time.monotonic() - since < 10
        assert run.returncode == 128 + number
        assert said.splitlines()[-1].startswith("Interrupted. Finished work is kept; the same comm")
        assert "Traceback" not in said
        assert "Error" not in said
        assert not list(here.rglob("*.part"))
        assert not (only_tokens / TARGET).exists()
        assert only_tokens.command("ontogeny", "verify", RESULTS).returncode == 0
        mark.unlink()
    only_tokens.snakemake(TARGET)
    assert (only_tokens / TARGET).read_bytes() == (finished / TARGET).read_bytes()


def test_a_copy_without_times_is_told_and_touched(finished, tmp_path):
    copy = Checkout(tmp_path / "copy")
    subprocess.run(["cp", "-r", finished.folder, copy.folder], check=True)
    shutil.rmtree(copy / ".snakemake")
    told = "copied without the times of its files, so everything would run again"
    assert told in copy.snakemake("--dry-run")
    refused = copy.command(*WORKFLOW)
    assert refused.returncode == 1
    assert told in refused.stderr
    copy.snakemake("--touch", "--configfile", f"{RESULTS}/config.yaml")
    assert copy.would_run() == {}
    assert copy.command("ontogeny", "verify", RESULTS).returncode == 0


def test_the_workflow_runs_from_a_folder_without_a_checkout(tmp_path):
    elsewhere = Checkout(tmp_path)
    elsewhere.environment["PYTHONPATH"] = str(ROOT / "src")
    (tmp_path / "text.txt").write_text("some words of text\n" * 2000)
    given = tiny({"corpus": {"files": {"paths": ["text.txt"]}, "context": 16, "train_blocks": 64}})
    given["corpus"] |= {"held_out_blocks": 8, "pretrain_blocks": 16, "vocabulary": 270}
    given["replicates"] = {"seed1": {"snapshots.pretrain.seed": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(given))
    words = ("--snakefile", str(ROOT / "Snakefile"))
    said = elsewhere.snakemake(*words, "--dry-run", "--configfile", "mine.yaml")
    assert "pretrain" in said
    elsewhere.snakemake(*words, f"{RESULTS}/corpus/tokens.h5", "--configfile", "mine.yaml")
    assert (tmp_path / RESULTS / "corpus/tokens.h5").exists()
    # Without a configuration it is the default experiment, whose text is pinned in the checkout.
    assert elsewhere.would_run(*words)["fetch"] == 1
