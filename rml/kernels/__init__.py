"""Deep kernel machines: kernels on Gram matrices, full and sparse machines, their limits.

* `objective`, `regression_objective`, `classification_objective`, `predict`, `predict_outputs`:
  the full machine, whose Gram matrices are optimised beside their kernels. Yang et al., A theory of
  representation learning gives a deep generalisation of kernel methods, arXiv:2108.13097.
  `optimal_grams` maximises the objective, `optimal_grams_of_starts` does so from many starts,
  `deep_linear_grams` is its optimum in closed form where kernels are linear. `begin` and `advance`
  make its steps one by one.
* `SparseMachine`, `init_sparse`, `propagate_sparse`, `elbo`: the same with inducing points, in
  batches, the last layer as in Hensman et al. 2013, arXiv:1309.6835. `train_sparse` and
  `train_splits` train it on regression data, `regression_scores` judges it.
* `nngp_grams`, `gp_predict`, `log_marginal_likelihood`: the limit in which nothing is learned.
* `sample_grams`: deep Gaussian processes and Bayesian neural networks of finite width, by
  Hamiltonian Monte Carlo.
* `ConvMachine`, `init_conv`, `project_mixers`, `propagate_conv`, `conv_elbo`: the sparse machine
  over locations of images, by Milsom, Anson and Aitchison, Convolutional Deep Kernel Machines,
  arXiv:2309.09814, as is `normalize_blocks`. `conv_nngp` is its limit in full, Novak et al.,
  arXiv:1810.05148.
* `KERNELS`, `build`, `gram`: kernels as functions of inner products and norms. `relu` is the
  arc-cosine kernel of Cho and Saul 2009; `neural_tangent` makes a layer's kernel the tangent
  kernel of a network, Jacot et al., arXiv:1806.07572; `matern32` and others are Rasmussen and
  Williams'.
"""

from rml.kernels.conv_machine import (
    ConvMachine,
    conv_elbo,
    conv_inducing_grams,
    convolve_blocks,
    draw_patches,
    init_conv,
    patch_blocks,
    pool_blocks,
    project_mixers,
    propagate_conv,
)
from rml.kernels.conv_nngp import conv_nngp
from rml.kernels.deep_gp import Samples, dgp_grams, dgp_log_posterior, dgp_units, sample_grams
from rml.kernels.deep_kernel_machine import (
    Forward,
    classification_objective,
    forward,
    objective,
    predict,
    predict_outputs,
    regression_objective,
    require_kernels,
)
from rml.kernels.deep_linear import deep_linear_grams
from rml.kernels.gram_kernels import (
    KERNELS,
    Blocks,
    build,
    compose,
    gram,
    gram_blocks,
    input_blocks,
    input_gram,
    linear,
    matern12,
    matern32,
    matern52,
    neural_tangent,
    normalize_blocks,
    normalized,
    rational_quadratic,
    relu,
    scaled,
    squared_exponential,
)
from rml.kernels.nngp import (
    Prediction,
    gaussian_log_likelihood,
    gp_predict,
    log_marginal_likelihood,
    nngp_grams,
)
from rml.kernels.optimize import Course, Fit, Minimum, advance, begin, checked, fit, minimize
from rml.kernels.outputs import Outputs, log_predictive
from rml.kernels.sparse import (
    SparseMachine,
    elbo,
    inducing_grams,
    init_sparse,
    propagate_sparse,
    require_inducing,
)
from rml.kernels.training import (
    Scores,
    inducing_rows,
    optimal_grams,
    optimal_grams_of_starts,
    regression_scores,
    train_sparse,
    train_splits,
)

__all__ = [
    "KERNELS",
    "Blocks",
    "ConvMachine",
    "Course",
    "Fit",
    "Forward",
    "Minimum",
    "Outputs",
    "Prediction",
    "Samples",
    "Scores",
    "SparseMachine",
    "advance",
    "begin",
    "build",
    "checked",
    "classification_objective",
    "compose",
    "conv_elbo",
    "conv_inducing_grams",
    "conv_nngp",
    "convolve_blocks",
    "deep_linear_grams",
    "dgp_grams",
    "dgp_log_posterior",
    "dgp_units",
    "draw_patches",
    "elbo",
    "fit",
    "forward",
    "gaussian_log_likelihood",
    "gp_predict",
    "gram",
    "gram_blocks",
    "inducing_grams",
    "inducing_rows",
    "init_conv",
    "init_sparse",
    "input_blocks",
    "input_gram",
    "linear",
    "log_marginal_likelihood",
    "log_predictive",
    "matern12",
    "matern32",
    "matern52",
    "minimize",
    "neural_tangent",
    "nngp_grams",
    "normalize_blocks",
    "normalized",
    "objective",
    "optimal_grams",
    "optimal_grams_of_starts",
    "patch_blocks",
    "pool_blocks",
    "predict",
    "predict_outputs",
    "project_mixers",
    "propagate_conv",
    "propagate_sparse",
    "rational_quadratic",
    "regression_objective",
    "regression_scores",
    "relu",
    "require_inducing",
    "require_kernels",
    "sample_grams",
    "scaled",
    "squared_exponential",
    "train_sparse",
    "train_splits",
]
