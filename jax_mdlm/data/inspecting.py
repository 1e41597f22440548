"""What is in prepared rows: counts, lengths, which canvas would hold them, some rows as text."""

from collections.abc import Iterator

import numpy as np
from etils import epath

from jax_mdlm.config import Config
from jax_mdlm.data.batches import assemble
from jax_mdlm.data.draws import Drawn
from jax_mdlm.data.order import slots_needed
from jax_mdlm.data.prepared import Manifest, open_table
from jax_mdlm.data.special import HEADER_END, HEADER_START
from jax_mdlm.data.table import Table
from jax_mdlm.data.tokenizer import Tokenizer, visible

_SHARES = (0.5, 0.9, 0.95, 0.99, 1.0)
_BARS = 20  # lines of the histogram, at most
_WIDTH = 40  # signs of its longest bar
_ROWS = 5  # rows that are shown
_CHUNK = 2**18  # pairs that are looked at in one go
_BOLD, _END = "\033[1m", "\033[0m"
_ROLES = {"system": "\033[33m", "user": "\033[36m", "assistant": "\033[32m", "tool": "\033[35m"}


def describe(
    folder: epath.Path, manifest: Manifest, config: Config, tokenizer: Tokenizer, color: bool
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
    for fields in zip(batch.tokens, batch.response, batch.valid, strict=True):
        tokens, learned, valid = map(np.asarray, fields)
        yield _row(tokens, learned, valid, tokenizer, color)
        yield ""


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
    tokens: np.ndarray, learned: np.ndarray, valid: np.ndarray, tokenizer: Tokenizer, color: bool
) -> str:
    """The text of a row: what is learned in bold, or in brackets, and roles in their colours."""
    before, after = tokenizer.find(HEADER_START), tokenizer.find(HEADER_END)
    pieces: list[str] = []
    learns, header = False, -1  # where the role of an open header begins among the pieces
    for token, learn in zip(tokens[valid].tolist(), learned[valid].tolist(), strict=True):
        if learn and not learns:
            learns = True
            pieces.append(_BOLD if color else "[")
        if token == after and header >= 0 and color:
            role = "".join(pieces[header:])
            pieces[header:] = [f"{_ROLES.get(role, '')}{role}{_END}"]
        pieces.append(visible(tokenizer.token(token)))
        if token in (before, after):
            header = len(pieces) if token == before else -1
    end = visible(tokenizer.token(tokenizer.ids.eos))
    count = 0
    while pieces and pieces[-1] == end:
        count += 1
        pieces.pop()
    pieces += [f"{end} x {count}"] if count else []
    shown = "".join(pieces)
    return shown + ((_END if color else "]") if learns else "")
