"""The sweep over lambda, the weight of CTC: the paper's values, then heavier ones.

python -m jax_mdlm.evaluate sweep --runs experiments/weights --folder runs/experiments \\
    --training-seeds 1 --output runs/tables/weights

Letters to phonemes, slack, collapse map `merge`, 950 updates of 128 words. Two CPU cores: about
four minutes a run. The runs of lambda 0 and 4 are those of `experiments/paper`.
"""

BASE = [
    "--config=pronounce",
    "--config.train.steps=950",
    "--config.train.evaluate_every=0",
    "--config.train.evaluate_rows=2000",
    "--config.train.save_every=950",
    "--config.objective.slack_max=0.5",
]
WEIGHTS = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8)


def get_runs() -> dict[str, list[str]]:
    """Words of the train command, by name."""
    return {f"lambda {w:g}": [*BASE, f"--config.objective.ctc_weight={w:g}"] for w in WEIGHTS}
