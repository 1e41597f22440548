"""Beyond the paper: a setting that is better than CE at every strength, zero included.

python -m jax_mdlm.evaluate sweep --runs experiments/beyond --folder runs/experiments \\
    --training-seeds 3 --output runs/tables/beyond

Letters to phonemes, 950 updates of 128 words: more slack than the paper's s_max of 0.5, a heavier
CTC term than lambda 4, and both; CE also for as long as a run with CTC takes. Two CPU cores: about
four minutes a run. `ce` and `ctc_merge` are runs of `experiments/paper`, `s_max 1` of
`experiments/ablations`, `lambda 8` of `experiments/weights`.
"""

BASE = [
    "--config=pronounce",
    "--config.train.steps=950",
    "--config.train.evaluate_every=0",
    "--config.train.evaluate_rows=2000",
    "--config.train.save_every=950",
]


def get_runs() -> dict[str, list[str]]:
    """Words of the train command, by name."""
    changes = {
        "ce": ["ctc_weight=0", "slack_max=0", "collapse=slack_only"],
        "ctc_merge": ["slack_max=0.5", "ctc_weight=4"],
        "lambda 8": ["slack_max=0.5", "ctc_weight=8"],
        "s_max 1": ["slack_max=1", "ctc_weight=4"],
        "lambda 8 s_max 1": ["slack_max=1", "ctc_weight=8"],
        "slack_only lambda 8 s_max 1": ["slack_max=1", "ctc_weight=8", "collapse=slack_only"],
        "lambda 16": ["slack_max=0.5", "ctc_weight=16"],
    }
    runs = {
        name: [*BASE, *(f"--config.objective.{change}" for change in words)]
        for name, words in changes.items()
    }
    longer = [*runs["ce"], "--config.train.steps=1250", "--config.train.save_every=1250"]
    return runs | {"ce 1250 updates": longer}
