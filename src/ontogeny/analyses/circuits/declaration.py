"""What the analysis `circuits` reads, makes, costs and draws."""

from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.declarations import Analysis, Cost, Figure, Product, Stage

HERE = "ontogeny.analyses.circuits"
ABILITIES = "From features to abilities"
FOLDER = "circuits/{crosscoder}"
PROMPTS = {"crosscoder": "crosscoder", "snapshots": "snapshots", "tasks": "tasks"}
ATTRIBUTED = {name: name for name in ("behaviour", "attribution", "differences")}
DRAWN = {name: name for name in ("features", "behaviour", "attribution")}
FITS = "lower circuits.pairs, or name fewer circuits.tasks"
INTERVAL = "NAME_low and NAME_high: 95% interval over resampled pairs"

TASKS = Stage(
    "tasks",
    run=f"{HERE}.tasks:build",
    about="Make the tasks' clean and corrupted prompts with the tokenizer at hand.",
    reads={"tokens": "tokens", "tokenizer": "tokenizer"},
    makes={"tasks": "tasks", "table": "tasks_table"},
    settings=("circuits.tasks", "circuits.pairs", "circuits.seed"),
    scope="experiment",
    gpu=False,
    cost=Cost(),
)

# The scale: tokens of all prompts, each run forward and backward by every snapshot.
ATTRIBUTION = Stage(
    "attribution",
    run=f"{HERE}.attribution:measure",
    about="Find the features that each task depends on, snapshot by snapshot.",
    reads=PROMPTS,
    makes=ATTRIBUTED,
    settings=("circuits.path_steps", "circuits.seed", "analysis.bootstrap"),
    cost=Cost(),
)

# The scale: as above, each run once for every set of features on a curve.
CURVES = ("circuits.curve_snapshots", "circuits.curve_points", "circuits.draws")
ABLATION = Stage(
    "ablation",
    run=f"{HERE}.ablation:measure",
    about="Ablate each task's top features and others: are they needed, are they enough?",
    reads=PROMPTS | ATTRIBUTED,
    makes={"curves": "ablation_curves", "summary": "circuits"},
    settings=("circuits.seed", *CURVES, "analysis.bootstrap"),
    cost=Cost(),
)

ANALYSIS = Analysis(
    "circuits",
    about="Tasks, the features that each depends on at every snapshot, and whether these are "
    "needed and enough.",
    section=Circuits,
    stages=[TASKS, ATTRIBUTION, ABLATION],
    figures=[
        Figure(
            "abilities",
            f"{HERE}.figure_abilities:draw",
            ABILITIES,
            "Tasks and their key features",
            DRAWN | {"strengths": "strengths"},
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
        Product("tasks", "circuits/tasks.h5", "one group per task: prompts and their answers"),
        Product(
            "tasks_table",
            "circuits/tasks.csv",
            "one row per task",
            {
                "pairs": "of a clean and a corrupted prompt",
                "tokens": "of the longest prompt",
                "answers": "different ones",
                "words": "what the tokenizer keeps of the task's words",
                "left_out": "why there are no pairs, or empty",
                "clean": "the first pair's clean prompt, as text; `corrupted` alike",
                "right": "the answer to the clean prompt; `wrong` to the corrupted one",
            },
        ),
        Product(
            "behaviour",
            f"{FOLDER}/behaviour.csv",
            f"one row per task and snapshot; {INTERVAL}",
            {
                "accuracy": "over all prompts: 0.5 where the model sees no difference in a pair",
                "logit_difference": "right less wrong answer, clean prompts, nats",
                "logit_difference_corrupted": "the same of the corrupted prompts",
                "difference": "logit_difference less logit_difference_corrupted",
                "done": "whether the accuracy's interval lies above 0.5",
                "features": "that differ between the prompts",
                "attributed": "Σ attribution + error node, mean over pairs, nats",
                "path_error": "mean |attributed − difference| over mean |difference|",
                "error_share": "share of the error node in attributed",
                "told": "features whose attribution differs from 0",
                "leading_shared": "share of one half's 10 largest that the other half has too",
            },
        ),
        Product(
            "attribution",
            f"{FOLDER}/attribution.parquet",
            "one row per task, feature that differs, and snapshot",
            {
                "feature": "number, from 0; −1 is the error node",
                "attribution": "mean over pairs, nats",
                "standard_error": "of that mean",
                "told": "whether it differs from 0, at 5% for all features of the task together",
                "first_half": "mean over one half of the pairs; `second_half` over the other",
                "frequency": "positions of a pair at which the feature differs, mean",
            },
        ),
        Product(
            "differences", f"{FOLDER}/differences.h5", "features, clean less corrupted, by task"
        ),
        Product(
            "ablation_curves",
            f"{FOLDER}/curves.csv",
            f"one row per point of a curve; {INTERVAL} and draws",
            {
                "side": "'necessity' or 'sufficiency'",
                "group": "'absolute' and 'signed' ranking, 'random' and 'matched' features",
                "k": "features in the set",
                "error": "whether the error node is in the set",
                "frequency": "positions of a pair at which the features differ, mean",
                "m": "logit difference, nats",
                "restored": "share of the difference; empty where the task is not done",
            },
        ),
        Product(
            "circuits",
            f"{FOLDER}/circuits.csv",
            f"one row per task, snapshot with curves, and side; {INTERVAL}",
            {
                "done": "whether the snapshot does the task",
                "features": "that differ between the prompts",
                "k_enough": "features from which 80% of the difference is restored, or for "
                "necessity gone; empty: never by features alone; high may be inf",
                "features_alone": "restored with all features but without the error node",
                "area_random": "mean height over log(k + 1) above the curve of random features",
                "area_matched": "the same of others that differ as often",
            },
        ),
    ],
    numbers=f"{HERE}.numbers:numbers",
)
