"""Dynamic logits fusion: a decoder of 1.1 million parameters steered by experts of 0.16 million.

python -m experiments.run --config=configs/merging/logits_fusion.py --workdir=runs/logits_fusion

Needs the archives of wiki_vital, manuals, sotu, spam and questions (`make assets`). Learning rates
of fine-tuning, fixed weights and the scale of task arithmetic are chosen on validation texts by the
run itself. A first run tried the rates 1e-3 and 3e-3, a second one 3e-3 and 1e-2, and both chose
the larger one everywhere, so that 3e-2 is tried too; nothing else was tuned.

Result: results/logits_fusion, 42 min 38 s a run on 1 x cpu (Intel(R) Xeon(R) Processor, 2 cores).
"""

from ml_collections import ConfigDict, config_dict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="merging.logits_fusion",
            seed=0,
            mesh=parts.mesh(),
            precision="default",
            data=dict(
                general="wiki_vital",
                domains=("manuals", "pydocs", "sotu", "spam"),
                unseen="questions",
                name="",  # of the collection that is trained on
                data_dir=config_dict.placeholder(str),
                train="train",
                validation="validation",
                test="test",
                characters=dict(train=4_000_000, validation=400_000, test=400_000),
            ),
            text=dict(vocabulary=2048, length=128, windows=48),
            large=dict(width=128, depth=4, heads=4, mlp=384),
            small=dict(width=48, depth=2, heads=4, mlp=144),
            model=dict(),  # the one of both that is trained
            optimizer=parts.optimizer(learning_rate=2e-3, warmup_steps=50),
            train=dict(
                steps=700, batch_size=16, log_every=25, eval_every=350, checkpoint_every=350
            ),
            tuning=dict(
                steps=100,  # of each collection
                warmup_steps=10,
                rates=(3e-3, 1e-2, 3e-2),
                rank=8,  # of the large model's adapter
                scale=2.0,
            ),
            # Texts that are continued in turn with and without a choice at every token.
            timing=dict(texts=8, prompt=64, steps=32, repeats=9),
            # Every test window is continued after its first half.
            writing=dict(prompt=64, steps=64),
            # Weights 0, 0.1, ..., 2, and scales of task arithmetic.
            alpha=dict(high=2.0, points=21, scales=(0.25, 0.5, 0.75, 1.0)),
        )
    )
