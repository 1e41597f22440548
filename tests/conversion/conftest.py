"""A small published folder, and the work directory of its import."""

from pathlib import Path

import pytest

from jax_mdlm.convert import main
from tests.conversion.folders import write_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "source"
    write_folder(folder, shards=2)
    return folder


@pytest.fixture(scope="module")
def imported(source: Path) -> Path:
    """A work directory that nothing happened to; its name is that of all others here."""
    main(["import", str(source), str(source.parent / "whole" / "run")])
    return source.parent / "whole" / "run"
