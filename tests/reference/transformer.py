"""LLaDA's forward pass in slow, plain NumPy (float64), written from the published facts.

`cast` is applied where the published code rounds to the compute dtype: the identity gives the
exact values, rounding to bfloat16 tells how far bfloat16 alone takes a result from them.
"""

from collections.abc import Callable

import numpy as np

from jax_mdlm.config import ModelConfig

Cast = Callable[[np.ndarray], np.ndarray]


def exact(x: np.ndarray) -> np.ndarray:
    return x


def norm(x: np.ndarray, weight: np.ndarray, eps: float, cast: Cast = exact) -> np.ndarray:
    return cast(cast(x / np.sqrt(np.mean(x**2) + eps)) * weight)


def turn(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out


def forward(
    params: dict, tokens: np.ndarray, valid: np.ndarray, config: ModelConfig, cast: Cast = exact
) -> np.ndarray:
    """Logits [B, L, V], one slot, head and layer after the other."""
    params = _convert(params, cast)
    rows = [_row(params, t, v, config, cast) for t, v in zip(tokens, valid, strict=True)]
    return np.stack(rows)


def _convert(params: dict, cast: Cast) -> dict:
    return {
        name: _convert(value, cast) if isinstance(value, dict) else cast(value.astype(np.float64))
        for name, value in params.items()
    }


def _row(
    params: dict, tokens: np.ndarray, valid: np.ndarray, config: ModelConfig, cast: Cast
) -> np.ndarray:
    x = params["wte"][tokens]
    length, group = len(tokens), config.heads // config.kv_heads
    for layer in range(config.layers):
        w = {name: array[layer] for name, array in params["blocks"].items()}
        h = np.stack([norm(row, w["attn_norm"], config.norm_eps, cast) for row in x])
        mixed = np.zeros((length, config.heads, config.head_dim))
        for n in range(config.heads):
            m = n // group
            theta = config.rope_theta
            q = [cast(turn(cast(h[i] @ w["q_proj"][:, n]), i, theta)) for i in range(length)]
            k = [cast(turn(cast(h[i] @ w["k_proj"][:, m]), i, theta)) for i in range(length)]
            v = cast(h @ w["v_proj"][:, m])
            for i in range(length):
                scores = np.array([q[i] @ k[s] for s in range(length)]) / config.head_dim**0.5
                scores = np.where(valid, scores, -np.inf)
                weights = np.exp(scores - scores.max())
                mixed[i, n] = cast(weights / weights.sum() @ v)
        x = cast(x + cast(np.einsum("lnh,nhd->ld", mixed, w["attn_out"])))
        h = np.stack([norm(row, w["ff_norm"], config.norm_eps, cast) for row in x])
        gate = cast(h @ w["ff_proj"])
        hidden = cast(cast(gate / (1 + np.exp(-gate))) * cast(h @ w["up_proj"]))
        x = cast(x + cast(hidden @ w["ff_out"]))
    final = np.stack([norm(row, params["ln_f"], config.norm_eps, cast) for row in x])
    return final @ params["head"]
