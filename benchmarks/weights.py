"""What int8 and int4 cost a model: errors of matrices, of logits, of answers, beside full weights.

Relative errors of a matrix are `|W - W'| / |W|` (Frobenius), the mean over the layers. The logits
are those of masked slots, given the prompt and every other slot of the answer in full: how often
the most probable token is the same, and the Kullback-Leibler divergence from full weights in nats.
Answers are decoded greedily. Variants name what stands in four bits, and the inputs of a group;
`int4` alone is what `sample.weights=int4` does.

    python -m benchmarks.weights --workdir runs/quickstart --file words.txt
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_mdlm
from benchmarks.printing import print_result
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.model import table
from jax_mdlm.model.quantized import quantize_matrix, quantize_table
from jax_mdlm.model.weights import is_weight
from jax_mdlm.sampling import Answer

GROUPS = (32, 64, 128)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints one JSON object."""
    print_result("weights", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
    parser.add_argument("--workdir", required=True, help="what `jax_mdlm.load` opens")
    parser.add_argument("--file", type=Path, required=True, help="prompts, one a line")
    parser.add_argument("--rows", type=int, default=500, help="prompts of them (500)")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all variants."""
    full = jax_mdlm.load(arguments.workdir)
    prompts = arguments.file.read_text(encoding="utf-8").splitlines()[: arguments.rows]
    answers = full.answers(prompts)
    canvases = _masked(full, prompts, answers)
    expected = _log_probs(full, canvases)
    found: dict[str, Any] = {}
    for name, model in _variants(arguments.workdir, full):
        found[name] = {
            "gigabytes": round(_num_bytes(model) / 1e9, 6),
            "matrices": _errors(full, model),
            **_of_logits(expected, _log_probs(model, canvases)),
            "answers_equal": _share_equal(answers, model.answers(prompts)),
        }
    return {"prompts": len(prompts), "masked_slots": len(expected), "variants": found}


def _variants(path: str, full: Mdlm) -> list[tuple[str, Mdlm]]:
    made = [("int8", jax_mdlm.load(path, weights="int8"))]
    for group in GROUPS:
        int4 = jax_mdlm.load(path, weights="int4", weights_group=group)
        made.append((f"int4, group {group}", int4))
        head = quantize_matrix(full.params["head"], 4, group, packed=True)
        made.append((f"int4, group {group}, head", _with(int4, head=head)))
    made.append(
        ("int4, group 128, embedding", _with(int4, wte=quantize_table(full.params["wte"], 4)))
    )
    return made


def _with(model: Mdlm, **params: Any) -> Mdlm:
    return dataclasses.replace(model, params=model.params | params)


def _errors(full: Mdlm, model: Mdlm) -> dict[str, float]:
    """Relative errors by the path of the parameter."""
    errors = {}
    for row in table.rows(full.config.model):
        pairs = (
            [
                (table.at(one, row.path[1:]), table.at(other, row.path[1:]))
                for one, other in zip(full.params["blocks"], model.params["blocks"], strict=True)
            ]
            if row.stacked
            else [(table.at(full.params, row.path), table.at(model.params, row.path))]
        )
        if is_weight(pairs[0][1]):
            parts = [
                jnp.linalg.norm(exact - held.merged(exact.dtype)) / jnp.linalg.norm(exact)
                for exact, held in pairs
            ]
            errors["/".join(row.path)] = round(float(np.mean(parts)), 5)
    return errors


def _masked(model: Mdlm, prompts: Sequence[str], answers: Sequence[Answer]) -> list[np.ndarray]:
    """Prompts with answers of full weights, half of whose slots are masked; [B, L] by length."""
    rng, mask, by_length = np.random.default_rng(0), model.tokenizer.ids.mask, {}
    for prompt, answer in zip(prompts, answers, strict=True):
        hidden = rng.random(answer.response.size) < 0.5
        row = np.concatenate([model.encode(prompt), np.where(hidden, mask, answer.response)])
        by_length.setdefault(row.size, []).append(row)
    return [np.stack(rows) for rows in by_length.values()]


def _log_probs(model: Mdlm, canvases: Sequence[np.ndarray]) -> jax.Array:
    """Those of the masked slots, float32 [N, V]."""
    mask, size = model.tokenizer.ids.mask, 50
    return jnp.concatenate(
        [
            jax.nn.log_softmax(model.logits(part))[part == mask]
            for rows in canvases
            for part in np.split(rows, range(size, len(rows), size))
        ]
    )


def _of_logits(expected: jax.Array, found: jax.Array) -> dict[str, float]:
    divergence = jnp.sum(jnp.exp(expected) * (expected - found), axis=-1)
    same = jnp.argmax(expected, -1) == jnp.argmax(found, -1)
    return {
        "top_token_equal": round(float(same.mean()), 4),
        "divergence": round(float(divergence.mean()), 5),
    }


def _share_equal(left: Sequence[Answer], right: Sequence[Answer]) -> float:
    return round(
        float(np.mean([a.tokens == b.tokens for a, b in zip(left, right, strict=True)])), 4
    )


def _num_bytes(model: Mdlm) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


if __name__ == "__main__":
    main()
