"""The tasks stage: which tasks this tokenizer can express and the last snapshot does.

A task that the tokenizer cannot express has no pairs. One that the last snapshot gets right in
fewer than `circuits.least_accuracy` of its prompts is not measured. The table says which and why.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ontogeny import devices
from ontogeny.analyses.circuits import tasks as prompts
from ontogeny.analyses.circuits.attribution import load, right
from ontogeny.analyses.circuits.downstream import Downstream
from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.analyses.circuits.tasks import Task
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import read_tokenizer
from ontogeny.files import InputError, write_table
from ontogeny.settings import Settings

COLUMNS = ["task", "pairs", "tokens", "answers", "words", "accuracy", "left_out", "clean"]
COLUMNS += ["corrupted", "right", "wrong"]


def build(
    settings: Settings, snapshots: Path, tokens: Path, tokenizer: Path, tasks: Path, table: Path
) -> None:
    """Make the tasks with the tokenizer at hand, and keep those that the last snapshot does.

    Parameters
    ----------
    snapshots : folder of step{S}. tokens : tokens.h5. tokenizer : tokenizer.json beside it.
    tasks : HDF5 of those kept, as `tasks.read` reads it.
    table : CSV, one row per task; its columns are in the declaration.

    Raises
    ------
    InputError : a tokenizer that cannot be read, or no task can be made.
    """
    section, data = settings.section(Circuits), Tokens(tokens)
    backend = read_tokenizer(tokenizer)
    step, device = settings.snapshots.chosen[-1], devices.choose(settings.device)
    model = load(settings, snapshots, step, device)
    known = len(model.get_input_embeddings().weight)
    made, rows = prompts.every(
        section.tasks, backend, data.end_of_text, data.context, section.pairs, section.seed, known
    )
    if not made:
        reasons = "; ".join(f"{row['task']}: {row['left_out']}" for row in rows)
        raise InputError(
            f"circuits.tasks: none can be made with this tokenizer; add others ({reasons})"
        )
    kept: list[Task] = []
    about = {row["task"]: row for row in rows}
    for task in made:
        both = Downstream(model, 0, "residual", task).behaviour()
        share = float(right(*(m.cpu().numpy() for m in both)).mean())
        about[task.name]["accuracy"] = share
        if share >= section.least_accuracy:
            kept.append(task)
        else:
            about[task.name]["left_out"] = (
                f"right in {share:.2f} of the prompts at step {step}, where "
                f"circuits.least_accuracy is {section.least_accuracy:g}"
            )
    prompts.write(tasks, kept, data.digest)
    write_table(table, pd.DataFrame(rows).reindex(columns=COLUMNS))
