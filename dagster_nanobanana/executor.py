"""Where steps run: in their run's own process, or on the machines of a Celery cluster."""

import os

import dagster as dg

__all__ = ["executor", "settings_file"]

CELERY = "NANOBANANA_CELERY"
"""Names the YAML file of `deploy/celery`: for what launches runs, and for the workers alike."""


def executor() -> dg.ExecutorDefinition:
    """Celery's where the environment names its settings, else in process.

    In process the shards of a partition run one after another: measured in docs/architecture.md.

    Raises:
        dagster.DagsterInvalidDefinitionError: the file holds no settings.
        ModuleNotFoundError: dagster-celery is not installed.
        OSError: the file cannot be read.
    """
    if not os.environ.get(CELERY):
        return dg.in_process_executor
    from dagster_celery import celery_executor  # noqa: PLC0415 - an extra, and slow to import
    from dagster_celery.cli import get_config_value_from_yaml  # noqa: PLC0415

    # Variables that it names are read when a run begins: no secret gets into the definitions.
    return celery_executor.configured(get_config_value_from_yaml(settings_file()))


def settings_file() -> str:
    """The YAML file that the environment names, with something in it for dagster-celery.

    Raises:
        dagster.DagsterInvalidDefinitionError: no file is named, or dagster-celery would take none
            of it, and look for a broker on this machine.
        OSError: the file cannot be read.
    """
    from dagster_celery.cli import get_config_value_from_yaml  # noqa: PLC0415

    path = os.environ.get(CELERY, "")
    config = get_config_value_from_yaml(path or None)
    if not config.get("broker") or not config.get("backend"):
        raise dg.DagsterInvalidDefinitionError(
            f"{CELERY} names {path!r}, which has no broker and backend under execution: config: "
            "start from deploy/celery/celery.yaml"
        )
    return path
