"""Exploratory: pre-trains a 1B model from scratch with slack and CTC, or with CE alone.

    python -m jax_mdlm.train --config configs/llada_pretrain.py --workdir gs://BUCKET/run \\
        --config.data.files='texts/*.jsonl' --config.data.tokenizer.path=FOLDER_OF_LLADA

Rows are `{"text": ...}` in JSONL or Parquet, or plain text files. Public texts, 10 billion tokens
of teaching and 14.7 billion of mathematics (both ODC-BY 1.0), of which an epoch takes every second:

    python -m jax_mdlm.prepare --config llada_pretrain --output gs://BUCKET/texts \\
        --config.data.tokenizer.path=FOLDER_OF_LLADA --config.data.files="\\
    hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet,\\
    hf://datasets/open-web-math/open-web-math/data/*.parquet*0.5"
    python -m jax_mdlm.train --config llada_pretrain --workdir gs://BUCKET/run \\
        --config.data.prepared=gs://BUCKET/texts --config.data.tokenizer.path=FOLDER_OF_LLADA

A text dataset prepared with TFDS takes `--config.data.source=NAME
--config.data.response_field=text --config.data.prompt_field=`. An open question of
arXiv 2601.22947, which only fine-tunes; `configs/experiments/pretraining.py` asks it of small
models.

Presets: `llada_pretrain.py` (merge), `:slack_only`, `:ce`. All read the same 2,730 tokens a row,
which fill the 4,096 slots at the largest slack share, so that runs of one length have seen the same
text; for CE on full rows set `--config.data.max_labels=4096`.

Hardware: a TPU slice with 16 chips or more; 5.7 GB a chip on v5e 4x4, by the TPU compiler
(`python -m jax_mdlm.plan --config llada_pretrain --topology v5e:4x4`). Nothing was measured on a
TPU yet. "LLaDA" marks the recipe of arXiv 2502.09992, "our choice" what it does not say.
"""

from jax_mdlm.config import (
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)

OBJECTIVES = {
    "": ObjectiveConfig(collapse="merge", ctc_weight=0.1, slack_max=0.5),  # as in llada_ctc
    "slack_only": ObjectiveConfig(collapse="slack_only", ctc_weight=0.1, slack_max=0.5),
    "ce": ObjectiveConfig(collapse="slack_only", ctc_weight=0.0, slack_max=0.0),
}


def get_config(preset: str = "") -> Config:
    """The run; `preset` is empty, `slack_only` or `ce`."""
    if preset not in OBJECTIVES:
        raise ConfigError(f"preset of llada_pretrain must be slack_only or ce, got {preset!r}")
    return Config(
        name=f"llada_pretrain_{preset}" if preset else "llada_pretrain",
        model=ModelConfig(
            vocab_size=126464,
            embed=2048,  # LLaDA 1B
            layers=22,  # LLaDA 1B
            heads=32,  # LLaDA 1B
            kv_heads=4,  # LLaDA 1B
            head_dim=64,
            mlp=5632,  # our choice: 44 tiles of 128
        ),
        objective=OBJECTIVES[preset],
        data=DataConfig(
            source="chat_jsonl",
            files="",  # yours: --config.data.files='texts/*.jsonl'
            pretraining=True,
            random_length_share=0.01,  # LLaDA
            length=4096,  # LLaDA
            max_labels=2730,  # 4,096 slots at 0.5 slack a label
            tokenizer=TokenizerConfig(kind="huggingface", path=""),  # yours
        ),
        optimizer=OptimizerConfig(
            learning_rate=4e-4,  # LLaDA
            final_learning_rate=1e-5,  # LLaDA, which has a plateau of 1e-4 on the way
            warmup_steps=2000,  # LLaDA
            decay_share=0.1,  # our choice
            weight_decay=0.1,  # LLaDA
            clip_norm=1.0,  # our choice
        ),
        mesh=MeshConfig(fsdp=-1),
        train=TrainConfig(
            steps=20_000,  # our choice: 70 billion tokens of text
            batch_size=1280,  # LLaDA
            microbatches=0,  # one row per chip and part, on any slice
            log_every=10,
            evaluate_every=1000,
            evaluate_rows=1280,
            save_every=500,
            keep_checkpoints=2,
        ),
        sample=SampleConfig(length=256, block_length=32, steps=256, batch_size=16),
    )
