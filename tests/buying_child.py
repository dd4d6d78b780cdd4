"""Settles the shards of a planned run in a process of its own, to be killed.

python -m tests.buying_child BASE_URL PREFIX RUN_ID
"""

import subprocess
import sys
import time

from nanobanana_pipeline import local
from nanobanana_pipeline.generation.launch_steps import settle_shard
from nanobanana_pipeline.generation.planning.run_files import RunPlan, read_plan
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.conftest import account_for
from tests.launching import states


def kill_once_accepted(store: ObjectStore, base_url: str, made: RunPlan, before: int = 0) -> None:
    """Buy what a run has planned, and die as soon as the provider has accepted all of it.

    Args:
        store: the bucket.
        base_url: the provider's.
        made: the run's plan.
        before: how many the ledger has accepted already.
    """
    command = [sys.executable, "-m", "tests.buying_child", base_url, store.prefix, made.run_id]
    child = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    try:
        while states(store).get(State.ACCEPTED, 0) < before + made.buy:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()


def main(base_url: str, prefix: str, run_id: str) -> None:
    store = ObjectStore(s3_client(), local.BUCKET, prefix)
    for shard in read_plan(store, run_id).shards:
        settle_shard(store, account_for(base_url, store), run_id, shard)


if __name__ == "__main__":
    main(*sys.argv[1:])
