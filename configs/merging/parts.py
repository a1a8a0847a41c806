"""Parts of the configs of merging: the bed of experts, and cycles of multilevel training."""

from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import parts


def characters(*scripts: str) -> dict[str, Any]:
    """Every second character of some Unicode blocks, in up to 16 fonts, split by chance."""
    return dict(
        name="glyphs",
        scripts=scripts,
        train="all[:50%]",
        validation="all[50%:70%]",
        test="all[70%:]",
    )


def eight_tasks() -> dict[str, Any]:
    """Five groups of characters, two sets of digits and clothes."""
    return dict(
        latin=characters("Basic Latin"),
        accents=characters("Latin-1 Supplement"),
        greek=characters("Greek and Coptic"),
        cyrillic=characters("Cyrillic"),
        caucasus=characters("Armenian", "Georgian"),
        mnist5k=dict(name="mnist5k", train="train[:50%]", validation="train[50%:65%]", test="test"),
        digits=dict(name="digits", train="train[:60%]", validation="train[60%:]", test="test"),
        fashion=dict(
            name="fashion_mnist", train="train[:5%]", validation="train[90%:91%]", test="test[:10%]"
        ),
    )


def warps() -> dict[str, Any]:
    """Warps that keep a character the same, and rectangles erased."""
    return parts.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0)


def of_bed(experiment: str, given: dict[str, Any]) -> ConfigDict:
    """A config of any bed, or of a recipe that trains one of its own."""
    both = dict(
        experiment=experiment, seed=0, precision="default", dtype="float32", mesh=parts.mesh()
    )
    return ConfigDict(both | given)


def bed(experiment: str = "merging.bed", **changes: Any) -> ConfigDict:
    """A config of the bed, or of a recipe that trains one of its own.

    Args:
      experiment: Name of the recipe.
      **changes: Parts that replace those of the bed, or are added.
    """
    given = dict(
        # Characters that the base is pretrained on; the tasks' are others.
        data=parts.images("glyphs", (28, 28, 1), train="train", test="test"),
        tasks=eight_tasks(),
        augment=warps(),  # of the base's characters
        augment_experts=warps() | dict(order=("random_affine",)),
        model=dict(
            name="vit_ti", width=64, depth=4, heads=4, patch_size=7, pooling="gap",
            positions="sincos2d",
        ),
        head=dict(classes=32, scale=20.0),
        loss=dict(smoothing=0.1),
        pretraining=dict(steps=1500, batch_size=128, learning_rate=2e-3, warmup_steps=100),
        optimizer=parts.optimizer(learning_rate=1e-3, warmup_steps=20),
        train=parts.training(
            steps=400, batch_size=32, eval_every=0, log_every=20, checkpoint_every=400
        ),
        evaluation=dict(batch_size=500, most=1000),
    )  # fmt: skip
    return of_bed(experiment, given | changes)


def labelled(name: str, text: str = "text", label: str = "label", *, share: int) -> dict[str, Any]:
    """A task of texts: the features that hold text and class, and percents of its training part.

    Its classes are the 16 with most texts in the part where they have fewest.
    """
    held = min(100, 2 * share)
    return dict(
        name=name, text=text, label=label, classes=16, train=f"train[:{share}%]",
        validation=f"validation[:{held}%]", test=f"test[:{held}%]",
    )  # fmt: skip


def eight_text_tasks() -> dict[str, Any]:
    """Sections, supersenses, questions, spam, topics, domains of manuals, packages, and sources."""
    return dict(
        sections=labelled("debian", "synopsis", share=10),
        supersenses=labelled("wordnet", "gloss", share=5),
        questions=labelled("questions", share=100),
        spam=labelled("spam", share=100),
        topics=labelled("wiki_vital", "text", share=50),
        manuals=labelled("manuals", "text", share=25),
        packages=labelled("pydocs", "docstring", "package", share=25),
        sources=labelled("ratings", "text", "domain", share=25),
    )


def text_bed(experiment: str = "merging.bed", **changes: Any) -> ConfigDict:
    """The same of texts."""
    given = dict(
        data=dict(data_dir=config_dict.placeholder(str)),
        tasks=eight_text_tasks(),
        model=dict(name="minilm_l3"),
        tokens=dict(length=16),
        head=dict(classes=16, scale=20.0),
        optimizer=parts.optimizer(learning_rate=1e-4, warmup_steps=10),
        train=parts.training(
            steps=120, batch_size=16, eval_every=0, log_every=20, checkpoint_every=120
        ),
        evaluation=dict(batch_size=500, most=120),
    )  # fmt: skip
    return of_bed(experiment, given | changes)


def of_all(name: str, *, train: str, validation: str, **chosen: Any) -> dict[str, Any]:
    """An image task of `experts_bed`, whose parts follow one another in a data set."""
    return dict(
        name=name,
        train=f"all[:{train}]",
        validation=f"all[{train}:{validation}]",
        test=f"all[{validation}:]",
        **chosen,
    )


def merged_ways(**changes: Any) -> dict[str, Any]:
    """What arms of `merging.experts` change, and options that all share."""
    return dict(
        arms=(),  # all of them
        seeds=10,
        tuning_seeds=2,
        merge=dict(way="arithmetic", scale=0.3, keep=0.2, dropped=0.5, alpha=0.9, moved=False,
                   ahead=False, by_block=True),
        # Steps on examples without labels (AdaMerging, masks) or with them (aTLAS); examples of
        # each task in a batch.
        learn=dict(steps=60, batch_size=8, rate=1e-2, start=0.2, decay=0.1),
        fisher=dict(examples=128, classes=10),
        mask=dict(temperature=0.5, inner_rate=0.1, learning_rate=3e-2),
        twin=dict(compress="svd", fraction=0.1, routes="router"),
        router=dict(most=300, epochs=30, batch_size=256, learning_rate=5e-4),
    ) | changes  # fmt: skip


def experts() -> ConfigDict:
    """Eight image tasks of a thousand test images each, on a base that all seeds share."""
    fashion = dict(train="all[:3%]", validation="all[3%:5%]", test="all[90%:]")
    return bed(
        "merging.experts",
        tasks=dict(
            characters=of_all("glyphs", train="50%", validation="65%", every=(1, 2)),
            clipart=of_all("clipart", train="55%", validation="75%", commonest=(0, 16)),
            digits=of_all("mnist5k", train="50%", validation="65%"),
            emoji=of_all("emoji", train="70%", validation="85%", commonest=(0, 9)),
            icons=of_all("icons", train="50%", validation="70%", commonest=(0, 32)),
            shoes=dict(name="fashion_mnist", labels=(1, 3, 5, 7, 8, 9), **fashion),
            tops=dict(name="fashion_mnist", labels=(0, 2, 4, 6), **fashion),
            units=of_all("units", train="45%", validation="62%", commonest=(0, 64)),
        ),
        head=dict(classes=200, scale=20.0),
        pretraining=dict(
            steps=6000, batch_size=128, learning_rate=2e-3, warmup_steps=200,
            of=dict(
                characters=dict(name="glyphs", train="all[:90%]", test="all[90%:]", every=(0, 2)),
                icons=dict(
                    name="icons", train="all[:90%]", test="all[90%:]", commonest=(32, 432)
                ),
            ),
        ),
        optimizer=parts.optimizer(learning_rate=2e-4, warmup_steps=20),
        train=parts.training(
            steps=300, batch_size=32, eval_every=0, log_every=50, checkpoint_every=300
        ),
        evaluation=dict(batch_size=500, most=1000, validation=200),
        **merged_ways(),
    )  # fmt: skip


def expert_texts() -> ConfigDict:
    """Eight text tasks of a thousand test texts each, on a pretrained encoder."""
    tasks = eight_text_tasks()
    tasks["sections"] = labelled("debian", "synopsis", share=25)
    tasks["supersenses"] = labelled("wordnet", "gloss", share=6)
    tasks["manuals"] = labelled("manuals", "text", share=28)
    for name in ("questions", "spam", "topics"):
        own = tasks[name]
        own.update(train="train[:60%]", validation="train[60%:75%]", test="train[75%:]+test")
    return text_bed(
        "merging.experts",
        tasks=tasks,
        train=parts.training(
            steps=120, batch_size=16, eval_every=0, log_every=20, checkpoint_every=120
        ),
        evaluation=dict(batch_size=500, most=1000, validation=200),
        **merged_ways(seeds=5),
    )  # fmt: skip


def methods() -> dict[str, Any]:
    """Options of the methods that are compared; a scale is chosen between its ends."""
    return dict(
        task_arithmetic=dict(scales=(0.05, 1.0)),
        ties=dict(scales=(0.1, 2.0), keep=0.2),
        dare=dict(scales=(0.05, 1.0), rate=0.5),
        # Where all coefficients start and their rate are chosen; images of each task in a batch.
        adamerging=dict(
            steps=60, batch_size=8, starts=(0.1, 0.3), learning_rates=(1e-3, 3e-3, 1e-2)
        ),
    )


def comparison() -> dict[str, Any]:
    """What the comparison of all methods has beside a bed."""
    return dict(
        bed=dict(run=""),
        # Candidates that each way may judge on validation images; what is learned judges its rates.
        search=dict(tries=10),
        methods=methods(),
        dropped=dict(rate=0.9),
        fisher=dict(examples=256, classes=10),
        mask=dict(
            scale=0.3, temperature=0.5, inner_rate=0.1, steps=60, batch_size=8,
            learning_rates=(3e-3, 1e-2, 3e-2),
        ),
        # Training images of each task at most, whose labels are not read.
        twin=dict(fraction=0.1),
        router=dict(most=1000, epochs=50, batch_size=256, learning_rate=5e-4),
        decay=0.1,  # of coefficients
        addition=dict(steps=60, batch_size=8, rates=(3e-3, 0.01, 0.03)),
    )  # fmt: skip


def cycle() -> dict[str, Any]:
    """A V-cycle of multilevel training, and the learning rates that every arm tries."""
    return dict(
        before=0.05,  # steps before the model is made small, a warm-up, as a share
        small=0.5,  # small steps, as a share of the full model's
        alpha=0.5,
        rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        small_rate=2.0,  # learning rate of a level over that of the one above
        scheme="halves",  # as in the public code; figure 2 has neighbours
        layer_scheme="halves",
    )
