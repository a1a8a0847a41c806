import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.errors import UserError
from rml.models import Bert, Llama, MaskedLMHead, ViT, transformer_sizes
from rml.models.depth import map_depth
from rml.models.pretrained.bert import LAYOUT
from rml.models.pretrained.files import tensors_of
from rml.models.pretrained.tensors import fill
from rml.models.width import WidthMap, map_width
from rml.training import multilevel
from rml.training.multilevel import (
    Groups,
    Level,
    Phase,
    coalesce,
    decoalesce,
    groups_of,
    interpolate,
    start_of_phase,
    unit_groups,
    v_cycle,
)

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 11, (2, 6)), jnp.int32)
IMAGES = jnp.asarray(RNG.normal(size=(3, 8, 8, 1)), jnp.float32)
GOLDEN = Path(__file__).parent / "golden" / "multilevel.npz"
"""Parameters in float64 that Photooon/Multi-Level-Training-Framework at 2137c13 gave, in
map_tools/mapper.py: `coalesce`, `decoalesce` and `interpolate` of `BertMapper` and `GPT2Mapper`,
and matrices of `MapMatrix`; see golden/make_multilevel.py. "default" is without a scheme: halves of
the width, neighbouring layers; "scheme" has the groups `HEADS` and `LAYERS`."""
HEADS, LAYERS = np.array([0, 1, 0, 0]), np.array([0, 1, 1, 0])


def llama(scale=1, depth=4, **options):
    return Llama(
        vocabulary=11, width=8 * scale, depth=depth, heads=4 * scale, kv_heads=2 * scale,
        head_width=4, mlp=6 * scale, **options,
    )  # fmt: skip


def drawn(module, *inputs, seed=0):
    rng = np.random.default_rng(seed)
    shapes = shapes_of(module, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs))
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 + 0.4 * rng.normal(size=leaf.shape), np.float32), shapes
    )


@functools.cache  # a module is long to trace
def shapes_of(module, *inputs):
    return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]


@functools.partial(jax.jit, static_argnums=0)
def logits(module, params):
    hidden = module.apply({"params": params}, TOKENS)
    return module.apply({"params": params}, hidden, method="logits")


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("scheme", ["halves", "neighbours"])
def test_groups_are_parts_or_neighbours(scheme):
    expected = {"halves": [0, 1, 2, 0, 1, 2], "neighbours": [0, 0, 1, 1, 2, 2]}
    np.testing.assert_array_equal(unit_groups(6, 2, scheme), expected[scheme])
    assert (
        unit_groups(6, 3, scheme).tolist()
        == {"halves": [0, 1] * 3, "neighbours": [0] * 3 + [1] * 3}[scheme]
    )


def test_a_small_unit_is_the_mean_of_what_writes_and_the_sum_of_what_reads():
    large = drawn(llama(), TOKENS)
    own = groups_of(large, width=2, depth=2, scheme="neighbours", layer_scheme="halves")
    assert own.kv_heads.tolist() == [0, 0]
    assert own.heads.tolist() == [0, 1, 0, 1]  # two queries of each head of keys
    small = coalesce(large, own)
    kernel = large["blocks"]["mlp_in"]["kernel"].astype(np.float64)
    expected = kernel.reshape(4, 4, 2, 3, 2).sum(2).mean(-1)
    expected = (expected[:2] + expected[2:]) / 2  # layers 0 and 2, 1 and 3
    np.testing.assert_allclose(small["blocks"]["mlp_in"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    kernel = large["blocks"]["attention"]["out"]["kernel"].astype(np.float64)
    expected = (kernel[:, :2] + kernel[:, 2:]).reshape(4, 2, 4, 4, 2).mean(-1)
    expected = (expected[:2] + expected[2:]) / 2
    np.testing.assert_allclose(
        small["blocks"]["attention"]["out"]["kernel"], expected, rtol=1e-5, atol=1e-6
    )
    table = large["tokens"]["embedding"].reshape(11, 4, 2).mean(-1)
    np.testing.assert_allclose(small["tokens"]["embedding"], table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("width", "depth"), [(2, 2), (1, 4), (2, 1)])
def test_coalescing_what_was_decoalesced_gives_it_back_to_the_bit(width, depth):
    large = drawn(llama(), TOKENS)
    for scheme in multilevel.SCHEMES:
        own = groups_of(large, width=width, depth=depth, scheme=scheme, layer_scheme=scheme)
        small = coalesce(large, own)
        equal(coalesce(decoalesce(small, own), own), small)
        assert jax.tree.map(np.shape, decoalesce(small, own)) == jax.tree.map(np.shape, large)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_decoalescing_in_width_keeps_a_decoders_function(tied):
    small = drawn(llama(tied=tied), TOKENS)
    wide = llama(2, tied=tied)
    larger = transformer_sizes(small).times(width=2)
    own = groups_of(larger, width=2, depth=1, scheme="neighbours")
    large = decoalesce(small, own)
    assert transformer_sizes(large) == larger == transformer_sizes(drawn(wide, TOKENS))
    expected = logits(llama(tied=tied), small)
    np.testing.assert_allclose(logits(wide, large), expected, rtol=2e-4, atol=2e-4)
    # Were the tied table's last norm copied, logits would be twice as large.
    assert np.abs(np.asarray(expected)).max() > 0.5


@pytest.mark.slow
def test_decoalescing_in_width_keeps_the_function_of_an_encoder_and_its_head():
    """What the head's table and its norm read is shared out; its dense layer reads copies."""

    def bert(scale):
        return Bert(
            vocabulary=11, width=8 * scale, depth=2, heads=2 * scale, mlp=6 * scale, positions=6
        )

    def params(scale):
        return {
            "encoder": drawn(bert(scale), TOKENS),
            "head": drawn(MaskedLMHead(), jnp.zeros((2, 6, 8 * scale)), jnp.zeros((11, 8 * scale))),
        }

    @functools.partial(jax.jit, static_argnums=0)
    def scores(scale, params):
        hidden = bert(scale).apply({"params": params["encoder"]}, TOKENS)
        table = params["encoder"]["tokens"]["embedding"]
        return MaskedLMHead().apply({"params": params["head"]}, hidden, table)

    small = params(1)
    larger = transformer_sizes(small).times(width=2)
    large = decoalesce(small, groups_of(larger, width=2, depth=1))
    assert jax.tree.map(np.shape, large) == jax.tree.map(np.shape, params(2))
    expected = scores(1, small)
    assert np.abs(np.asarray(expected - expected.mean(-1, keepdims=True))).max() > 0.5
    np.testing.assert_allclose(scores(2, large), expected, rtol=5e-4, atol=5e-4)


@pytest.mark.slow
def test_copied_layers_change_the_function():
    small = drawn(llama(depth=2), TOKENS)
    deep = llama(depth=4)
    own = groups_of(drawn(deep, TOKENS), width=1, depth=2)
    change = logits(deep, decoalesce(small, own)) - logits(llama(depth=2), small)
    assert np.abs(np.asarray(change)).max() > 1e-2


@pytest.mark.slow
def test_copies_get_equal_gradients_until_they_are_interpolated():
    def vit(scale):
        return ViT(width=8 * scale, depth=1, heads=2 * scale, mlp_ratio=2, patch_size=4, classes=3)

    small, wide = drawn(vit(1), IMAGES), vit(2)
    before = drawn(wide, IMAGES, seed=1)
    own = groups_of(before, width=2, depth=1)
    again = decoalesce(small, own)

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            scores = wide.apply({"params": params}, IMAGES)
            labels = jnp.array([0, 1, 2])
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        return jax.value_and_grad(loss)(params)

    def of_copies(alpha):
        _, gradient = loss_and_gradient(interpolate(before, again, alpha))
        kernel = np.asarray(gradient["blocks"]["mlp_in"]["kernel"])[0]
        return kernel[:, :16], kernel[:, 16:]

    np.testing.assert_allclose(*of_copies(1.0), rtol=1e-3, atol=1e-6)
    first, second = of_copies(0.5)
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()
    expected = jax.jit(vit(1).apply)({"params": small}, IMAGES)
    kept = jax.jit(wide.apply)({"params": again}, IMAGES)
    np.testing.assert_allclose(kept, expected, rtol=2e-4, atol=2e-4)


def test_other_numbers_of_the_same_groups_change_nothing_large():
    large = drawn(llama(), TOKENS)
    own = groups_of(large, width=2, depth=2)
    other = own._replace(stream=3 - own.stream, mlp=2 - own.mlp, layers=1 - own.layers)
    small, permuted = coalesce(large, own), coalesce(large, other)
    kernel, same = (tree["blocks"]["mlp_in"]["kernel"] for tree in (small, permuted))
    np.testing.assert_allclose(same, kernel[::-1, ::-1, ::-1], rtol=1e-5, atol=1e-6)
    again, equally = decoalesce(small, own), decoalesce(permuted, other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, equally
    )


def test_interpolation_lies_between_its_ends():
    first, second = {"a": np.array([1.0, 2.0])}, {"a": np.array([5.0, -2.0])}
    np.testing.assert_allclose(interpolate(first, second, 0.25)["a"], [2.0, 1.0])
    np.testing.assert_array_equal(interpolate(first, second, 0.0)["a"], first["a"])
    np.testing.assert_array_equal(interpolate(first, second, 1.0)["a"], second["a"])
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=f"alpha={alpha}, expected a share from 0 to 1"):
            interpolate(first, second, alpha)
    with pytest.raises(UserError, match=r"leaf 'a' of the large model again is \[3\]"):
        interpolate(first, {"a": np.ones(3)}, 0.5)


def test_a_cycle_goes_down_and_up_again():
    levels = [Level(5, 40, 1.0), Level(4, 30, 2.0), Level(0, 20, 3.0)]
    assert v_cycle(levels) == (
        Phase(0, "start", 5, 1.0), Phase(1, "coalesce", 4, 2.0), Phase(2, "coalesce", 20, 3.0),
        Phase(1, "decoalesce", 30, 2.0), Phase(0, "decoalesce", 40, 1.0),
    )  # fmt: skip
    growth = [Level(0, 40, 1.0), Level(0, 20, 3.0)]
    assert v_cycle(growth) == (Phase(1, "start", 20, 3.0), Phase(0, "decoalesce", 40, 1.0))
    assert v_cycle([Level(0, 9, 1.0)]) == (Phase(0, "start", 9, 1.0),)


def test_a_phase_starts_from_what_the_one_before_it_left():
    large = drawn(llama(), TOKENS)
    own = groups_of(large)
    small = coalesce(large, own)
    assert start_of_phase(Phase(0, "start", 1, 1.0), None, {}, [own], alpha=0.5) is None
    equal(start_of_phase(Phase(1, "coalesce", 1, 1.0), large, {}, [own], alpha=0.5), small)
    back = Phase(0, "decoalesce", 1, 1.0)
    equal(start_of_phase(back, small, {}, [own], alpha=0.5), decoalesce(small, own))
    kept = start_of_phase(back, small, {0: large}, [own], alpha=0.25)
    equal(kept, interpolate(large, decoalesce(small, own), 0.25))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unit_groups(5, 2), "5 units cannot be grouped by 2"),
        (lambda: unit_groups(4, 2, "thirds"), "unknown scheme 'thirds'"),
        (lambda: v_cycle([]), "levels is empty"),
        (lambda: v_cycle([Level(1, 1, 1.0)]), "levels have steps"),
        (lambda: groups_of(drawn(llama(), TOKENS), width=4), "heads of keys and values: 2 units"),
        (lambda: groups_of(drawn(llama(), TOKENS), depth=3), "layers: 4 units"),
    ],
)
def test_what_cannot_be_grouped_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_groups_of_another_model_name_the_leaf_and_both_shapes():
    large = drawn(llama(), TOKENS)
    own = groups_of(large)
    with pytest.raises(UserError, match=r"gate/kernel of shape \(4, 8, 6\) .* of shape \(4, 2\)"):
        coalesce(large, own._replace(mlp=unit_groups(4)))
    with pytest.raises(UserError, match="expected every number below 4"):
        coalesce(large, own._replace(stream=np.array([0, 1, 3, 3, 0, 1, 1, 0])))


def golden(archive, kind, name):
    """Parameters of the authors' model as a tree of ours.

    Of GPT-2 there is none here: its blocks and its last norm are those of a ViT, and its tables of
    tokens and of positions stand where that has patches and positions.
    """
    flat, shapes = archive[f"{kind}/{name}"], {}
    for key, sizes in archive[f"{kind}/shapes/{len(flat)}"]:
        shapes[key] = tuple(map(int, sizes.split()))
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1]
    parts = zip(shapes.items(), np.split(flat.astype(np.float64), ends), strict=True)
    state = {key: part.reshape(shape) for (key, shape), part in parts}
    return (bert_tree if kind == "bert" else gpt2_tree)(state)


def bert_tree(state):
    below, above = "bert.", "cls.predictions."
    own = {key.removeprefix(below): x for key, x in state.items() if key.startswith(below)}
    head = {key.removeprefix(above): x for key, x in state.items() if key.startswith(above)}
    width = own["embeddings.LayerNorm.weight"].size
    depth = sum(key.endswith("query.bias") for key in own)
    module = Bert(
        vocabulary=5, width=width, depth=depth, heads=width // 2, mlp=4 * width, positions=3
    )
    encoder = fill(module, LAYOUT, tensors_of(own, GOLDEN), GOLDEN)["params"]
    dense, norm = "transform.dense", "transform.LayerNorm"
    return {
        "encoder": jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), encoder),
        "head": {
            "dense": {"kernel": head[f"{dense}.weight"].T, "bias": head[f"{dense}.bias"]},
            "norm": {"scale": head[f"{norm}.weight"], "bias": head[f"{norm}.bias"]},
            "bias": head["bias"],
        },
    }


def gpt2_tree(state):
    own = {key.removeprefix("transformer."): x for key, x in state.items()}
    depth = sum(key.endswith("ln_1.bias") for key in own)
    width = own["ln_f.bias"].size

    def norm(name):
        return {"scale": own[f"{name}.weight"], "bias": own[f"{name}.bias"]}

    def dense(name, *shape, out=()):
        out = out or own[f"{name}.bias"].shape
        kernel = own[f"{name}.weight"].reshape(*(shape or (-1,)), *out)
        return {"kernel": kernel, "bias": own[f"{name}.bias"].reshape(out)}

    blocks = {
        f"block{i}": {
            "norm1": norm(f"h.{i}.ln_1"), "norm2": norm(f"h.{i}.ln_2"),
            "qkv": dense(f"h.{i}.attn.c_attn", width, out=(3, width // 2, 2)),
            "out": dense(f"h.{i}.attn.c_proj", width // 2, 2),
            "mlp_in": dense(f"h.{i}.mlp.c_fc"), "mlp_out": dense(f"h.{i}.mlp.c_proj"),
        }
        for i in range(depth)
    }  # fmt: skip
    tables = {
        "patches": {"kernel": own["wte.weight"][:, None, None]},
        "positions": own["wpe.weight"][None],
    }
    return {**blocks, **tables, "norm": norm("ln_f")}


def close(ours, theirs, tolerance=1e-12):
    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(same, ours, theirs)


def rescaled(tree, tables, norm=1.0):
    """The tree with other sizes of its tables, and of the norm before a tied table's product."""
    own = dict(tree)
    if "encoder" in own:
        named = {name: tree["encoder"][name] for name in ("tokens", "positions", "types")}
        own["encoder"] = {**tree["encoder"], **jax.tree.map(lambda x: x * tables, named)}
        scaled = jax.tree.map(lambda x: x * norm, tree["head"]["norm"])
        own["head"] = {**tree["head"], "norm": scaled}
        return own
    named = {name: tree[name] for name in ("patches", "positions")}
    return {**own, **jax.tree.map(lambda x: x * tables, named)}


def golden_groups(large, case):
    if case == "default":
        return groups_of(large, scheme="halves", layer_scheme="neighbours")

    def units(width):
        return (HEADS[:, None] * width + np.arange(width)).ravel()

    return Groups(units(2), HEADS, HEADS, units(8), LAYERS, head_width=2)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["default", "scheme"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_parameters_are_those_of_the_authors_code(kind, case):
    """All but two factors, which differ on purpose.

    Theirs doubles tables when it coalesces and halves them when it decoalesces, whatever the size
    of a group; and the norm that BERT's tied table is multiplied with is a mean, where ours is a
    sum. In groups of two that product is the same, and in a round trip both factors are gone.
    """
    with np.load(GOLDEN) as archive:
        trees = [golden(archive, kind, name) for name in
                 ("large", f"{case}/coalesced", f"{case}/decoalesced")]  # fmt: skip
    large, small, again = trees
    own = golden_groups(large, case)
    sizes = np.bincount(own.stream)
    exact = 1e-12 if case == "default" else 1e-6  # thirds of our maps are in float32
    close(coalesce(large, own), rescaled(small, 0.5, sizes), exact)
    close(decoalesce(small, own), rescaled(again, 2.0, 1 / sizes[own.stream]), exact)
    close(decoalesce(coalesce(large, own), own), again, exact)


def test_interpolation_is_that_of_the_authors_code():
    with np.load(GOLDEN) as archive:
        large, again, mixed = (
            golden(archive, "bert", name)
            for name in ("large", "default/decoalesced", "interpolated")
        )
    close(interpolate(large, again, 0.25), mixed)


def test_the_authors_matrices_are_maps_of_the_same_groups():
    """F, T, R and G of `MapMatrix`: T is what inputs read by on the way down, F on the way up."""
    with np.load(GOLDEN) as archive:
        large = golden(archive, "bert", "large")
        found = {name: archive[name] for name in archive.files if "/" not in name}
    for name in ("qk_F", "v_F"):
        np.testing.assert_array_equal(found[name], found["embed_F"])
    own = golden_groups(large, "scheme")
    spaces = {"mlp": "inter"} | dict.fromkeys(("stream", "query", "key", "value", "heads"), "embed")

    def mapped(tree, reads, writes, depth):
        maps = {
            space: WidthMap(found[f"{name}_{reads}"], found[f"{name}_{writes}"].T)
            for space, name in spaces.items()
        }
        return map_depth(map_width(tree, maps), found[depth])

    small = coalesce(large, own)
    close(mapped(large, "T", "F", "R"), small, 1e-6)
    close(mapped(small, "F", "T", "G"), decoalesce(small, own), 1e-6)
