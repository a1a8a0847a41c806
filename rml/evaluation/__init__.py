"""Probes and metrics of frozen things: features, rankings, probabilities, and their significance.

* `knn_accuracy`, `linear_probe`, `fit_logistic_regression`, `accuracy`: classes by features.
* `alignment`, `uniformity`: Wang and Isola, arXiv:2005.10242. `rankme`: Garrido et al.,
  arXiv:2210.02885. `effective_rank`, `participation_ratio`, `singular_values`: spectra;
  `collapsed`: equal features.
* `class_retrieval`: Recall@k, R-precision and MAP@R among examples of classes, Musgrave et al.,
  arXiv:2003.08505. `utilization`: how far test examples lie from others, Venkataramanan et al.,
  arXiv:2106.04990.
* `linear_cka`: Kornblith et al., arXiv:1905.00414. `clustering_scores`, `v_measure`: agreement
  with classes.
* `retrieval_scores`, `ndcg`, `recall` and others: rankings, equal to trec_eval's.
* `paired_bootstrap`, `paired_randomization`, `wilcoxon`, `mcnemar`, `holm`,
  `compare_systems`: significance.
* `attention_maps`: support, entropy and filter rate of attention. `similarity_by_length`: whether
  embeddings of long texts are more alike.
* `extract_features`, `cached_features`: features of a whole data set; of frozen encoders, once.
* `expected_calibration_error`, `probability_scores`: predicted probabilities.
  `auroc_by_group`: the area under the ROC curve, by values that intervals are made of.
* `log_log_slopes`, `examples_needed`: how one quantity grows with another; `program_flops`: counted
  operations.
* `sliding_nats`, `place_needle`, `answer_scores`: language models on long texts. `rouge_n`,
  `same_first_line`: texts that they wrote.
"""

from rml.evaluation.accuracy import accuracy
from rml.evaluation.alignment_uniformity import alignment, uniformity
from rml.evaluation.attention_maps import AttentionMaps, attention_maps, high_frequency
from rml.evaluation.auroc import auroc_by_group
from rml.evaluation.cached import cached_features
from rml.evaluation.calibration import expected_calibration_error, probability_scores
from rml.evaluation.cka import linear_cka
from rml.evaluation.class_retrieval import class_retrieval
from rml.evaluation.clustering import (
    VMeasure,
    clustering_accuracy,
    clustering_scores,
    v_measure,
)
from rml.evaluation.collapse import (
    collapsed,
    effective_rank,
    participation_ratio,
    rankme,
    singular_values,
)
from rml.evaluation.costs import program_flops
from rml.evaluation.features import extract_features
from rml.evaluation.knn import knn_accuracy, knn_predict
from rml.evaluation.length_collapse import ByLength, similarity_by_length
from rml.evaluation.linear_probe import LinearProbe, linear_probe
from rml.evaluation.logistic_regression import LogisticRegression, fit_logistic_regression
from rml.evaluation.long_text import (
    answer_scores,
    by_position,
    found_share,
    place_needle,
    sliding_nats,
    token_nats,
)
from rml.evaluation.overlap import Rouge, rouge_n, same_first_line
from rml.evaluation.projection import embed_2d
from rml.evaluation.rankings import Qrels, make_qrels, rank, ranked_grades, tie_order
from rml.evaluation.retrieval import (
    average_precision,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
    retrieval_scores,
    success,
)
from rml.evaluation.scaling import examples_needed, log_log_slope_interval, log_log_slopes
from rml.evaluation.significance import (
    McNemar,
    PairedDifference,
    SignedRank,
    compare_systems,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_randomization,
    wilcoxon,
)
from rml.evaluation.utilization import utilization

__all__ = [
    "AttentionMaps",
    "ByLength",
    "LinearProbe",
    "LogisticRegression",
    "McNemar",
    "PairedDifference",
    "Qrels",
    "Rouge",
    "SignedRank",
    "VMeasure",
    "accuracy",
    "alignment",
    "answer_scores",
    "attention_maps",
    "auroc_by_group",
    "average_precision",
    "by_position",
    "cached_features",
    "class_retrieval",
    "clustering_accuracy",
    "clustering_scores",
    "collapsed",
    "compare_systems",
    "effective_rank",
    "embed_2d",
    "examples_needed",
    "expected_calibration_error",
    "extract_features",
    "fit_logistic_regression",
    "found_share",
    "high_frequency",
    "holm",
    "knn_accuracy",
    "knn_predict",
    "linear_cka",
    "linear_probe",
    "log_log_slope_interval",
    "log_log_slopes",
    "make_qrels",
    "mcnemar",
    "ndcg",
    "paired_bootstrap",
    "paired_randomization",
    "participation_ratio",
    "place_needle",
    "precision",
    "probability_scores",
    "program_flops",
    "rank",
    "ranked_grades",
    "rankme",
    "recall",
    "reciprocal_rank",
    "retrieval_scores",
    "rouge_n",
    "same_first_line",
    "similarity_by_length",
    "singular_values",
    "sliding_nats",
    "success",
    "tie_order",
    "token_nats",
    "uniformity",
    "utilization",
    "v_measure",
    "wilcoxon",
]
