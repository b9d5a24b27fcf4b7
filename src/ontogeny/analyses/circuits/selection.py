"""The tasks stage: which tasks the tokenizer can express and the last snapshot can do.

A task that the tokenizer cannot express has no pairs. A task is not measured if the last snapshot
is right in fewer than `circuits.least_accuracy` of its prompts. The table gives the reasons.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ontogeny import devices
from ontogeny.analyses.circuits import own
from ontogeny.analyses.circuits import tasks as prompts
from ontogeny.analyses.circuits.attribution import load, right
from ontogeny.analyses.circuits.downstream import of
from ontogeny.analyses.circuits.pairs import Text, Unfit
from ontogeny.analyses.circuits.settings import Circuits
from ontogeny.analyses.circuits.tasks import AnyTask, Sentences
from ontogeny.corpus.build import Tokens
from ontogeny.corpus.pieces import read_tokenizer
from ontogeny.files import InputError, write_table
from ontogeny.settings import Settings

COLUMNS = ["task", "pairs", "tokens", "answers", "words", "accuracy", "left_out", "clean"]
COLUMNS += ["corrupted", "right", "wrong"]


def build(
    settings: Settings,
    snapshots: Path,
    tokens: Path,
    tokenizer: Path,
    files: dict[str, Path],
    tasks: Path,
    table: Path,
) -> None:
    """Make the tasks with the experiment's tokenizer, and keep those that the last snapshot can do.

    Parameters
    ----------
    snapshots : folder of step{S}. tokens : tokens.h5. tokenizer : tokenizer.json in its folder.
    files : the user's own tasks, by the names of the tasks.
    tasks : HDF5 of the tasks that are kept, for `tasks.read`.
    table : CSV, one row per task; its columns are in the declaration.

    Raises
    ------
    InputError : the tokenizer or a file of tasks cannot be read, or no task can be made.
    """
    section, data = settings.section(Circuits), Tokens(tokens)
    backend = read_tokenizer(tokenizer)
    step, device = settings.snapshots.chosen[-1], devices.choose(settings.device)
    model = load(settings, snapshots, step, device)
    known = len(model.get_input_embeddings().weight)
    made: list[AnyTask] = []
    own_tokens = (backend, data.end_of_text, data.context)
    built, rows = prompts.every(section.tasks, *own_tokens, section.pairs, section.seed, known)
    made += built
    text = Text(*own_tokens, known)
    for name, path in files.items():
        try:
            task, row, unused = own.make(name, path, text, section.pairs, section.seed)
        except Unfit as reason:
            rows.append({"task": name, "pairs": 0, "left_out": f"{path}: {reason}"})
            continue
        made.append(task)
        rows.append({"task": name, **row})
        if unused:
            print(unused)
    if not made:
        reasons = "; ".join(f"{row['task']}: {row['left_out']}" for row in rows)
        raise InputError(
            "circuits.tasks: none can be made with this tokenizer; add others, or circuits.files "
            f"({reasons})"
        )
    kept: list[AnyTask] = []
    about = {row["task"]: row for row in rows}
    for task in made:
        clean, corrupted = (m.cpu().numpy() for m in of(model, 0, "residual", task).behaviour())
        share = float(right(clean, None if isinstance(task, Sentences) else corrupted).mean())
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
