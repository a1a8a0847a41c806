"""Precision: where rounding of factors would show, no product may be rounded on any device."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from rml import attention, evaluation, fewshot, kernels, losses, models
from rml.contrastive import Prototypes
from rml.errors import UserError
from rml.evaluation.logistic_regression import fit_logistic_regression
from rml.fewshot.trajectory import solve_episode
from rml.hydra import confusion_similarity, hydra_loss, learn_gates
from rml.ops import full_precision, masked_sum, symmetric_logsumexp, topk, use_precision
from tests.fewshot.test_conformance import OPTIONS
from tests.precision import rounded

ROWS, WIDTH = 12, 6
X, Y = (
    jnp.asarray(np.random.default_rng(i).standard_normal((ROWS, WIDTH)), jnp.float32)
    for i in range(2)
)
LABELS = jnp.asarray(np.arange(ROWS) % 3, jnp.int32)
TEMPERATURE = {"temperature": 0.1}


KERNEL = kernels.build("squared_exponential")


def gram(x):
    return kernels.gram(KERNEL, kernels.input_gram(x))


def posterior(x):
    blocks = kernels.gram_blocks(KERNEL, kernels.input_blocks(x, x[:4]))
    return kernels.gp_predict(blocks, x[:, :2], noise=0.1)


def machine(x):
    grams = kernels.nngp_grams(kernels.input_gram(x), kernel=KERNEL, depth=2)
    given = dict(kernel=KERNEL, widths=jnp.ones(2), noise=0.1)
    return kernels.objective(grams, kernels.input_gram(x), Y[:, :2], **given)


def sparse(x):
    start = kernels.init_sparse(x[:5], depth=2, outputs=2)
    given = dict(total=ROWS, kernel=KERNEL, widths=jnp.ones(2), likelihood="gaussian")
    return kernels.elbo(start, x, Y[:, :2], **given)


def rfa(x, keys):
    weights = attention.rfa_weights(jax.random.key(0), 3, WIDTH)
    return attention.rfa_features(x, keys[:, None], weights)


def performer(x, y):
    projection = attention.gaussian_projection(jax.random.key(0), 8, WIDTH)
    return attention.performer_attention(x, y, y, projection, causal=True)


FUNCTIONS = {
    "info_nce": (partial(losses.info_nce, **TEMPERATURE), X, Y),
    "info_nce, streamed": (partial(losses.info_nce, **TEMPERATURE, block_size=4), X, Y),
    "info_nce_with_queue": (partial(losses.info_nce_with_queue, **TEMPERATURE), X, Y, Y),
    "nt_xent": (partial(losses.nt_xent, **TEMPERATURE), X, Y),
    "nt_xent, streamed": (partial(losses.nt_xent, **TEMPERATURE, block_size=4), X, Y),
    "sup_con": (partial(losses.sup_con, **TEMPERATURE), X, LABELS),
    "sup_con, streamed": (partial(losses.sup_con, **TEMPERATURE, block_size=4), X, LABELS),
    "clip_loss": (partial(losses.clip_loss, log_scale=jnp.float32(1.0)), X, Y),
    "siglip_loss": (
        partial(losses.siglip_loss, log_scale=jnp.float32(1.0), bias=jnp.float32(0.0)), X, Y,
    ),
    "prototypes": (
        lambda x, y: Prototypes(len(Y)).apply({"params": {"kernel": y.T}}, x), X, Y,
    ),
    "dcl": (partial(losses.dcl, **TEMPERATURE), X, Y),
    "multiple_negatives_ranking": (
        lambda q, d, hard: losses.multiple_negatives_ranking(q, d, hard_negatives=hard),
        X, Y, jnp.stack([Y[::-1]], 1),
    ),
    "triplet_loss": (losses.triplet_loss, X, LABELS),
    "barlow_twins": (losses.barlow_twins, X, Y),
    "vicreg": (losses.vicreg, X, Y),
    "hydra_loss": (
        lambda x, gates: hydra_loss(x, LABELS, (LABELS + 1) % 3, gates, temperature=0.1), X, Y,
    ),
    "hydra_loss, streamed": (
        lambda x, gates: hydra_loss(
            x, LABELS, (LABELS + 1) % 3, gates, temperature=0.1, block_size=4
        ), X, Y,
    ),
    "confusion_similarity": (lambda x: confusion_similarity(x, LABELS), X),
    "learn_gates": (
        lambda x: learn_gates(
            x, LABELS, jnp.asarray([0, 1]), jnp.asarray([1, 2]), steps=2, learning_rate=0.1,
            temperature=0.1, penalty=0.1,
        ), X,
    ),
    "solve_episode": (
        lambda x, y: solve_episode(
            x[:6], LABELS[:6], y, num_classes=3, laplacian_weight=0.1
        ).prototypes, X, Y,
    ),
    "uniformity": (evaluation.uniformity, X),
    "cka": (evaluation.linear_cka, X, Y),
    "logistic regression": (
        lambda x: fit_logistic_regression(x, LABELS, num_classes=3, l2=0.1).weights, X,
    ),
    "topk": (lambda x, y: topk(x, y, k=2, metric="cosine")[0], X, Y),
    "masked_sum": (
        lambda x: masked_sum(x, ROWS, mask=lambda row, col, *_: row != col, block_size=4)[0], X,
    ),
    "symmetric_logsumexp, streamed": (partial(symmetric_logsumexp, block_size=4), X),
    "kernels.gram": (gram, X),
    "kernels.gp_predict": (posterior, X),
    "kernels.objective": (machine, X),
    "kernels.elbo": (sparse, X),
    "attention.hardness": (attention.hardness, X, Y),
    "attention.rfa_kernel": (
        lambda x, y: attention.rfa_kernel(x, y[:, None], y, x[:, None]), X, Y,
    ),
    "attention.features": (rfa, X, Y),
    "attention.performer": (performer, X, Y),
    "attention.fit_ridge": (partial(attention.fit_ridge, regularization=0.1), X, Y),
    "attention.solve_min_norm": (attention.solve_min_norm, X @ X.T, Y),
    "models.Classifier, cosine": (
        lambda x, y: models.Classifier(ROWS, cosine=True).apply(
            {"params": {"kernel": y.T, "scale": jnp.float32(7.0)}}, x
        ), X, Y,
    ),
}  # fmt: skip
# Loops have no reverse mode.
ONCE = ("logistic regression", "attention.solve_min_norm", "solve_episode")


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_product_is_rounded_where_it_would_show(name):
    function, *args = FUNCTIONS[name]
    assert rounded(function, *args, gradient=name not in ONCE) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", fewshot.METHODS)
def test_no_product_of_a_few_shot_method_is_rounded(name):
    if name == "pt_map":
        pytest.importorskip("ott")
    method = partial(fewshot.METHODS[name], num_classes=3, **OPTIONS.get(name, {}))
    assert rounded(method, X[:6], LABELS[:6], Y, gradient=False) == []


@pytest.mark.slow
def test_no_product_of_sampled_gram_matrices_is_rounded():
    pytest.importorskip("blackjax")

    def sampled(x):
        return kernels.sample_grams(
            jax.random.key(0), kernels.input_gram(x), Y[:, :2], kernel=KERNEL, widths=(1, 1),
            noise=0.1, copies=2, chains=1, warmup=2, draws=2, leapfrogs=2,
        ).grams  # fmt: skip

    assert rounded(sampled, X, gradient=False) == []


def test_the_config_says_what_other_products_get():
    def product(x, y):
        return x @ y.T

    with use_precision("highest"):
        assert rounded(product, X, Y) == []
    with use_precision("default"):
        assert len(rounded(product, X, Y)) == 3  # of its gradients by both, and its own
        assert rounded(full_precision(product), X, Y) == []
    with pytest.raises(UserError, match="unknown precision 'high'"):
        use_precision("high")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_program_for_an_accelerator_asks_for_all_bits(platform):
    text = str(jax.export.export(jax.jit(gram), platforms=[platform])(X).mlir_module())
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
