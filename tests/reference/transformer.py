"""LLaDA's forward pass in slow, plain NumPy (float64), written from the published facts."""

import numpy as np

from jax_mdlm.config import ModelConfig


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2) + eps) * weight


def turn(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out


def forward(params: dict, tokens: np.ndarray, valid: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Logits [B, L, V], one slot, head and layer after the other."""
    rows = [_row(params, t, v, config) for t, v in zip(tokens, valid, strict=True)]
    return np.stack(rows)


def _row(params: dict, tokens: np.ndarray, valid: np.ndarray, config: ModelConfig) -> np.ndarray:
    x = params["wte"][tokens].astype(np.float64)
    length, group = len(tokens), config.heads // config.kv_heads
    for layer in range(config.layers):
        w = {name: array[layer].astype(np.float64) for name, array in params["blocks"].items()}
        h = np.stack([norm(row, w["attn_norm"], config.norm_eps) for row in x])
        mixed = np.zeros((length, config.heads, config.head_dim))
        for n in range(config.heads):
            m = n // group
            q = [turn(h[i] @ w["q_proj"][:, n], i, config.rope_theta) for i in range(length)]
            k = [turn(h[i] @ w["k_proj"][:, m], i, config.rope_theta) for i in range(length)]
            v = h @ w["v_proj"][:, m]
            for i in range(length):
                scores = np.array([q[i] @ k[s] for s in range(length)]) / config.head_dim**0.5
                scores = np.where(valid, scores, -np.inf)
                weights = np.exp(scores - scores.max())
                mixed[i, n] = weights / weights.sum() @ v
        x = x + np.einsum("lnh,nhd->ld", mixed, w["attn_out"])
        h = np.stack([norm(row, w["ff_norm"], config.norm_eps) for row in x])
        gate = h @ w["ff_proj"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up_proj"])) @ w["ff_out"]
    final = np.stack([norm(row, params["ln_f"].astype(np.float64), config.norm_eps) for row in x])
    return final @ params["head"].astype(np.float64)
