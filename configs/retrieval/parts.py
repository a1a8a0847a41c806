"""Parts of the retrieval configs."""

from typing import Any

from ml_collections import ConfigDict

from configs import parts


def contriever(**changes: Any) -> ConfigDict:
    """A config of Contriever on docstrings and code; what is not given starts from MiniLM.

    Args:
      **changes: Parts that replace others or are added; None leaves a part out.
    """
    config = (
        dict(
            experiment="retrieval.contriever",
            seed=0,
            data=pydocs(),
            # Pieces of documents, without the tokens at their ends.
            tokens=dict(max_length=96),
            # name: crops, inverse_cloze (of which `keep` is an option), same;
            # corruption: none, delete, replace, mask, shuffle.
            pairs=dict(
                name="crops",
                min_ratio=0.05,
                max_ratio=0.5,
                keep=0.0,
                corruption="delete",
                rate=0.1,
                exchange=False,
            ),
            model=dict(name="minilm", run=""),
            loss=dict(temperature=0.05, negatives="queue"),
            queue=dict(size=2048),
            momentum=dict(schedule="constant", start=0.99),
            optimizer=optimizer(learning_rate=5e-5, warmup_steps=20),
            dtype="float32",
            precision="default",
            mesh=parts.mesh(),
            train=training(steps=120, log_every=5, checkpoint_every=30),
            evaluation=dict(
                max_length=96, batch_tokens=4096, validation_queries=300, test_queries=1000
            ),
        )
        | changes
    )
    return ConfigDict({name: part for name, part in config.items() if part is not None})


def from_random(**changes: Any) -> ConfigDict:
    """The same from random weights, with a vocabulary learned on the documents."""
    given = dict(
        tokens=dict(max_length=96, vocabulary=8192, positions=98),
        model=dict(
            name="bert", pooling="mean", width=128, depth=2, heads=4, mlp=512, dropout=0.0,
            remat=False,
        ),
        optimizer=optimizer(learning_rate=3e-3, warmup_steps=100),
        train=training(steps=2000, log_every=20, checkpoint_every=500),
    )  # fmt: skip
    return contriever(**given | changes)


def masked_lm(**changes: Any) -> ConfigDict:
    """The same encoder as a masked language model, from which others start."""
    given: dict[str, Any] = dict(
        experiment="retrieval.masked_lm",
        # 80 in 100 of the chosen tokens are masked, 10 replaced, 10 stay as they are.
        masking=dict(rate=0.15),
        optimizer=optimizer(learning_rate=1e-3, warmup_steps=100),
        **dict.fromkeys(("pairs", "queue", "momentum", "loss")),
    )
    return from_random(**given | changes)


def starts(data: dict[str, Any], *, labelled: str) -> ConfigDict:
    """A config of what pretraining is worth, from random and from a masked language model.

    Args:
      data: The collection; its training split is pretrained on.
      labelled: The part of it whose pairs are fine-tuned on.
    """
    return from_random(
        experiment="retrieval.starts",
        data=data,
        tokens=dict(
            max_length=64, vocabulary=8192, positions=66, query_length=32, document_length=64
        ),
        masking=dict(rate=0.15),
        negatives=dict(mined=8, hard_share=0.0, exchange=False),
        finetune_rates=(3e-4, 1e-3, 3e-3, 1e-2),
        train=training(steps=500, log_every=20, checkpoint_every=500),
        evaluation=dict(
            max_length=64, batch_tokens=4096, validation_queries=300, test_queries=1000
        ),
        # Stages: the config itself but for these values.
        variants=dict(
            masked_lm="optimizer.learning_rate=1e-3",
            longer="optimizer.learning_rate=1e-3 train.steps=1000 train.checkpoint_every=1000",
            contriever="",
            strangers="pairs.exchange=True",
            finetune=f"data.train={labelled} train.batch_size=32 train.steps=100 "
            "train.checkpoint_every=100 optimizer.warmup_steps=20",
        ),
    )


def tempscale(**changes: Any) -> ConfigDict:
    """A config of TempScale and four rivals in a trained encoder; MiniLM if none is given.

    Args:
      **changes: Parts that replace others.
    """
    given: dict[str, Any] = dict(
        experiment="retrieval.tempscale",
        seed=0,
        model=dict(name="minilm", run=""),
        # What the methods choose from, equally many values each: temperatures, the length that is
        # encoded as before, tokens of a chunk, shrinkage of the covariance.
        candidates=dict(
            tempscale=(0.4, 0.55, 0.7, 0.85, 1.0, 1.2),
            last_layer=(0.4, 0.55, 0.7, 0.85, 1.0, 1.2),
            log_length=(16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
            chunks=(32, 64, 96, 128, 256, 512),
            whitening=(0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
        ),
        # In tokens: answers below are short, from there on long.
        short=128,
        long=256,
        least=20,  # documents of a bin between edges, and queries of long and of short answers
        edges=(16, 32, 48, 64, 96, 128, 192, 256, 384, 513),
        cuts=(16, 32, 64, 128, 256, 512),
        cut_texts=40,
        filter_texts=6,
        timed=dict(texts=4, repeats=9),  # of encoding, with the temperature and without
        dtype="float32",
        precision="default",
        mesh=parts.mesh(),
        evaluation=dict(max_length=512, query_length=64, batch_tokens=4096),
    )
    return ConfigDict(given | changes)


def pydocs(**changes: Any) -> dict[str, Any]:
    """Docstrings and code, with the splits of training and of both collections."""
    usual: dict[str, Any] = dict(train="train", validation="validation", test="test")
    usual |= dict(tasks=("docstring_to_code", "title_to_description"))
    return parts.source("pydocs", **usual | changes)


def collection(name: str, task: str) -> dict[str, Any]:
    """A data set with a task of `rml.data.collections`."""
    splits = dict(train="train", validation="validation", test="test")
    return parts.source(name, **splits, tasks=(task,))


def optimizer(*, learning_rate: float, warmup_steps: int) -> dict[str, Any]:
    """AdamW as Contriever has it, with linear decay."""
    return parts.optimizer(
        learning_rate=learning_rate, warmup_steps=warmup_steps, weight_decay=0.01,
        schedule="warmup_linear", b2=0.98, clip_norm=1.0,
    )  # fmt: skip


def training(
    *, steps: int, log_every: int, checkpoint_every: int, batch_size: int = 64
) -> dict[str, int]:
    """Length and rhythm of a training; nothing is evaluated before its end."""
    return parts.training(
        batch_size=batch_size, steps=steps, log_every=log_every, eval_every=0,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
