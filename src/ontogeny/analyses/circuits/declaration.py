"""What the analysis `circuits` reads, makes, costs and draws."""

from typing import Any

from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.declarations import Analysis, Cost, Figure, Optional, Product, Source, Stage

HERE = "ontogeny.analyses.circuits"
ABILITIES = "From features to abilities"
FOLDER = "circuits/{crosscoder}"
PROMPTS = {"crosscoder": "crosscoder", "snapshots": "snapshots", "tasks": "tasks"}
ATTRIBUTED = {name: name for name in ("behaviour", "attribution", "differences")}
DRAWN = {name: name for name in ("features", "behaviour", "attribution")}
INTERVAL = "NAME_low and NAME_high: 95% interval over resampled pairs"


def _files(experiment: Any) -> Source:
    """The files with the user's own tasks, by the names of the tasks."""
    paths = experiment.settings.section(Circuits).paths
    return Source(list(paths.values()), paths)


TASKS = Stage(
    "tasks",
    run=f"{HERE}.selection:build",
    about="Make the tasks' clean and corrupted prompts, and keep the tasks that the last snapshot "
    "can do.",
    reads={
        "snapshots": "snapshots",
        "tokens": "tokens",
        "tokenizer": "tokenizer",
        "files": _files,
    },
    makes={"tasks": "tasks", "table": "tasks_table"},
    settings=("circuits.tasks", "circuits.pairs", "circuits.least_accuracy", "circuits.seed"),
    scope="experiment",
    cost=Cost(
        {"one": 2, "forward * circuits.every * circuits.pairs": 2e-9},
        {"model": 1, "a snapshot as it loads": 1, "forward pass": 1, "logits": 1, "one": 0.1e9},
        {"one": 300000},
    ),
)

ATTRIBUTION = Stage(
    "attribution",
    run=f"{HERE}.attribution:measure",
    about="Find the features that each task depends on, snapshot by snapshot.",
    reads=PROMPTS,
    makes=ATTRIBUTED,
    settings=("circuits.path_steps", "circuits.seed", "analysis.bootstrap"),
    cost=Cost(
        {
            "forward * snapshots * circuits.every * circuits.pairs": 1.15e-9,
            "forward * snapshots * circuits.every * circuits.pairs * circuits.path_steps": 3.8e-10,
        },
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "gradients": 1,
            "logits": 1,
            "one": 0.2e9,
            "changed features of a pair * circuits.every * circuits.pairs": 1,
            "features * circuits.pairs": 40,
            "sites * width * circuits.every * circuits.pairs": 180,
            "features * sites * circuits.every": 200,
        },
        {"one": 100000, "features * sites * circuits.every": 31},
    ),
)

CURVES = ("circuits.curve_snapshots", "circuits.curve_points", "circuits.draws")
ABLATION = Stage(
    "ablation",
    run=f"{HERE}.ablation:measure",
    about="Ablate each task's top features and others: are they necessary, are they sufficient?",
    reads=PROMPTS | ATTRIBUTED,
    makes={"curves": "ablation_curves", "summary": "circuits"},
    settings=("circuits.seed", *CURVES, "analysis.bootstrap"),
    cost=Cost(
        {
            "forward * circuits.every * circuits.pairs * circuits.curve_snapshots"
            " * circuits.curve_points * circuits.draws": 8e-10
        },
        {
            "model": 1,
            "a snapshot as it loads": 1,
            "crosscoder in use": 1,
            "pieces read ahead": 1,
            "forward pass": 1,
            "logits": 1,
            "one": 0.1e9,
            "features * sites * circuits.every": 200,
        },
        {"one": 200000},
    ),
)

ANALYSIS = Analysis(
    "circuits",
    about="Tasks, the features that each depends on at every snapshot, and whether these are "
    "necessary and sufficient.",
    section=Circuits,
    stages=[TASKS, ATTRIBUTION, ABLATION],
    figures=[
        Figure(
            "abilities",
            f"{HERE}.figure_abilities:draw",
            ABILITIES,
            "Tasks and their key features",
            DRAWN | {"strengths": "strengths", "named": Optional("names")},
        ),
        Figure(
            "ablations",
            f"{HERE}.figure_ablations:draw",
            ABILITIES,
            "Necessity and sufficiency",
            DRAWN | {"curves": "ablation_curves"},
        ),
    ],
    products=[
        Product("tasks", "circuits/tasks.h5", "prompts and their answers, one group per task"),
        Product(
            "tasks_table",
            "circuits/tasks.csv",
            "one row per task",
        ),
        Product(
            "behaviour",
            f"{FOLDER}/behaviour.csv",
            f"one row per task and snapshot; {INTERVAL}",
        ),
        Product(
            "attribution",
            f"{FOLDER}/attribution.parquet",
            "one row per task, feature that differs, and snapshot",
        ),
        Product(
            "differences", f"{FOLDER}/differences.h5", "features, clean minus corrupted, by task"
        ),
        Product(
            "ablation_curves",
            f"{FOLDER}/curves.csv",
            f"one row per point of a curve; {INTERVAL} and draws",
        ),
        Product(
            "circuits",
            f"{FOLDER}/circuits.csv",
            f"one row per task, snapshot with curves, and side; {INTERVAL}",
        ),
    ],
    numbers=f"{HERE}.numbers:numbers",
    faults=f"{HERE}.settings:faults",
    ahead=f"{HERE}.own:ahead",
)
