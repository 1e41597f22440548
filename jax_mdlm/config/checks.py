"""What settings must hold together; asked once, after the command line was read."""

import re
from typing import get_args

from jax_mdlm.config.sections import (
    Config,
    ConfigError,
    DataConfig,
    SampleConfig,
    TrainConfig,
)

_POSITIVE = {
    "model": "embed layers heads kv_heads mlp",
    "data": "length max_labels",
    "train": "batch_size log_every save_every keep_checkpoints",
    "objective": "loss_tile",
    "sample": "batch_size",
}
_NOT_NEGATIVE = {
    "train": "steps epochs microbatches evaluate_every evaluate_rows keep_every",
    "model": "vocab_size",
    "objective": "ctc_weight slack_max ctc_weight_steps",
    "data": "end_padding prompt_slots",
    "optimizer": "learning_rate clip_norm",
}


def validate(config: Config) -> Config:
    """Returns `config` if its settings can work together.

    Raises:
      ConfigError: one line with the field, what it must be, what it is, and what to change.
    """
    model, data, train, objective = config.model, config.data, config.train, config.objective
    # --- each alone ---
    for least, names, expected in (
        (1, _POSITIVE, "at least 1"),
        (0, _NOT_NEGATIVE, "0 or more"),
    ):
        for section, fields in names.items():
            for field in fields.split():
                value = getattr(getattr(config, section), field)
                _require(value >= least, f"{section}.{field} must be {expected}, got {value}")
    _require(
        train.decode_rows >= -1,
        f"train.decode_rows must be -1 (by the source) or more, got {train.decode_rows}",
    )
    _require(
        model.heads % model.kv_heads == 0,
        f"model.kv_heads must divide model.heads={model.heads}, got {model.kv_heads}",
    )
    _require(model.head_dim % 2 == 0, f"model.head_dim must be even, got {model.head_dim}")
    # --- sections together ---
    _require(
        data.length <= model.max_length,
        f"data.length must be at most model.max_length={model.max_length}, got {data.length}; "
        "shorten the canvas or raise model.max_length",
    )
    _require(
        data.max_labels <= data.length,
        f"data.max_labels must be at most data.length={data.length}, got {data.max_labels}",
    )
    _require(
        train.batch_size % (train.microbatches or 1) == 0,
        f"train.microbatches must divide train.batch_size={train.batch_size}, "
        f"got {train.microbatches}",
    )
    _require(
        train.steps > 0 or train.epochs > 0,
        "train.steps or train.epochs must be above 0, got 0 for both; set one of them",
    )
    _require(
        0 < objective.level_floor < 1,
        f"objective.level_floor must lie between 0 and 1, got {objective.level_floor}",
    )
    check_sample(config.sample)
    _require(
        model.uncounted_id < 0 or config.sample.cache == "none",
        "sample.cache keeps keys at the positions they had, and with model.uncounted_id positions "
        f"move; set sample.cache=none, got {config.sample.cache}",
    )
    _require(
        0 <= config.optimizer.decay_share <= 1,
        f"optimizer.decay_share must lie between 0 and 1, got {config.optimizer.decay_share}",
    )
    # --- mesh, profile, adapters, buckets ---
    axes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.context)
    _require(
        all(axis == -1 or axis >= 1 for axis in axes) and axes.count(-1) <= 1,
        f"mesh axes must be positive, with at most one -1, got {axes}",
    )
    profile_steps(config.profile)
    # The paths of lora.targets are the parameter table's to know (`model/lora.target_rows`).
    lora = config.lora
    _require(lora.rank >= 0, f"lora.rank must be 0 (off) or more, got {lora.rank}")
    _require(
        lora.alpha > 0, f"lora.alpha must be above 0, got {lora.alpha}; set lora.rank=0 for off"
    )
    _require(
        lora.base == "full" or lora.rank > 0,
        f"lora.base={lora.base} quantises what is frozen, and without adapters nothing is; set "
        "lora.rank above 0 or lora.base=full",
    )
    _check_buckets(config.data, config.train)
    return config


def _check_buckets(data: DataConfig, train: TrainConfig) -> None:
    buckets = data.buckets
    if not buckets:
        return
    if buckets[-1] != data.length or list(buckets) != sorted(set(buckets)):
        raise ConfigError(
            f"data.buckets must ascend to data.length={data.length}, got {_listed(buckets)}; e.g. "
            f"{_listed((data.length // 4, data.length // 2, data.length))}"
        )
    room = data.prompt_slots + data.end_padding
    if buckets[0] <= room:
        raise ConfigError(
            f"data.buckets must be longer than data.prompt_slots + data.end_padding={room}, which "
            f"a bucket holds whole, got {buckets[0]}; leave out short buckets or lower those"
        )
    for bucket in buckets:
        rows, rest = divmod(train.batch_size * data.length, bucket)
        if rest or rows % (train.microbatches or 1):
            raise ConfigError(
                f"a batch of data.buckets={bucket} must have train.batch_size * data.length / "
                f"{bucket} rows, a multiple of train.microbatches={train.microbatches}, got "
                f"{train.batch_size * data.length / bucket:g}; take buckets that divide "
                f"{data.length} or another train.batch_size"
            )


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def check_sample(sample: SampleConfig) -> None:
    """Raises ConfigError where the settings of a decoding cannot work together.

    The sampler asks again: settings reach it that were never in a `Config`.
    """
    # --- how many slots and calls ---
    length, width = sample.length, sample.block_length
    forms = get_args(SampleConfig.__annotations__["weights"])
    _require(
        sample.weights in forms,
        f"sample.weights must be {', '.join(forms[:-1])} or {forms[-1]}, got {sample.weights!r}",
    )
    _require(
        sample.weights_group >= 1,
        f"sample.weights_group must be at least 1, got {sample.weights_group}",
    )
    _require(length >= 1, f"sample.length must be at least 1, got {length}")
    _require(
        width >= 1 and length % width == 0,
        f"sample.block_length must be positive and divide sample.length={length}, got {width}",
    )
    _require(
        sample.limit == 0 or (sample.limit >= length and sample.limit % width == 0),
        f"sample.limit must be 0 or a multiple of sample.block_length={width} and at least "
        f"sample.length={length}, got {sample.limit}",
    )
    _require(
        sample.steps >= length // width,
        f"sample.steps must give each of the {length // width} blocks a step, got {sample.steps}; "
        "raise sample.steps or sample.block_length",
    )
    # --- which slots are fixed, what they may hold ---
    _require(
        0 <= sample.threshold <= 1,
        f"sample.threshold must lie between 0 and 1, got {sample.threshold}",
    )
    _require(
        sample.threshold <= 0 or sample.factor <= 0,
        f"sample.threshold={sample.threshold} and sample.factor={sample.factor} are two rules for "
        "one choice; set one of them to 0",
    )
    for name, value in (
        ("temperature", sample.temperature),
        ("top_k", sample.top_k),
        ("guidance", sample.guidance),
    ):
        _require(value >= 0, f"sample.{name} must be 0 or more, got {value}")
    _require(
        0 < sample.top_p <= 1,
        f"sample.top_p must lie above 0 and at most at 1, got {sample.top_p}",
    )
    _require(
        sample.temperature > 0 or (sample.top_k == 0 and sample.top_p == 1),
        "sample.top_k and sample.top_p choose among drawn tokens and need sample.temperature above "
        "0, got 0; raise it, or leave them at 0 and 1",
    )
    # --- what is kept from call to call ---
    _require(
        sample.refresh >= 0 and (sample.refresh == 0 or sample.cache != "none"),
        f"sample.refresh must be 0 or more, and 0 without a cache, got {sample.refresh} with "
        f"sample.cache={sample.cache}",
    )


def profile_steps(text: str) -> range:
    """The updates that are profiled, counted from 1 as in the log.

    Args:
      text: `FIRST:LAST` (both included), `FIRST+COUNT`, or nothing.

    Raises:
      ConfigError: anything else.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+)([:+])(\d+)", text)
    if found:
        first, number = int(found[1]), int(found[3])
        steps = range(first, first + number if found[2] == "+" else number + 1)
        if first >= 1 and steps:
            return steps
    raise ConfigError(
        f"profile must read FIRST:LAST or FIRST+COUNT, in steps from 1 on, got {text!r}; write "
        "e.g. 10:12 or 10+3"
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
