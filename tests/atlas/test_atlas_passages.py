"""The atlas's passages: the data are the tables', and the page shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ontogeny.atlas import build, gather, pack
from ontogeny.corpus.pieces import visible
from ontogeny.files import InputError


@pytest.fixture(scope="module")
def site(analysed, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("passages") / "atlas"
    build.write(gather.gather(analysed), home)
    return home


@pytest.mark.slow
def test_a_passages_file_is_its_tables(site, analysed):
    table, features = analysed.table("passages"), analysed.table("passage_features")
    living = pack.unpack(pack.read(site / "data/features.js")["feature"])
    listed = pack.read(site / "data/passages.js")
    assert len(listed) == table["passage"].nunique()
    for number, about in enumerate(listed):
        own = table[table["passage"] == number].sort_values(["position", "step"])
        file = pack.read(site / f"data/passages/{number}.js")
        arrays = {name: pack.unpack(each) for name, each in file.items() if isinstance(each, dict)}
        tokens = own.drop_duplicates("position")["token"]
        assert about["source"] == own["source"].iloc[0]
        assert about["size"] == len(tokens)
        assert [file["words"][i] for i in arrays["word"]] == [visible(t) for t in tokens]
        np.testing.assert_array_equal(arrays["loss"], own["loss"].astype("f4"))
        following = [file["words"][i] for i in arrays["next"][:: file["predictions"]]]
        assert following == [visible(text) for text in own["next_1"]]
        first = arrays["probability"][:: file["predictions"]] / 255
        np.testing.assert_allclose(first, own["probability_1"], atol=0.5 / 255 + 1e-6)
        there = features[(features["passage"] == number) & features["feature"].isin(living)]
        there = there.sort_values(
            ["position", "step", "contribution"], ascending=[True, True, False], kind="stable"
        )
        assert arrays["active"].sum() == len(there)
        np.testing.assert_array_equal(living[arrays["place"]], there["feature"])
        value = arrays["value"] / 65534 * file["scale"]
        np.testing.assert_allclose(value, there["contribution"], atol=file["scale"] / 65534)


@pytest.mark.slow
def test_passages_of_other_snapshots_are_refused(analysed, tmp_path):
    contents = gather.gather(analysed)
    read, features = contents.passages
    contents = replace(contents, passages=(read[read["step"] != 8], features))
    with pytest.raises(InputError, match="passages: of other snapshots"):
        build.write(contents, tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()
