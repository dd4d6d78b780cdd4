from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_nanobanana.assets.generated_images import generated_images
from dagster_nanobanana.assets.image_features import image_features
from dagster_nanobanana.assets.prompt_set import prompt_set
from dagster_nanobanana.partitions import prompt_sets, seeds
from dagster_nanobanana.resources import S3, BucketValues, NanobananaResource
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import API_KEY, Emulators

CSV = "id,prompt\na,a fox\nb,a whale\nc,a kite\n"
SMALL = {"width": 1024, "height": 1024}


@dataclass
class Project:
    """Our definitions, on an instance, a bucket and an emulator of their own."""

    instance: dg.DagsterInstance
    store: ObjectStore
    emulator: EmulatorThread
    resources: dict[str, Any]
    table: Path

    def make_prompt_set(self, name: str = "demo", csv: str = CSV) -> dg.ExecuteInProcessResult:
        """Materialize a prompt set of this table."""
        self.table.write_text(csv)
        self.instance.add_dynamic_partitions(str(prompt_sets.name), [name])
        return self.run(prompt_set, name, {"prompt_set": {"config": {"table": str(self.table)}}})

    def generate(
        self, key: str = "demo|1", config: dict[str, Any] | None = None, **run: Any
    ) -> dg.ExecuteInProcessResult:
        """Materialize the images of a partition."""
        self.instance.add_dynamic_partitions(str(seeds.name), [key.rpartition("|")[2]])
        settings = {"generated_images": {"config": SMALL if config is None else config}}
        return self.run(generated_images, key, settings, **run)

    def run(
        self, asset: dg.AssetsDefinition, key: str, ops: dict[str, Any], **run: Any
    ) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [prompt_set, generated_images, image_features],
            selection=[asset],
            partition_key=key,
            instance=self.instance,
            resources=self.resources,
            run_config={"ops": ops},
            raise_on_error=False,
            **run,
        )


@pytest.fixture
def project(
    store: ObjectStore, emulators: Emulators, tmp_path: Path
) -> Iterator[Callable[..., Project]]:
    """Makes a `Project` whose emulator is as told."""
    with dg.DagsterInstance.ephemeral() as instance:

        def make(*, preview_url: str | None = None, **emulator: Any) -> Project:
            provider = emulators(**emulator)
            s3 = S3()
            nanobanana = NanobananaResource(
                s3=s3,
                api_key=API_KEY,
                base_url=provider.base_url,
                bucket=store.bucket,
                prefix=store.prefix.rstrip("/"),
                allowed_hosts="127.0.0.1",
                preview_url=preview_url,
            )
            return Project(
                instance,
                store,
                provider,
                {"nanobanana": nanobanana, "io_manager": BucketValues(nanobanana=nanobanana)},
                tmp_path / "table.csv",
            )

        yield make
