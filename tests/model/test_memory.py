"""What a load takes, against what `prepare` allocates; what is free, from faked machines."""

import dataclasses
import resource
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, SampleConfig
from jax_mdlm.containers import SpecialIds
from jax_mdlm.model import Form, memory, table
from jax_mdlm.model.memory import Free, Need, check_fits, check_sampling, to_read, to_sample
from jax_mdlm.sampling import lower, options_from
from jax_mdlm.sharding import make_layout

TINY = ModelConfig(
    vocab_size=40, embed=16, layers=3, heads=2, kv_heads=1, head_dim=8, mlp=24, max_length=16
)
GIB = 2**30


def on(mesh: MeshConfig, devices: int) -> memory.Place:
    layout = make_layout(mesh, jax.devices()[:devices])
    return lambda row: layout.sharding(row.axes)


ONE = on(MeshConfig(), 1)
LAYOUT = make_layout(MeshConfig(), jax.devices()[:1])


def num_bytes(tree: object) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def settings(network: ModelConfig = TINY, **sample) -> Config:
    small = {"length": 8, "block_length": 4, "steps": 8} | sample
    return Config(model=network, sample=SampleConfig(**small), data=DataConfig(prompt_slots=8))


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the host's devices for others."""
    for module in (memory, model.form):
        monkeypatch.setattr(module, "is_cpu", lambda sharding: False)


# --- need ---


@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_finished_parameters_and_some_layers(weights: str, dtype: str) -> None:
    network = dataclasses.replace(TINY, compute_dtype=dtype, param_dtype=dtype)
    read = model.init(jax.random.key(0), network)
    held = num_bytes(model.prepare(read, network, weights))
    need = to_sample(settings(network, weights=weights), LAYOUT, rows=1)
    assert need.device == 0
    on_the_way = 4 * 16 * 24 * read["wte"].dtype.itemsize
    generation = need.host - held - on_the_way
    assert (
        0
        < generation
        == to_sample(settings(network), LAYOUT, 1).host
        - on_the_way
        - num_bytes(model.prepare(read, network))
    )
    assert to_read(network, dtype, ONE) == Need(num_bytes(read))


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 4096), (16, 4096), (1, 32768), (4, 32768)])
def test_a_generation_is_what_the_compiler_makes_of_it(cache: str, rows: int, vocab: int) -> None:
    """Buffers of the compiled program, within a factor; never half of them."""
    network = ModelConfig(
        vocab_size=vocab,
        embed=256,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=64,
        mlp=768,
        max_length=256,
        compute_dtype="float32",
    )
    config = settings(network, length=64, block_length=32, steps=64, cache=cache)
    options = options_from(config.sample, "merge", SpecialIds(1, 2, 0, 0, 3))
    program = lower(network, options, LAYOUT, form=Form(), prompt_slots=8, rows=rows).compile()
    found = program.memory_analysis()
    made = found.temp_size_in_bytes + found.output_size_in_bytes
    # Here layers are stacked, whose copies a real load on a CPU does not make.
    made -= num_bytes(model.init(jax.random.key(0), network)["blocks"])
    assert memory._generation(config, LAYOUT, rows) > 0.5 * made


def test_devices_that_share_the_host_hold_their_parts() -> None:
    whole = to_read(TINY, "float32", ONE)
    assert to_read(TINY, "float32", on(MeshConfig(fsdp=8), 8)) == whole
    # Copies may be one array in memory: what is certain is one.
    assert to_read(TINY, "float32", on(MeshConfig(data=8, fsdp=1), 8)) == whole


@pytest.mark.parametrize(("weights", "size"), [("full", 2), ("int8", 1), ("int4", 0.6)])
def test_accelerators_hold_what_is_theirs(accelerators, weights: str, size: float) -> None:
    """The model once, in its final form; the host some layers, whatever becomes of them."""
    config = settings(ModelConfig(param_dtype="bfloat16"), weights=weights)
    scalars = table.num_parameters(config.model)
    one = to_sample(config, LAYOUT, rows=1)
    assert one.device == pytest.approx(size * scalars, rel=0.05)
    assert one.host == 4 * 2 * 4096 * 12288
    eight = to_sample(config, make_layout(MeshConfig(fsdp=8), jax.devices()), rows=1)
    assert eight.device < one.device / 7


# --- is it free ---


def free(monkeypatch: pytest.MonkeyPatch, host: int | None, device: int | None = None) -> None:
    monkeypatch.setattr(Free, "now", classmethod(lambda cls: Free(host, device)))


def test_llada_8b_on_small_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is let through, and what does not has what would fit beside it."""
    network = ModelConfig(param_dtype="bfloat16")
    config = Config(model=network)
    free(monkeypatch, int(23.5 * GIB))  # a machine of 24 when it has started
    check_sampling("runs/llada", config, LAYOUT, rows=1)
    free(monkeypatch, int(6e9))
    int8 = Config(model=network, sample=SampleConfig(weights="int8"))
    with pytest.raises(ConfigError) as caught:
        check_sampling("runs/llada", int8, LAYOUT, rows=1)
    assert str(caught.value) == (
        "runs/llada with sample.weights=int8 takes 8.5 GB of host memory, 6.0 GB are free; what "
        "fits: --config.sample.weights=int4, or a machine with 8.5 GB of host memory free"
    )
    free(monkeypatch, int(9.5e9))
    with pytest.raises(
        ConfigError, match=r"--config\.sample\.weights=int4, or --config\.sample\.bat"
    ):
        check_sampling("runs/llada", int8, LAYOUT, rows=16)
    check_sampling("runs/llada", int8, LAYOUT, rows=1)


def test_only_what_fits_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 100, 50)
    others = {"small": Need(100, 50), "large": Need(130, 0), "wide": Need(90, 80)}
    with pytest.raises(ConfigError, match=r"what fits: small, or a machine with 0.0 GB of host me"):
        check_fits("x", Need(200, 0), others)
    with pytest.raises(
        ConfigError,
        match=r"of memory on a device, .*: small, or a mesh over 10 devices or more "
        r"\(--config.mesh.fsdp=10\), or a machine with",
    ):
        check_fits("x", Need(10, 120), others, devices=4)


@pytest.mark.parametrize("there", [None, 100, 1000])
def test_where_nobody_says_it_is_tried(monkeypatch: pytest.MonkeyPatch, there: int | None) -> None:
    free(monkeypatch, there, there)
    check_fits("x", Need(100, 100), {})
    free(monkeypatch, there and 99, None)
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


def test_the_address_space_may_be_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ulimit -v`: what is left of it after what the process has mapped."""
    machine(tmp_path, files={})
    (tmp_path / "proc" / "self" / "statm").write_text("10 5 4 1 0 6 0\n")
    page = resource.getpagesize()
    for limit, left in ((600_000, 600_000 - 10 * page), (9 * page, 0), (10**12, 600 * 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert Free.now(tmp_path).host == left


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
