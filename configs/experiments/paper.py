"""The paper's comparison on a laptop: CE, slack in CE alone, CTC with both collapse maps.

python -m jax_mdlm.evaluate sweep --runs experiments/paper --folder runs/experiments \\
    --training-seeds 5 --output runs/tables/paper

Letters to phonemes, 950 updates of 128 words for every run, five training seeds. Two CPU cores:
about four minutes a run. The arms differ in the objective only.
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
    slack = "--config.objective.slack_max=0.5"
    return {
        "ce": [
            *BASE,
            "--config.objective.ctc_weight=0",
            "--config.objective.slack_max=0",
            "--config.objective.collapse=slack_only",
        ],
        "slack_ce": [*BASE, slack, "--config.objective.ctc_weight=0"],
        "ctc_merge": [*BASE, slack, "--config.objective.ctc_weight=4"],
        "ctc_slack_only": [
            *BASE,
            slack,
            "--config.objective.ctc_weight=4",
            "--config.objective.collapse=slack_only",
        ],
    }
