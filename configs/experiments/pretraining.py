"""Exploratory: the objective from the first step, on text that has no prompt, CE against CTC.

python -m jax_mdlm.evaluate sweep --runs experiments/pretraining --folder runs/experiments \\
    --training-seeds 1 --output runs/tables/pretraining

An open question of arXiv 2601.22947, which only fine-tunes. The generated numbers as running text
("copy 1100", a newline, "1100"), every token of it noised, 1,500 updates of 64 canvases; then the
answers of test rows are decoded after their prompts. All arms read the same 64 tokens a canvas.
"""

BASE = [
    "--config=numbers",
    "--config.data.pretraining=true",
    "--config.data.prompt_slots=0",
    "--config.data.length=96",
    "--config.data.max_labels=64",
    "--config.model.max_length=96",
    "--config.train.steps=1500",
    "--config.train.batch_size=64",
    "--config.train.evaluate_every=0",
    "--config.train.evaluate_rows=512",
    "--config.train.save_every=1500",
]


def get_runs() -> dict[str, list[str]]:
    """Words of the train command, by name."""
    return {
        "ce": [
            *BASE,
            "--config.objective.collapse=slack_only",
            "--config.objective.ctc_weight=0",
            "--config.objective.slack_max=0",
        ],
        "ctc_merge": [*BASE],
        "ctc_slack_only": [*BASE, "--config.objective.collapse=slack_only"],
    }
