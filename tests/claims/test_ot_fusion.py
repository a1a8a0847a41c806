"""The recipe on fusion by transport; `make claims` measures models that learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.common import small_lm
from experiments.merging import masked_text, ot_fusion, ot_models, ot_pairs, ot_text, ot_tuning
from experiments.merging.ot_models import Sources
from experiments.merging.ot_pairs import Pair
from experiments.merging.ot_tuning import Tuned, reached
from rml import models
from rml.errors import UserError
from rml.merging import Aligned, LayerActivations
from rml.training import RunDirectory
from tests.claims.bed_of_patterns import patterns
from tests.system.two_steps import override, read

FILE = "configs/merging/ot_fusion.py"
SMALL = {
    "data.image_shape": (8, 8, 1), "model.width": 8, "model.depth": 1, "model.heads": 1,
    "model.patch_size": 4, "model.classes": 4, "wide.width": 16, "wide.heads": 2,
    "evaluation.batch_size": 16, "alignment.examples": 4, "alignment.regs": (0.1,),
    "line.points": 3, "tuning.rates": (0.01, 0.1, 1.0), "language.text.length": 8,
    "language.text.vocabulary": 32, "language.text.windows": 4, "language.model.width": 8,
    "language.model.heads": 1, "language.model.depth": 1, "language.model.mlp": 8,
}  # fmt: skip


def small():
    return override(read(FILE), SMALL)


def drawn(module, given, seed):
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), given))["params"]
    return jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)


def of_size(config, name, seed):
    own = ot_models.of_size(config, name)
    return drawn(models.build(**own.model), jnp.zeros((1, 8, 8, 1)), seed)


def acts(seed, width=4):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(3, width))] + [rng.normal(size=(2, 3, width)) for _ in range(8)]
    return LayerActivations(*arrays)


@pytest.mark.slow
def test_a_run_without_training_measures_every_claim_and_draws(monkeypatch, tmp_path):
    """Soft alignment by 0.1 gives the anchor, any other noise."""
    config, seen = small(), []

    def align(first, anchor, acts0, acts1, reg, shares, **options):
        named = {"residual": float(np.asarray(shares).mean()) if shares is not None else ""}
        seen.append(named | options)
        rng = np.random.default_rng(len(seen))
        near = np.isclose(reg, 0.1) and not options
        params = jax.tree.map(lambda x: x if near else rng.normal(size=x.shape).astype("f"), anchor)
        transport = jnp.full((2, 4, 4), 0.25)
        return Aligned(params, dict.fromkeys(ot_fusion.ot_figures.MAPS, transport), {})

    narrow = [of_size(config, "narrow", seed) for seed in range(2)]
    own = ot_text.language(config)
    table = jnp.zeros((32, 8))
    texts = [
        {"backbone": drawn(masked_text.bert(own), jnp.zeros((1, 2), int), seed),
         "head": drawn_head(table, seed)} for seed in range(2)
    ]  # fmt: skip
    windows = np.random.default_rng(0).integers(5, 32, (4, 8)).astype(np.int32)
    monkeypatch.setattr(ot_pairs, "_align", align)
    sources = Sources(*(patterns(0, 4, 4) for _ in range(3)))
    monkeypatch.setattr(ot_models, "opened", lambda config: sources)
    monkeypatch.setattr(ot_models, "parents", lambda *_: {
        "narrow": narrow, "wide": [of_size(config, "wide", 2)]
    })  # fmt: skip
    for module in (ot_models, ot_tuning):
        monkeypatch.setattr(module, "paired", lambda config, first, anchor, *_: Pair(
            first, anchor, (acts(0), acts(1))
        ))  # fmt: skip
    monkeypatch.setattr(ot_text, "opened", lambda config: None)
    monkeypatch.setattr(ot_text, "trained", lambda *_: (
        Pair(*texts, (acts(0), acts(1))),
        lambda params, part: -masked_text.held_out(own, params, windows),
    ))  # fmt: skip

    def fine_tuned(config, run, sources, starts):
        assert jax.tree.map(np.shape, starts["wide"]) == jax.tree.map(np.shape, starts["soft"])
        course = {"exchanged": [0.2, 0.4], "soft": [0.5, 0.6], "parent 1": [0.1, 0.9]}
        return {
            name: Tuned(params, 0.1, np.array([30.0, 60.0]), np.array(course.get(name, [0.0, 0.1])))
            for name, params in starts.items()
        }

    monkeypatch.setattr(ot_tuning, "fine_tuned", fine_tuned)
    directory = RunDirectory(tmp_path / "run", config.to_dict())
    found = ot_fusion.run(config, directory)
    directory.close()
    assert np.isfinite(list(found.values())).all()
    assert {claim.metric for claim in ot_fusion.CLAIMS} <= set(found)
    assert {claim.null for claim in ot_fusion.CLAIMS} <= set(found)
    assert {p.name for p in (tmp_path / "run" / "figures").glob("*.png")} == set(ot_fusion.CAPTIONS)
    assert found["tries_soft"] == found["tries_hard"] == found["tries_weights"] == 1
    assert found["marginal_error"] == 0
    assert found["rate_at_edge_parent_0"] == 0
    assert 1 / 4 < found["flops_narrow_over_wide"] < 1 / 2  # of half the width
    wanted = found["accuracy_soft"] - found["accuracy_vanilla"]
    assert found["soft_over_vanilla"] == pytest.approx(wanted)
    assert found["tuned_over_parents"] == pytest.approx(
        found["tuned_soft"] - found["tuned_parent_1"]
    )
    assert (found["steps_soft_over_exchanged"], found["steps_vanilla_over_exchanged"]) == (0.5, 1.0)
    assert found["text_gain_soft"] == pytest.approx(
        found["text_nats_vanilla"] - found["text_nats_soft"]
    )
    assert {own["residual"] for own in seen} >= {0.5, 1.0, 0.0, "identity", "shared"}


def drawn_head(table, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(models.MaskedLMHead().init, jax.random.key(0), table[None, :1], table)
    return jax.tree.map(
        lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), nn.unbox(shapes)["params"]
    )


def test_units_are_exchanged_within_a_kind_and_the_stream_as_one():
    own, other = acts(0, 7), acts(1, 7)
    found = Pair({}, {}, (own, other)).exchanged(3).acts
    assert found[1] is other
    place = [int(np.flatnonzero(own.mid[0, 0] == value)[0]) for value in found[0].mid[0, 0]]
    assert place != list(range(7))
    for name in ("embedded", "branch", "mid", "out", "after"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(own, name)[..., place])
    for name in ("query", "key", "value", "mlp"):
        np.testing.assert_array_equal(np.sort(getattr(found[0], name)), np.sort(getattr(own, name)))


def test_every_kind_of_alignment_has_equally_many_tries_and_the_best_is_taken(monkeypatch):
    tries = ot_pairs.families((0.1, 0.2, 0.3))
    assert {len(own) for own in tries.values()} == {3}
    assert [own["residual"] for own in tries["hard"]] == ["mean", "residual", "branch"]
    monkeypatch.setattr(Pair, "fuse", lambda self, **options: options["reg"])
    found = ot_pairs.search(Pair(0, 0, ()), tries["soft"], lambda reg: -((reg - 0.22) ** 2))
    assert found.params == 0.2
    assert found.options == {"reg": 0.2}
    np.testing.assert_allclose(found.scores, [-(0.12**2), -(0.02**2), -(0.08**2)])


def test_text_is_read_before_any_training(monkeypatch):
    texts = [" ".join(f"word{n}" for n in range(30))] * 3
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: texts)
    monkeypatch.setattr(ot_models, "opened", lambda config: None)
    monkeypatch.delattr(ot_models, "parents")  # nothing calls it
    config = small()
    config.language.text.update({"length": 4096, "vocabulary": 300})
    with pytest.raises(UserError, match=r"train text has .* expected at least a window of 4096"):
        ot_fusion.run(config, None)


def test_steps_to_an_accuracy():
    tuned = Tuned(None, 0.1, np.array([10.0, 20.0, 40.0]), np.array([0.5, 0.7, 0.6]))
    assert reached(tuned, 0.6) == 0.5
    assert reached(tuned, 0.9) == 1.0


@pytest.mark.slow
def test_hidden_tokens_are_the_same_for_all_models_and_cost_their_logarithm():
    own = ot_text.language(small())
    stream = np.random.default_rng(0).integers(5, 32, 200).astype(np.int32)
    text = small_lm.Text(None, dict.fromkeys(small_lm.PARTS, stream))
    task = masked_text.task(own, text)
    flat = jax.tree.map(np.zeros_like, {
        "backbone": drawn(masked_text.bert(own), jnp.zeros((1, 2), int), 0),
        "head": drawn_head(jnp.zeros((32, 8)), 0),
    })  # fmt: skip
    windows = text.windows("test", 8, 4)
    np.testing.assert_allclose(masked_text.held_out(own, flat, windows), np.log(32), rtol=1e-5)
    assert task.batch_spec["tokens"].shape == (own.train.batch_size, 8)


def test_more_entropies_than_policies_are_refused():
    config = small()
    config.alignment.regs = tuple(0.1 * i for i in range(1, 9))
    with pytest.raises(UserError, match=r"alignment\.regs has 8 values, expected 1 to 5"):
        ot_fusion.check(config)
    config = small()
    config.tuning.rates = ()
    with pytest.raises(UserError, match=r"tuning\.rates is empty"):
        ot_fusion.check(config)
