"""Text models of other libraries give what those gave, see golden/make_families.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from rml.errors import UserError
from rml.models.pretrained import load, save
from tests.models.golden.families import config, numbers, weights

FAMILIES = ("roberta", "distilbert", "modernbert", "mistral", "qwen2", "clip_hf", "clip_openai")


def stored(directory, name, tensors=None, **changes):
    """A case as a directory, its config changed."""
    directory.mkdir(exist_ok=True)
    said = {**(config(name) or {}), **changes}
    if said:
        (directory / "config.json").write_text(json.dumps(said))
    save_file(weights(name) if tensors is None else tensors, directory / "model.safetensors")
    vocabulary = {str(number): number for number in range(40)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.save(str(directory / "tokenizer.json"))
    return str(directory)


def result(model, expected):
    """Logits, hidden states or vectors, whichever the case has."""
    tokens, mask = jnp.asarray(expected["tokens"], jnp.int32), jnp.asarray(expected["mask"])
    encoder, variables = model.text_encoder()

    @jax.jit
    def run(variables, tokens, mask):
        if "texts" in expected:
            return encoder.apply(variables, tokens, mask)
        hidden = model.module.apply(model.variables, tokens, mask)
        if "logits" in expected:
            return model.module.apply(model.variables, hidden, method="logits")
        return hidden

    return run(variables, tokens, mask)


def close(ours, theirs):
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_the_librarys(tmp_path, name):
    expected = numbers(name)
    options = {"scan": False} if name == "qwen2" else {}
    model = load(stored(tmp_path / "model", name), **options)
    ours = result(model, expected)
    if "texts" in expected:
        close(ours, expected["texts"])
        return
    seen = expected["mask"]
    close(ours[seen], expected["logits" if "logits" in expected else "hidden"][seen])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roberta", "distilbert", "mistral", "qwen2"])
def test_saving_and_loading_changes_nothing(tmp_path, name):
    first = load(stored(tmp_path / "first", name))
    save(tmp_path / "second", first)
    second = load(str(tmp_path / "second"))
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    said = {"head_width": 8} if name == "qwen2" else {}  # its config leaves it out
    assert second.module == first.module.clone(**said)
    named = json.loads((tmp_path / "second" / "config.json").read_text())["architectures"]
    expected = {"mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    assert named == [expected.get(name, "BertModel")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_a_decoder_without_its_head(tmp_path, name):
    whole = load(stored(tmp_path / "whole", name))
    tensors = {
        key.removeprefix("model."): tensor
        for key, tensor in weights(name).items()
        if key != "lm_head.weight"
    }
    architecture = {"mistral": "MistralModel", "qwen2": "Qwen2Model"}[name]
    bare = load(stored(tmp_path / "bare", name, tensors, architectures=[architecture]))
    assert bare.module == whole.module.clone(tied=True)
    kept = {key: tree for key, tree in whole.variables["params"].items() if key != "head"}
    jax.tree.map(np.testing.assert_array_equal, bare.variables, {"params": kept})


@pytest.mark.slow
def test_older_configs_mean_the_same(tmp_path):
    older = {
        "qwen2": {"rope_theta": 1e6, "rope_parameters": None, "layer_types": None},
        "modernbert": {
            "global_rope_theta": 160_000.0,
            "local_rope_theta": 10_000.0,
            "global_attn_every_n_layers": 3,
            "rope_parameters": None,
            "layer_types": None,
        },
    }
    for name, changes in older.items():
        now, then = (load(stored(tmp_path / name, name, **c)).module for c in ({}, changes))
        assert now == then
    assert now.local == (False, True, True, False)
    for name, unlimited in (
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False}),
    ):
        assert load(stored(tmp_path / name, name, **unlimited)).module.window is None


@pytest.mark.slow
def test_the_config_of_openclip(tmp_path):
    path = stored(tmp_path, "clip_openai")
    assert load(path).module.heads == 2
    assert load(path).module.activation == "quick_gelu"  # of a file alone
    model = {"text_cfg": {"heads": 4}, "vision_cfg": {"width": 128}}
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": model}))
    module = load(path).module
    assert (module.heads, module.activation) == (4, "gelu")
    file.write_text(json.dumps({"model_cfg": {**model, "quick_gelu": True}}))
    assert load(path).module.activation == "quick_gelu"
    file.write_text(json.dumps({"model_cfg": {"text_cfg": {"heads": "4"}}}))
    with pytest.raises(
        UserError, match=r"heads is '4' in .*open_clip_config.json; expected a whole"
    ):
        load(path)


def test_what_is_not_ours(tmp_path):
    def refused(name, message, tensors=None, **changes):
        path = stored(tmp_path / name, name, tensors, **changes)
        with pytest.raises(UserError, match=message):
            load(path)

    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    refused(
        "modernbert",
        "scales rotary positions of full_attention",
        rope_parameters={"full_attention": scaled},
    )
    tensors = weights("distilbert")
    tensors["distilbert.transformer.layer.1.adapter"] = np.ones(3, np.float32)
    refused("distilbert", r"no place for 'distilbert.transformer.layer.1.adapter' \(3,\)", tensors)
    refused("clip_openai", "there is no file .*config.json", {"x": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="a ModernBert is not written; expected Bert or Llama"):
        save(tmp_path / "new", load(stored(tmp_path / "m", "modernbert")))


@pytest.mark.slow
def test_a_window_hides_what_is_older_also_through_a_cache(tmp_path):
    model = load(stored(tmp_path / "model", "mistral"))
    module, variables = model.module, model.variables
    tokens = jnp.asarray(numbers("mistral")["tokens"][:1, :9], jnp.int32)
    read = jax.jit(lambda tokens: module.apply(variables, tokens, return_attention=True))
    further = jax.jit(lambda *x: module.apply(variables, x[0], cache=x[1]))
    whole = read(tokens)
    age = np.arange(9)[:, None] - np.arange(9)
    visible = np.asarray(whole.attention) > 0
    np.testing.assert_array_equal(visible, np.broadcast_to((age >= 0) & (age < 4), visible.shape))
    cache, parts = module.init_cache(1, 9), []
    for part in (slice(0, 3), slice(3, 6), slice(6, 9)):
        states = further(tokens[:, part], cache)
        cache = states.cache
        parts.append(states.last)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole.last, rtol=1e-4, atol=1e-5)
