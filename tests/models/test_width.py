import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.models import Bert, Classifier, Llama, MaskedLMHead, ViT
from rml.models.depth import map_depth
from rml.models.layouts import transformer_sizes
from rml.models.width import WidthMap, map_width, of_heads

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 11, (2, 5)), jnp.int32)
IMAGES = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32)


def drawn(module, *inputs, seed=0):
    """Parameters away from neutral values: biases and norms too."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 + 0.5 * rng.normal(size=leaf.shape), np.float32), shapes
    )


def a_map(n, m):
    return WidthMap(RNG.normal(size=(n, m)), RNG.normal(size=(n, m)))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


LLAMA = Llama(vocabulary=11, width=8, depth=3, heads=4, kv_heads=2, mlp=6, attention_bias=True)
BERT = Bert(vocabulary=11, width=8, depth=2, heads=2, mlp=6, positions=5)
VIT = ViT(width=8, depth=2, heads=2, mlp_ratio=2, patch_size=4, classes=3)


def test_every_leaf_of_a_decoder_becomes_its_product():
    params = drawn(LLAMA, TOKENS)
    maps = {
        "stream": a_map(8, 6), "mlp": a_map(6, 5), "query": a_map(8, 4), "heads": a_map(8, 4),
        "key": a_map(4, 2), "value": a_map(4, 2),
    }  # fmt: skip
    found = map_width(params, maps)
    a, b = ({name: getattr(own, side) for name, own in maps.items()} for side in WidthMap._fields)
    block, new = params["blocks"], found["blocks"]
    for name, heads in (("query", 2), ("key", 1), ("value", 1)):
        kernel = np.einsum(
            "lio,ij,op->ljp",
            block["attention"][name]["kernel"].reshape(3, 8, -1), a["stream"], b[name],
        )  # fmt: skip
        close(new["attention"][name]["kernel"], kernel.reshape(3, 6, heads, 2))
        bias = block["attention"][name]["bias"].reshape(3, -1) @ b[name]
        close(new["attention"][name]["bias"], bias.reshape(3, heads, 2))
    out = np.einsum(
        "lio,ij,op->ljp",
        block["attention"]["out"]["kernel"].reshape(3, 8, 8), a["heads"], b["stream"],
    )  # fmt: skip
    close(new["attention"]["out"]["kernel"], out.reshape(3, 2, 2, 6))
    close(new["attention"]["out"]["bias"], block["attention"]["out"]["bias"] @ b["stream"])
    for name, reads, writes in (
        ("gate", "stream", "mlp"), ("mlp_in", "stream", "mlp"), ("mlp_out", "mlp", "stream"),
    ):  # fmt: skip
        expected = np.einsum("lio,ij,op->ljp", block[name]["kernel"], a[reads], b[writes])
        close(new[name]["kernel"], expected)
    for name in ("norm1", "norm2"):
        close(new[name]["scale"], block[name]["scale"] @ b["stream"])
    close(found["tokens"]["embedding"], params["tokens"]["embedding"] @ b["stream"])
    close(found["head"]["kernel"], a["stream"].T @ params["head"]["kernel"])
    close(found["norm"]["scale"], params["norm"]["scale"] @ b["stream"])


def test_where_logits_are_products_with_the_table_the_last_norm_is_mapped_as_what_reads():
    params = drawn(LLAMA, TOKENS)
    del params["head"]
    maps = {"stream": a_map(8, 6)}
    found = map_width(params, maps)
    close(found["norm"]["scale"], params["norm"]["scale"] @ maps["stream"].reads)
    close(found["tokens"]["embedding"], params["tokens"]["embedding"] @ maps["stream"].writes)


def test_every_leaf_of_a_vision_transformer_becomes_its_product():
    params = drawn(VIT, IMAGES)
    names = {"stream": 6, "query": 4, "key": 4, "value": 4, "heads": 4, "mlp": 5}
    maps = {name: a_map(16 if name == "mlp" else 8, m) for name, m in names.items()}
    found = map_width(params, maps)
    stream, block, new = maps["stream"], params["blocks"], found["blocks"]
    for i, name in enumerate(("query", "key", "value")):
        kernel = block["qkv"]["kernel"][:, :, i].reshape(2, 8, 8)
        expected = np.einsum("lio,ij,op->ljp", kernel, stream.reads, maps[name].writes)
        close(new["qkv"]["kernel"][:, :, i], expected.reshape(2, 6, 1, 4))
        bias = block["qkv"]["bias"][:, i].reshape(2, 8) @ maps[name].writes
        close(new["qkv"]["bias"][:, i], bias.reshape(2, 1, 4))
    out = np.einsum(
        "lio,ij,op->ljp", block["out"]["kernel"].reshape(2, 8, 8), maps["heads"].reads,
        stream.writes,
    )  # fmt: skip
    close(new["out"]["kernel"], out.reshape(2, 1, 4, 6))
    close(found["patches"]["kernel"], params["patches"]["kernel"] @ stream.writes)
    for name in ("cls", "positions"):
        close(found[name], params[name] @ stream.writes)
    close(found["norm"]["bias"], params["norm"]["bias"] @ stream.writes)
    close(found["head"]["kernel"], stream.reads.T @ params["head"]["kernel"])
    close(found["head"]["bias"], params["head"]["bias"])


@pytest.mark.slow
def test_a_permutation_of_all_units_keeps_the_function_of_an_encoder_with_its_heads():
    def permutation(n):
        one = np.eye(n)[RNG.permutation(n)]
        return WidthMap(one, one)

    encoder, head, classifier = BERT, MaskedLMHead(), Classifier(3)
    hidden, table = jnp.ones((2, 5, 8)), jnp.ones((11, 8))
    params = {
        "backbone": drawn(encoder, TOKENS), "lm": drawn(head, hidden, table),
        "classifier": drawn(classifier, hidden[:, 0]),
    }  # fmt: skip
    heads = of_heads(np.eye(2)[::-1], 4)
    swapped = WidthMap(heads, heads)
    names = ("query", "key", "value", "heads")
    maps = {
        "stream": permutation(8), "mlp": permutation(6), **dict.fromkeys(names, swapped),
    }  # fmt: skip

    @jax.jit
    def apply(params):
        x = encoder.apply({"params": params["backbone"]}, TOKENS)
        table = params["backbone"]["tokens"]["embedding"]
        logits = head.apply({"params": params["lm"]}, x, table)
        return logits, classifier.apply({"params": params["classifier"]}, x[:, 0])

    mapped = map_width(params, maps)
    assert not np.allclose(
        mapped["backbone"]["blocks"]["mlp_in"]["kernel"],
        params["backbone"]["blocks"]["mlp_in"]["kernel"],
    )
    for a, b in zip(apply(params), apply(mapped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_parts_of_the_stream_and_layers_may_have_maps_of_their_own():
    params = drawn(VIT, IMAGES)
    own = WidthMap(RNG.normal(size=(2, 8, 8)), RNG.normal(size=(2, 8, 8)))
    branch, everywhere = a_map(8, 8), a_map(8, 8)
    found = map_width(params, {"stream": everywhere, "stream.in": own, "stream.branch": branch})
    block, new = params["blocks"], found["blocks"]
    close(new["norm1"]["scale"], np.einsum("li,lij->lj", block["norm1"]["scale"], own.writes))
    close(new["norm2"]["scale"], block["norm2"]["scale"] @ everywhere.writes)
    close(new["out"]["bias"], block["out"]["bias"] @ branch.writes)
    kernel = np.einsum("liabc,lij->ljabc", block["qkv"]["kernel"], own.reads)
    close(new["qkv"]["kernel"], kernel)
    loose = {name: value for name, value in params.items() if name != "blocks"}
    loose |= {f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], block) for i in range(2)}
    other = map_width(loose, {"stream": everywhere, "stream.in": own, "stream.branch": branch})
    for i in range(2):
        same = jax.tree.map(lambda leaf, i=i: leaf[i], new)
        jax.tree.map(close, other[f"block{i}"], same)


def test_depth_is_a_sum_of_layers_scanned_or_not():
    params = drawn(LLAMA, TOKENS)
    matrix = RNG.normal(size=(2, 3)).astype(np.float32)
    found = map_depth({"backbone": params}, matrix)["backbone"]
    expected = jax.tree.map(lambda leaf: np.tensordot(matrix, leaf, 1), params["blocks"])
    jax.tree.map(close, found["blocks"], expected)
    np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])
    loose = {name: value for name, value in params.items() if name != "blocks"}
    loose |= {
        f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(3)
    }
    other = map_depth(loose, matrix)
    assert {name for name in other if name.startswith("block")} == {"block0", "block1"}
    jax.tree.map(lambda a, b: close(a, b[1]), other["block1"], expected)
    assert transformer_sizes(other) == transformer_sizes(found)
    assert transformer_sizes(params) == (8, 4, 2, 2, 6, 3)
    assert transformer_sizes({"x": drawn(VIT, IMAGES)}) == (8, 2, 2, 4, 16, 2)


@pytest.mark.parametrize("given", [1, 3])
@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("scanned", [True, False])
def test_maps_of_layers_are_as_many_as_layers(given, xp, scanned):
    params = drawn(VIT, IMAGES)
    if not scanned:
        block = params.pop("blocks")
        params |= {f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], block) for i in range(2)}
    params = jax.tree.map(xp.asarray, params)
    own = xp.asarray(RNG.normal(size=(given, 16, 5)))
    expected = rf"the map of mlp of shape \({given}, 16, 5\): .*, or one for each of 2 layers"
    with pytest.raises(UserError, match=expected):
        map_width(params, {"mlp": WidthMap(own, own)})


def nan(params):
    params["blocks"]["mlp_in"]["kernel"][0, 0, 0] = np.nan
    return params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "maps", "message"),
    [
        (None, {"mlp": a_map(5, 3)}, r"blocks/gate/kernel of shape \(3, 8, 6\) .* \(5, 3\)"),
        (None, {"query": a_map(8, 3)}, "expected whole heads of 2"),
        (None, {"streams": a_map(8, 3)}, "unknown space 'streams'"),
        (None, {"stream": WidthMap(np.ones((2, 8, 8)), np.ones((2, 8, 8)))}, "does not fit"),
        (nan, {}, "blocks/mlp_in/kernel holds NaN or infinite values"),
        (lambda p: p | {"extra": p["norm"]}, {}, r"no map is known for extra/scale of shape \(8,"),
    ],
)
def test_what_cannot_be_mapped_is_named(change, maps, message):
    params = drawn(LLAMA, TOKENS)
    with pytest.raises(UserError, match=message):
        map_width(change(params) if change else params, maps)


def test_queries_keys_and_values_of_one_leaf_need_one_size():
    with pytest.raises(UserError, match="blocks/qkv/bias would get queries"):
        map_width(drawn(VIT, IMAGES), {"query": a_map(8, 4)})


def test_depths_that_cannot_be_mapped_are_named():
    params = drawn(LLAMA, TOKENS)
    with pytest.raises(UserError, match=r"blocks/.* of shape \(3, .* shape \(2, 4\)"):
        map_depth(params, np.ones((2, 4), np.float32))
    with pytest.raises(UserError, match="no blocks"):
        map_depth({"dense": {"kernel": np.ones((2, 2))}}, np.ones((2, 4), np.float32))
    with pytest.raises(UserError, match="expected one ViT, Bert or Llama"):
        transformer_sizes({"dense": {"kernel": np.ones((2, 2))}})
