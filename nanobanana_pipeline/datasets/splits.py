"""Splits that do not leak: what belongs together is never parted, whatever the seeds.

Rows belong together that share a prompt (as `prompt_key` reads it), a reference picture or a
picture, or whose pictures look alike; and so do rows that belong with the same third one. A group
goes where the salted hash of its canonical member, the prompt with the smallest hash, sends it.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from nanobanana_pipeline.datasets.perceptual import Positions, components, near_pairs
from nanobanana_pipeline.datasets.recipe import Splits
from nanobanana_pipeline.errors import RecipeError
from nanobanana_pipeline.features.judging import hashes_of

__all__ = ["SPLIT_COLUMNS", "assign_splits", "find_leaks", "prompt_key"]

SPLIT_COLUMNS: Final = ["row_id", "prompt", "image_sha256", "ref_sha256", "phash"]
"""What of a row decides with which others it belongs."""
GROUP_DIGITS: Final = 16
LEAK_COLUMNS: Final = ["shared", "split", "row_id", "other_split", "other_row_id"]


@dataclass(frozen=True)
class Shares:
    """Rows that found a place, in the order they came, with ``group`` and ``split`` (str).

    The others are `left_out`: ``row_id`` and ``reason`` (str).
    """

    rows: pd.DataFrame
    left_out: pd.DataFrame


def prompt_key(prompt: str) -> str:
    """A prompt as two readers would call it the same: NFKC, without case, single spaces."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def assign_splits(
    rows: pd.DataFrame, splits: Splits, released: pd.DataFrame | None = None
) -> Shares:
    """Give every row a group and a split; the order of the rows changes neither.

    Rows that were released keep their group and split, and others that belong with them join them.
    A newcomer that belongs with released rows of several splits is left out; where several
    newcomers make the bridge together, the last of them by ``row_id``.

    Args:
        rows: with `SPLIT_COLUMNS`: ``row_id`` unique; ``ref_sha256`` hashes joined by a space, or
            null; ``phash`` 16 hexadecimal digits, or null.
        splits: the recipe's.
        released: all rows of the parent release, with ``group`` and ``split`` too.

    Raises:
        RecipeError: released rows of several splits belong together by now, or the recipe does not
            know a split that was released.
    """
    if released is None:
        released = pd.DataFrame(columns=[*SPLIT_COLUMNS, "group", "split"], dtype="str")
    _check_names(released, splits)
    before = released.set_index("row_id")[["group", "split"]].astype("str")
    gone = released.loc[~released["row_id"].isin(rows["row_id"]), SPLIT_COLUMNS]
    everything = pd.concat(
        [rows[SPLIT_COLUMNS].astype("str"), gone.astype("str")], ignore_index=True
    )
    everything = everything.join(before, on="row_id")

    bridges: dict[int, set[str]] = {}
    belonging = pd.Series(_belonging(everything, splits.near))
    torn = everything["split"].groupby(belonging).nunique()
    for each in torn.index[torn > 1]:
        bridges |= _bridges(everything[belonging == each], splits.near)
    placed = everything.drop(index=list(bridges))
    together = placed.groupby(_belonging(placed, splits.near))
    prompt = placed["prompt"].map(lambda text: _sha256(prompt_key(text)))
    canonical = prompt.groupby(together.ngroup()).transform("min")
    drawn = {each: _draw(each, splits) for each in canonical.unique()}
    # A released row keeps its own group even where two have met: its shard need not change.
    group = placed["group"].fillna(together["group"].transform("min"))
    placed["group"] = group.fillna(canonical.str[:GROUP_DIGITS])
    placed["split"] = together["split"].transform("min").fillna(canonical.map(drawn))

    given = rows.reset_index(drop=True)
    chosen = given.drop(index=list(bridges)).drop(columns=["group", "split"], errors="ignore")
    chosen = chosen.join(placed[["group", "split"]].astype("str")).reset_index(drop=True)
    left_out = pd.DataFrame(
        {
            "row_id": given.loc[sorted(bridges), "row_id"],
            "reason": [
                f"belongs with released rows of the splits {' and '.join(sorted(bridges[each]))}"
                for each in sorted(bridges)
            ],
        },
        dtype="str",
    )
    return Shares(chosen, left_out.reset_index(drop=True))


def find_leaks(rows: pd.DataFrame, near: int = Splits().near) -> pd.DataFrame:
    """What a table's splits share and should not; no row where nothing leaks.

    Args:
        rows: with `SPLIT_COLUMNS` and ``split``.
        near: bits of 64 that perceptual hashes of pictures that look alike may differ in.

    Returns:
        One row a shared thing and further split, or a picture: ``shared`` ("prompt", "picture",
        "reference" or "look"), ``split``, ``row_id``, ``other_split`` and ``other_row_id`` (str).
    """
    rows = rows.reset_index(drop=True)
    found = []
    for shared, values in _keys(rows):
        holders = pd.DataFrame({"value": values}).join(rows[["split", "row_id"]])
        holders = holders.drop_duplicates(["value", "split"])
        others = holders.merge(holders.drop_duplicates("value"), on="value", suffixes=("_2", ""))
        others = others[others["split"] != others["split_2"]]
        columns = {"split_2": "other_split", "row_id_2": "other_row_id"}
        found.append(others.rename(columns=columns).assign(shared=shared)[LEAK_COLUMNS])
    looks = rows[["phash", "split", "row_id"]].dropna(subset="phash")
    looks = looks.drop_duplicates(["phash", "split"])
    for one, other in near_pairs(hashes_of(looks["phash"]), near):
        left, right = (looks.iloc[side].reset_index(drop=True) for side in (one, other))
        pairs = left.join(right.add_prefix("other_")).assign(shared="look")[LEAK_COLUMNS]
        leaking = pairs[pairs["split"] != pairs["other_split"]]
        found.append(leaking.drop_duplicates(["row_id"]))
    leaks = pd.concat(found, ignore_index=True).astype("str")
    leaks = leaks.drop_duplicates(["shared", "row_id", "other_split"])
    return leaks.sort_values(LEAK_COLUMNS, ignore_index=True)


def _check_names(released: pd.DataFrame, splits: Splits) -> None:
    unknown = sorted(set(released["split"]) - set(splits.ratios))
    if unknown:
        raise RecipeError(
            f"the parent release has a split {unknown[0]!r}, and splits.ratios has not: released "
            f"rows keep their split, so add it ({unknown[0]}: 0 lets it grow no more than it must),"
            " or give the dataset another name"
        )


def _keys(rows: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """What rows may share to the letter: values by row; a row may have several, or none."""
    yield "prompt", rows["prompt"].dropna().map(prompt_key)
    yield "picture", rows["image_sha256"].dropna()
    yield "reference", rows["ref_sha256"].dropna().astype(object).str.split().explode().dropna()


def _belonging(rows: pd.DataFrame, near: int) -> npt.NDArray[np.int64]:
    """A number for each row, equal for those that belong together, directly or not."""
    return components(len(rows), _links(rows.reset_index(drop=True), near))


def _links(rows: pd.DataFrame, near: int) -> Iterator[tuple[Positions, Positions]]:
    for _, values in (*_keys(rows), ("look", rows["phash"].dropna())):
        positions = values.index.to_numpy()
        codes, _ = pd.factorize(values)
        first = positions[np.unique(codes, return_index=True)[1]]
        yield positions, first[codes]
    looks = rows["phash"].dropna().drop_duplicates()
    at = looks.index.to_numpy()
    for one, other in near_pairs(hashes_of(looks), near):
        yield at[one], at[other]


def _bridges(members: pd.DataFrame, near: int) -> dict[int, set[str]]:
    """The rows to leave out of a group of several splits, with the splits that each would join.

    Raises:
        RecipeError: released rows alone make the bridge.
    """
    members = members.assign(new=members["split"].isna())
    members = members.sort_values(["new", "row_id"])
    neighbours = _neighbours(members.reset_index(drop=True), near)
    cluster = np.full(len(members), -1)
    split_of: dict[int, str] = {}
    bridges = {}
    for position, (index, row) in enumerate(members.iterrows()):
        beside = neighbours(position)
        touched = set(cluster[beside & (cluster >= 0)].tolist())
        names = {split_of[each] for each in touched if each in split_of}
        names |= set() if row["new"] else {row["split"]}
        if len(names) > 1 and not row["new"]:
            raise RecipeError(
                f"released rows of the splits {' and '.join(sorted(names))} belong together by now "
                f"({row['row_id']} is one): set splits.near back to what it was in the parent "
                "release, or give the dataset another name"
            )
        if len(names) > 1:
            bridges[int(str(index))] = names
            continue
        cluster[np.isin(cluster, list(touched))] = position
        cluster[position] = position
        if names:
            split_of[position] = names.pop()
    return bridges


def _neighbours(rows: pd.DataFrame, near: int) -> Callable[[int], npt.NDArray[np.bool_]]:
    """What tells which rows belong directly with the one at a position."""
    keys = []
    for _, values in _keys(rows):
        codes, _ = pd.factorize(values)
        keys.append((values.index.to_numpy(), codes))
    has_look = rows["phash"].notna().to_numpy()
    hashes = hashes_of(rows["phash"].fillna("0"))

    def beside(position: int) -> npt.NDArray[np.bool_]:
        close = np.bitwise_count(hashes ^ hashes[position]) <= near
        found: npt.NDArray[np.bool_] = close & has_look & has_look[position]
        for positions, codes in keys:
            shared = np.isin(codes, codes[positions == position])
            found[positions[shared]] = True
        return found

    return beside


def _draw(canonical: str, splits: Splits) -> str:
    """The split that a group goes to; the order in which the recipe names them changes nothing."""
    share = int(_sha256(f"{splits.salt}\n{canonical}")[:13], 16) / 16**13
    names = sorted(name for name, ratio in splits.ratios.items() if ratio)
    edge = 0.0
    for name in names[:-1]:
        edge += splits.ratios[name]
        if share < edge:
            return name
    return names[-1]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
