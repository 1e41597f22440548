"""The settings: frozen, typed dataclasses, a sentence and a unit each."""

import dataclasses
from typing import Literal

Collapse = Literal["merge", "slack_only"]
SpecialInText = Literal["text", "error", "keep"]


class ConfigError(ValueError):
    """A setting that cannot work; its text is one line that names the field and the remedy."""


def first_line(error: Exception) -> str:
    """The first line of what a package says, for an error's text; else what it raised."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network (LLaDA's layout); static under `jit`."""

    vocab_size: int = 126464  # rows of the embedding, columns of the head; 0 = from the tokenizer
    embed: int = 4096  # D, width of the residual stream
    layers: int = 32  # transformer blocks
    heads: int = 32  # N, query heads
    kv_heads: int = 32  # K, key and value heads; divides `heads`
    head_dim: int = 128  # H, width of a head; even (RoPE turns pairs)
    mlp: int = 12288  # F, hidden width of the gated MLP
    max_length: int = 4096  # slots; the longest canvas
    rope_theta: float = 500000.0  # base of the rotary angles
    # Exploratory: slots that hold this token do not count as positions; slack's id, -1 = all count.
    uncounted_id: int = -1
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # residual stream and matrices
    param_dtype: Literal["bfloat16", "float32"] = "float32"  # master weights
    attention: Literal["auto", "splash", "xla"] = "auto"  # auto: splash on TPU where it fits
    # What a block keeps for its backward pass: all, its products, its attention, or nothing.
    remat: Literal["none", "dots", "attention", "full"] = "full"


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: `ce + ctc_weight * ctc` (arXiv 2601.22947)."""

    collapse: Collapse = "merge"  # canvas -> text: merge equal neighbours, or only drop slack
    ctc_weight: float = 0.1  # lambda, weight of CTC (nats per label) against CE; 0 = off
    ctc_weight_start: float = -1.0  # lambda at step 0, moved linearly to ctc_weight; < 0 = constant
    ctc_weight_steps: int = 0  # steps over which lambda moves from its start value
    observed: Literal["clamp", "model"] = "clamp"  # CTC at unmasked slots: certain, or predicted
    slack_max: float = 0.5  # s_max, the largest slack share, in slack per label; 0 = no slack
    separate_repeats: bool = True  # merge: one slack between equal neighbours before the rest
    level_floor: float = 1e-3  # eps, the smallest mask probability
    loss_tile: int = 2**24  # logits that a device holds at a time (4 bytes each)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Where token ids come from, and which ids are special. -1 = look the token's string up."""

    # huggingface and sentencepiece load `path`. bpe (byte-level), symbols (letters and words) and
    # sentencepiece with an empty path are trained from the data and kept in the work directory.
    kind: Literal["huggingface", "sentencepiece", "bpe", "symbols"] = "huggingface"
    # Folder, hub id (huggingface) or .model file (sentencepiece); empty for huggingface = that of
    # init.source.
    path: str = ""
    vocab_size: int = 4096  # tokens at most, when trained here
    mask_id: int = -1  # id of [MASK]; LLaDA: 126336
    slack_id: int = -1  # id of <SLACK>; LLaDA: the reserved 126084
    pad_id: int = -1  # id of the padding token; LLaDA: EOS, 126081
    eos_id: int = -1  # id of end of text; LLaDA: 126081
    terminator_id: int = -1  # id that closes a response; LLaDA: <|eot_id|>, 126348


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which rows are read and how they become token rows."""

    # pronunciations, numbers, dialogues, chat_jsonl, or a prepared TFDS name
    source: str = "chat_jsonl"
    files: str = ""  # chat_jsonl: paths or globs, comma-separated
    # Folder of the command `prepare`; empty = rows are read from their files; files of more than
    # 64 MB are prepared in data_dir first.
    prepared: str = ""
    data_dir: str = ""  # where prepared datasets live; empty = <workdir>/data
    split: str = "train"  # TFDS split that is trained on
    validation_split: str = "validation"  # TFDS split of the evaluation during training
    validation_percent: float = 1.0  # % of rows held out by hash where the source has no such split
    # catalogue datasets: feature that holds the prompt; with pretraining empty = none does
    prompt_field: str = "prompt"
    response_field: str = "response"  # catalogue datasets: feature that holds the response
    template: Literal["llada", "plain"] = "llada"  # chat headers, or prompt + separator + response
    prompt_slots: int = 0  # prompts are filled up with pad to this many slots, then the response
    pretraining: bool = False  # the whole sequence is the response; no prompt, no template
    random_length_share: float = 0.01  # pre-training: share of rows cut to a random length
    length: int = 4096  # L, slots of the canvas
    # Canvases that rows of training take instead, the shortest that holds them: ascending, `length`
    # last. A batch has train.batch_size * length / bucket rows. Empty = all rows on `length` slots.
    buckets: tuple[int, ...] = ()
    max_labels: int = 2048  # U, response tokens per row, terminator included
    end_padding: int = 64  # EOS slots after the terminator that CE supervises, at most
    draw_end_padding: bool = False  # 0 to end_padding of them, drawn per row and epoch; else all
    too_long: Literal["truncate", "drop", "error"] = "truncate"  # rows that do not fit; counted
    on_bad_row: Literal["error", "skip"] = "error"  # malformed rows; skipped ones are counted
    # Strings of special tokens in rows and prompts, such as <|eot_id|>: text like any other,
    # refused, or kept as these tokens (never the mask; in a response neither slack nor pad).
    special_in_text: SpecialInText = "text"
    seed: int = 0  # order of rows, turn cuts, random lengths
    tokenizer: TokenizerConfig = TokenizerConfig()


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Warm-up, a constant rate, and a linear end (LLaDA's fine-tuning recipe)."""

    # adafactor: no first moment, second ones as vectors; muon: for the matrices of the blocks, with
    # beta2 as its momentum. The rate means the same for all.
    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: float = 2.5e-5  # after warm-up
    final_learning_rate: float = 2.5e-6  # at the last step
    warmup_steps: int = 50  # steps from 0 to learning_rate
    decay_share: float = 0.1  # share of the steps, at the end, that falls linearly
    beta1: float = 0.9  # decay of the first moment
    beta2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # per step times the rate; not on norms, not on the slack row
    clip_norm: float = 1.0  # largest global gradient norm; 0 = no clipping
    moment_dtype: Literal["bfloat16", "float32"] = "float32"  # first moment


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; -1 = all that are left (one axis at most)."""

    data: int = 1  # replicas, across slices
    fsdp: int = -1  # batch and parameter shards
    tensor: int = 1  # heads, MLP and vocabulary shards
    context: int = 1  # canvas shards
    rules: tuple[str, ...] = ()  # "logical=mesh_axis" entries that replace rows of sharding.RULES


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where parameters come from when a work directory is new."""

    # A folder of published weights (local, gs://, s3://, hf://ORG/NAME) or another work directory,
    # whose newest parameters are taken; empty = drawn. On the command line also --config.init.from.
    source: str = ""
    # The slack token's row, with a source; auto = keep where the source was trained with slack,
    # else the mean embedding.
    slack_row: Literal["auto", "mean", "keep", "normal"] = "auto"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen parameters (arXiv 2106.09685)."""

    rank: int = 0  # r, columns of an adapter; 0 = off, all parameters are trained
    alpha: float = 32.0  # the change is multiplied by alpha / rank
    # Frozen parameters: the compute dtype, or a byte a value (norms and head stay in that dtype).
    base: Literal["full", "int8"] = "full"
    # Paths of the parameter table that get an adapter. All matrices of a block: on fewer, LoRA
    # falls behind training in full (arXiv 2305.14314, section 4).
    targets: tuple[str, ...] = (
        "blocks/q_proj",
        "blocks/k_proj",
        "blocks/v_proj",
        "blocks/attn_out",
        "blocks/ff_proj",
        "blocks/up_proj",
        "blocks/ff_out",
    )
    # Also train the slack token's row of the embedding and column of the head: the token is new,
    # and frozen it would keep what it was given at the start.
    train_slack_row: bool = True

    @property
    def scale(self) -> float:
        """What the product of an adapter's two factors is multiplied by."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 1000  # updates; 0 = from epochs
    epochs: float = 0.0  # passes over the rows, where steps = 0
    batch_size: int = 256  # rows per update, over all hosts
    # Parts of the batch that are accumulated one after the other; 0: as many as leave a device one
    # row of data.length at a time.
    microbatches: int = 1
    seed: int = 0  # parameters, slack and noise
    log_every: int = 20  # steps between lines of metrics
    evaluate_every: int = 500  # steps between evaluations; 0 = only at the end
    evaluate_rows: int = 512  # validation rows per evaluation; 0 = all
    # Of them, rows whose answers are decoded, scored and shown; 0 = none, -1 = by the source: all
    # of pronunciations and numbers, else 32 at most.
    decode_rows: int = -1
    save_every: int = 500  # steps between checkpoints; the last step is always saved
    keep_checkpoints: int = 2  # newest checkpoints that are kept
    keep_every: int = 0  # steps; checkpoints at its multiples stay for good; 0 = none
    tensorboard: bool = True  # write event files into <workdir>/tensorboard


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How `sample` and the evaluation by generation decode."""

    length: int = 128  # new slots per prompt
    limit: int = 0  # slots at most: blocks are appended while no terminator came; 0 = length
    block_length: int = 32  # slots decoded before the next block starts; divides length and limit
    steps: int = 128  # model calls for `length` slots at most; not used with threshold or factor
    # Which masked slots are committed first: by their token's probability, by the entropy of their
    # distribution, by the lead over the second token, or at random.
    strategy: Literal["confidence", "entropy", "margin", "random"] = "confidence"
    threshold: float = 0.0  # commit every slot at least this confident; 0 = fixed quota
    factor: float = (
        0.0  # commit n slots while the n-th has confidence 1 - factor / (n + 1); 0 = off
    )
    temperature: float = 0.0  # of the Gumbel noise; 0 = argmax
    top_k: int = 0  # draw among the k most probable tokens; 0 = all
    top_p: float = 1.0  # draw among the most probable tokens of this mass; 1 = all
    guidance: float = 0.0  # classifier-free guidance scale; 0 = off, else two rows a prompt
    suppress_eos: bool = False  # end of text is never committed
    defer_eos: bool = False  # end of text and terminator are committed last
    remask: bool = False  # committed slots of the block may be masked again (with a quota)
    cache: Literal["none", "prefix", "dual"] = "none"  # keys and values kept within a block
    refresh: int = 0  # calls between runs on the whole canvas, with a cache; 0 = one a block
    # As loaded for sampling: in the compute dtype, a byte a value, or half a byte (embedding and
    # head a byte).
    weights: Literal["full", "int8", "int4"] = "full"
    weights_group: int = 128  # int4: inputs of a matrix that share a scale, at most
    batch_size: int = 16  # prompts per compiled call
    early_stop: bool = True  # a row ends at its terminator; the masks after it become EOS
    seed: int = 0  # of the Gumbel noise


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    name: str = "run"  # appears in logs
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    init: InitConfig = InitConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    # Steps whose trace is written into <workdir>/profile: FIRST:LAST or FIRST+COUNT; empty = none.
    profile: str = ""
