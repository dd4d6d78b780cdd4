import pytest

from nanobanana_pipeline.emulator.validation import InvalidOrderError, read_order


def test_what_is_not_given_has_the_documented_default() -> None:
    picture = read_order({"prompt": "p", "seed": None, "width": None}).picture
    assert (picture.width, picture.height, picture.seed, picture.samples) == (2048, 2048, 0, 1)
    assert (picture.noise_scale_start, picture.noise_scale_end) == (7.5, 7.5)
    assert (picture.noise_clip_std, picture.negative_prompt) == (2.5, "")
    assert picture.watermark is False


def test_numbers_may_be_strings_and_large_seeds_stay_exact() -> None:
    body = {"prompt": "p", "width": "1024.0", "noise_clip_std": " -1e1 ", "samples": 4.0}
    picture = read_order({**body, "seed": "9007199254740993"}).picture
    assert (picture.width, picture.noise_clip_std, picture.samples) == (1024, -10, 4)
    assert picture.seed == 2**53 + 1
    minus_zero = read_order({"prompt": "p", "noise_clip_std": -0.0}).picture
    assert (
        minus_zero.digest() == read_order({"prompt": "p", "noise_clip_std": "0"}).picture.digest()
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", " \n"),
        ("prompt", 7),
        ("prompt", "\ud800"),
        ("width", 1000),
        ("width", 992),
        ("height", 2080),
        ("height", "1_024"),
        ("width", 1024.5),
        ("samples", 0),
        ("samples", 5),
        ("samples", True),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", [1]),
        ("noise_scale_start", "abc"),
        ("noise_scale_end", float("nan")),
        ("noise_clip_std", 10**400),
        ("noise_clip_std", "1e999"),
        ("watermark", "maybe"),
        ("base64", 1),
        ("temp", "true"),
        ("negative_prompt", {}),
        ("track_id", 5),
        ("webhook", ["https://x.test"]),
    ],
)
def test_each_rule_is_kept(field: str, value: object) -> None:
    with pytest.raises(InvalidOrderError) as caught:
        read_order({"prompt": "p", field: value})
    assert list(caught.value.errors) == [field]
