"""Text models of other libraries give what those gave, see golden/make_families.py."""

import json
import re

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
@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_a_config_that_says_no_window_means_the_usual_one(tmp_path, name):
    path = stored(tmp_path, name)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said.pop("sliding_window") == load(path).module.window
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert load(path).module.window == 4096  # of MistralConfig and Qwen2Config


@pytest.mark.slow
def test_rotary_bases_of_modernbert(tmp_path):
    def bases(**said):
        module = load(stored(tmp_path, "modernbert", **said)).module
        return module.theta, module.local_theta

    own = {"full_attention": {"rope_theta": 5e4}, "sliding_attention": {"rope_theta": 3e4}}
    older = {"rope_parameters": None, "global_rope_theta": 7e4}
    assert bases(rope_parameters=own, global_rope_theta=None, local_rope_theta=None) == (5e4, 3e4)
    assert bases(**older, local_rope_theta=2e4) == (7e4, 2e4)
    assert bases(**older, local_rope_theta=None) == (7e4, 7e4)
    of_both = {"rope_type": "default", "rope_theta": 6e4}
    assert bases(rope_parameters=own, rope_scaling=of_both) == (6e4, 6e4)


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
    for key, value in (
        ("no_causal_mask", True),
        ("pool_type", "last"),
        ("act_kwargs", {"approximate": "tanh"}),
        ("norm_kwargs", {"eps": 1e-3}),
    ):
        changed = {"text_cfg": {"heads": 4, key: value}, "vision_cfg": {"pool_type": "avg"}}
        file.write_text(json.dumps({"model_cfg": changed}))
        with pytest.raises(UserError, match=f"{key} is .* in .*open_clip_config.json; only"):
            load(path)
    usual = {"no_causal_mask": False, "pool_type": "argmax", "act_kwargs": None, "norm_kwargs": {}}
    file.write_text(json.dumps({"model_cfg": {**changed, "text_cfg": {"heads": 4, **usual}}}))
    assert load(path).module == module


def test_heads_that_a_config_of_clip_leaves_out(tmp_path):
    lengths = {32: 192, 64: 384}
    wide = {
        name: np.zeros([lengths.get(length, length) for length in tensor.shape], np.float32)
        for name, tensor in weights("clip_hf").items()
    }
    said = {**config("clip_hf")["text_config"], "num_attention_heads": 6}
    assert load(stored(tmp_path, "clip_hf", wide, text_config=said)).module.heads == 6
    del said["num_attention_heads"]
    path = stored(tmp_path, "clip_hf", wide, text_config=said)
    assert load(path).module.heads == 8  # of transformers' CLIPTextConfig


@pytest.mark.parametrize("padding", ["0", 1.0, True, [1], -2, 50])
def test_padding_of_a_roberta_is_one_of_its_positions(tmp_path, padding):
    path = stored(tmp_path, "roberta", pad_token_id=padding)
    message = rf"pad_token_id is {re.escape(repr(padding))} in .*config\.json; expected a whole"
    with pytest.raises(UserError, match=message):
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
    for scaling in ({"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}):
        refused(
            "modernbert",
            "scales rotary positions of full_attention",
            rope_parameters={},
            rope_scaling=scaling,
        )
    refused(
        "modernbert",
        "rope_theta is 0 in .*; expected a finite number above 0",
        rope_parameters={},
        global_rope_theta=0,
    )
    for name in ("mistral", "qwen2"):
        refused(name, "is_causal is False in .*; only True is implemented", is_causal=False)
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
