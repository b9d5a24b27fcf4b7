"""What a job requests from a cluster: memory, minutes and GPUs, by rule, from the bill.

Memory and work are those of the largest job of a stage, with the headroom that devices.yaml states
under `cluster`; minutes come from the rates of the device named there. A resubmission requests more
of both, since the reason why the last attempt ended is unknown. Nothing here imports torch, because
every job on a cluster reads the rules again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ontogeny import registry, streams
from ontogeny.cost import bill, machines
from ontogeny.cost.machines import Machine, Rates
from ontogeny.cost.terms import Job
from ontogeny.experiment import Experiment
from ontogeny.files import InputError
from ontogeny.settings import Settings

# Rules whose stage has another name; training_log trains the snapshots that the archive lacks.
STAGES = {"training_log": "pretrain", "extract_shard": "extract"}
CONTINUED = {"train", "pretrain"}  # stages that continue where they were killed
# Rules without a declaration that do not use the device.
ON_HOST = {
    "corpus",
    "snapshot",
    "fetch",
    "tokenizer",
    "stack",
    "figures",
    "atlas",
    "numbers",
    "summary",
}


@dataclass(frozen=True)
class Needs:
    """What a job requests.

    Attributes
    ----------
    mem_mb : host memory in MB (2^20 bytes). runtime : minutes. gpu : number of GPUs.
    """

    mem_mb: int
    runtime: int
    gpu: int

    def again(self, attempt: int, longest: int | None = None, continues: bool = False) -> Needs:
        """What attempt number `attempt`, counted from 1, requests.

        Parameters
        ----------
        longest : minutes that the partition allows. continues : whether an attempt continues where
            the last one was killed; then the attempts that the time requires all request the same
            memory.
        """
        cluster, before = machines.data()["cluster"], attempt - 1
        minutes = math.ceil(self.runtime * cluster["minutes_again"] ** before)
        if longest is not None:
            minutes = min(minutes, longest)
            before = max(0, before - self.pieces(longest) + 1) if continues else before
        return Needs(math.ceil(self.mem_mb * cluster["memory_again"] ** before), minutes, self.gpu)

    def pieces(self, longest: int) -> int:
        """Number of jobs that the run time needs if each has at most `longest` minutes."""
        return math.ceil(self.runtime / longest)


# For a model whose size only its own code knows.
UNKNOWN = Needs(32_000, 240, 1)


def rates(settings: Settings) -> Rates:
    """The rates that minutes are computed from: of a GPU, unless `device` is cpu."""
    cluster = machines.data()["cluster"]
    if settings.device == "cpu":
        return Rates(name="CPU", how="assumed", memory=0, **cluster["thread"])
    return machines.table(cluster["device"], settings.crosscoders[settings.primary].precision)


def asked(job: Job, seconds: float, gpu: bool) -> Needs:
    """What a job requests, from its planned memory and seconds."""
    cluster = machines.data()["cluster"]
    size = sum(job.host.values()) + (0 if gpu else sum(job.device.values()))
    memory = (cluster["memory"] * size + cluster["process"]) / 2**20
    minutes = max(cluster["least_minutes"], cluster["minutes"] * seconds / 60)
    gpus = job.work.ranks if gpu and job.device else 0
    return Needs(math.ceil(memory / 100) * 100, math.ceil(minutes), gpus)


def table(experiment: Experiment) -> dict[str, Needs]:
    """What the jobs of every stage request at first, by the line's name in the bill.

    All analyses and all dictionaries are included, since any of them can be a target.
    """
    settings = experiment.settings
    gpu, speed = settings.device != "cpu", rates(settings)
    here = Machine(experiment.results, 0, 0, None if gpu else 0, speed.name)
    try:
        lines, _ = bill.lines(experiment, here, count=False, everything=True)
    except InputError:
        if not settings.snapshots.remote_code:
            raise
        return {}
    jobs = {
        line.name: asked(
            line.job, machines.seconds(line.job.work, speed, line.threads, line.on_host), gpu
        )
        for line in lines
    }
    # The first job of a stream trains all of its crosscoders, and any job may be the first.
    return jobs | {
        f"train {name}": jobs[f"stream {stream}"]
        for stream, names in streams.of(experiment).items()
        for name in names
    }


def on_device(rule: str) -> bool:
    """Whether a rule's jobs use the device that the configuration names."""
    declared = registry.stages().get(rule)
    return declared.gpu if declared else rule not in ON_HOST


def of(
    table: dict[str, Needs],
    rule: str,
    which: str = "",
    attempt: int = 1,
    longest: int | None = None,
) -> Needs:
    """What a rule's job requests.

    Parameters
    ----------
    table : of `table`. which : the job's crosscoder, or sites of a basis. attempt : from 1.
    longest : minutes that the partition allows.
    """
    stage = STAGES.get(rule, rule)
    first = table.get(f"{stage} {which}") or table.get(stage) or UNKNOWN
    return first.again(attempt, longest, stage in CONTINUED)


def retries(table: dict[str, Needs], longest: int, failures: int = 3) -> int:
    """The most resubmissions of jobs that continue from their state.

    Parameters
    ----------
    failures : resubmissions for reasons other than the time limit.
    """
    stages = (needs for name, needs in table.items() if name.split()[0] in CONTINUED)
    return max((needs.pieces(longest) - 1 for needs in stages), default=0) + failures
