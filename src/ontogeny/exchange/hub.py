"""A crosscoder as a folder for the Hugging Face hub: our own files, and a model card.

    crosscoder.safetensors, config.json    byte for byte what training wrote
    experiment.yaml                        the resolved configuration of the experiment
    README.md                              the card (card.py)

Nothing is uploaded: `hf upload REPOSITORY FOLDER` does that. `experiment.yaml` may hold paths of
the machine that ran it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ontogeny.crosscoder.model import Crosscoder
from ontogeny.exchange import card
from ontogeny.exchange.plain import free, read_config
from ontogeny.files import InputError, whole

FILES = ("config.json", "crosscoder.safetensors")
CONFIGURATION = "experiment.yaml"


def write(
    folder: str | Path,
    output: str | Path,
    experiment: Path | None,
    licence: str | None = None,
    data_licence: str | None = None,
) -> None:
    """Write the folder of a crosscoder.

    Parameters
    ----------
    folder : of a seed. experiment : results/NAME, or None for a crosscoder without one.
    licence : of the weights, as the hub names it, such as mit. data_licence : of the text, where
        it is not a text that the project brings.

    Raises
    ------
    InputError : not a crosscoder, a damaged experiment, or something stands at `output`.
    """
    folder, output = Path(folder), Path(output)
    free(output)
    trained = Crosscoder.load(folder)
    text = card.write(trained, folder, experiment, licence, data_licence)
    with whole(output) as draft:
        draft.mkdir()
        for name in FILES:
            shutil.copyfile(folder / name, draft / name)
        if experiment is not None:
            shutil.copyfile(experiment / "config.yaml", draft / CONFIGURATION)
        (draft / "README.md").write_text(text)


def read(folder: str | Path, output: str | Path) -> None:
    """Bring the crosscoder of such a folder, downloaded, where it is wanted: the same bytes.

    Raises
    ------
    InputError : not such a folder, weights that do not fit its config, or `output` is taken.
    """
    folder, output = Path(folder), Path(output)
    free(output)
    read_config(folder / FILES[0], ["activation", "gate", "features", "width", "outputs"])
    trained = Crosscoder.load(folder)
    about, W = trained.about, trained.weights
    for what, found, wanted in (
        ("decoders", trained.W_dec.shape, (about.features, len(about.outputs), about.width)),
        ("encoders", W.W_enc.shape[:1], (about.features,)),
        ("encoder's biases", W.b_enc.shape, (about.features,)),
        ("scales", trained.scales_in.shape, (len(about.inputs),)),
    ):
        if tuple(found) != wanted:
            raise InputError(f"{folder}: {what} are {tuple(found)}, its config says {wanted}")
    with whole(output) as draft:
        draft.mkdir()
        for name in FILES:
            shutil.copyfile(folder / name, draft / name)
