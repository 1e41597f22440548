"""Adapters beside frozen weights: against merged ones, in value and gradient, in every form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm import model
from jax_mdlm.config import ConfigError, LoraConfig, MeshConfig, ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.model import lora, table
from jax_mdlm.model.weights import as_array, is_weight
from jax_mdlm.sharding import make_layout

CONFIG = ModelConfig(
    vocab_size=20,
    embed=24,
    layers=3,
    heads=6,
    kv_heads=2,
    head_dim=4,
    mlp=20,
    max_length=16,
    compute_dtype="float32",
)
LORA = LoraConfig(rank=3, alpha=6.0)
SLACK = 5
BLOCK = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")


@pytest.fixture(scope="module")
def frozen() -> Params:
    return model.init(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def adapters() -> Params:
    """As after some training: no part of them is zero."""
    return shaken(lora.draw_adapters(jax.random.key(1), CONFIG, LORA))


@pytest.fixture(scope="module")
def tokens() -> jax.Array:
    return jax.random.randint(jax.random.key(2), (2, 16), 0, 20).at[:, 3].set(SLACK)


def shaken(adapters: Params) -> Params:
    leaves, form = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    return jax.tree.unflatten(form, moved)


def join(frozen: Params, adapters: Params) -> Params:
    return lora.join(frozen, adapters, scale=LORA.scale, slack_id=SLACK)


def plainly(frozen: Params, adapters: Params) -> Params:
    """The merged parameters, by the definition: W + (alpha / r) A B, and the slack rows."""
    merged, dtype = dict(frozen["blocks"]), frozen["wte"].dtype
    for name, factors in adapters["blocks"].items():
        change = 6.0 / 3 * jnp.einsum("lir,lro->lio", factors["down"], factors["up"])
        merged[name] = frozen["blocks"][name] + change.reshape(merged[name].shape)
    return frozen | {
        "blocks": merged,
        "wte": frozen["wte"].at[SLACK].add(adapters["wte"]["slack"].astype(dtype)),
        "head": frozen["head"].at[:, SLACK].add(adapters["head"]["slack"].astype(dtype)),
    }


def test_new_adapters_change_nothing(frozen: Params, tokens: jax.Array) -> None:
    new = lora.draw_adapters(jax.random.key(1), CONFIG, LORA)
    got = model.apply(join(frozen, new), tokens, CONFIG)
    np.testing.assert_array_equal(got, model.apply(frozen, tokens, CONFIG))
    assert set(new["blocks"]) == set(BLOCK)
    for name, inputs in (("q_proj", 24), ("ff_out", 20)):
        down = np.asarray(new["blocks"][name]["down"])
        assert down.shape == (3, inputs, 3)
        assert down.std() == pytest.approx((3 * inputs) ** -0.5, rel=0.2)
        assert not np.array_equal(down[0], down[1])


def test_beside_the_weights_is_merged_into_them(
    frozen: Params, adapters: Params, tokens: jax.Array
) -> None:
    """Grouped heads, every matrix, both slack rows."""
    got = model.apply(join(frozen, adapters), tokens, CONFIG)
    want = model.apply(plainly(frozen, adapters), tokens, CONFIG)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    assert np.abs(got - model.apply(frozen, tokens, CONFIG)).max() > 0.5


@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_are_those_of_merged_weights(
    frozen: Params, adapters: Params, tokens: jax.Array, remat: str
) -> None:
    config = dataclasses.replace(CONFIG, remat=remat)
    weights = jax.random.normal(jax.random.key(4), (2, 16, 20))

    def loss(adapters: Params, form) -> jax.Array:
        return jnp.sum(weights * model.apply(form(frozen, adapters), tokens, config))

    got, want = jax.grad(loss)(adapters, join), jax.grad(loss)(adapters, plainly)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)):
        scale = np.abs(y).max()
        assert scale > 0.1, path
        np.testing.assert_allclose(x, y, atol=2e-5 * scale, err_msg=str(path))


def test_windows_and_sampling_forms_run_adapters(
    frozen: Params, adapters: Params, tokens: jax.Array
) -> None:
    want = model.encode(plainly(frozen, adapters), tokens, CONFIG)[:, 4:10]
    joined = join(frozen, adapters)
    for form in (joined, model.unstack(joined), model.prepare(joined, CONFIG)):
        got, _ = model.encode_window(form, tokens, CONFIG, model.Window(4, 6))
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_the_stream_keeps_its_dtype(frozen: Params, adapters: Params, tokens: jax.Array) -> None:
    """Float32 adapters beside bfloat16 weights compute in bfloat16."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)
    joined = join(narrow, adapters)
    assert model.encode(joined, tokens, config).dtype == jnp.bfloat16
    assert model.head(joined).dtype == jnp.bfloat16
    got = model.apply(joined, tokens, config)
    want = model.apply(plainly(narrow, adapters), tokens, config)
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_only_what_is_asked_for_gets_an_adapter(frozen: Params) -> None:
    asked = LoraConfig(
        rank=2, targets=("blocks/v_proj", "blocks/q_proj", "blocks/v_proj"), train_slack_row=False
    )
    adapters = lora.draw_adapters(jax.random.key(0), CONFIG, asked)
    assert {name: set(value) for name, value in adapters.items()} == {
        "blocks": {"q_proj", "v_proj"}
    }
    joined = join(frozen, adapters)
    changed = {row.path for row in table.rows(CONFIG) if is_weight(table.at(joined, row.path))}
    assert changed == {("blocks", "q_proj"), ("blocks", "v_proj")}
    axes = jax.tree.structure(
        lora.adapter_axes(CONFIG, asked), is_leaf=lambda x: isinstance(x, tuple)
    )
    assert axes == jax.tree.structure(adapters)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (("blocks/q_proj", "blocks/qproj"), "got blocks/qproj"),
        (("head",), "got head; embedding and head are changed in the slack token's row only"),
        (("blocks/attn_norm",), "got blocks/attn_norm"),
        ((), "got none"),
    ],
)
def test_targets_that_are_no_matrices_are_refused(targets: tuple[str, ...], named: str) -> None:
    known = r"lora\.targets must be paths of " + ", ".join(f"blocks/{name}" for name in BLOCK)
    with pytest.raises(ConfigError, match=f"{known}, {named}"):
        lora.target_rows(CONFIG, LoraConfig(rank=2, targets=targets))


# --- beside a quantised base ---


@pytest.fixture(scope="module")
def held(frozen: Params) -> Params:
    return lora.freeze(frozen, CONFIG, dataclasses.replace(LORA, base="int8"))


def dense(held: Params) -> Params:
    """What it stands for, in the shapes in which it is trained."""
    return table.tree(
        {
            row.path: as_array(table.at(held, row.path), "float32").reshape(
                table.shape(row, CONFIG)
            )
            for row in table.rows(CONFIG)
        }
    )


def test_adapters_beside_a_quantised_base_are_beside_what_it_stands_for(
    held: Params, adapters: Params, tokens: jax.Array
) -> None:
    """In every form: whole, a layer at a time, and as the sampler reads it."""
    want = model.encode(plainly(dense(held), adapters), tokens, CONFIG)
    joined = join(held, adapters)
    np.testing.assert_allclose(model.encode(joined, tokens, CONFIG), want, atol=1e-5, rtol=1e-5)
    for form in (model.unstack(joined), model.prepare(joined, CONFIG, "int8")):
        got, _ = model.encode_window(form, tokens, CONFIG, model.Window(4, 6))
        np.testing.assert_allclose(got, want[:, 4:10], atol=1e-5, rtol=1e-5)
    head = model.head(joined)
    np.testing.assert_array_equal(head, plainly(dense(held), adapters)["head"])


def test_a_cast_leaves_quantised_values_and_scales(held: Params, adapters: Params) -> None:
    """Of the weights; a scale in bfloat16 would be wrong by up to 0.4%."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    params = model.cast(join(held, adapters), config)
    for one in (params["blocks"]["ff_out"], params["wte"]):
        assert (one.weight.values.dtype, one.weight.scale.dtype) == (jnp.int8, jnp.float32)
    assert params["blocks"]["ff_out"].down.dtype == params["wte"].change.dtype == jnp.bfloat16


def test_what_is_frozen_has_the_shapes_that_are_told_before(held: Params) -> None:
    layout = make_layout(MeshConfig(fsdp=2, tensor=1), jax.devices()[:2])
    told = lora.abstract_frozen(CONFIG, dataclasses.replace(LORA, base="int8"), layout)
    got = jax.tree.map(lambda x: (x.shape, x.dtype), held)
    assert got == jax.tree.map(lambda x: (x.shape, x.dtype), told)
