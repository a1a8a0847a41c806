import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from rml.evaluation import program_flops
from rml.models import Llama, conv2d


@pytest.mark.slow
def test_the_count_agrees_with_xlas_of_a_program_without_loops():
    module = Llama(vocabulary=64, width=32, depth=2, heads=2, mlp=64, scan=False, tied=True)
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    variables = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))
    counted = program_flops(module.apply, variables, tokens, platform="cpu")
    found = jax.jit(module.apply).lower(variables, tokens).compile().cost_analysis()
    # XLA's count has sums, norms and softmax as well.
    assert 0.8 < counted / found["flops"] < 1.0


def test_what_no_result_is_made_of_counts_nothing():
    """A first layer's images have a gradient in the program, and nobody reads it."""
    images, kernel = jnp.zeros((2, 5, 5, 3)), jnp.zeros((2, 2, 3, 4))

    def loss(kernel, images):
        return jnp.sum(conv2d(images, kernel, padding="VALID") ** 2)

    once = 2 * 2 * 16 * 4 * 3 * 4
    assert program_flops(jax.grad(loss), kernel, images) == 2 * once
    assert program_flops(jax.grad(loss, (0, 1)), kernel, images) == 3 * once
    assert program_flops(lambda x: (x @ x, x)[1], jnp.zeros((3, 3))) == 0


def test_rows_are_multiplied_by_the_matrix_of_their_group_alone():
    rows, matrices, sizes = jnp.zeros((6, 4)), jnp.zeros((3, 4, 5)), jnp.array([1, 2, 3])

    def loss(rows, matrices):
        return jnp.sum(jax.lax.ragged_dot(rows, matrices, sizes) ** 2)

    once = 2 * 6 * 4 * 5
    assert program_flops(loss, rows, matrices) == once
    for of in (0, 1):
        assert program_flops(jax.grad(loss, of), rows, matrices) == 2 * once


def test_of_a_linear_solve_the_program_that_runs_counts():
    def solved(matrix, right):
        return jax.lax.custom_linear_solve(
            lambda x: matrix @ x, right, lambda product, b: product(product(b)), symmetric=True
        )

    assert program_flops(solved, jnp.zeros((5, 5)), jnp.zeros(5)) == 2 * 2 * 5**2
