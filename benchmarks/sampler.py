"""Decoding with random weights: seconds, calls and tokens, beside another sampler if one is given.

Everything runs in one process with the same weights and prompts: each setting of ours (how slots
are committed, which cache) and the rival, a Python file, e.g. `tests/reference/generate_torch.py`.
Nothing is merged and no row ends early, so that all of them make the same number of commits. What
is done once before many generations (`model.prepare`, the rival's `make`) is not timed.

A random model is never certain. `--commits 4` enlarges its head until the setting `threshold`
commits four tokens a call, as a trained model does; without it thresholds find nothing to commit.

On a machine that others use as well, believe the fastest runs (`times_rival_fastest`), not medians:
the OpenMP threads of PyTorch wait for each other and become many times slower, XLA's do not.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from benchmarks import sampler_call, sampler_rival, sampler_runs
from benchmarks.printing import print_result
from jax_mdlm import model
from jax_mdlm.config import ModelConfig, SampleConfig
from jax_mdlm.containers import Params, SpecialIds
from jax_mdlm.sampling import (
    AboveThreshold,
    ByConfidence,
    ByFactor,
    SampleOptions,
    Strategy,
    bucket_length,
    options_from,
)

# name -> (rule of the commits, cache)
SETTINGS: dict[str, tuple[str, Literal["none", "prefix", "dual"]]] = {
    "quota": ("quota", "none"),
    "prefix": ("quota", "prefix"),
    "dual": ("quota", "dual"),
    "threshold": ("threshold", "none"),
    "threshold+prefix": ("threshold", "prefix"),
    "threshold+dual": ("threshold", "dual"),
    "factor": ("factor", "none"),
    "factor+prefix": ("factor", "prefix"),
    "factor+dual": ("factor", "dual"),
}
_DEFAULT = ",".join(name for name in SETTINGS if not name.startswith("factor"))
_EXACT = "quota"  # what the others and the rival are compared with: always run
_NUM_SPECIAL = 3  # ids at the end of the vocabulary


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result, one JSON object, on stdout."""
    print_result("sampler", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
    for name, default, meaning in (
        ("embed", 512, "D, width"),
        ("heads", 8, "N, query and key heads"),
        ("layers", 8, "transformer blocks"),
        ("mlp", 1536, "F, hidden width"),
        ("vocab", 32000, "V, rows of the embedding"),
        ("prompt", 64, "tokens of each prompt"),
        ("length", 128, "new slots"),
        ("block", 32, "slots decoded before the next block starts"),
        ("steps", 128, "model calls, where a quota decides"),
        ("refresh", 0, "calls between refreshes of a cache; 0 = at each block's start"),
        ("repeats", 3, "timed runs of each setting"),
        (
            "seed",
            0,
            "of weights and prompts; calls with a threshold vary much from one to the next",
        ),
        ("threads", 0, "cores that the process may use, the rival too; 0 = as it was started"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    for name, default, meaning in (
        ("threshold", 0.9, "confidence that commits a slot, in settings of that name"),
        ("factor", 1.0, "in settings of that name"),
        ("head-scale", 1.0, "multiplies the head; a larger one makes the model more certain"),
        ("commits", 0.0, "search the head's scale until `threshold` commits so many a call"),
    ):
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--batch", default="1,8", help="batch sizes (1,8)")
    parser.add_argument(
        "--settings", default=_DEFAULT, help=f"of {', '.join(SETTINGS)} (all without factor)"
    )
    parser.add_argument("--rival", help="a Python file that decodes as well: FILE or FILE:FUNCTION")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures decoding, and a rival if one is given."""
    batches, names = _check(parser, arguments)
    rival = sampler_rival.load(arguments.rival) if arguments.rival else None
    if arguments.threads:
        # Before the backend starts: its threads inherit this, and so do the rival's.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    load_before = os.getloadavg()[0]
    config, decodings = _model_config(arguments), _decodings(arguments)
    drawn = model.init(jax.random.key(arguments.seed), config)
    params = model.prepare(drawn, config)

    scale, found = arguments.head_scale, None
    if arguments.commits:
        few, options = _prompts(arguments, batches[0]), decodings["threshold"]
        scale, found = sampler_runs.search_scale(
            lambda scale: sampler_runs.decode(_scaled(params, scale), config, few, options).commits,
            arguments.commits,
        )
    params = _scaled(params, scale)
    run = None
    if rival:
        run = rival.make(jax.device_get(_scaled(drawn, scale)), config, decodings[_EXACT])
    decodings = {name: decodings[name] for name in names}
    measured = {}
    for batch in batches:
        prompts = _prompts(arguments, batch)
        measured[str(batch)] = sampler_runs.measure(
            params, config, prompts, decodings, run, arguments.repeats
        )
        parts = sampler_call.one_call(params, config, prompts, decodings[_EXACT])
        exact = measured[str(batch)]["settings"][_EXACT]
        whole = 1e3 * min(exact["runs"]) / exact["calls"]
        measured[str(batch)]["ms_of_an_exact_call"] = {
            **parts,
            "rest": round(whole - sum(parts.values()), 3),
        }
    sizes = ("embed", "heads", "layers", "mlp", "vocab", "prompt", "length", "block", "steps")
    rules = ("threshold", "factor", "refresh", "repeats", "seed")
    return {
        **{name: getattr(arguments, name) for name in sizes + rules},
        "head_scale": round(scale, 4),
        "commits_found": found and round(found, 3),
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "cores": {"machine": os.cpu_count(), "process": _num_cores()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "load": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "rival": {"name": rival.name, **rival.describe()} if rival else None,
        "batch": measured,
    }


def _check(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> tuple[list[int], list[str]]:
    """Batch sizes and names of settings; leaves with a line and exit code 2 if anything is off."""
    for name in ("embed", "heads", "layers", "mlp", "prompt", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    for name in ("seed", "threads", "refresh"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name} must be 0 or more, got {getattr(arguments, name)}")
    if arguments.vocab <= _NUM_SPECIAL:
        parser.error(f"--vocab must be at least {_NUM_SPECIAL + 1}, got {arguments.vocab}")
    if arguments.embed % (2 * arguments.heads):
        parser.error(
            f"--embed must be a multiple of twice --heads={arguments.heads} (rotary positions turn "
            f"pairs), got {arguments.embed}"
        )
    if arguments.head_scale <= 0:
        parser.error(f"--head-scale must be above 0, got {arguments.head_scale}")
    if arguments.commits and not 1 <= arguments.commits <= arguments.block:
        parser.error(
            f"--commits must lie between 1 and --block={arguments.block}, got {arguments.commits}"
        )
    if arguments.threads and not hasattr(os, "sched_setaffinity"):
        parser.error("--threads must be 0 on this system: it cannot tie a process to cores")
    if arguments.threads > (cores := _num_cores() or 0):
        parser.error(
            f"--threads must be at most {cores}, the cores there are, got {arguments.threads}"
        )
    sizes = arguments.batch.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        parser.error(f"--batch must be numbers above 0 with commas between, got {arguments.batch}")
    names = arguments.settings.split(",")
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"--settings must be of {', '.join(SETTINGS)}, got {', '.join(unknown)}")
    return [int(size) for size in sizes], [name for name in SETTINGS if name in {_EXACT, *names}]


def _model_config(arguments: argparse.Namespace) -> ModelConfig:
    return ModelConfig(
        vocab_size=arguments.vocab,
        embed=arguments.embed,
        layers=arguments.layers,
        heads=arguments.heads,
        kv_heads=arguments.heads,
        head_dim=arguments.embed // arguments.heads,
        mlp=arguments.mlp,
        max_length=bucket_length(arguments.prompt) + arguments.length,
        compute_dtype="float32",  # the rival's
        remat="none",
    )


def _decodings(arguments: argparse.Namespace) -> dict[str, SampleOptions]:
    last = arguments.vocab - 1
    # The head has no column for the id that ends a row: none ends early, and yet early stop is on,
    # which spares calls that commit nothing, as it does for users.
    ids = SpecialIds(mask=last, slack=last - 1, pad=last - 2, eos=last + 1, terminator=last + 1)
    rules: dict[str, Strategy] = {
        "quota": ByConfidence(),
        "threshold": AboveThreshold(arguments.threshold),
        "factor": ByFactor(arguments.factor),
    }
    return {
        name: options_from(
            SampleConfig(
                length=arguments.length,
                block_length=arguments.block,
                steps=arguments.steps,
                cache=cache,
                refresh=0 if cache == "none" else arguments.refresh,
            ),
            "slack_only",
            ids,
            strategy=rules[rule],
        )
        for name, (rule, cache) in SETTINGS.items()
    }


def _prompts(arguments: argparse.Namespace, rows: int) -> list[list[int]]:
    """Random text tokens; the prompts of a small batch are the first of a larger one."""
    rng = np.random.default_rng(arguments.seed)
    return rng.integers(0, arguments.vocab - _NUM_SPECIAL, (rows, arguments.prompt)).tolist()


def _scaled(params: Params, scale: float) -> Params:
    return params | {"head": scale * params["head"]}


def _num_cores() -> int | None:
    """Cores that the process may use; None where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


if __name__ == "__main__":
    main()
