"""Compiles for slices that are not there: memory, work and the bound per chip."""
