"""A prompt table becomes a prompt set: checked, fingerprinted, kept for ever."""

from functools import partial
from pathlib import Path

import dagster as dg
from pydantic import Field

from dagster_nanobanana.failures import plain_failures
from dagster_nanobanana.partitions import prompt_sets
from dagster_nanobanana.presentation.columns import PROMPTS_METADATA
from dagster_nanobanana.presentation.tables import sample_table
from dagster_nanobanana.resources import NanobananaResource
from dagster_nanobanana.step_lineage import recorded_step
from nanobanana_pipeline.bucket_keys import prompt_set_key
from nanobanana_pipeline.errors import PromptTableError
from nanobanana_pipeline.lineage.openlineage.run_facts import prompt_set_complete, prompt_set_start
from nanobanana_pipeline.prompts.checked_prompts import attributes_of, long_prompts_warning
from nanobanana_pipeline.prompts.prompt_set import snapshot, valid_name
from nanobanana_pipeline.prompts.references import References
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts
from nanobanana_pipeline.wording import counted

__all__ = ["TABLES_FOLDER", "prompt_set"]

TABLES_FOLDER = "prompts"
DESCRIBED = {
    column.name: column.description for column in PROMPTS_METADATA["dagster/column_schema"].columns
}
CARRIED = "carried along: not sent to the provider"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class PromptTableConfig(dg.Config):
    """Which table to read."""

    table: str | None = Field(
        None,
        description=(
            "Path or s3:// URL of the prompt table (CSV, TSV, JSONL or Parquet). Left out: "
            "prompts/<prompt set>.csv, .tsv, .jsonl or .parquet in the working directory."
        ),
    )


@dg.asset(
    partitions_def=prompt_sets,
    group_name="prompts",
    kinds={"pandas", "parquet", "s3"},
    owners=["team:data"],
    tags={"cost": "free"},
    metadata=PROMPTS_METADATA,
    code_version="1",
    description=(
        "A prompt table, checked and frozen. Good rows become a snapshot under their fingerprint; "
        "every bad row goes to a quarantine table with row, column, value and reason; reference "
        "pictures are kept under their hashes. The same content gives the same fingerprint "
        "whatever the file format. **Costs nothing.**"
    ),
)
def prompt_set(
    context: dg.AssetExecutionContext, config: PromptTableConfig, nanobanana: NanobananaResource
) -> dg.MaterializeResult[None]:
    """Read, check and store one prompt table."""
    with plain_failures():
        name = valid_name(context.partition_key)
        store = nanobanana.store()
        references = References(nanobanana.account().downloader, store, keep=True)
        table = config.table or find_table(name)
        begin = partial(prompt_set_start, name, str(table))
        with recorded_step(context, store, "prompt_set", begin) as recording:
            checked = check_prompts(read_prompt_table(table, store), references)
            made = snapshot(store, name, checked)
            recording.set_facts(partial(prompt_set_complete, store, checked, made))
    carried = attributes_of(checked.prompts.columns)
    if carried:
        context.log.info(f"carried along, not sent to the provider: {', '.join(carried)}")
    if long := long_prompts_warning(checked.prompts):
        context.log.warning(long)
    if made.quarantined:
        context.log.warning(
            f"{counted(made.quarantined, 'row', 'is')} in quarantine, beside "
            f"{counted(made.rows, 'good row')}: see the metadata"
        )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(made.fingerprint),
        metadata={
            "prompts": sample_table(checked.prompts),
            "dagster/row_count": made.rows,
            "quarantined rows": made.quarantined,
            **(
                {"quarantine": sample_table(checked.quarantine, rows=20)}
                if made.quarantined
                else {}
            ),
            "quarantine file": store.uri(
                prompt_set_key(name, f"{made.fingerprint}.quarantine.parquet")
            ),
            "carried along": ", ".join(carried) or "nothing",
            "source": made.source,
            "fingerprint": made.fingerprint,
            "dagster/uri": store.uri(prompt_set_key(name, f"{made.fingerprint}.parquet")),
            "dagster/column_schema": dg.TableSchema(
                [
                    dg.TableColumn(str(column), str(dtype), DESCRIBED.get(str(column), CARRIED))
                    for column, dtype in checked.prompts.dtypes.items()
                ]
            ),
        },
    )


def find_table(name: str, folder: Path = Path(TABLES_FOLDER)) -> Path:
    """The table of a prompt set in the prompts folder.

    Raises:
        PromptTableError: there is none, or more than one.
    """
    names = {f"{name}{suffix}" for suffix in SUFFIXES}
    found = [path for path in sorted(folder.glob(f"{name}.*")) if path.name in names]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(path.name for path in found)
        raise PromptTableError(
            f"{folder.resolve()} has {both}: keep one, or name the table in the launchpad"
        )
    raise PromptTableError(
        f"no table for prompt set {name!r}: put {name}.csv (.tsv, .jsonl, .parquet) into "
        f"{folder.resolve()}, or name the table's path or s3:// URL in the launchpad"
    )
