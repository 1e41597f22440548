"""What is tried, in which order, and what a compile rules out; no compiler runs here."""

import dataclasses
import math
import typing

import pytest

from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.planning.cost import Roofline
from jax_mdlm.planning.plan import Plan
from jax_mdlm.planning.program import Memory
from jax_mdlm.planning.search import choices, estimate, flags_of, search
from jax_mdlm.planning.topologies import Machine
from tests.planning.conftest import cpu_machine, tiny_config

GIB = 2**30


class Compiler:
    """Plans without compiling: memory falls with the parts, `seconds` is by mesh and parts."""

    def __init__(self, most: float = math.inf) -> None:
        self.tried: list[Config] = []
        self._most = most

    def __call__(self, config: Config, machine: Machine, mode: str) -> Plan:
        self.tried.append(config)
        parts = config.train.microbatches
        mesh = {name: getattr(config.mesh, name) for name in ("data", "fsdp", "tensor", "context")}
        seconds = 1.0 + mesh["tensor"] + 0.1 * parts
        memory = round(GIB * (1 if 1 / parts <= self._most else 100))
        bound = Roofline({"compute": seconds, "hbm": 0.0, "ici": 0.0, "dcn": 0.0}, {}, 0.0)
        return Plan(machine, config, mode, mesh, [], Memory(memory, 0, ""), 512, None, bound)


def test_choices_divide_everything() -> None:
    config = tiny_config(heads=4, kv_heads=2)
    found = list(choices(config, cpu_machine()))
    assert len(found) == len(set(found))
    assert {choice.remat for choice in found} == set(
        typing.get_args(typing.get_type_hints(ModelConfig)["remat"])
    )
    by_hand = {
        (fsdp, tensor, context, parts)
        for fsdp in (1, 2, 4, 8)
        for tensor in (1, 2)  # 2 key heads
        for context in (1, 2, 4, 8)
        for parts in (1, 2, 4, 8, 16)
        if fsdp * tensor * context == 8 and (16 // parts) % fsdp == 0
    }
    assert {(c.mesh.fsdp, c.mesh.tensor, c.mesh.context, c.microbatches) for c in found} == by_hand
    two_slices = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=2))
    assert {choice.mesh.data for choice in choices(two_slices, cpu_machine())} == {2}


def test_the_estimate_orders_as_it_should() -> None:
    config = tiny_config()
    all_of_them = {
        (c.mesh.fsdp, c.mesh.tensor, c.microbatches, c.remat): estimate(c, config, cpu_machine())
        for c in choices(config, cpu_machine())
        if c.mesh.context == 1
    }
    full, none = all_of_them[8, 1, 1, "full"], all_of_them[8, 1, 1, "none"]
    assert full[1] < none[1]  # memory
    assert all_of_them[8, 1, 2, "full"][1] < full[1]
    assert all_of_them[8, 1, 2, "full"][0] >= full[0]  # seconds


def test_a_search_is_bounded_and_sorted() -> None:
    compiler = Compiler()
    found = search(tiny_config(), cpu_machine(), 5, compiler)
    assert len(found) == len(compiler.tried) == 5
    rates = [plan.tokens_per_second or 0 for plan in found]
    assert rates == sorted(rates, reverse=True)
    # What fits is not tried again in more parts.
    seen = {(plan.config.mesh, plan.config.model.remat) for plan in found}
    assert len(seen) == 5
    assert {plan.config.train.batch_size for plan in found} == {16}


def test_what_does_not_fit_is_tried_in_more_parts_only() -> None:
    compiler = Compiler(most=0.25)
    found = search(tiny_config(), cpu_machine(), 200, compiler)
    tried = [(c.mesh, c.model.remat, c.train.microbatches) for c in compiler.tried]
    assert len(tried) == len(set(tried))
    for number, (mesh, remat, parts) in enumerate(tried):
        for earlier_mesh, earlier_remat, earlier in tried[:number]:
            if (earlier_mesh, earlier_remat) == (mesh, remat):
                assert parts > earlier or earlier >= 4  # a larger one that fits came before
    # Those that fit come first, and none with fewer than 4 parts does.
    fits = [plan.fits for plan in found]
    assert fits == sorted(fits, reverse=True)
    assert {plan.fits for plan in found if plan.config.train.microbatches >= 4} == {True}
    assert {plan.fits for plan in found if plan.config.train.microbatches < 4} == {False}


def test_flags_name_the_choice() -> None:
    found = search(tiny_config(), cpu_machine(), 1, Compiler())
    config = found[0].config
    assert flags_of(found[0]) == (
        f"--config.mesh.data=1 --config.mesh.fsdp={config.mesh.fsdp} "
        f"--config.mesh.tensor={config.mesh.tensor} --config.mesh.context={config.mesh.context} "
        f"--config.train.microbatches={config.train.microbatches} "
        f"--config.model.remat={config.model.remat}"
    )


def test_what_cannot_be_searched_says_so() -> None:
    config = tiny_config(heads=3, kv_heads=3)
    odd = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=3, microbatches=1),
        data=dataclasses.replace(config.data, length=31),
    )
    with pytest.raises(ConfigError, match=r"no mesh over 8 chips divides train.batch_size=3"):
        search(odd, cpu_machine(), 3, Compiler())

    def refuse(config: Config, machine: Machine, mode: str) -> Plan:
        raise ConfigError("refused")

    with pytest.raises(ConfigError, match="none of the 3 best choices compiles; the last one: ref"):
        search(tiny_config(), cpu_machine(), 3, refuse)
