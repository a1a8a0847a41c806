"""The schedule of the penalty against the paper's algorithm, step by step."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Llama, Probe
from rml.models.block_hooks import Activations
from rml.sparsity import (
    activation_penalty,
    activation_statistics,
    fitted_sparsity,
    linear_stages,
    relufy,
    sine_stages,
)

PEAKS, ENDS, START = (0.005, 0.05, 0.05, 0.2, 0.2), (60, 100, 120, 160, 165), 50


def algorithm(t, peaks, ends, start, ramp):
    """Algorithm 1 of the paper, in its order."""
    if t < start:
        return 0.0
    if t <= ends[0]:
        return peaks[0]
    for i in range(1, len(ends)):
        if ends[i - 1] < t <= ends[i]:
            share = (t - ends[i - 1]) / (ends[i] - ends[i - 1])
            if ramp == "sine":
                share = 0.5 * (math.sin(-math.pi / 2 + math.pi * share) + 1)
            return peaks[i - 1] + share * (peaks[i] - peaks[i - 1])
    return peaks[-1]


@pytest.mark.parametrize(("ramp", "function"), [("sine", sine_stages), ("linear", linear_stages)])
def test_every_step_is_that_of_the_algorithm(ramp, function):
    steps = jnp.arange(180)
    own = jax.jit(
        jax.vmap(lambda t, peaks: function(t, peaks=peaks, ends=ENDS, start=START), (0, None))
    )
    found = own(steps, jnp.asarray(PEAKS))
    wanted = [algorithm(t, PEAKS, ENDS, START, ramp) for t in range(180)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[jnp.array(ENDS)], PEAKS, rtol=1e-5)
    np.testing.assert_allclose(found[80], (0.005 + 0.05) / 2, rtol=1e-5)  # a stage's middle
    np.testing.assert_allclose(np.ptp(found[100:121]), 0, atol=1e-8)  # equal peaks
    assert found[49] == 0
    np.testing.assert_allclose(found[50], 0.005, rtol=1e-6)


def test_the_sine_is_flat_at_both_ends_and_one_peak_is_constant():
    slope = jax.grad(lambda t: sine_stages(t, peaks=(1.0, 3.0), ends=(10, 20)))
    np.testing.assert_allclose([slope(10.01), slope(19.99)], 0, atol=2e-3)
    np.testing.assert_allclose(slope(15.0), math.pi / 10, rtol=1e-5)
    one = [float(sine_stages(t, peaks=(0.3,), ends=(5,), start=2)) for t in (1, 2, 9)]
    np.testing.assert_allclose(one, [0, 0.3, 0.3])


@pytest.mark.slow
def test_the_penalty_is_a_sum_of_layers_means_with_their_gradient():
    rng = np.random.default_rng(0)
    gate, up = rng.normal(size=(2, 2, 3, 4, 5))
    text = np.arange(4) < np.array([[4], [2], [3]])

    def penalty(gate, of):
        def of_layer(gate, up):
            given = (jnp.zeros((3, 4, 1)),) * 3
            return activation_statistics(
                Activations(*given, gate, up, gate * up, jnp.asarray(text))
            )

        return activation_penalty(jax.vmap(of_layer)(gate, jnp.asarray(up)), of=of)

    # Nine tokens of five channels, in each of two layers.
    for of, slope in (("hidden", np.sign(gate * up) * up / 45), ("gate", np.sign(gate) / 45)):
        found, gradient = jax.value_and_grad(penalty)(jnp.asarray(gate), of)
        slope = slope * text[..., None]
        np.testing.assert_allclose(found, (slope * gate).sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-5)


@pytest.mark.slow
def test_zeros_do_not_see_how_size_is_shared_and_the_penalty_does():
    module = relufy(Llama(vocabulary=9, width=8, depth=2, heads=2, mlp=12))
    tokens = jnp.asarray([[1, 2, 3, 4, 5], [6, 7, 8, 0, 1]])
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes
    )

    @jax.jit
    def read(variables):
        states = module.apply(variables, tokens, probe=Probe(activation_statistics))
        return states.last, states.probed

    def scaled(name, c):
        """One matrix times c and the last one over c: a ReLU's function is the same for c > 0."""
        blocks = dict(variables["params"]["blocks"])
        for part, factor in ((name, c), ("mlp_out", 1 / c)):
            blocks[part] = {"kernel": factor * blocks[part]["kernel"]}
        return read({"params": variables["params"] | {"blocks": blocks}})

    last, plain = read(variables)
    for name, gate in (("gate", 4), ("mlp_in", 1)):
        own_last, own = scaled(name, 4.0)  # a power of two rounds nothing
        np.testing.assert_array_equal(own_last, last)
        np.testing.assert_array_equal(own.zeros, plain.zeros)
        np.testing.assert_array_equal(own.hidden_size, 4 * plain.hidden_size)
        np.testing.assert_array_equal(own.gate_size, gate * plain.gate_size)
        assert activation_penalty(own) == 4 * activation_penalty(plain)
    assert (scaled("gate", -4.0)[1].zeros != plain.zeros).any()


def test_the_gate_becomes_a_relu():
    module = Llama(vocabulary=9, width=8, depth=1, heads=2, mlp=8)
    assert relufy(module).activation == "relu"
    assert relufy(module, threshold=0.01).activation == "fatrelu:0.01"
    assert relufy(module, shift=0.1).activation == "shifted_relu:0.1"
    with pytest.raises(ValueError, match=r"threshold=0.01 and shift=0.1, expected one of both"):
        relufy(module, threshold=0.01, shift=0.1)


def test_the_fit_gives_the_papers_sparsity():
    np.testing.assert_allclose(fitted_sparsity(0.2), 88.9, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peaks": (0.1,)}, "1 peaks and 2 ends"),
        ({"peaks": (), "ends": ()}, "0 peaks and 0 ends"),
        ({"ends": (20, 20)}, r"ends=\(20, 20\), expected to ascend"),
        ({"start": 11}, "at least start=11"),
    ],
)
def test_wrong_stages_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        sine_stages(3, **{"peaks": (0.1, 0.2), "ends": (10, 20)} | changes)
