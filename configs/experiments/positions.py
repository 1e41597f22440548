"""Exploratory: an architectural variant whose rotary positions do not count slack.

python -m jax_mdlm.evaluate sweep --runs experiments/positions --folder runs/experiments \\
    --training-seeds 1 --output runs/tables/positions

A slot after a known slack takes the position that it has in the text. `model.uncounted_id` is
slack's id, 6 with the tokenizers that are trained here; no parameter is added. The other run is
that of `experiments/paper`.
"""

BASE = [
    "--config=pronounce",
    "--config.train.steps=950",
    "--config.train.evaluate_every=0",
    "--config.train.evaluate_rows=2000",
    "--config.train.save_every=950",
    "--config.objective.slack_max=0.5",
    "--config.objective.ctc_weight=4",
]


def get_runs() -> dict[str, list[str]]:
    """Words of the train command, by name."""
    return {
        "ctc_merge": [*BASE],
        "slack not counted": [*BASE, "--config.model.uncounted_id=6"],
    }
