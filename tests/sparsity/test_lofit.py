"""LoFiT against identities of folding, NumPy in float64, and finite differences."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.errors import UserError
from rml.models import Bert, HeadEdits, Llama, ViT
from rml.models.pretrained.files import tensors_of
from rml.models.pretrained.llama import llama_layout
from rml.models.pretrained.tensors import fill
from rml.sparsity import (
    edit_shape,
    fold,
    head_outputs,
    head_scores,
    init_edits,
    load_edits,
    masked,
    penalty,
    save_edits,
    select_heads,
)
from rml.training import descend

LLAMA = Llama(vocabulary=20, width=12, depth=2, heads=4, kv_heads=2, head_width=6, mlp=16)
BERT = Bert(vocabulary=20, width=16, depth=2, heads=4, mlp=24, positions=8, scan=False)
VIT = ViT(width=8, depth=2, heads=2, patch_size=4)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (3, 6)), jnp.int32)
MASK = jnp.arange(6) < jnp.array([6, 4, 2])[:, None]
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)

GOLDEN = Path(__file__).parent / "golden" / "lofit.npz"
"""What fc2869/lo-fit at ebd344a gave in float32, see golden/make_lofit.py: `LlamaForCausalLM` of
models/modeling_llama.py with attn_A and attn_v, `CustomSFTTrainer.compute_loss` of
utils/trainers.py and its gradients, and the heads that lofit_trainer.py saves. Weights are in
sixteenths."""


def draw(module, inputs):
    """Parameters of the right shapes, large enough that every part shows."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def folded_by_one_program(module, variables, edits):
    """What `fold` gives; one by one its operations on every leaf take long to compile."""
    modules = []

    @jax.jit
    def run(variables, edits):
        other, own = fold(module, variables, edits)
        modules.append(other)
        return own

    own = run(variables, edits)
    return modules[0], own


def drawn_edits(module, seed=2):
    rng = np.random.default_rng(seed)
    shape = edit_shape(module)
    return HeadEdits(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)))


@pytest.fixture(scope="module")
def llama():
    return draw(LLAMA, (TOKENS,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "inputs", "shape"),
    [(LLAMA, (TOKENS, MASK), (2, 4, 6)), (BERT, (TOKENS, MASK), (2, 4, 4)),
     (VIT, (IMAGES,), (2, 2, 4))],
    ids=["grouped queries", "unrolled", "images"],
)  # fmt: skip
def test_a_folded_model_gives_what_edits_give(module, inputs, shape):
    variables = draw(module, inputs)
    assert edit_shape(module) == shape
    edits = drawn_edits(module)
    run = jax.jit(module.apply)
    own = np.asarray(run(variables, *inputs, edits=edits))
    neutral = HeadEdits(jnp.ones(shape), jnp.zeros(shape))
    plain = np.asarray(run(variables, *inputs, edits=neutral))
    assert np.abs(own - plain).max() > 0.1
    if module is LLAMA:
        np.testing.assert_array_equal(plain, run(variables, *inputs))
    other, folded = folded_by_one_program(module, variables, edits)
    np.testing.assert_allclose(jax.jit(other.apply)(folded, *inputs), own, rtol=1e-4, atol=1e-4)
    # Each part alone: the first needs no bias, the second leaves the matrices as they were.
    same, scaled = folded_by_one_program(module, variables, HeadEdits(scale=edits.scale))
    assert same == module
    assert jax.tree.structure(scaled) == jax.tree.structure(variables)
    with pytest.raises(ValueError, match=r"edits.scale must have shape .* got \(1, 1, 1\)"):
        fold(module, variables, HeadEdits(jnp.ones((1, 1, 1))))


@pytest.mark.slow
def test_a_bias_is_the_sum_of_offsets_through_the_projection(llama):
    edits = drawn_edits(LLAMA)
    module, folded = folded_by_one_program(LLAMA, llama, edits)
    kernel = np.asarray(llama["params"]["blocks"]["attention"]["out"]["kernel"], np.float64)
    offset, scale = (np.asarray(x, np.float64) for x in (edits.offset, edits.scale))
    out = folded["params"]["blocks"]["attention"]["out"]
    wanted = np.zeros((2, 12))
    for layer in range(2):
        for head in range(4):
            wanted[layer] += offset[layer, head] @ kernel[layer, head]
    np.testing.assert_allclose(out["bias"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["kernel"], kernel * scale[..., None], rtol=1e-5)
    # A second fold adds to the bias that is there.
    again = folded_by_one_program(module, folded, HeadEdits(offset=edits.offset))[1]
    added = again["params"]["blocks"]["attention"]["out"]["bias"]
    scaled = np.einsum("lhk,lhkd->ld", offset, kernel * scale[..., None])
    np.testing.assert_allclose(added, wanted + scaled, rtol=1e-5, atol=1e-4)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama)
    found = folded_by_one_program(LLAMA, half, edits)[1]
    assert {x.dtype for x in jax.tree.leaves(found)} == {half_type()}


def half_type():
    return jnp.dtype(jnp.bfloat16)


@pytest.mark.slow
def test_gradients_are_sums_over_the_gradients_of_tokens():
    """∂L/∂v = Σ ∂L/∂z and ∂L/∂A = Σ z ⊙ ∂L/∂z over tokens, z moved at each of them alone."""
    module = BERT.clone(depth=1)
    variables, shape = draw(module, (TOKENS,)), edit_shape(module)
    weights = jnp.asarray(np.random.default_rng(7).normal(size=(3, 6, 16)), jnp.float32)
    seen = []

    def moved(moves):
        def reads(call, args, kwargs, context):
            if context.module.name != "out":
                return call(*args, **kwargs)
            seen.append(args[0])
            return call(args[0] + moves, *args[1:], **kwargs)

        with nn.intercept_methods(reads):
            found = module.apply(variables, TOKENS, MASK)
        return jnp.sum(weights * found), seen.pop()

    def lost(edits):
        return jnp.sum(weights * module.apply(variables, TOKENS, MASK, edits=edits))

    of_tokens, z = jax.jit(jax.grad(moved, has_aux=True))(jnp.zeros((3, 6, *shape[1:])))
    found = jax.jit(jax.grad(lost))(HeadEdits(jnp.ones(shape), jnp.zeros(shape)))
    of_tokens, z = np.asarray(of_tokens), np.asarray(z)
    assert (np.abs(of_tokens).max((0, 2, 3)) > 1e-2).all()
    np.testing.assert_allclose(found.offset[0], of_tokens.sum((0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.scale[0], (z * of_tokens).sum((0, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_folding_is_exact_in_double_precision():
    with jax.enable_x64(True):
        module = BERT.clone(depth=1, dtype=jnp.float64, param_dtype=jnp.float64)
        rng = np.random.default_rng(8)
        shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), TOKENS))
        variables = jax.tree.map(
            lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape)), shapes
        )
        edits = HeadEdits(*(jnp.asarray(rng.normal(size=edit_shape(module))) for _ in range(2)))
        own = jax.jit(module.apply)(variables, TOKENS, MASK, edits=edits)
        other, folded = folded_by_one_program(module, variables, edits)
        assert own.dtype == jnp.float64
        np.testing.assert_allclose(
            jax.jit(other.apply)(folded, TOKENS, MASK), own, rtol=1e-12, atol=1e-12
        )


@pytest.mark.slow
def test_gradients_are_those_of_one_token(llama):
    """With one token ∂L/∂A = z ⊙ ∂L/∂v, and ∂L/∂v is that of finite differences."""
    one = TOKENS[:1, :1]
    shape = edit_shape(LLAMA)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(1, 1, 12)), jnp.float32)

    def lost(edits):
        return jnp.sum(weights * LLAMA.apply(llama, one, edits=edits))

    both = jax.jit(jax.value_and_grad(lost))
    neutral = HeadEdits(jnp.ones(shape), jnp.zeros(shape))
    slope = both(neutral)[1]
    z = jax.jit(functools.partial(head_outputs, LLAMA))(llama, one, jnp.ones((1, 1), bool))
    z = np.asarray(z)[:, :, 0]
    np.testing.assert_allclose(slope.scale, z * slope.offset, rtol=1e-3, atol=1e-5)
    for at in ((0, 1, 2), (1, 3, 0)):
        ends = [
            both(neutral._replace(offset=neutral.offset.at[at].set(e)))[0] for e in (1e-2, -1e-2)
        ]
        np.testing.assert_allclose(slope.offset[at], (ends[0] - ends[1]) / 2e-2, rtol=2e-2)


def test_edits_start_near_the_model_and_differ(llama):
    edits = init_edits(jax.random.key(0), LLAMA.clone(param_dtype=jnp.bfloat16), std=1e-2)
    assert edits.scale.shape == edits.offset.shape == (2, 4, 6)
    assert edits.scale.dtype == edits.offset.dtype == jnp.float32
    assert 0.007 < np.std(edits.scale - 1) < 0.013
    assert 0.007 < np.std(edits.offset) < 0.013
    assert abs(np.mean(edits.offset)) < 0.005
    assert abs(np.mean(edits.scale) - 1) < 0.005
    assert np.abs(np.corrcoef((edits.scale - 1).ravel(), edits.offset.ravel())[0, 1]) < 0.5
    default = init_edits(jax.random.key(0), LLAMA)
    np.testing.assert_allclose(default.offset, 0.1 * edits.offset, rtol=1e-5)


@pytest.mark.slow
def test_the_penalty_is_a_sum_over_elements_and_scores_are_norms():
    change = np.random.default_rng(4).normal(size=(2, 3, 4))
    edits = HeadEdits(jnp.asarray(1 + change, jnp.float32), jnp.full((2, 3, 4), 9.0))
    np.testing.assert_allclose(penalty(edits), np.abs(change).sum(), rtol=1e-5)
    slope = jax.grad(penalty)(edits)
    np.testing.assert_array_equal(slope.scale, np.sign(change))
    assert not slope.offset.any()
    assert not jax.grad(penalty)(HeadEdits(jnp.ones((1, 1, 2)))).scale.any()
    with pytest.raises(ValueError, match="edits have no scale, expected the 1"):
        penalty(HeadEdits(offset=edits.offset))
    scores = head_scores(jnp.asarray(change, jnp.float32))
    np.testing.assert_allclose(scores, np.sqrt((change**2).sum(-1)), rtol=1e-5)
    half = head_scores(jnp.full((1, 1, 4096), 0.1, jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, 64 * float(jnp.bfloat16(0.1)), rtol=1e-4)


def test_scores_of_heads_that_have_not_changed_have_no_slope():
    change = jnp.array([[[0.0, 0.0], [3.0, 4.0]]])
    slope = jax.jit(jax.grad(lambda own: head_scores(own).sum()))(change)
    np.testing.assert_allclose(slope, [[[0, 0], [0.6, 0.8]]], rtol=1e-6)


def test_the_penalty_holds_every_change_whose_slope_is_less_than_its_factor():
    """Minimised with a linear loss Σ c A, A stays near 0 where |c| < λ, and grows elsewhere."""
    slopes = np.random.default_rng(6).choice([-0.9, -0.4, 0.4, 0.9], (1, 2, 8))
    slopes[0, 0, :4] = (-0.9, -0.4, 0.4, 0.9)

    def change(factor):
        def objective(edits, _):
            return jnp.sum(slopes * (edits.scale - 1)) + factor * penalty(edits)

        rate = optax.linear_schedule(1e-2, 0, 400)
        first = HeadEdits(jnp.full(slopes.shape, 1.003))
        found = descend(objective, first, jnp.zeros(400), optimizer=optax.sgd(rate))
        return np.asarray(found.params.scale - 1)

    assert np.abs(change(1.0)).max() < 1e-3
    held, free = change(0.6), change(0.0)
    assert np.abs(held[np.abs(slopes) < 0.6]).max() < 1e-3
    assert (np.sign(held) == -np.sign(slopes))[np.abs(slopes) > 0.6].all()
    assert np.abs(held[np.abs(slopes) > 0.6]).min() > 0.1
    assert np.abs(free).min() > 0.15


@pytest.mark.slow
def test_the_largest_are_kept_and_of_equal_ones_the_first():
    scores = jnp.array([[1.0, 5.0, 3.0], [3.0, 0.0, 3.0]])
    wanted = {
        1: [[0, 1, 0], [0, 0, 0]], 2: [[0, 1, 1], [0, 0, 0]], 3: [[0, 1, 1], [1, 0, 0]],
        6: [[1, 1, 1], [1, 1, 1]],
    }  # fmt: skip
    for count, heads in wanted.items():
        np.testing.assert_array_equal(select_heads(scores, count=count), np.array(heads, bool))
    for count in (0, 7):
        with pytest.raises(ValueError, match=rf"count={count}, expected 1 to the 6 heads of"):
            select_heads(scores, count=count)


def test_a_mask_leaves_other_heads_alone_and_without_gradient():
    edits = HeadEdits(*(jnp.asarray(np.random.default_rng(5).normal(size=(2, 2, 3, 4)))))
    heads = select_heads(jnp.arange(6.0).reshape(2, 3), count=2)
    own = masked(edits, heads)
    kept = np.asarray(heads)
    np.testing.assert_array_equal(own.scale[kept], edits.scale[kept])
    np.testing.assert_array_equal(own.offset[kept], edits.offset[kept])
    np.testing.assert_array_equal(own.scale[~kept], 1)
    np.testing.assert_array_equal(own.offset[~kept], 0)
    slope = jax.grad(lambda e: sum(jnp.sum(x**2) for x in masked(e, heads)))(edits)
    for given, found in zip(edits, slope, strict=True):
        np.testing.assert_allclose(found, 2 * given * kept[..., None], rtol=1e-6)
    assert masked(HeadEdits(offset=edits.offset), heads).scale is None


@pytest.mark.slow
def test_a_file_holds_the_edited_heads_alone(tmp_path):
    edits = drawn_edits(Bert(vocabulary=2, width=384, depth=6, heads=12, mlp=4))
    heads = select_heads(head_scores(edits.offset), count=7)
    for given in (masked(edits, heads), HeadEdits(offset=masked(edits, heads).offset)):
        file = tmp_path / "deep" / f"{given.scale is None}.safetensors"
        save_edits(file, given)
        assert file.stat().st_size < 7 * 32 * 4 * 2 + 600
        back = load_edits(file)
        assert (back.scale is None) == (given.scale is None)
        jax.tree.map(np.testing.assert_array_equal, back, given)
    with pytest.raises(UserError, match=r"True.safetensors exists, expected a new file"):
        save_edits(file, given)
    file.unlink()
    with pytest.raises(UserError, match="edits have neither a scale nor an offset"):
        save_edits(file, HeadEdits())
    save_edits(file, HeadEdits(jnp.ones((2, 2, 3))))
    np.testing.assert_array_equal(load_edits(file).scale, np.ones((2, 2, 3)))
    import safetensors.numpy

    safetensors.numpy.save_file({"up": np.ones(2)}, file)
    with pytest.raises(UserError, match="has tensors up, expected edits: layers_heads_width"):
        load_edits(file)
    file.write_bytes(file.read_bytes()[:-8])
    for wrong in (file, tmp_path / "none"):
        with pytest.raises(UserError, match=f"{wrong.name} cannot be read as safetensors"):
            load_edits(wrong)


@pytest.mark.slow
def test_edits_of_half_precision_weights_are_single(llama):
    """Weights of bfloat16: edits, their gradient and a small step of them keep 24 bits."""
    half = LLAMA.clone(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), llama)
    edits = drawn_edits(LLAMA)

    def total(module, variables, own):
        logits = module.apply(variables, TOKENS, MASK, edits=own)
        return jnp.mean(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1))

    def slope(module, variables):
        return jax.jit(jax.grad(functools.partial(total, module, variables)))(edits)

    found, wide = slope(half, weights), slope(LLAMA, jax.tree.map(jnp.float32, weights))
    for own, wanted in zip(found, wide, strict=True):
        assert own.dtype == jnp.float32
        assert np.linalg.norm(own - wanted) < 0.1 * np.linalg.norm(wanted)
    found = jax.tree.map(np.asarray, found)
    stepped = jax.tree.map(lambda x, g: x - 1e-4 * g / np.abs(g).max(), edits, found)
    moved = np.asarray(stepped.offset - edits.offset)
    assert np.abs(moved + 1e-4 * found.offset / np.abs(found.offset).max()).max() < 1e-6
    first = init_edits(jax.random.key(0), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {jnp.dtype(jnp.float32)}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def their_logits(golden):
    """Logits by edits, of the authors' weights and tokens."""
    module = Llama(vocabulary=7, width=8, depth=2, heads=4, kv_heads=2, mlp=6)
    weights = {name: np.float32(x / 16) for name, x in golden.items() if name.endswith("weight")}
    variables = fill(module, llama_layout(module), tensors_of(weights, GOLDEN), GOLDEN)
    inputs = [jnp.asarray(golden[name]) for name in ("tokens", "mask")]

    def logits(edits):
        hidden = module.apply(variables, *inputs, edits=edits)
        return module.apply(variables, hidden, method="logits")

    return logits


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_logits_are_those_of_the_authors_code(golden, their_logits, layers):
    """With their A as scale - 1 and their v as offset, in one layer or in both."""
    heads = jnp.isin(jnp.arange(2), jnp.array(layers))[:, None] & jnp.ones(4, bool)
    edits = masked(HeadEdits(1 + golden["A"], jnp.asarray(golden["v"])), heads)
    found, mask = jax.jit(their_logits)(edits), golden["mask"]
    wanted = golden[f"logits{len(layers)}"]
    np.testing.assert_allclose(found[mask], wanted[mask], rtol=1e-5, atol=1e-5)
    assert np.abs(wanted - golden[f"logits{3 - len(layers)}"])[mask].max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["A", "v"])
def test_losses_and_gradients_are_those_of_the_authors_code(golden, their_logits, part):
    """Cross-entropy of tokens that are text, in step 1 with 0.05 times the penalty."""

    @jax.jit
    @jax.value_and_grad
    def loss_and_slopes(edits):
        shifted = golden["tokens"][:, 1:], golden["mask"][:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            their_logits(edits)[:, :-1], shifted[0]
        )
        return losses.mean(where=shifted[1]) + (0.05 * penalty(edits) if part == "A" else 0)

    loss, slopes = loss_and_slopes(HeadEdits(1 + golden["A"], jnp.asarray(golden["v"])))
    np.testing.assert_allclose(loss, golden[f"loss_{part}"], rtol=1e-5)
    found = slopes.scale if part == "A" else slopes.offset
    np.testing.assert_allclose(found, golden[f"slopes_{part}"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_heads_are_ranked_as_by_the_authors_code(golden):
    """Theirs sorts ascending and reads from behind, so that of equal norms the last comes first."""
    scores = head_scores(jnp.asarray(golden["A"]))
    assert len(np.unique(scores)) == 8
    for count in (1, 3, 6):
        chosen = np.argwhere(select_heads(scores, count=count))
        assert {tuple(head) for head in chosen} == {tuple(x) for x in golden["ranking"][:count]}
