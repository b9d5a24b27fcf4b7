"""A crosscoder as a folder for the Hugging Face hub: our own files, and a model card.

    crosscoder.safetensors, config.json    the same bytes that training wrote
    experiment.yaml                        the resolved configuration of the experiment
    README.md                              the card (card.py)

Nothing is uploaded: `hf upload REPOSITORY FOLDER` does that. `experiment.yaml` may contain paths of
the machine on which it ran.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange import card
from ontogeny.exchange.plain import free, part, read_config
from ontogeny.experiment import Experiment
from ontogeny.files import InputError, whole

CONFIGURATION = "experiment.yaml"
PRODUCTS = ("about", "weights")
KEYS = ["activation", "gate", "features", "width", "outputs"]


def write(
    folder: Path,
    output: Path,
    experiment: Experiment | None,
    licence: str | None = None,
    data_licence: str | None = None,
) -> None:
    """Write the folder of a crosscoder.

    Parameters
    ----------
    folder : of a seed. experiment : the one that it belongs to, or None.
    licence : of the weights, in the hub's notation, such as mit. data_licence : of the text, if the
        project does not provide it.

    Raises
    ------
    InputError : not a crosscoder, a damaged experiment, or `output` exists.
    """
    free(output)
    trained = Crosscoder.load(folder)
    text = card.write(trained, folder, experiment, licence, data_licence)
    configuration = experiment.path("config") if experiment else None
    _copy(folder, output, configuration, text)


def read(folder: Path, output: Path) -> None:
    """Copy the crosscoder of such a downloaded folder to `output`, with the same bytes.

    Raises
    ------
    InputError : not such a folder, weights that do not match its config, or `output` exists.
    """
    free(output)
    read_config(part(folder, "about"), KEYS)
    trained = Crosscoder.load(folder)
    about, weights = trained.about, trained.weights
    places = len(about.inputs), about.width
    table = trained._tensors["token_table"].shape[::2] if about.token_table else places
    for what, shape, wanted in (
        ("decoders", trained.W_dec.shape, (about.features, len(about.outputs), about.width)),
        ("encoders", weights.W_enc.shape[:1], (about.features,)),
        ("encoder's biases", weights.b_enc.shape, (about.features,)),
        ("scales", trained.scales_in.shape, (len(about.inputs),)),
        ("token tables", table, places),
    ):
        if tuple(shape) != wanted:
            raise InputError(f"{folder}: {what} are {tuple(shape)}, but its config says {wanted}")
    _copy(folder, output)


def _copy(folder: Path, output: Path, configuration: Path | None = None, text: str = "") -> None:
    """Copy a crosscoder's files, with a configuration and a card if they are given."""
    with whole(output) as draft:
        draft.mkdir()
        for product in PRODUCTS:
            shutil.copyfile(part(folder, product), part(draft, product))
        if configuration is not None:
            shutil.copyfile(configuration, draft / CONFIGURATION)
        if text:
            (draft / "README.md").write_text(text)
