"""K-means of the pixels of 5,000 handwritten digits, and its time against the number of points.

python -m experiments.run --config=configs/fewshot/clustering_mnist5k.py --workdir=runs/clustering

Result: results/transductive_clustering, 12 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="fewshot.clustering",
            seed=0,
            data=parts.source("mnist5k", split="all"),
            points=dict(of="pixels", number=0, dimension=0, components=0, spread=0.0),
            cluster=dict(
                num_clusters=10, start="k-means++", metric="euclidean", temperature=0.0, support=1,
                max_iterations=100, tolerance=1e-4, empty="farthest", block=1024,
            ),
            # Neighbours of a point in the Laplacian term; 0 for none. Approximate needs faiss.
            graph=dict(
                neighbors=0, kind="semidefinite", laplacian_weights=(), approximate=False
            ),
            precision="default",
            mesh=parts.mesh(),
            timing=dict(
                sizes=(640, 1280, 2560, 5000), pairs=(1000, 2000, 4000), iterations=10,
                repetitions=3,
            ),
        )
    )  # fmt: skip
