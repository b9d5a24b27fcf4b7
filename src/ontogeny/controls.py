"""Effects of changes to the recipe: every condition compared with the unchanged experiment.

Replicates that differ from the experiment in the same keys are a *condition*; within a condition
they differ only in the model's seed. The experiment itself and the replicates that change only the
seed are the condition `baseline`. An outcome is a number of summary.json. If it is a step, the sum
of the learning rate up to it is also an outcome, in steps at the baseline's peak rate
(replicates.rate_sum).

Every condition has its mean over seeds, and its difference from the baseline, each with a 95% t
interval. If the same seeds were run, the difference is the mean over pairs of models with the same
seed, since these have the same initial weights and read the same text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ontogeny.files import write_table
from ontogeny.replicates import Files, interval, numbers_of
from ontogeny.settings import Settings
from ontogeny.settings.experiment import BASELINE, MODEL_SEED

OUTCOMES = (
    "turning_point_step",
    "turning_point_step_rate_sum",
    "initialisation_share",
    "previous_token_onset_median",
    "context_onset_median",
    "induction_onset_median",
    "previous_token_head_onset",
    "induction_head_onset",
    "copying_gain_onset",
    "kind_induction",
    "final_loss",
)
"""Numbers of summary.json by which conditions are compared, if all models have them."""


def conditions(settings: Settings) -> dict[str, tuple[str, int]]:
    """The condition and the model's seed of every model, by its name; 'itself' is the experiment.

    A condition has the name of its first replicate, without the seed that a list of seeds adds.
    """
    own = settings.snapshots.pretrain
    assert own is not None  # only models that are trained here have replicates
    found = {"itself": (BASELINE, own.seed)}
    named: dict[str, str] = {"{}": BASELINE}
    for name, changed in settings.replicates.items():
        seed = int(changed.get(MODEL_SEED, own.seed))
        rest = {key: value for key, value in changed.items() if key != MODEL_SEED}
        short = name.removesuffix(f"seed{seed}")
        if short in named.values():  # for example a replicate whose name is that of the baseline
            short = name
        condition = named.setdefault(str(dict(sorted(rest.items()))), short)
        found[name] = condition, seed
    return found


def table(values: pd.DataFrame, of: dict[str, tuple[str, int]]) -> pd.DataFrame:
    """Means and differences from the baseline, one row per condition and outcome.

    Parameters
    ----------
    values : (outcomes, models). of : condition and seed of each model.

    Returns
    -------
    condition, outcome, models, mean, low, high; pairs (seeds shared by condition and baseline),
    difference, difference_low, difference_high. Bounds are NaN for fewer than two models or pairs.
    """
    models = pd.DataFrame.from_dict(of, orient="index", columns=["condition", "seed"])
    rows: list[dict[str, Any]] = []
    for outcome, numbers in values.iterrows():
        baseline = _by_seed(numbers, models[models["condition"] == BASELINE])
        for condition, own in models.groupby("condition", sort=False):
            by_seed = _by_seed(numbers, own)
            row = {"condition": condition, "outcome": outcome, **interval(by_seed.to_numpy())}
            if condition != BASELINE:
                apart = interval((by_seed - baseline).to_numpy())
                row |= {
                    "pairs": apart["models"],
                    "difference": apart["mean"],
                    "difference_low": apart["low"],
                    "difference_high": apart["high"],
                }
            rows.append(row)
    columns = ["condition", "outcome", "models", "mean", "low", "high"]
    columns += ["pairs", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _by_seed(numbers: pd.Series[Any], models: pd.DataFrame) -> pd.Series[float]:
    """A condition's values by the model's seed."""
    values = [np.nan if numbers[name] is None else float(numbers[name]) for name in models.index]
    return pd.Series(values, index=models["seed"].to_numpy())


def compare(settings: Settings, results: dict[str, Files], controls: Path, models: Path) -> None:
    """Write the effect of each condition on each outcome.

    Parameters
    ----------
    results : by model, the experiment itself first: paths of its numbers.
    controls : CSV, as from `table`. models : CSV; condition, seed, model, and the outcomes.
    """
    of = conditions(settings)
    numbers = pd.DataFrame(numbers_of(settings, results))
    wanted = [name for name in OUTCOMES if name in numbers.index]
    values = numbers.loc[wanted]
    write_table(controls, table(values, of))
    about = pd.DataFrame.from_dict(of, orient="index", columns=["condition", "seed"])
    write_table(models, about.join(values.T).rename_axis("model").reset_index())
