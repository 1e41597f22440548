"""LLaDA's forward pass and its `generate.py` as one would write them in PyTorch on one machine.

Written from the behaviour of the published loop at temperature 0 without guidance: every call runs
the whole canvas and takes the logits of all its slots, the softmax goes over all of them, blocks
are worked off one after the other, and in each row `topk` picks the most confident masks of the
block by a count that was fixed before the block's first call. The mask itself may be predicted.

It is the oracle of golden trajectories, and the rival of `benchmark sampler`: `--rival` takes this
file. So it is meant to be fair: fused attention, one product per matrix, tables of angles that are
kept, no gradients. Until June 2025 the published loop took its softmax in float64, later in the
dtype of the logits: `make` is the former, `make_float32` the latter.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Rival = Callable[[Sequence[Sequence[int]]], np.ndarray]


def make(params: dict[str, Any], config: Any, options: Any) -> Rival:
    """A function of prompts of one length that returns the whole canvas, int64 [B, P + length].

    Args:
      params: Nested dict of float32 NumPy arrays, named and shaped like `jax_mdlm.model`'s.
      config: Its `ModelConfig`.
      options: `SampleOptions`; `length`, `block_length`, `steps` and the mask's id are used.
    """
    return _make(params, config, options, torch.float64)


def make_float32(params: dict[str, Any], config: Any, options: Any) -> Rival:
    """Like `make`, with the softmax in the dtype of the logits."""
    return _make(params, config, options, torch.float32)


def describe() -> dict[str, Any]:
    """How PyTorch runs here; printed beside the figures."""
    return {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}


def _make(params: dict[str, Any], config: Any, options: Any, dtype: torch.dtype) -> Rival:
    network = Llada(params, config)

    def run(prompts: Sequence[Sequence[int]]) -> np.ndarray:
        return generate(
            network,
            torch.tensor(prompts),
            length=options.settings.length,
            block_length=options.settings.block_length,
            steps=options.settings.steps,
            mask_id=options.ids.mask,
            softmax_dtype=dtype,
        ).numpy()

    return run


@torch.inference_mode()
def generate(
    network: Callable[[Tensor], Tensor],
    prompts: Tensor,
    *,
    length: int,
    block_length: int,
    steps: int,
    mask_id: int,
    softmax_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Decodes `length` new slots behind each prompt by low-confidence remasking.

    Args:
      network: int64 [B, L] -> logits [B, L, V].
      prompts: int64 [B, P].
      length: New slots; a multiple of `block_length`.
      block_length: Slots of a block.
      steps: Calls in all; a multiple of the number of blocks.
      mask_id: Id of the mask.
      softmax_dtype: Of the probabilities that rank the slots.

    Returns:
      int64 [B, P + length].

    Raises:
      ValueError: counts that do not divide.
    """
    num_blocks, rest = divmod(length, block_length)
    if rest or steps % num_blocks:
        raise ValueError(
            f"length={length} must be a multiple of block_length={block_length}, and steps={steps} "
            "of the number of blocks"
        )
    rows, prompt = prompts.shape
    canvas = torch.full((rows, prompt + length), mask_id)
    canvas[:, :prompt] = prompts
    for end in range(prompt + block_length, prompt + length + 1, block_length):
        masks = (canvas[:, end - block_length : end] == mask_id).sum(1)
        for counts in quotas(masks, steps // num_blocks):
            masked = canvas == mask_id
            logits = network(canvas)
            tokens = logits.argmax(-1)
            probabilities = logits.to(softmax_dtype).softmax(-1)
            confidence = probabilities.gather(-1, tokens[..., None])[..., 0]
            confidence[:, end:] = -torch.inf
            confidence = confidence.masked_fill(~masked, -torch.inf)
            for row in range(rows):
                best = confidence[row].topk(int(counts[row])).indices
                canvas[row, best] = tokens[row, best]
    return canvas


def quotas(masks: Tensor, calls: int) -> Tensor:
    """Commits of each call, int64 [calls, B]: `masks` [B] in equal parts, the rest to the first."""
    share, rest = masks // calls, masks % calls
    return share + (torch.arange(calls)[:, None] < rest)


class Llada(nn.Module):
    """Embedding, blocks, final norm and an untied head, float32."""

    def __init__(self, params: dict[str, Any], config: Any) -> None:
        super().__init__()
        self.config = config
        blocks = params["blocks"]
        self.wte = nn.Embedding.from_pretrained(_tensor(params["wte"]))
        self.blocks = nn.ModuleList(
            Block({name: stacked[layer] for name, stacked in blocks.items()}, config)
            for layer in range(config.layers)
        )
        self.ln_f = Norm(params["ln_f"], config.norm_eps)
        self.head = _linear(params["head"], num_inputs=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] -> float32 [B, L, V]."""
        angles = rotary_angles(tokens.shape[1], self.config.head_dim, self.config.rope_theta)
        x = self.wte(tokens)
        for block in self.blocks:
            x = block(x, angles)
        return self.head(self.ln_f(x))


class Block(nn.Module):
    """Attention and gated MLP, each on a normalised input and added to the stream."""

    def __init__(self, params: dict[str, np.ndarray], config: Any) -> None:
        super().__init__()
        self.head_dim, self.group = config.head_dim, config.heads // config.kv_heads
        self.attn_norm = Norm(params["attn_norm"], config.norm_eps)
        self.ff_norm = Norm(params["ff_norm"], config.norm_eps)
        self.attn_out = _linear(params["attn_out"], num_inputs=2)
        for name in ("q_proj", "k_proj", "v_proj", "ff_proj", "up_proj", "ff_out"):
            setattr(self, name, _linear(params[name], num_inputs=1))

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        h = self.attn_norm(x)
        q = rotate(self.heads(self.q_proj(h)), *angles)
        k = rotate(self.heads(self.k_proj(h)), *angles)
        v = self.heads(self.v_proj(h))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.group > 1)
        x = x + self.attn_out(mixed.transpose(1, 2).flatten(2))
        h = self.ff_norm(x)
        return x + self.ff_out(nn.functional.silu(self.ff_proj(h)) * self.up_proj(h))

    def heads(self, flat: Tensor) -> Tensor:
        """[B, L, N * H] -> [B, N, L, H]."""
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weight: np.ndarray, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(_tensor(weight), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


@functools.cache
def rotary_angles(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position * theta^(-2i/H), each [L, H] with both halves alike."""
    speeds = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * speeds
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + H/2) of x [B, N, L, H]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _linear(matrix: np.ndarray, num_inputs: int) -> nn.Linear:
    inputs = int(np.prod(matrix.shape[:num_inputs]))
    weight = _tensor(np.reshape(matrix, (inputs, -1)).T)  # PyTorch stores outputs first
    layer = nn.Linear(inputs, weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))
