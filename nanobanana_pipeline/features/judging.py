"""Finds faulty images of a partition from its tables: wrong sizes, and look-alikes (`Twins`).

No image is decoded again, and no request is sent to the provider.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from nanobanana_pipeline.bucket_keys import features_folder
from nanobanana_pipeline.features.table import read_features
from nanobanana_pipeline.generation.manifest.manifest import read_current, read_manifest
from nanobanana_pipeline.generation.planning.cells import build_requests
from nanobanana_pipeline.prompts import prompt_set as prompt_sets
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "ALIKE_BITS",
    "ALIKE_SHARE",
    "Hashes",
    "Twins",
    "find_twins",
    "find_wrong_sizes",
    "hashes_of",
    "read_pictures",
]

ALIKE_BITS: Final = 4
"""Pictures whose perceptual hashes differ in so few of 64 bits look alike: a recipe's default too.
Hashes drawn by chance come so near once in 10^13 times."""
ALIKE_SHARE: Final = 0.05
"""The share of prompts that may have twins: some leave a model no freedom, such as a plain sign.
A provider that ignores seeds comes to 1."""
OTHER_SEEDS: Final = 10
"""With so many seeds a partition is compared, the nearest by number: it bounds what is read."""

CELLS: Final = ["prompt_id", "prompt", "seed", "seed_asked", "sample", "request_key"]
JUDGED_COLUMNS: Final = ["image_sha256", "width", "height", "blank", "phash", "error"]
PROMPT_COLUMNS: Final = ["prompt_id", "prompt"]

Hashes = npt.NDArray[np.uint64]


def read_pictures(store: ObjectStore, prompt_set: str, seed: int) -> pd.DataFrame | None:
    """The measured pictures of a partition, a row for each that a cell has.

    Returns:
        prompt_id, prompt, seed, seed_asked, sample, request_key, image_sha256, image_uri as the
        manifest has them; width, height, blank, phash, error as the features have them. Pictures
        that nobody has measured yet are left out. None if there are no features or no manifest.
    """
    current, _ = read_current(store, prompt_set, seed)
    features = read_features(store, prompt_set, seed)
    if current is None or features is None:
        return None
    rows = read_manifest(store, current.manifest, [*CELLS, "image_sha256", "image_uri"])
    return rows.merge(features[JUDGED_COLUMNS], on="image_sha256")


def find_wrong_sizes(
    store: ObjectStore,
    prompt_set: str,
    seed: int,
    pictures: pd.DataFrame,
    model: type[ImageRequest],
) -> pd.DataFrame:
    """The pictures, of `read_pictures`, of another size than was `asked` (str: ``1024×1024``).

    Where a reference picture decides the size, any is right.
    """
    current, _ = read_current(store, prompt_set, seed)
    if current is None:
        return pictures.iloc[:0].assign(asked="")
    prompts = prompt_sets.load(store, prompt_set, current.fingerprint)
    requests = build_requests(prompts, seed, current.parameters, model)
    asked = pd.DataFrame(
        [
            (prompt_id, *request.size_asked)
            for prompt_id, request in zip(prompts["prompt_id"], requests, strict=True)
            if request.size_asked
        ],
        columns=["prompt_id", "width_asked", "height_asked"],
    )
    both = pictures[pictures["error"].isna()].merge(asked, on="prompt_id")
    wrong = both[(both["width"] != both["width_asked"]) | (both["height"] != both["height_asked"])]
    sizes = [f"{w}×{h}" for w, h in zip(wrong["width_asked"], wrong["height_asked"], strict=True)]
    return wrong.assign(asked=sizes)


def hashes_of(phashes: Iterable[str]) -> Hashes:
    """Perceptual hashes as numbers, from 16 hexadecimal digits each."""
    return np.array([int(text, 16) for text in phashes], dtype=np.uint64)


@dataclass(frozen=True)
class Twins:
    """Pictures of one prompt that ought to differ and look alike.

    Attributes:
        seeds: the other seeds that were compared with.
        prompts: how many prompts had two pictures to compare.
        alike: how many of those have twins.
        rows: prompt, sample; other_seed, other_sample of its first twin; bits (Int64) in which
            their perceptual hashes differ, 0 for equal bytes; image_uri and other_uri.
    """

    seeds: list[int]
    prompts: int
    alike: int
    rows: pd.DataFrame

    @property
    def are_too_many(self) -> bool:
        """Whether they are more than prompts can explain: the provider may ignore seeds."""
        return self.alike > ALIKE_SHARE * self.prompts


def find_twins(store: ObjectStore, prompt_set: str, seed: int, pictures: pd.DataFrame) -> Twins:
    """Compare a partition's pictures with those of the same prompts that ought to differ.

    These are the other samples of the same request, and pictures under other seeds. A row that
    keeps a seed of its own is the same picture in all partitions, and is not compared. Nor are
    blank pictures: they all look alike, and are found as what they are. The pictures are as
    `read_pictures` gives them.
    """
    near = sorted(_measured_seeds(store, prompt_set) - {seed}, key=lambda s: (abs(s - seed), s))
    seeds = sorted(near[:OTHER_SEEDS])
    compared: set[str] = set()
    found = []
    for pairs in _pairs(store, prompt_set, pictures, seeds):
        compared |= set(pairs["prompt_id"])
        bits = _bits_apart(pairs)
        found.append(pairs.assign(bits=bits)[(bits <= ALIKE_BITS).fillna(value=False)])
    rows = pd.concat(found).drop_duplicates(["prompt_id", "sample"], ignore_index=True)
    named = {f"{name}_other": f"other_{name}" for name in ("seed", "sample")}
    rows = rows.rename(columns={**named, "image_uri_other": "other_uri"})
    # Addresses last: they are so long that nobody sees what stands behind them.
    shown = ["prompt", "sample", *named.values(), "bits", "image_uri", "other_uri"]
    return Twins(seeds, len(compared), rows["prompt_id"].nunique(), rows[shown])


def _pairs(
    store: ObjectStore, prompt_set: str, pictures: pd.DataFrame, seeds: list[int]
) -> Iterator[pd.DataFrame]:
    """Pairs of pictures that ought to differ, seed by seed: the other's columns end in _other."""
    own = _not_blank(pictures)
    within = own.merge(own, on=PROMPT_COLUMNS, suffixes=("", "_other"))
    is_sample = within["request_key"] == within["request_key_other"]
    yield within[is_sample & (within["sample"] < within["sample_other"])]
    for other in seeds:
        theirs = read_pictures(store, prompt_set, other)
        if theirs is not None:
            across = own.merge(_not_blank(theirs), on=PROMPT_COLUMNS, suffixes=("", "_other"))
            yield across[across["seed_asked"] != across["seed_asked_other"]]


def _not_blank(pictures: pd.DataFrame) -> pd.DataFrame:
    return pictures[~pictures["blank"].fillna(value=False)]


def _bits_apart(pairs: pd.DataFrame) -> pd.Series:
    """In how many bits two hashes differ (Int64): 0 for equal bytes, NA where one has no hash."""
    known = pairs["phash"].notna() & pairs["phash_other"].notna()
    bits = pd.Series(pd.NA, index=pairs.index, dtype="Int64")
    one, other = (hashes_of(pairs.loc[known, name]) for name in ("phash", "phash_other"))
    bits[known] = np.bitwise_count(one ^ other)
    return bits.mask(pairs["image_sha256"] == pairs["image_sha256_other"], 0)


def _measured_seeds(store: ObjectStore, prompt_set: str) -> set[int]:
    """The seeds under which a prompt set has features."""
    folders = (key.rpartition("/") for key in store.keys(features_folder(prompt_set)))
    seeds = (folder.rpartition("seed=")[2] for folder, _, leaf in folders if leaf == "current.json")
    return {int(seed) for seed in seeds if seed.isdigit()}
