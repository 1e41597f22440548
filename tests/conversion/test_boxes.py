"""Boxes of our arrays against whole tensors that NumPy transposes."""

import dataclasses
import itertools

import ml_dtypes
import numpy as np
import pytest

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.conversion import boxes
from jax_mdlm.conversion.reading import Meter, PublishedArray
from jax_mdlm.conversion.shards import Tensor
from jax_mdlm.model import table
from jax_mdlm.storage.arrays import box_shape

SMALL = ModelConfig(
    vocab_size=70, embed=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp=34, max_length=8
)
LLADA_8B = ModelConfig()
LLADA_1B = dataclasses.replace(
    LLADA_8B, layers=22, embed=2048, heads=32, kv_heads=4, head_dim=64, mlp=5634
)
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]


def name(value: object) -> str:
    return "-".join(value.path) if isinstance(value, ParamRow) else getattr(value, "__name__", "")


def plain(tensor: np.ndarray, row: ParamRow, config: ModelConfig) -> np.ndarray:
    """PyTorch's [out, in] in our layout, as one would first write it."""
    whole = tensor.T if row.num_inputs else tensor
    return whole.reshape(boxes.BothLayouts(row, config).layer_shape)


@pytest.fixture
def small_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that cut even the small model into pieces."""
    monkeypatch.setattr(boxes, "_MOST_BYTES", 900)
    monkeypatch.setattr(boxes, "_LEAST_CHUNK", 200)


@pytest.mark.usefixtures("small_boxes")
@pytest.mark.parametrize("row", table.rows(LLADA_8B), ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_boxes_carry_every_value_both_ways(row: ParamRow, dtype: type) -> None:
    layouts = boxes.BothLayouts(row, SMALL)
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal(layouts.torch_shape).astype(dtype)
    tensors = tuple(
        Tensor(name, tensor.shape, "", "", lambda first, last: tensor[first:last])
        for name in layouts.torch_names
    )
    array = PublishedArray(layouts, tensors, np.dtype(dtype), Meter())
    ours = plain(tensor, row, SMALL)
    seen = np.zeros(table.shape(row, SMALL), int)
    back = np.zeros_like(tensor)
    for index in layouts.boxes(tensor.itemsize):
        seen[index] += 1
        _, own = layouts.by_layer(index)
        first, last = layouts.torch_rows(own)
        out = np.empty(box_shape(index), dtype)
        array.read(index, out)
        out = out.reshape(ours[own].shape)
        np.testing.assert_array_equal(out.view(np.uint8), ours[own].copy().view(np.uint8))
        if row.num_inputs:
            boxes.transpose(out.reshape(-1, last - first), back[first:last])
        else:
            boxes.copy(out, back[first:last])
    assert (seen == 1).all()
    np.testing.assert_array_equal(back.view(np.uint8), tensor.view(np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3), (256, 256), (257, 513), (300, 31)])
@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(DTYPES, DTYPES[:2])))
def test_casts_and_tiles(shape: tuple[int, int], given: type, wanted: type) -> None:
    """Every pair of dtypes, sizes around the tile; also from rows that are not contiguous."""
    wide = np.random.default_rng(1).standard_normal((shape[0], shape[1] + 5)).astype(given)
    rows = wide[:, 2:-3]
    out = np.empty((shape[1], shape[0]), wanted)
    boxes.transpose(rows, out)
    np.testing.assert_array_equal(out.astype(np.float64), rows.astype(wanted).astype(np.float64).T)
    back = np.empty(shape, wanted)
    boxes.transpose(np.ascontiguousarray(rows.T), back)
    np.testing.assert_array_equal(back.astype(np.float64), rows.astype(wanted).astype(np.float64))


def test_bfloat16_widens_bit_by_bit() -> None:
    """All 65,536 patterns, NaN payloads included."""
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(2**16, np.float32)
    boxes.copy(bits.view(ml_dtypes.bfloat16), out)
    np.testing.assert_array_equal(out.view(np.uint32), bits.astype(np.uint32) << 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_values_that_are_not_finite_are_counted(dtype: type) -> None:
    """All patterns of two bytes; some of four, the edges of the exponent among them."""
    if np.dtype(dtype).itemsize == 2:
        values = np.arange(2**16, dtype=np.uint16).view(dtype)
    else:
        random = np.random.default_rng(0).integers(0, 2**32, 2**18, dtype=np.uint32)
        edges = np.uint32([0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFF800000, 0xFFFFFFFF, 0])
        values = np.concatenate([random, edges]).view(np.float32)
    expected = int((~np.isfinite(values.astype(np.float64))).sum())
    assert expected > 0
    assert boxes.count_not_finite(values) == expected


@pytest.mark.parametrize("config", [LLADA_8B, LLADA_1B], ids=["8b", "1b"])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("row", table.rows(LLADA_8B), ids=name)
def test_chunks_of_real_layouts(row: ParamRow, config: ModelConfig, itemsize: int) -> None:
    """Boxes of at most 16 MiB that begin and end with chunks, which are runs of their values."""
    layouts = boxes.BothLayouts(row, config)
    chunk = layouts.chunk(itemsize)
    shape = table.shape(row, config)
    cut = row.num_inputs + layouts.stacked
    total = 0
    for index in layouts.boxes(itemsize):
        assert itemsize * np.prod(box_shape(index)) <= 16 * 2**20
        assert index[cut].start % chunk[cut] == 0
        assert index[cut].stop % chunk[cut] == 0 or index[cut].stop == shape[cut]
        total += int(np.prod(box_shape(index)))
    assert total == np.prod(shape)
    own = chunk[1:] if layouts.stacked else chunk
    _, first = layouts.by_layer(next(layouts.boxes(itemsize)))
    assert (
        own[1:] == box_shape(first)[1:]
    )  # only the leading axis is cut: a chunk is one run of bytes
    assert all(size % part == 0 for size, part in zip(shape, chunk))


def test_names_of_the_published_checkpoint() -> None:
    rows = [boxes.BothLayouts(row, LLADA_8B) for row in table.rows(LLADA_8B)]
    assert len({name for row in rows for name in row.torch_names}) == 291
    shapes = {row.torch_names[-1]: row.torch_shape for row in rows}
    block = "model.transformer.blocks.31."
    assert shapes == {
        "model.transformer.wte.weight": (126464, 4096),
        "model.transformer.ln_f.weight": (4096,),
        "model.transformer.ff_out.weight": (126464, 4096),
        block + "attn_norm.weight": (4096,),
        block + "ff_norm.weight": (4096,),
        block + "q_proj.weight": (4096, 4096),
        block + "k_proj.weight": (4096, 4096),
        block + "v_proj.weight": (4096, 4096),
        block + "attn_out.weight": (4096, 4096),
        block + "ff_proj.weight": (12288, 4096),
        block + "up_proj.weight": (12288, 4096),
        block + "ff_out.weight": (4096, 12288),
    }
