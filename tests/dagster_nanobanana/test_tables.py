"""Tables as Dagster shows them: nothing in them stretches a page."""

import pandas as pd

from dagster_nanobanana.presentation.tables import named_pictures, sample_table


def test_texts_stand_in_one_line_and_prompts_are_shortened_most() -> None:
    long = "a fox\n\nwho is " + "very " * 300 + "tired"
    frame = pd.DataFrame({"prompt": [long, None], "cause": [long, "none"], "seed": [7, 8]})
    first, second = (dict(row.data) for row in sample_table(frame, longest=1000).records)
    assert str(first["prompt"]).startswith("a fox who is very very")
    assert (len(str(first["prompt"])), len(str(first["cause"])), first["seed"]) == (60, 1000, 7)
    assert second == {"prompt": None, "cause": "none", "seed": 8}
    [cut] = sample_table(frame, 1).records
    assert len(str(cut.data["cause"])) == 120


def test_pictures_are_named_in_short_and_their_addresses_told_beside_the_table() -> None:
    one, other = (f"s3://bucket/images/{two}/{two * 32}.png" for two in ("ab", "cd"))
    frame = pd.DataFrame({"image_uri": [one, None], "other_uri": [other, one]})
    named, addresses = named_pictures(frame)
    assert named.fillna("").to_dict("list") == {
        "image": ["abababababab", ""],
        "other": ["cdcdcdcdcdcd", "abababababab"],
    }
    assert addresses.value == {"abababababab": one, "cdcdcdcdcdcd": other}
    assert list(named_pictures(frame.iloc[:0])[0]) == ["image", "other"]
