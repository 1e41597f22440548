"""What a load takes, against what `prepare` allocates; what is free, from faked machines."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import ConfigError, MeshConfig, ModelConfig
from jax_mdlm.containers import ParamRow
from jax_mdlm.model import memory, table
from jax_mdlm.model.memory import Free, Need, check_fits, to_read, to_sample
from jax_mdlm.model.weights import _flatten
from jax_mdlm.sharding import make_layout

TINY = ModelConfig(
    vocab_size=40, embed=16, layers=3, heads=2, kv_heads=1, head_dim=8, mlp=24, max_length=16
)
GIB = 2**30


def on(mesh: MeshConfig, devices: int) -> memory.Place:
    layout = make_layout(mesh, jax.devices()[:devices])
    return lambda row: layout.sharding(row.axes)


ONE = on(MeshConfig(), 1)


class Chips:
    """A place on accelerators, cut over so many."""

    def __init__(self, count: int = 1) -> None:
        self.device_set = (SimpleNamespace(platform="tpu"),)
        self.count = count

    def __call__(self, row: ParamRow) -> "Chips":
        return self

    def shard_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (-(-shape[0] // self.count), *shape[1:])


def num_bytes(tree: object) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


# --- need ---


@pytest.mark.parametrize("weights", ["full", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_what_prepare_holds_when_it_has_flattened(weights: str, dtype: str) -> None:
    """Every buffer of what was read, of its int8 copies and of the flattened, each counted once."""
    config = dataclasses.replace(TINY, compute_dtype=dtype, param_dtype=dtype)
    read = model.init(jax.random.key(0), config)
    quantised = model.quantize(read, config) if weights == "int8" else model.cast(read, config)
    held = jax.tree.leaves([read, quantised, _flatten(quantised, config)])
    buffers = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in held}
    vectors = 3 * (2 * TINY.layers + 1) * TINY.embed * read["ln_f"].dtype.itemsize
    need = to_sample(config, weights, ONE, ONE)
    assert need.device == 0
    # int8 leaves vectors as they are, which are counted as if they were copied.
    assert need.host - vectors < sum(buffers.values()) <= need.host
    assert to_read(config, dtype, ONE) == Need(num_bytes(read))


def test_devices_that_share_the_host_hold_their_parts() -> None:
    whole = to_read(TINY, "float32", ONE)
    assert to_read(TINY, "float32", on(MeshConfig(fsdp=8), 8)) == whole
    # Copies may be one array in memory: what is certain is one.
    assert to_read(TINY, "float32", on(MeshConfig(data=8, fsdp=1), 8)) == whole


def test_accelerators_hold_what_is_theirs() -> None:
    eight = ModelConfig()
    scalars = table.num_parameters(eight)
    full = to_sample(eight, "full", Chips(), Chips())
    assert full == Need(0, 2 * 2 * scalars)
    assert to_sample(eight, "full", Chips(8), Chips(8)).device == pytest.approx(
        full.device / 8, rel=1e-4
    )
    # Quantised in the host's memory, then moved: the chip gets eight bits.
    moved = to_sample(eight, "int8", ONE, Chips())
    assert moved.host == pytest.approx(4 * scalars, rel=0.01)
    assert moved.device == pytest.approx(scalars, rel=0.01)


# --- is it free ---


def free(monkeypatch: pytest.MonkeyPatch, host: int | None, device: int | None = None) -> None:
    monkeypatch.setattr(Free, "now", classmethod(lambda cls: Free(host, device)))


def test_llada_8b_in_int8_wants_more_than_24_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel killed it there."""
    need = to_sample(ModelConfig(), "int8", ONE, ONE)
    free(monkeypatch, int(23.5 * GIB))  # a machine of 24 when it has started
    with pytest.raises(ConfigError) as caught:
        check_fits("runs/llada with sample.weights=int8 in bfloat16", need, {})
    assert str(caught.value) == (
        "runs/llada with sample.weights=int8 in bfloat16 takes 32.1 GB of host memory while it is "
        "read, 25.2 GB are free; what fits: a machine with 32.1 GB of host memory free"
    )
    free(monkeypatch, int(31.5 * GIB))
    check_fits("", need, {})


def test_only_what_fits_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 100, 50)
    others = {"small": Need(110, 50), "large": Need(130, 0), "wide": Need(90, 80)}
    with pytest.raises(ConfigError, match=r"what fits: small, or a machine with 0.0 GB of host me"):
        check_fits("x", Need(200, 0), others)
    with pytest.raises(
        ConfigError,
        match=r"of memory on a device while .*: small, or a mesh over 10 devices or more "
        r"\(--config.mesh.fsdp=10\), or a machine with",
    ):
        check_fits("x", Need(10, 120), others, devices=4)


@pytest.mark.parametrize("there", [None, 83, 1000])
def test_what_may_fit_is_tried(monkeypatch: pytest.MonkeyPatch, there: int | None) -> None:
    """The least share that was measured is enough; and where nobody says what is free."""
    free(monkeypatch, there, there)
    check_fits("x", Need(100, 100), {})
    free(monkeypatch, there and 82, None)
    if there:
        with pytest.raises(ConfigError, match="x takes"):
            check_fits("x", Need(100, 100), {})


# --- what is free ---

MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\nSwapFree: 0 kB\n"


def machine(root: Path, group: str = "0::/", files: dict[str, str] | None = None) -> int | None:
    """What is free where `proc` and `sys` hold these files."""
    for name, text in {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": group,
        **{f"sys/fs/cgroup/{name}": text for name, text in (files or {}).items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Free.now(root).host


def group(limit: str, used: int, cached: int, at: str = "") -> dict[str, str]:
    return {
        f"{at}memory.max": f"{limit}\n",
        f"{at}memory.current": f"{used}\n",
        f"{at}memory.stat": f"anon 5\nfile {cached}\n",
    }


def test_the_machines_own_count(tmp_path: Path) -> None:
    assert machine(tmp_path) == 600 * 1024
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO.replace("SwapFree: 0", "SwapFree: 40"))
    assert Free.now(tmp_path).host == 640 * 1024


def test_a_control_group_has_less(tmp_path: Path) -> None:
    """Its own or one above it, the least counts; cached files give way."""
    files = group("9000", 8000, 500) | group("max", 10, 0, "a/b/") | group("20000", 300, 0, "a/")
    assert machine(tmp_path, "0::/a/b\n", files) == 9000 - 8000 + 500


def test_a_full_control_group_has_nothing(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/a\n", group("9000", 9100, 0, "a/")) == 0


def test_a_container_sees_its_group_at_the_top(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/host/path\n", group("9000", 1000, 0)) == 8000


def test_version_1(tmp_path: Path) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": "7000\n",
        "memory/job/memory.usage_in_bytes": "5000\n",
        "memory/job/memory.stat": "total_cache 100\n",
        "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "memory/memory.usage_in_bytes": "5000\n",
        "memory/memory.stat": "total_cache 100\n",
    }
    assert machine(tmp_path, "9:name=systemd:/\n4:memory:/job\n0::/\n", files) == 2100


def test_where_there_is_no_linux(tmp_path: Path) -> None:
    assert Free.now(tmp_path).host is None


def test_this_machine_says_something() -> None:
    found = Free.now()
    assert found.device is None
    assert found.host is None or found.host > 10**6


def test_the_fullest_chip_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = [{"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 100}, None, {}]
    chips = [SimpleNamespace(platform="tpu", memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: chips)
    assert Free.now().device == 70
    monkeypatch.setattr(jax, "local_devices", lambda: chips[2:])
    assert Free.now().device is None


def test_the_8b_model_has_the_parameters_that_are_counted() -> None:
    assert np.isclose(to_read(ModelConfig(), "bfloat16", ONE).host, 16.03e9, rtol=1e-3)
