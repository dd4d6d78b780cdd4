"""One launch in a process of its own, to be killed: BASE_URL BUCKET PREFIX RUN_ID."""

import sys

from nanobanana_pipeline.generation import buy
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.conftest import account_for
from tests.launching import hasty, launch

SUBMIT_SECONDS = 2.0


def main(base_url: str, bucket: str, prefix: str, run_id: str) -> None:
    # A lease of 4 seconds in place of 150: the next launch waits for it to run out.
    buy.LEASE_MARGIN_SECONDS = 1.0  # type: ignore[misc]
    store = ObjectStore(s3_client(), bucket, prefix)
    account = hasty(account_for(base_url, store), base_url, SUBMIT_SECONDS)
    launched = launch(store, account, run_id=run_id)
    sys.stdout.write(f"{launched.states}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
