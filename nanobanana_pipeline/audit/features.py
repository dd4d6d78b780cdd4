"""Whether the tables of features are there, and speak of the pictures that manifests name."""

import pandas as pd

from nanobanana_pipeline.audit.report import AuditReport, FindingKind
from nanobanana_pipeline.bucket_keys import Folder, features_prefix
from nanobanana_pipeline.errors import StorageError, StorageUnavailable
from nanobanana_pipeline.features.table import CurrentFeatures, read_current_features, read_features
from nanobanana_pipeline.generation.manifest.manifest import read_current, read_manifest
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["check_features", "list_features"]

MEASURE_AGAIN = (
    "move its current.json away and materialize image_features again, which costs nothing"
)
SAME = ["format", "width", "height", "bytes"]


def list_features(store: ObjectStore) -> list[tuple[str, int]]:
    """The partitions that have a table of features: prompt set and seed."""
    found = []
    for key in store.keys(Folder.FEATURES.prefix):
        folder, _, leaf = key.rpartition("/")
        parts = folder.split("/")
        if leaf == "current.json" and len(parts) == 3 and parts[2].startswith("seed="):  # noqa: PLR2004 - features/<set>/seed=<seed>
            found.append((parts[1], int(parts[2].removeprefix("seed="))))
    return found


def check_features(store: ObjectStore, report: AuditReport) -> None:
    """Compare every table of features with its partition's manifest."""
    for name, seed in list_features(store):
        key = features_prefix(name, seed) + "current.json"
        try:
            current, _ = read_current_features(store, name, seed)
            rows = read_features(store, name, seed)
        except StorageUnavailable:
            raise
        except StorageError as error:
            report.add(FindingKind.UNREADABLE, key, f"{error}; {MEASURE_AGAIN}")
            continue
        if current is not None and rows is not None:
            _compare(store, report, current, rows)


def _compare(
    store: ObjectStore, report: AuditReport, current: CurrentFeatures, rows: pd.DataFrame
) -> None:
    manifest, _ = read_current(store, current.prompt_set, current.seed)
    if manifest is None:
        text = f"there are features of a partition without a manifest: {MEASURE_AGAIN}"
        report.add(FindingKind.FEATURES_WRONG, current.table, text)
        return
    named = read_manifest(store, manifest.manifest, ["image_sha256", *SAME])
    named = named.dropna(subset="image_sha256").drop_duplicates("image_sha256")
    both = rows[rows["error"].isna()].merge(named, on="image_sha256", suffixes=("", "_named"))
    told = both[SAME].astype(str).to_numpy()
    wanted = both[[f"{column}_named" for column in SAME]].astype(str).to_numpy()
    wrong = both.loc[(told != wanted).any(axis=1), "image_sha256"]
    missing = set(named["image_sha256"]) - set(rows["image_sha256"])
    if len(wrong):
        text = (
            f"{counted(len(wrong), 'row', 'has')} another format or size than the manifest, "
            f"such as {wrong.iloc[0]}: {MEASURE_AGAIN}"
        )
        report.add(FindingKind.FEATURES_WRONG, current.table, text)
    if missing and current.manifest == manifest.manifest:
        text = (
            f"the manifest that it was measured for has {counted(len(missing), 'picture')} without "
            f"a row, such as {min(missing)}: {MEASURE_AGAIN}"
        )
        report.add(FindingKind.FEATURES_WRONG, current.table, text)
