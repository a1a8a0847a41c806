import flax.linen as nn
import jax
import jax.numpy as jnp

from rml.evaluation import program_flops
from rml.models import Llama


def test_the_count_agrees_with_xlas_of_a_program_without_loops():
    module = Llama(vocabulary=64, width=32, depth=2, heads=2, mlp=64, scan=False, tied=True)
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    variables = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))
    counted = program_flops(module.apply, variables, tokens, platform="cpu")
    found = jax.jit(module.apply).lower(variables, tokens).compile().cost_analysis()
    # XLA's count has sums, norms and softmax as well.
    assert 0.8 < counted / found["flops"] < 1.0
