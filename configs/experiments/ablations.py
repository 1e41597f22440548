"""What each choice of the objective is worth: slack share, observed slots, collapse, separators.

python -m jax_mdlm.evaluate sweep --runs experiments/ablations --folder runs/experiments \\
    --training-seeds 1 --output runs/tables/ablations

Letters to phonemes, lambda 4, 950 updates of 128 words; each run differs from the first in what its
name says. Two CPU cores: about four minutes a run. `ctc_merge` and `slack in CE only` are runs of
`experiments/paper`.
"""

BASE = [
    "--config=pronounce",
    "--config.train.steps=950",
    "--config.train.evaluate_every=0",
    "--config.train.evaluate_rows=2000",
    "--config.train.save_every=950",
    "--config.objective.ctc_weight=4",
]


def get_runs() -> dict[str, list[str]]:
    """Words of the train command, by name."""
    changes = {
        "ctc_merge": [],
        "s_max 0.1": ["slack_max=0.1"],
        "s_max 0.25": ["slack_max=0.25"],
        "s_max 1": ["slack_max=1"],
        "no slack": ["slack_max=0", "collapse=slack_only"],
        "slack_only": ["collapse=slack_only"],
        "observed model": ["observed=model"],
        "repeats not separated": ["separate_repeats=false"],
        "slack in CE only": ["ctc_weight=0"],
        "lambda from 0 over 300": ["ctc_weight_start=0", "ctc_weight_steps=300"],
        "lambda from 8 over 950": ["ctc_weight_start=8", "ctc_weight=1", "ctc_weight_steps=950"],
    }
    return {
        name: [*BASE, *(f"--config.objective.{change}" for change in words)]
        for name, words in changes.items()
    }
