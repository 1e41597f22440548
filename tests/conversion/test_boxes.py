"""Boxes of our arrays against whole tensors that NumPy transposes."""

import dataclasses
import itertools

import ml_dtypes
import numpy as np
import pytest

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.conversion import boxes
from jax_mdlm.model import table

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
    return whole.reshape(boxes.layer_shape(row, config))


@pytest.fixture
def small_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that cut even the small model into pieces."""
    monkeypatch.setattr(boxes, "_MOST_BYTES", 900)
    monkeypatch.setattr(boxes, "_LEAST_CHUNK", 200)


@pytest.mark.usefixtures("small_boxes")
@pytest.mark.parametrize("row", table.rows(LLADA_8B), ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_boxes_carry_every_value_both_ways(row: ParamRow, dtype: type) -> None:
    axes = boxes.axes_of(row, SMALL)
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal(axes.torch_shape).astype(dtype)
    ours = plain(tensor, row, SMALL)
    seen = np.zeros(table.shape(row, SMALL), int)
    back = np.zeros_like(tensor)
    for box in boxes.boxes(row, SMALL, tensor.itemsize):
        seen[box.index] += 1
        first, last = box.torch_rows(axes)
        out = np.empty(box.shape, dtype)
        boxes.from_torch(tensor[first:last], axes, out)
        index = box.index[1:] if boxes.is_stacked(row) else box.index
        np.testing.assert_array_equal(out.view(np.uint8), ours[index].copy().view(np.uint8))
        boxes.to_torch(out, axes, back[first:last])
    assert (seen == 1).all()
    np.testing.assert_array_equal(back.view(np.uint8), tensor.view(np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3), (256, 256), (257, 513), (300, 31)])
@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(DTYPES, DTYPES[:2])))
def test_casts_and_tiles(shape: tuple[int, int], given: type, wanted: type) -> None:
    """Every pair of dtypes, sizes around the tile; also from rows that are not contiguous."""
    axes = boxes.Axes((shape[1],), (shape[0],))
    wide = np.random.default_rng(1).standard_normal((shape[0], shape[1] + 5)).astype(given)
    rows = wide[:, 2:-3]
    out = np.empty((shape[1], shape[0]), wanted)
    boxes.from_torch(rows, axes, out)
    np.testing.assert_array_equal(out.astype(np.float64), rows.astype(wanted).astype(np.float64).T)
    back = np.empty(shape, wanted)
    boxes.to_torch(np.ascontiguousarray(rows.T), axes, back)
    np.testing.assert_array_equal(back.astype(np.float64), rows.astype(wanted).astype(np.float64))


def test_bfloat16_widens_bit_by_bit() -> None:
    """All 65,536 patterns, NaN payloads included."""
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(2**16, np.float32)
    boxes.from_torch(bits.view(ml_dtypes.bfloat16), boxes.Axes((), (2**16,)), out)
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
    chunk = boxes.chunk_shape(row, config, itemsize)
    shape = table.shape(row, config)
    cut = row.num_inputs + boxes.is_stacked(row)
    total = 0
    for box in boxes.boxes(row, config, itemsize):
        assert itemsize * np.prod(box.shape) <= 16 * 2**20
        assert box.start % chunk[cut] == 0
        assert box.stop % chunk[cut] == 0 or box.stop == shape[cut]
        total += int(np.prod(box.shape))
    assert total == np.prod(shape)
    own = chunk[1:] if boxes.is_stacked(row) else chunk
    box_shape = next(boxes.boxes(row, config, itemsize)).shape
    assert own[1:] == box_shape[1:]  # only the leading axis is cut: a chunk is one run of bytes
    assert all(size % part == 0 for size, part in zip(shape, chunk))


def test_names_of_the_published_checkpoint() -> None:
    names = {name for row in table.rows(LLADA_8B) for name in boxes.torch_names(row, LLADA_8B)}
    assert len(names) == 291
    shapes = {
        row.torch_name.format(layer=31): boxes.axes_of(row, LLADA_8B).torch_shape
        for row in table.rows(LLADA_8B)
    }
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
