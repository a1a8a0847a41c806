"""K-means of a million points: a Gaussian mixture in 128 dimensions, 1,000 clusters.

python -m experiments.run --config=configs/fewshot/clustering_million.py --workdir=runs/million

Result: results/transductive_clustering, 81 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.fewshot import clustering_mnist5k


def get_config() -> ConfigDict:
    config = clustering_mnist5k.get_config()
    config.points = dict(
        of="mixture", number=1_000_000, dimension=128, components=1000, spread=0.5
    )  # fmt: skip
    config.cluster.update(dict(num_clusters=1000, start="random", max_iterations=10))
    config.timing.update(dict(sizes=(125_000, 250_000, 500_000), iterations=2, repetitions=1))
    return config
