"""Contriever on docstrings and code, from MiniLM's weights.

python -m experiments.run --config=configs/retrieval/contriever_pydocs.py --workdir=runs/contriever

Needs `make weights`. Measured (seed 0, 1,000 queries of unseen modules): nDCG@10 from docstring to
code 0.681, before training 0.631 (difference 0.050, 95% interval 0.032 to 0.068), BM25 0.521, with
identifiers split 0.590; Recall@100 0.961, BM25 0.846 and 0.919. From title to description 0.555,
before training 0.536, BM25 0.545 and 0.566. It took 49 minutes on 2 CPU cores beside other work, a
third of them the evaluation. Numbers of steps and tokens were chosen by the time they take, nothing
by a score. MiniLM has seen pairs of docstrings and code in its own training.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="retrieval.contriever",
            seed=0,
            data=dict(
                name="pydocs",
                train="train",
                validation="validation",
                test="test",
                tasks=("docstring_to_code", "title_to_description"),
                data_dir=config_dict.placeholder(str),
            ),
            # Pieces of documents, without the tokens at their ends.
            tokens=dict(max_length=96),
            # name: crops, inverse_cloze (of which `keep` is an option), same;
            # corruption: none, delete, replace, mask, shuffle.
            pairs=dict(
                name="crops", min_ratio=0.05, max_ratio=0.5, keep=0.0, corruption="delete", rate=0.1
            ),
            model=dict(name="minilm", run=""),
            loss=dict(temperature=0.05, negatives="queue"),
            queue=dict(size=2048),
            momentum=dict(schedule="constant", start=0.99),
            optimizer=dict(
                name="adamw",
                learning_rate=5e-5,
                schedule="warmup_linear",
                warmup_steps=20,
                final_scale=0.0,
                weight_decay=0.01,
                momentum=0.9,
                b2=0.98,
                clip_norm=1.0,
                accumulate=1,
                ema_decay=0.0,
            ),
            dtype="float32",
            mesh=dict(replica=1, data=-1, fsdp=1, model=1),
            train=dict(batch_size=64, steps=120, log_every=5, eval_every=0, checkpoint_every=30),
            evaluation=dict(
                max_length=96, batch_tokens=4096, validation_queries=300, test_queries=1000
            ),
        )
    )
