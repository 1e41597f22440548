"""Fine-tunes LLaDA-8B with slack and CTC (arXiv 2601.22947, version 1).

    python -m jax_mdlm.train --config configs/llada_ctc.py --workdir gs://BUCKET/run \\
        --config.data.files=train.jsonl --config.init.from=hf://GSAI-ML/LLaDA-8B-Instruct

`init.from` also takes a local or gs:// folder of published weights, or a work directory. The rows
of the paper are not public. A public set of its kind, 939,343 conversations (1.4 GB; ODC-BY 1.0,
parts of it for non-commercial use), is prepared once, and trained on for about 10,900 steps:

    python -m jax_mdlm.prepare --config llada_ctc --output gs://BUCKET/tulu \\
        --config.data.files='hf://datasets/allenai/tulu-3-sft-mixture/data/*.parquet' \\
        --config.init.from=hf://GSAI-ML/LLaDA-8B-Instruct
    python -m jax_mdlm.train --config llada_ctc --workdir gs://BUCKET/run \\
        --config.data.prepared=gs://BUCKET/tulu --config.init.from=hf://GSAI-ML/LLaDA-8B-Instruct

Presets: `llada_ctc.py` (merge), `llada_ctc.py:slack_only` (version 2's map), `llada_ctc.py:ce`
(the matched baseline: plain LLaDA fine-tuning, same code, no slack, no CTC).

Length buckets are off: LLaDA updates on 256 rows, and with buckets a batch has the same number of
slots instead, so more rows the shorter they are. Chat rows are mostly far below 4,096 slots. For
updates of 32 rows (4,096 slots) to 256 (512) on 16 chips, in a seventh of the slots for GSM8K and a
quarter for open dialogues (`python -m benchmarks.buckets`):

    --config.data.buckets=512,1024,2048,4096 --config.train.batch_size=32

Hardware: a TPU slice with 16 chips or more (v4, v5e, v5p). Nothing was measured on a TPU yet.
"paper" marks what arXiv 2601.22947 states, "LLaDA" the recipe of arXiv 2502.09992, "our choice"
what neither says.
"""

from jax_mdlm.config import (
    Config,
    ConfigError,
    DataConfig,
    InitConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)

OBJECTIVES = {
    "": ObjectiveConfig(
        collapse="merge",  # paper, version 1
        ctc_weight=0.1,  # paper; normalised per label: our choice
        slack_max=0.5,  # paper; drawn uniformly below it: our choice
        separate_repeats=True,  # our choice; False is the paper's literal form
        observed="clamp",  # our choice; the paper does not say
    ),
    "slack_only": ObjectiveConfig(collapse="slack_only", ctc_weight=0.1, slack_max=0.5),
    "ce": ObjectiveConfig(collapse="slack_only", ctc_weight=0.0, slack_max=0.0),
}


def get_config(preset: str = "") -> Config:
    """The run; `preset` is empty, `slack_only` or `ce`."""
    if preset not in OBJECTIVES:
        raise ConfigError(f"preset of llada_ctc must be slack_only or ce, got {preset!r}")
    return Config(
        name=f"llada_ctc_{preset}" if preset else "llada_ctc",
        model=ModelConfig(),  # LLaDA-8B
        objective=OBJECTIVES[preset],
        data=DataConfig(
            source="chat_jsonl",
            files="",  # yours: --config.data.files=a.jsonl,b/*.jsonl
            template="llada",
            length=4096,  # LLaDA
            buckets=(),  # our choice; see above
            max_labels=2048,  # our choice
            end_padding=64,  # our choice; LLaDA pads to the longest row of a mini-batch,
            draw_end_padding=True,  # which hides the answer's length as this does
            tokenizer=TokenizerConfig(kind="huggingface"),  # that of init.from
        ),
        optimizer=OptimizerConfig(
            learning_rate=2.5e-5,  # LLaDA
            final_learning_rate=2.5e-6,  # LLaDA
            warmup_steps=50,  # LLaDA
            decay_share=0.1,  # LLaDA
            weight_decay=0.1,  # LLaDA
            beta1=0.9,  # our choice
            beta2=0.95,  # our choice
            clip_norm=1.0,  # our choice
            moment_dtype="bfloat16",  # our choice: 16 GB less over the slice
        ),
        mesh=MeshConfig(fsdp=-1),
        init=InitConfig(source=""),  # yours; the slack row is the mean embedding: our choice
        train=TrainConfig(
            steps=0,
            epochs=3.0,  # LLaDA
            batch_size=256,  # LLaDA
            microbatches=0,  # one 4,096-token row per chip and part, on any slice
            log_every=10,
            evaluate_every=200,
            evaluate_rows=256,
            decode_rows=16,  # one batch: 256 calls of the sampler at an evaluation
            save_every=200,
            keep_checkpoints=2,
        ),
        sample=SampleConfig(length=256, block_length=32, steps=256, batch_size=16),
    )
