"""Looks for mesh, microbatches and remat policy with which a step fits and is fast.

A compile of the 8B step takes a minute, the choices are hundreds: they are ordered by an estimate,
the best few are compiled, and what a compile shows rules out others. The batch stays as it is.
"""

import dataclasses
import itertools
import typing
from collections.abc import Callable, Iterator

from jax_mdlm.config import Config, ConfigError, MeshConfig, ModelConfig
from jax_mdlm.model import table
from jax_mdlm.planning.plan import HEADROOM, Plan, make_plan
from jax_mdlm.planning.topologies import Machine
from jax_mdlm.training.timing import training_flops

# Of a layer and slot: what is kept for the backward pass, in rows of the stream (D), of the heads
# (N * H) and of the MLP (F), and the share of the forward pass that is computed again. A policy
# that is not here is taken to lie between `full` and `dots`.
_POLICIES = {
    "full": ((1, 0, 0), 1.0),
    "dots": ((3, 3, 2), 0.2),
    "none": ((8, 6, 5), 0.0),
}
_BETWEEN = (2, 1, 0), 0.8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is searched over."""

    mesh: MeshConfig
    microbatches: int
    remat: str

    def apply(self, config: Config) -> Config:
        """The config with this choice."""
        remat: typing.Any = self.remat
        return dataclasses.replace(
            config,
            mesh=self.mesh,
            model=dataclasses.replace(config.model, remat=remat),
            train=dataclasses.replace(config.train, microbatches=self.microbatches),
        )

    @property
    def flags(self) -> str:
        """What a command takes to run with this choice."""
        axes = {name: getattr(self.mesh, name) for name in ("data", "fsdp", "tensor", "context")}
        parts = [f"--config.mesh.{name}={size}" for name, size in axes.items()]
        parts.append(f"--config.train.microbatches={self.microbatches}")
        parts.append(f"--config.model.remat={self.remat}")
        return " ".join(parts)


def flags_of(plan: Plan) -> str:
    """The flags of a plan's choice."""
    mesh = dataclasses.replace(plan.config.mesh, **plan.mesh)
    train, network = plan.config.train, plan.config.model
    return Candidate(mesh, train.microbatches, network.remat).flags


def search(
    config: Config,
    machine: Machine,
    tries: int,
    plan: Callable[[Config, Machine, str], Plan] = make_plan,
) -> list[Plan]:
    """Compiles the most promising choices.

    Args:
      config: The run; batch, canvas and network stay.
      machine: What it shall run on.
      tries: Compiles at most.
      plan: Makes a plan of a config.

    Returns:
      What was compiled: those that fit first, the fastest first.

    Raises:
      ConfigError: no mesh divides batch and network.
    """
    left = sorted(choices(config, machine), key=lambda choice: _rank(choice, config, machine))
    if not left:
        raise ConfigError(
            f"no mesh over {len(machine.devices)} chips divides train.batch_size="
            f"{config.train.batch_size} and the network; change the batch size or the topology"
        )
    found: list[Plan] = []
    refused = ""
    for _ in range(tries):
        if not left:
            break
        choice = left.pop(0)
        try:
            found.append(plan(choice.apply(config), machine, "train"))
        except ConfigError as error:  # this one only: e.g. a shape that the compiler refuses
            refused = str(error)
            continue
        left = [other for other in left if not _ruled_out(other, choice, found[-1].fits)]
    if not found:
        raise ConfigError(f"none of the {tries} best choices compiles; the last one: {refused}")
    return sorted(found, key=lambda one: (not one.fits, -(one.tokens_per_second or 0.0)))


def choices(config: Config, machine: Machine) -> Iterator[Candidate]:
    """All that divide the chips, the network and the batch; the policies are the config's own."""
    network, rows = config.model, config.train.batch_size
    chips, data = len(machine.devices), max(config.mesh.data, 1)
    policies = typing.get_args(typing.get_type_hints(ModelConfig)["remat"])
    split = (network.heads, network.kv_heads, network.mlp, network.vocab_size)
    for tensor, context in itertools.product(_divisors(chips // data), repeat=2):
        fsdp, rest = divmod(chips, data * tensor * context)
        if rest or network.embed % fsdp or any(size % tensor for size in split):
            continue
        if config.data.length % context or rows % (data * fsdp):
            continue
        mesh = dataclasses.replace(
            config.mesh, data=data, fsdp=fsdp, tensor=tensor, context=context
        )
        for parts in _divisors(rows // (data * fsdp)):
            yield from (Candidate(mesh, parts, policy) for policy in policies)


def _ruled_out(other: Candidate, known: Candidate, fits: bool) -> bool:
    """Whether a compile has made another choice pointless.

    More parts need less memory and are never faster; `full` keeps the least of all policies.
    """
    if other.mesh != known.mesh:
        return False
    if fits:
        return other.remat == known.remat and other.microbatches >= known.microbatches
    smaller = other.microbatches <= known.microbatches
    return smaller and (other.remat == known.remat or known.remat == "full")


def _rank(choice: Candidate, config: Config, machine: Machine) -> tuple[bool, float]:
    """Those that seem to fit first, then by the seconds of a step."""
    seconds, memory = estimate(choice, config, machine)
    return memory > (1 - HEADROOM) * machine.chip.hbm_bytes, seconds


def estimate(choice: Candidate, config: Config, machine: Machine) -> tuple[float, float]:
    """Seconds of a step and bytes of a chip, roughly: only their order is used.

    Matrices at full rate against the bytes that FSDP (weights gathered twice and gradients
    scattered, in every part) and tensor parallelism (the stream summed after attention and after
    the MLP, also when computed again) send over one link.
    """
    network, chip, mesh = config.model, machine.chip, choice.mesh
    kept, again = _POLICIES.get(choice.remat, _BETWEEN)
    batch_shards, chips = mesh.data * mesh.fsdp, len(machine.devices)
    slots = config.train.batch_size * config.data.length / choice.microbatches
    slots /= batch_shards * mesh.context  # of a chip, at once
    heads = network.heads * network.head_dim
    weights = table.num_parameters(network)
    moments = 2 if config.optimizer.moment_dtype == "bfloat16" else 4

    layer = kept[0] * network.embed + (kept[1] * heads + kept[2] * network.mlp) / mesh.tensor
    working = 6 * network.embed + 6 * (heads + network.mlp) / mesh.tensor
    memory = weights / (mesh.fsdp * mesh.tensor) * (4 + moments + 4 + 4)
    memory += 2 * slots * (network.layers * layer + working)

    needed = sum(training_flops(network, config.data.length))
    tokens = config.train.batch_size * config.data.length
    compute = needed * (1 + again / 3) * tokens / chips / chip.peak_flops
    sent = 3 * 2 * weights / mesh.tensor * (1 - 1 / mesh.fsdp)
    summed = 2 * 2 * slots * network.embed * network.layers * (4 + 2 * again)
    sent += summed * (1 - 1 / mesh.tensor)
    rotated = 2 * 2 * slots * network.kv_heads * network.head_dim * network.layers * (3 + again)
    sent += rotated / mesh.tensor * (mesh.context - 1)
    return max(compute, choice.microbatches * sent / (2 * chip.link_bandwidth)), memory


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
