"""What is in prepared rows: counts, lengths, which canvas would hold them, some rows as text."""

from collections.abc import Iterator

import numpy as np
from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.data.batches import assemble
from jax_mdlm.data.draws import Drawn
from jax_mdlm.data.order import slots_needed
from jax_mdlm.data.prepared import Manifest, open_table
from jax_mdlm.data.table import Table
from jax_mdlm.data.tokenizer import Tokenizer, visible

_SHARES = (0.5, 0.9, 0.95, 0.99, 1.0)
_BARS = 20  # lines of the histogram, at most
_WIDTH = 40  # signs of its longest bar
_ROWS = 5  # rows that are shown
_CHUNK = 2**18  # pairs that are looked at in one go
_DIM, _BOLD, _END = "\033[2m", "\033[1;32m", "\033[0m"


def describe(
    folder: epath.Path, manifest: Manifest, config: Config, tokenizer: Tokenizer, color: bool = True
) -> Iterator[str]:
    """Lines about prepared rows, as the canvas of a run cuts them.

    Raises:
      ConfigError: as `open_table`.
    """
    yield from manifest.lines()
    counts = manifest.counts
    names = ("rows", "held_out", "duplicates", "responses", "tokens")
    yield ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names)
    train = open_table(folder, manifest, "train", config, tokenizer)
    yield f"on this canvas: {train.counts.line(config.data)}"
    slots, labels = _sizes(train, config)
    yield ""
    yield "share of the rows      " + "".join(f"{share:>9.0%}" for share in _SHARES)
    for name, sizes in (("slots, with slack", slots), ("labels", labels)):
        found = np.quantile(sizes, _SHARES, method="inverted_cdf")
        yield f"{name:<23}" + "".join(f"{int(size):>9,}" for size in found)
    yield ""
    yield from _histogram(slots)
    yield ""
    yield from _suggestions(slots, config)
    yield ""
    pairs = np.linspace(0, len(train.response) - 1, min(_ROWS, len(train.response))).astype(int)
    batch = assemble(train, pairs, config.data)
    for tokens, response, valid in zip(batch.tokens, batch.response, batch.valid, strict=True):
        learned = response & (np.cumsum(response) <= valid.sum())
        yield _row(np.asarray(tokens), np.asarray(valid), np.asarray(learned), tokenizer, color)


def _sizes(table: Table, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Slots that each pair may need, and its labels, int64 [pairs] each."""
    slots, labels = [], []
    for begin in range(0, len(table.response), _CHUNK):
        pairs = np.arange(begin, min(begin + _CHUNK, len(table.response)))
        lengths = table.response[pairs, 1] - table.response[pairs, 0]
        padding = np.full(len(pairs), config.data.end_padding)
        slots.append(slots_needed(table, Drawn(pairs, lengths, padding), config.objective))
        labels.append(table.spans(pairs).labels)
    return np.concatenate(slots), np.concatenate(labels)


def _histogram(sizes: np.ndarray) -> Iterator[str]:
    edges = np.unique(np.linspace(0, sizes.max() + 1, _BARS + 1).astype(int))
    counts, _ = np.histogram(sizes, edges)
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "█" * round(_WIDTH * count / counts.max())
        yield f"{low:>7,} to {high - 1:>7,} slots {bar} {count:,}".rstrip()


def _suggestions(slots: np.ndarray, config: Config) -> Iterator[str]:
    """Canvases that hold nearly all rows, and what share of their slots would be padding."""
    length = config.data.length
    held = np.minimum(slots, length)
    yield f"padding on data.length={length}: {1 - held.mean() / length:.0%} of the slots"
    shorter = int(-(-np.quantile(slots, 0.99, method="inverted_cdf") // 128) * 128)
    if shorter < length:
        share = 1 - np.minimum(slots, shorter).mean() / shorter
        yield f"  data.length={shorter} holds 99% of the rows whole: {share:.0%} padding"
    buckets = [length // 8, length // 4, length // 2, length]
    if length % 8 == 0 and buckets[0] >= 16:
        own = np.array(buckets)[np.minimum(np.searchsorted(buckets, slots), 3)]
        share = 1 - held.sum() / own.sum()
        text = ",".join(map(str, buckets))
        yield f"  data.buckets={text}: {share:.0%} padding"


def _row(
    tokens: np.ndarray, valid: np.ndarray, learned: np.ndarray, tokenizer: Tokenizer, color: bool
) -> str:
    """The text of a row: the prompt dim, what is learned bold; without colours in brackets."""
    prompt = "".join(visible(tokenizer.token(at)) for at in tokens[valid & ~learned])
    answer = "".join(visible(tokenizer.token(at)) for at in tokens[valid & learned])
    if color:
        return f"{_DIM}{prompt}{_END}{_BOLD}{answer}{_END}"
    return f"{prompt}[{answer}]"
