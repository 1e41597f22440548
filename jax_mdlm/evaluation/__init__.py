"""Evaluation: held-out bound, tasks scored by generation."""
