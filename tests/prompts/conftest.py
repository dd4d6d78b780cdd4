import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanobanana_pipeline.prompts.checked_prompts import CheckedPrompts
from nanobanana_pipeline.prompts.table import read_prompt_table
from nanobanana_pipeline.prompts.validation import check_prompts

Check = Callable[[str, str | bytes], CheckedPrompts]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Writes a table under the name given, reads and checks it."""

    def write_and_check(name: str, content: str | bytes) -> CheckedPrompts:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return check_prompts(read_prompt_table(path))

    return write_and_check


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
