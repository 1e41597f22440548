"""The tiny run of `sample`'s tests, and rows for it."""

from tests.experiments.conftest import rows_file, workdir

__all__ = ["rows_file", "workdir"]
