"""Measures parts of the package against the plain way of writing them."""
