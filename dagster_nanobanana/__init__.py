"""The orchestration: what Dagster shows and runs. Wiring only; the logic is the domain's."""

import os

# Arrow asks for it once, when it is first used. Its own allocator keeps what was freed, a fifth of
# a large partition's memory.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
