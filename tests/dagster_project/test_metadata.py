"""Tables as Dagster shows them: nothing in them stretches a page."""

import pandas as pd

from dagster_project.metadata import sample_table, with_keys
from nanobanana_pipeline.storage import ObjectStore


def test_texts_stand_in_one_line_and_prompts_are_shortened_most() -> None:
    long = "a fox\n\nwho is " + "very " * 300 + "tired"
    frame = pd.DataFrame({"prompt": [long, None], "cause": [long, "none"], "seed": [7, 8]})
    first, second = (dict(row.data) for row in sample_table(frame, longest=1000).records)
    assert str(first["prompt"]).startswith("a fox who is very very")
    assert (len(str(first["prompt"])), len(str(first["cause"])), first["seed"]) == (60, 1000, 7)
    assert second == {"prompt": None, "cause": "none", "seed": 8}
    [cut] = sample_table(frame, 1).records
    assert len(str(cut.data["cause"])) == 120


def test_addresses_in_the_bucket_are_shown_as_keys(store: ObjectStore) -> None:
    key, other = "images/ab/abcd.png", "s3://elsewhere/images/cd/cdef.png"
    frame = pd.DataFrame({"image_uri": [store.uri(key), None], "other_uri": [other, None]})
    assert with_keys(frame, store).fillna("").to_dict("list") == {
        "image_key": [key, ""],
        "other_key": [other, ""],
    }
    nothing = frame.iloc[:0].astype("object")
    assert list(with_keys(nothing, store)) == ["image_key", "other_key"]
