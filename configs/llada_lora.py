"""Fine-tunes LLaDA-8B with slack and CTC on one TPU host, with LoRA (arXiv 2106.09685).

    python -m jax_mdlm.train --config configs/llada_lora.py --workdir gs://BUCKET/run \\
        --config.data.files=train.jsonl --config.init.from=hf://GSAI-ML/LLaDA-8B-Instruct

The 8B parameters are frozen, in bfloat16; adapters of rank 16 on all matrices of the blocks and the
slack token's rows are trained, 0.5% of the parameters. `python -m jax_mdlm.convert export RUN
FOLDER` merges them; with `--adapter` it writes a PEFT folder.

Presets: `llada_lora.py` (merge), `llada_lora.py:slack_only` (version 2's map), `llada_lora.py:ce`
(the matched baseline: same adapters, no slack, no CTC), `llada_lora.py:one_chip` (merge on 1,024
slots, the frozen parameters in int8).

Hardware: one v5e host, 8 chips of 16 GB (`plan --topology v5e:2x4`: 4.9 GB a chip with one row of
4,096 slots each, 2.0 of them the frozen parameters). `one_chip`: one v5e chip (`plan --topology
v5e:1x1`: 13.9 GB with four rows of 1,024 slots at a time, 8.5 of them the frozen parameters; 12.7
with one row, `--config.train.microbatches=16`). Nothing was measured on a TPU yet.
"paper" marks what arXiv 2601.22947 states, "LLaDA" the recipe of arXiv 2502.09992, "QLoRA" that of
arXiv 2305.14314, "our choice" what none says.
"""

from jax_mdlm.config import (
    Config,
    ConfigError,
    DataConfig,
    InitConfig,
    LoraConfig,
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
    """The run; `preset` is empty, `one_chip`, `slack_only` or `ce`."""
    if preset not in (*OBJECTIVES, "one_chip"):
        raise ConfigError(
            f"preset of llada_lora must be one_chip, slack_only or ce, got {preset!r}"
        )
    one_chip = preset == "one_chip"
    return Config(
        name=f"llada_lora_{preset}" if preset else "llada_lora",
        model=ModelConfig(),  # LLaDA-8B
        objective=OBJECTIVES.get(preset, OBJECTIVES[""]),
        data=DataConfig(
            source="chat_jsonl",
            files="",  # yours: --config.data.files=a.jsonl,b/*.jsonl
            template="llada",
            length=1024 if one_chip else 4096,  # our choice, LLaDA
            max_labels=512 if one_chip else 2048,  # our choice
            end_padding=64,  # our choice; LLaDA pads to the longest row of a mini-batch,
            draw_end_padding=True,  # which hides the answer's length as this does
            tokenizer=TokenizerConfig(kind="huggingface"),  # that of init.from
        ),
        lora=LoraConfig(
            rank=16,  # our choice
            alpha=32.0,  # our choice
            base="int8" if one_chip else "full",  # our choice; QLoRA has 4 bits
            train_slack_row=True,  # our choice; all matrices of the blocks: QLoRA
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-4,  # QLoRA, 7B and 13B
            final_learning_rate=2e-5,  # a tenth, as LLaDA
            warmup_steps=50,  # LLaDA
            decay_share=0.1,  # LLaDA
            weight_decay=0.0,  # our choice: an adapter near 0 is near the weights it began from
            beta1=0.9,  # our choice
            beta2=0.95,  # our choice
            clip_norm=1.0,  # our choice
        ),
        mesh=MeshConfig(fsdp=-1),
        init=InitConfig(source=""),  # yours; the slack row begins as the mean embedding
        train=TrainConfig(
            steps=0,
            epochs=3.0,  # LLaDA
            batch_size=16 if one_chip else 64,  # QLoRA, our choice
            microbatches=4 if one_chip else 0,  # four rows per part; a 4,096-token row per chip
            log_every=10,
            evaluate_every=200,
            evaluate_rows=256,
            decode_rows=16,  # one batch: 256 calls of the sampler at an evaluation
            save_every=200,
            keep_checkpoints=2,
        ),
        sample=SampleConfig(
            length=256,
            block_length=32,
            steps=256,
            batch_size=16,
            weights="int8" if one_chip else "full",  # of `sample`, on the same chip
        ),
    )
