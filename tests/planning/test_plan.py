"""The command on a tiny network, CPU devices in the place of a slice."""

import contextlib
import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from jax_mdlm import command, plan
from jax_mdlm.config import ConfigError, config_to_json
from jax_mdlm.containers import TrainState
from jax_mdlm.planning import program, topologies
from jax_mdlm.planning.plan import Plan, make_plan
from jax_mdlm.planning.run import in_words, record_of
from jax_mdlm.planning.topologies import Machine, machine_named, topology_of
from jax_mdlm.sharding import make_layout
from jax_mdlm.storage import open_checkpoints
from jax_mdlm.training.begin import save_state
from jax_mdlm.training.optimizer import make_optimizer
from jax_mdlm.training.state import abstract_state
from tests.planning.conftest import cpu_machine, tiny_config

KEYS = {
    "topology",
    "peak_hbm_bytes",
    "fits",
    "hbm_bytes",
    "parameters_bytes",
    "optimizer_bytes",
    "activations_bytes",
    "flops",
    "hbm_traffic_bytes",
    "collective_bytes",
    "seconds",
    "bound",
    "tokens_per_second",
    "mfu",
    "mesh",
    "microbatches",
    "remat",
}


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    file = tmp_path / "tiny.py"
    file.write_text(
        "from jax_mdlm.config import from_json\n\n"
        f"TEXT = {config_to_json(tiny_config())!r}\n\n"
        "def get_config(preset=''):\n"
        "    return from_json(TEXT, 'tiny')\n"
    )
    return str(file)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_file: str):
    """Runs the command as a shell would: (exit code, stdout, stderr)."""

    def cpus(name: str, slices: int = 1) -> Machine:
        machine = cpu_machine(int(name.rpartition("x")[2]) * slices)
        return dataclasses.replace(machine, name=name, slices=slices)

    monkeypatch.setattr("jax_mdlm.planning.run.machine_named", cpus)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plan", "--config", config_file, *words])
        code = 0
        try:
            command.run(plan.main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.mark.slow
def test_json_has_a_line_per_topology(run) -> None:
    code, out, err = run("--topology", "v5e:1x8", "v5e:1x4", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    said = [line.partition(":")[0] for line in err.splitlines()]
    assert said == ["compiling for v5e", "compiling for v5e"], "on stderr, stdout is JSON"
    assert [record["topology"] for record in records] == ["v5e:1x8", "v5e:1x4"]
    for record, chips in zip(records, (8, 4), strict=True):
        assert record.keys() >= KEYS
        assert record["mesh"] == {"data": 1, "fsdp": chips, "tensor": 1, "context": 1}
        assert record["fits"]
        assert record["not_counted"] == []
        # float32 parameters; both moments, the step counts of optax beside them.
        assert record["parameters_bytes"] == 4 * parameters() // chips
        moments = record["optimizer_bytes"] - 2 * record["parameters_bytes"]
        assert 0 <= moments <= 16
        assert record["batch_bytes"] == 16 * (32 * (4 + 1 + 1) + 8 * 4 + 4) // chips
        held = sum(record[f"{part}_bytes"] for part in ("parameters", "optimizer", "batch"))
        assert record["peak_hbm_bytes"] == pytest.approx(held + record["activations_bytes"], abs=64)
        assert record["seconds"].keys() == {"compute", "hbm", "ici", "dcn"}
        longest = max(record["seconds"].values())
        assert record["best_seconds"] == record["seconds"][record["bound"]] == longest
        assert record["tokens_per_second"] == pytest.approx(16 * 32 / longest)
        assert sum(record["collective_bytes"].values()) > 0


def parameters() -> int:
    return 2 * 32 * 16 + 16 + 2 * (4 * 16 * 32 + 3 * 16 * 32 + 2 * 16)


def test_the_page_and_the_comparison(run) -> None:
    code, out, _ = run("--topology", "v5e:1x8", "v5e:1x4")
    assert code == 0
    assert "tiny on v5e:1x8: 8 chips, mesh fsdp=8, batch 16 x 32 slots" in out
    assert re.search(r"^    wte +float32 \[32, 16\] -> \[32, 2\] +0\.000$", out, re.M)
    assert re.search(r"^  peak, of 16\.91 usable, 3% kept free: fits +0\.\d{3}$", out, re.M)
    assert len(re.findall("<- the bound$", out, re.M)) == 2
    assert re.search(r"^  bytes taken in by all-gather \(fsdp\) ", out, re.M)
    lines = out.splitlines()[-3:]
    assert lines[0].split()[:3] == ["topology", "mesh", "parts"]
    assert [line.split()[0] for line in lines[1:]] == ["v5e:1x8", "v5e:1x4"]
    assert all(len(line) <= 100 for line in out.splitlines())


def test_the_sampler_is_planned_by_its_most_calls(run) -> None:
    code, out, _ = run("--topology", "v5e:1x2", "--sample", "--json", "--config.mesh.fsdp=2")
    record = json.loads(out)
    assert (code, record["mode"], record["mfu"]) == (0, "sample", None)
    assert record["tokens"] == 8 * 16
    assert record["not_counted"] == []
    # 16 calls of 4 rows a chip: a layer on 64 slots, the last one for keys and values, all
    # else of it and the head on the 8 of the block.
    keys_values, others = 2 * 16 * 32, 2 * 16 * 32 + 3 * 16 * 32
    call = 64 * (keys_values + others) + 64 * keys_values + 8 * others + 8 * 16 * 32
    assert record["flops"] - record["attention_flops"] == 16 * 4 * 2 * call


def test_what_does_not_fit_exits_with_3(run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
        "Used 21.50G of 15.75G hbm. Exceeded hbm capacity by 5.75G."
    )

    def refuse() -> None:
        raise error

    def lower(config, devices) -> program.Lowered:
        job = real(config, devices)
        return program.Lowered(
            SimpleNamespace(compile=refuse), job.layout, job.arguments, job.tokens
        )

    real = program.train_step
    monkeypatch.setattr(program, "train_step", lower)
    code, out, err = run("--topology", "v5e:1x8", "--json")
    record = json.loads(out)
    assert err == "compiling for v5e:1x8, mesh fsdp=8: about 3 minutes for LLaDA-8B ...\n"
    assert (code, record["fits"], record["flops"]) == (3, False, None)
    assert record["peak_hbm_bytes"] == round(21.5 * 2**30)
    code, out, err = run("--topology", "v5e:1x8")
    assert code == 3
    assert "DOES NOT FIT" in out
    assert "23.085" in out

    error = jax.errors.JaxRuntimeError("INTERNAL: no such shape\nstack")
    code, out, err = run("--topology", "v5e:1x8")
    assert (code, out) == (2, "")
    assert err.partition("\n")[2] == (
        "error: the TPU compiler refuses this program: INTERNAL: no such shape; "
        "try another mesh or shape\n"
    )


def test_headroom_decides() -> None:
    plan = make_plan(tiny_config(), cpu_machine(), "train")
    peak = plan.memory.peak

    def on(hbm_bytes: float) -> Plan:
        chip = dataclasses.replace(plan.machine.chip, hbm_bytes=hbm_bytes)
        return dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, chip=chip))

    assert on(peak / 0.969).fits
    assert not on(peak / 0.971).fits
    assert record_of(on(peak))["fits"] is False


@pytest.mark.slow
def test_slices_go_to_the_data_axis(run) -> None:
    _, out, _ = run("--topology", "v5e:1x4", "--slices", "2", "--json")
    record = json.loads(out)
    assert (record["topology"], record["slices"], record["chips"]) == ("v5e:1x4", 2, 8)
    assert record["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    _, out, _ = run("--topology", "v5e:1x4", "--slices", "2")
    assert "tiny on v5e:1x4 x 2: 8 chips, mesh data=2 fsdp=4" in out
    _, out, _ = run("--topology", "v5e:1x4", "--slices", "2", "--json", "--config.mesh.data=4")
    assert json.loads(out)["mesh"]["data"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.model.vocab_size=0"], "set --config.model.vocab_size"),
        (["--config.train.microbatches=4"], "must be a multiple of the mesh's 8 batch shards"),
        (["--config.mesh.fsdp=3"], "must have as many places as there are devices, 8"),
        (["--config.data.tokenizer.mask_id=99"], "must be above the id of mask, 99, got 32"),
        (["--sample", "--config.sample.length=64"], "must leave room for a prompt"),
        (["--sample", "--search"], "--search looks for a training step's choices"),
        (["--slices", "0"], "--slices must be at least 1, got 0"),
        (["--search", "--tries", "0"], "--tries must be at least 1, got 0"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--rows", "9", "--sample"], "--rows counts the updates of a training run; drop it or"),
        (
            ["--rows", "9", "--config.train.steps=5"],
            "counted in epochs, got train.steps=5; set --config.train.steps=0 --config.train.epo",
        ),
        (
            ["--rows", "9", "--config.data.buckets=16,32", "--config.data.end_padding=4"],
            "--rows needs data.buckets to be empty: with buckets the rows' lengths decide how many",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(run, words: list[str], message: str) -> None:
    code, out, err = run("--topology", "v5e:1x8", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_rows_give_the_updates_and_hours_of_a_run(run) -> None:
    asked = ("--topology", "v5e:1x4", "--rows", "1000", "--config.train.epochs=2.5")
    _, out, _ = run(*asked, "--json")
    record = json.loads(out)
    assert (record["rows"], record["updates"]) == (1000, 157)  # 2,500 rows, 16 an update
    assert record["best_hours"] == pytest.approx(157 * record["best_seconds"] / 3600)
    assert record["best_chip_hours"] == pytest.approx(4 * record["best_hours"])
    code, out, _ = run(*asked)
    last = out.splitlines()[-1]
    assert (code, len(last) <= 100) == (0, True)
    assert last == ("1,000 rows x 2.5 epoch(s) / 16: 157 updates, at best 0.0 hours, 0 chip-hours")
    code, out, _ = run("--topology", "v5e:1x4", "--json")
    assert {json.loads(out)[key] for key in ("rows", "updates", "best_hours")} == {None}


def test_a_checkpoint_is_what_train_saves(tmp_path: Path) -> None:
    config = tiny_config()
    plan = make_plan(config, cpu_machine(), "train")
    state = abstract_state(
        config,
        make_optimizer(config, program.special_ids(config)),
        make_layout(config.mesh, cpu_machine().devices),
    )
    params, opt_state = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (state.params, state.opt_state)
    )
    made = TrainState(jnp.int32(0), params, opt_state, jax.random.key(0))
    with contextlib.closing(open_checkpoints(epath.Path(tmp_path), keep=1)) as checkpoints:
        save_state(checkpoints, made, "{}")
        checkpoints.wait()
        stored = checkpoints.shapes(0)
    saved = sum(
        math.prod(shape) * jnp.dtype(dtype).itemsize
        for name, (shape, dtype) in stored.items()
        if name.startswith(("params/", "opt_state/"))
    )
    assert plan.checkpoint_bytes == saved
    assert f"a checkpoint, of all chips together{saved / 1e9:48.3f}" in in_words(plan)


@pytest.mark.slow
def test_a_search_prints_flags_that_work(run) -> None:
    code, out, _ = run("--topology", "v5e:1x4", "--search", "--tries", "2")
    assert code == 0
    flags = re.search(r"^flags of the first: (.*)$", out, re.M)
    assert flags
    code, best, _ = run("--topology", "v5e:1x4", "--json", *flags[1].split())
    code, searched, _ = run("--topology", "v5e:1x4", "--search", "--tries", "2", "--json")
    record = json.loads(searched)
    assert record["flags"] == flags[1] == record["tried"][0]["flags"]
    assert len(record["tried"]) == 2
    for key in ("mesh", "microbatches", "remat", "peak_hbm_bytes", "flops"):
        assert json.loads(best)[key] == record[key]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v5litepod-256", "v5e:16x16"),
        ("v6e-16", "v6e:4x4"),
        ("v6e-64", "v6e:8x8"),
        ("v4-8", "v4:2x2x1"),
        ("v4-32", "v4:2x2x4"),
        ("v5p-32", "v5p:2x2x4"),
        ("v5p-1024", "v5p:8x8x8"),
        ("v4:2x2x4", "v4:2x2x4"),
        ("h100", "h100"),
    ],
)
def test_accelerator_types_are_topologies(name: str, shape: str) -> None:
    assert topology_of(name) == shape


@pytest.mark.slow
def test_an_accelerator_type_is_answered_with_its_topology(run) -> None:
    code, out, err = run("--topology", "v5litepod-4", "--json", "--config.mesh.fsdp=2")
    assert (code, json.loads(out)["topology"]) == (0, "v5e:2x2")
    assert err.splitlines() == [
        "v5litepod-4 is v5e:2x2",
        "compiling for v5e:2x2, mesh fsdp=2: about 3 minutes for LLaDA-8B ...",
    ]
    code, out, err = run("--topology", "v4-10")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"error: --topology v4-10 must be a slice of a usual size to be looked up, it is none; "
        r"name its shape, one of v4:2x2x1, .*, v4:8x8x16 or like them\n",
        err,
    )


def test_every_type_that_the_pod_script_takes_is_known() -> None:
    script = (Path(__file__).parents[2] / "launch/tpu/settings.sh").read_text()
    (message,) = re.findall(r"TYPE must begin with (.*?), got", script)
    types = re.findall(r"(v\w+)-", message)
    assert len(types) == 4
    for name in types:
        assert topology_of(f"{name}-16") != f"{name}-16"


def test_unknown_topologies_and_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"one of v4:2x2x1, .* v6e:16x16 or like them, got 'h100'"
    ):
        machine_named("h100")
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"is in libtpu and needs no TPU; pip install 'jax\[tpu\]'"
    ):
        machine_named("v5e:4x4")


def test_shipped_ids_and_those_of_a_trained_vocabulary() -> None:
    published = command.parse_config("llada_ctc", [])
    assert program.special_ids(published).mask == 126336
    trained = program.special_ids(tiny_config())
    assert (trained.eos, trained.pad, trained.mask, trained.slack) == (1, 1, 5, 6)
    chosen = command.parse_config("llada_ctc", ["--config.data.tokenizer.slack_id=7"])
    assert program.special_ids(chosen).slack == 7
