"""The tiny run of `sample`'s tests, and rows for it."""

import json
from pathlib import Path

import pytest

from tests.viewing.conftest import workdir

__all__ = ["workdir"]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts with answers."""
    answers = ["A B", "B", "C D E", "A", "E E", "B C D"]
    rows = [
        {"prompt": "abcdea"[: 1 + number], "response": answer}
        for number, answer in enumerate(answers)
    ]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
