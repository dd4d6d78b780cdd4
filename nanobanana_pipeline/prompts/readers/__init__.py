"""Readers of prompt tables, one module a format: `READERS` lists them."""

from typing import Final, NamedTuple

from nanobanana_pipeline.prompts.readers.base import Reader
from nanobanana_pipeline.prompts.readers.csv import CSV
from nanobanana_pipeline.prompts.readers.jsonl import JSONL
from nanobanana_pipeline.prompts.readers.parquet import PARQUET
from nanobanana_pipeline.prompts.readers.tsv import TSV

__all__ = ["READERS", "known_suffixes", "match_reader"]

READERS: Final[list[Reader]] = [CSV, TSV, JSONL, PARQUET]
"""The formats that a prompt table may have. docs/extending.md adds one."""
GZIPPED: Final = ".gz"


class ReaderMatch(NamedTuple):
    """How a file is read, as its name tells.

    Attributes:
        reader: of its format.
        stem: its name without the suffixes.
        gzipped: whether it is unpacked first.
    """

    reader: Reader
    stem: str
    gzipped: bool


def match_reader(name: str) -> ReaderMatch | None:
    """Find the reader of a path, URL or file name; None if there is none.

    Only the last suffix but ``.gz`` counts: `prompts.v2.csv` is CSV.
    """
    plain, gzipped = name.lower(), name.lower().endswith(GZIPPED)
    plain = plain.removesuffix(GZIPPED)
    for reader in READERS:
        for suffix in reader.suffixes:
            if plain.endswith(suffix) and (reader.may_be_gzipped or not gzipped):
                end = len(name) - len(suffix) - len(GZIPPED) * gzipped
                return ReaderMatch(reader, name[:end], gzipped)
    return None


def known_suffixes() -> str:
    """The suffixes of all readers, for messages: ``.csv, .tsv or .parquet``."""
    *most, last = (suffix for reader in READERS for suffix in reader.suffixes)
    return f"{', '.join(most)} or {last}"
