"""A small chat model on rows of your own, from scratch, on a laptop.

python -m jax_mdlm.train --config configs/chat.py --workdir runs/chat
python -m jax_mdlm.train --config configs/chat.py --workdir runs/mine \\
    --config.data.source=chat_jsonl --config.data.files=mine.jsonl

The first takes human dialogues that a package brings (extra `demo`), so that it runs at once; the
second your rows. Presets: `chat` (slack_only), `chat:merge`, `chat:ce` (the matched baseline).
A model of this size learns the phrases of its rows, not the language. 300 short rows: 5 minutes on
two CPU cores.
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

# lambda, the weight of CTC: the paper's 0.1 is for a model that is fine-tuned. 0 = CE alone.
OBJECTIVES = {
    "": ObjectiveConfig(collapse="slack_only", ctc_weight=1.0),  # repeats in the text stay
    "merge": ObjectiveConfig(collapse="merge", ctc_weight=1.0),  # equal neighbours become one
    "ce": ObjectiveConfig(collapse="slack_only", ctc_weight=0.0, slack_max=0.0),
}


def get_config(preset: str = "") -> Config:
    """The run; `preset` is empty, `merge` or `ce`."""
    if preset not in OBJECTIVES:
        raise ConfigError(f"preset of chat must be merge or ce, got {preset!r}")
    return Config(
        name=f"chat_{preset}" if preset else "chat",
        model=ModelConfig(
            vocab_size=0,  # that of the tokenizer
            embed=128,  # width; larger is better and slower, in proportion to its square
            layers=4,
            heads=4,
            kv_heads=4,
            head_dim=32,  # heads * head_dim is usually embed
            mlp=352,  # about 2.7 times embed
            max_length=256,  # the longest canvas that the model can ever have
            rope_theta=10000.0,  # distances on a canvas of hundreds of slots
            compute_dtype="float32",  # a CPU multiplies it faster than bfloat16
        ),
        objective=OBJECTIVES[preset],
        data=DataConfig(
            source="dialogues",  # yours: chat_jsonl, with data.files
            template="llada",  # roles have headers, as in LLaDA's chats; plain has none
            length=256,  # the canvas: prompt, response, and room for slack
            buckets=(64, 128, 256),  # short rows share shorter canvases; the last is data.length
            max_labels=128,  # tokens of a response at most; slack may take half as many slots more
            end_padding=32,  # slots after a response in which the model learns that it has ended,
            draw_end_padding=True,  # a number drawn up to there: a fixed one gives the length away
            validation_percent=5.0,  # of your rows; dialogues have a part of their own
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048),  # trained from the rows
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,  # a small model takes a hundred times what a large one does
            final_learning_rate=1e-5,
            warmup_steps=50,
            decay_share=0.8,  # the share of the steps, at the end, in which the rate falls
            weight_decay=0.01,
            beta2=0.98,
        ),
        mesh=MeshConfig(fsdp=-1),
        train=TrainConfig(
            steps=1200,  # enough for some hundred rows; more rows want more
            batch_size=8,  # rows of 256 slots; four times as many of 64
            log_every=100,
            evaluate_every=600,
            evaluate_rows=64,
            save_every=300,
        ),
        # 8 slots at a time, one of them a call; 32 slots, to which more are added while no end has
        # come: with more at once than end_padding, short answers end in what it never learned.
        sample=SampleConfig(length=32, limit=128, block_length=8, steps=32, batch_size=16),
    )
