"""The tiny run of `sample`'s tests."""

from tests.viewing.conftest import workdir

__all__ = ["workdir"]
