"""LLaDA in plain PyTorch: loads a folder that `jax_mdlm.convert export` wrote. Copy this file.

    from pathlib import Path
    from llada_torch import load_folder

    model = load_folder(Path("exported"))
    logits = model(ids)  # int64 [B, L] -> [B, L, V], in the dtype of the folder

It needs torch and safetensors, nothing else. Its names are those of the published checkpoints: a
folder loads with `strict=True`, and PEFT finds the modules of an adapter. It is written to be read,
not to be fast: attention is spelled out, heads are grouped by index, the rotation is a product of
complex numbers. Rounding points are those of the published code: norms, rotation and softmax in
float32, each cast back to the dtype of the stream. Its logits are the published code's within 2e-5.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# What this module computes. A folder must say so itself: the published configuration class fills
# what is missing with GPT-2's values (tied weights, no RoPE, LayerNorm), not with LLaDA's.
COMPUTES = {
    "model_type": "llada",
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "rope": True,
    "rope_full_precision": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "weight_tying": False,
}


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps), rounded to the dtype of x before the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        wide = x.float()
        unit = wide / (wide.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return self.weight * unit.to(x.dtype)


def rotate(x: Tensor, theta: float) -> Tensor:
    """Turns the pairs (i, i + H/2) of x [B, L, N, H] at position p by p * theta^(-2i/H)."""
    length, half = x.shape[1], x.shape[-1] // 2
    speeds = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * speeds  # [L, H/2]
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]
    pairs = torch.complex(x[..., :half].float(), x[..., half:].float()) * turn
    return torch.cat([pairs.real, pairs.imag], -1).to(x.dtype)


class Block(nn.Module):
    """Attention and gated MLP, each on a normalised input and added to the stream."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, mlp = settings["d_model"], settings["mlp_hidden_size"]
        self.heads, self.kv_heads = settings["n_heads"], settings["n_kv_heads"]
        self.head_dim = width // self.heads
        self.theta = settings["rope_theta"]
        self.attn_norm = Norm(width, settings["rms_norm_eps"])
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = Norm(width, settings["rms_norm_eps"])
        self.ff_proj = nn.Linear(width, mlp, bias=False)
        self.up_proj = nn.Linear(width, mlp, bias=False)
        self.ff_out = nn.Linear(mlp, width, bias=False)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; `visible` bool [B, L] says which keys may be seen."""
        h = self.attn_norm(x)
        q = rotate(self.q_proj(h).unflatten(-1, (self.heads, self.head_dim)), self.theta)
        k = rotate(self.k_proj(h).unflatten(-1, (self.kv_heads, self.head_dim)), self.theta)
        v = self.v_proj(h).unflatten(-1, (self.kv_heads, self.head_dim))
        group = self.heads // self.kv_heads
        mixed = [
            self.attend(q[:, :, n], k[:, :, n // group], v[:, :, n // group], visible)
            for n in range(self.heads)
        ]
        x = x + self.attn_out(torch.cat(mixed, -1))
        h = self.ff_norm(x)
        return x + self.ff_out(nn.functional.silu(self.ff_proj(h)) * self.up_proj(h))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """One head: q, k, v [B, L, H] -> [B, L, H]."""
        scores = torch.einsum("blh,bsh->bls", q.float(), k.float()) / self.head_dim**0.5
        scores = scores.masked_fill(~visible[:, None], -1e30)
        return torch.einsum("bls,bsh->blh", scores.softmax(-1), v.float()).to(v.dtype)


class Llada(nn.Module):
    """Embedding, blocks, final norm, head; `settings` is a published config.json as a dict."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        for name, value in COMPUTES.items():
            if settings.get(name, "nothing") != value:
                said = settings.get(name, "nothing")
                raise ValueError(f"config.json must say {name}={value!r}, it says {said!r}")
        rows, width = settings["embedding_size"], settings["d_model"]
        transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(rows, width),
                "blocks": nn.ModuleList([Block(settings) for _ in range(settings["n_layers"])]),
                "ln_f": Norm(width, settings["rms_norm_eps"]),
                "ff_out": nn.Linear(width, rows, bias=False),
            }
        )
        self.model = nn.ModuleDict({"transformer": transformer})  # model.transformer.* in names

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """int64 [B, L], bool [B, L] -> logits [B, L, V] in the dtype of the weights."""
        parts = self.model["transformer"]
        x = parts["wte"](tokens)
        visible = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
        for block in parts["blocks"]:
            x = block(x, visible)
        return parts["ff_out"](parts["ln_f"](x))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: the shards that the index names, or the one file."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    places = json.loads(index.read_text())["weight_map"]
    tensors = {}
    for shard in sorted(set(places.values())):
        tensors |= load_file(folder / shard)
    return tensors


def load_folder(folder: Path) -> Llada:
    """Builds the module that `config.json` describes and loads the weights, no name left over."""
    settings = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):  # nothing is drawn that the file's values would replace
        model = Llada(settings)
    model.load_state_dict(read_tensors(folder), strict=True, assign=True)
    return model.eval()
