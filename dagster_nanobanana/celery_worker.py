"""What Celery's workers load: `celery -A dagster_nanobanana.celery_worker worker`.

As `dagster_celery.app`, with the executor's own settings. Dagster's `dagster-celery worker start`
writes the broker's password into a file, and does not pass on SIGTERM.
"""

from dagster_celery.cli import get_validated_config
from dagster_celery.executor import CeleryExecutor
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from dagster_nanobanana.executor import settings_file

__all__ = ["app", "execute_plan"]

_config = get_validated_config(settings_file())

app = make_app(  # type: ignore[no-untyped-call]
    CeleryExecutor.for_cli(  # type: ignore[no-untyped-call]
        broker=_config["broker"],
        backend=_config["backend"],
        config_source=_config.get("config_source"),
    ).app_args()
)
execute_plan = create_task(app)  # type: ignore[no-untyped-call]
