"""Options of each compared method, chosen on validation images, see `experiments.common.tries`.

Taken is the try whose features have the best neighbours among the validation images, after
`tries.steps` steps.
"""

from functools import cache
from typing import Any

from ml_collections import ConfigDict

from experiments.common import tries
from experiments.common.evaluators import ImageEvaluator
from experiments.hydra import methods
from rml.training import RunDirectory, TrainState


def candidates(config: Any) -> dict[str, list[ConfigDict]]:
    """The configs that each method may get, and errors as `experiments.common.tries` has them."""
    return tries.candidates(config, methods.METHODS)


def on_validation(config: Any) -> ConfigDict:
    """The config of a try, judged on validation images."""
    own = ConfigDict(config.to_dict())
    own.data.test = own.data.validation
    if "domains" in own.data:
        own.data.domains.test = own.data.domains.validation
    steps = own.tries.steps
    own.train.update(dict(steps=steps, eval_every=0, checkpoint_every=steps, log_every=steps))
    return own


def choose(config: Any, run: RunDirectory) -> tuple[dict[str, ConfigDict], dict[str, float]]:
    """Tries the options of every method.

    Args:
      config: The run's config.
      run: Its directory.

    Returns:
      The config of each method with the best options, and metrics as `experiments.common.tries`
      has them, by accuracies of neighbours on the validation images.
    """
    tried = candidates(config)
    judged = {method: [on_validation(one) for one in own] for method, own in tried.items()}

    @cache
    def evaluator(method: str) -> ImageEvaluator:
        own = judged[method][0]
        return ImageEvaluator(methods.build_model(own, method), own)

    def knn(method: str, config: Any, state: TrainState) -> float:
        del config  # tries differ in nothing that is read to judge them
        return evaluator(method).knn(evaluator(method).features(state.variables))

    chosen, metrics = tries.choose(config, run, judged, task=methods.task, score=knn, name="knn")
    return {method: tried[method][best] for method, best in chosen.items()}, metrics
