"""The kernel as plain JAX beside XLA's attention, and as a TPU's compiler takes it.

The second needs the `tpu` extra (libtpu); the compiler runs on any machine.
"""

import json
import re
from types import SimpleNamespace

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from rml.models import Bert, ClipText, Llama, ModernBert
from rml.models.attention import attend_by_kernel, attend_to_all, cudnn_takes
from rml.ops.attention_parts import Visible
from rml.ops.fused_attention import fused_attention


def draw(shape, count, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape).astype(dtype)) for _ in range(count)]


def exact(query, key, value):
    """The equation, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("bthk,bshk->bhts", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhts,bshk->bthk", weights / weights.sum(-1, keepdims=True), value)


# Two heads to a group, one that fills it, one wider than it, four to a group; odd lengths.
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 21, 4, 64), (1, 16, 2, 128), (1, 9, 1, 256), (2, 19, 4, 32)])
def test_values_and_gradients_are_those_of_attention(shape):
    *args, out = draw(shape, 4)

    @jax.jit
    def both(out, *args):
        fused, fused_vjp = jax.vjp(lambda *x: fused_attention(*x, interpret=True), *args)
        _, plain_vjp = jax.vjp(jax.nn.dot_product_attention, *args)
        return fused, fused_vjp(out), plain_vjp(out)

    fused, *gradients = both(out, *args)
    np.testing.assert_allclose(fused, exact(*args), atol=2e-6)
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=4e-6)


def test_large_logits_and_bfloat16():
    args = draw((1, 12, 2, 64), 3, jnp.bfloat16)
    args[0] *= 1e4  # the exponential of such logits is infinite
    fused = fused_attention(*args, interpret=True)
    assert fused.dtype == jnp.bfloat16
    # One rounding of the weights, one of the output.
    np.testing.assert_allclose(np.asarray(fused, np.float32), exact(*args), atol=2e-2, rtol=2**-7)


@pytest.mark.slow
def test_mapped_over_another_axis():
    args = draw((3, 2, 8, 2, 64), 3)
    one = jax.jit(jax.vmap(lambda *x: fused_attention(*x, interpret=True)))(*args)
    wanted = jax.jit(jax.vmap(jax.nn.dot_product_attention))(*args)
    np.testing.assert_allclose(one, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 8, 3, 64), jnp.float32, "3 heads of 64"),
        ((2, 8, 4, 48), jnp.float32, "4 heads of 48"),
        ((2, 1025, 2, 64), jnp.bfloat16, "at most 1024 tokens in bfloat16, got 1025"),
        ((2, 769, 2, 64), jnp.float32, "at most 768 tokens in float32, got 769"),
    ],
)
def test_misuse(shape, dtype, message):
    x = jax.ShapeDtypeStruct(shape, dtype)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(fused_attention, x, x, x)


def test_elsewhere_than_on_a_tpu_it_is_xlas():
    args = draw((2, 5, 4, 64), 3)
    expected = jax.nn.dot_product_attention(*args)
    np.testing.assert_array_equal(attend_to_all(*args, implementation="fused"), expected)
    with pytest.raises(ValueError, match="did you mean 'fused'"):
        attend_to_all(*args, implementation="fuse")


@pytest.fixture
def cudnn(monkeypatch):
    """Programs are lowered as where cuDNN is, of which nothing runs here."""
    gpu = SimpleNamespace(platform_version="cuda 12090")
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: gpu)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


@pytest.mark.parametrize(
    ("kind", "there"), [("NVIDIA H100 80GB HBM3", True), ("AMD Instinct MI300X", False)]
)
def test_a_gpu_that_is_compiled_for_elsewhere_may_have_it(kind, there):
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    half = jnp.zeros((2, 16, 4, 64), jnp.bfloat16)
    assert not cudnn_takes(half)
    with jax.sharding.use_abstract_mesh(mesh):
        assert cudnn_takes(half) == there


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [16, 197])
def test_a_gpu_runs_cudnns_forward_and_back(cudnn, tokens):

    def loss(query, key, value):
        return jnp.sum(attend_to_all(query, key, value, implementation="fused"))

    def lowered(dtype, width=64):
        x = jax.ShapeDtypeStruct((2, tokens, 4, width), dtype)
        step = jax.jit(jax.grad(loss, (0, 1, 2)))
        return step.trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()

    assert "__cudnn$fmhaSoftmaxBackward" in lowered(jnp.bfloat16)
    assert "__cudnn" not in lowered(jnp.float32)
    assert "__cudnn" not in lowered(jnp.bfloat16, width=256)


TEXT_MODELS = {
    "bert": Bert(20, 64, 2, 4, 32, attention="fused", dtype=jnp.bfloat16),
    "llama": Llama(20, 64, 2, 4, 32, kv_heads=2, attention="fused", dtype=jnp.bfloat16),
    "modernbert": ModernBert(
        20, 64, 2, 4, 32, (False, True), attention="fused", dtype=jnp.bfloat16
    ),
    "clip": ClipText(20, 64, 2, 4, 8, attention="fused", dtype=jnp.bfloat16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_models_of_texts_do_too(cudnn, name):
    """Padded texts of an odd length; CLIP's have no padding."""
    module = TEXT_MODELS[name]
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    mask = () if name == "clip" else (jax.ShapeDtypeStruct((2, 7), jnp.bool_),)
    variables = jax.eval_shape(module.init, jax.random.key(0), tokens, *mask)

    def loss(variables, *texts):
        return jnp.sum(module.apply(variables, *texts).astype(jnp.float32))

    step = jax.jit(jax.grad(loss)).trace(variables, tokens, *mask)
    lowered = step.lower(lowering_platforms=("cuda",)).as_text()
    kind = "Softmax" if name == "clip" else "ScaleBiasSoftmax"
    kernels = {f"__cudnn$fmha{kind}", f"__cudnn$fmha{kind}Backward"}
    assert set(re.findall(r"__cudnn[$\w]*", lowered)) == kernels


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [4, 5])
def test_a_token_that_fills_up_changes_nothing(tokens):
    args = draw((2, tokens, 4, 64), 3)

    @jax.jit
    def both(*args):
        found = attend_by_kernel(*args, visible=Visible(), implementation="xla")
        return found, jax.nn.dot_product_attention(*args)

    np.testing.assert_allclose(*both(*args), atol=1e-6)


COMPILE = """
import json
import jax, jax.numpy as jnp
from rml.models import Bert, ClipText, Llama, ModernBert
from rml.models.attention import attend_to_all
from rml.training.mesh import make_mesh, use_mesh
from tpu import hlo, work
from tpu.aot import use_compiler_only
from rml.evaluation.costs import program_flops
from tpu.collectives import collectives
from tpu.compile import topology_devices

use_compiler_only()
mesh = make_mesh(dict(data=2, model=2), topology_devices("v5e:2x2"))
spec = jax.sharding.PartitionSpec("data", None, "model", None)
x = jax.ShapeDtypeStruct(
    (512, 197, 12, 64), jnp.bfloat16, sharding=jax.sharding.NamedSharding(mesh, spec))
result = {}
for name in ("xla", "fused"):
    def loss(query, key, value):
        out = attend_to_all(query, key, value, implementation=name)
        return jnp.square(out.astype(jnp.float32)).sum()
    with use_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1, 2)))
        traced = program_flops(jax.grad(loss, (0, 1, 2)), x, x, x)
        text = step.lower(x, x, x).compile().as_text()
    program = hlo.parse(text)
    result[name] = dict(
        traced=traced,
        derived=sum(n * work.flops(c, i) for c, i, n in program.executed()),
        traffic=sum(n * work.traffic(program, c, i) for c, i, n in program.outer()),
        gathered=[c.shape for c in collectives(program) if c.kind == "all-gather"],
        logits="197,197]" in text,
    )
print(json.dumps(result))
"""


def test_a_tpu_makes_no_logits_and_each_device_its_own_heads(compile_for_tpu):
    found = json.loads(compile_for_tpu(COMPILE).splitlines()[-1])
    plain, fused = found["xla"], found["fused"]
    assert plain["logits"]
    assert not fused["logits"]
    assert fused["gathered"] == []
    # Two products forward and five back; XLA's attention keeps the weights and needs four.
    product = 2 * 512 * 12 * 197**2 * 64
    assert (plain["traced"], fused["traced"]) == (6 * product, 7 * product)
    assert fused["derived"] == fused["traced"] / 4
    assert fused["traffic"] < plain["traffic"] / 3
