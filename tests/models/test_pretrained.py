"""Pretrained weights give what the libraries that they come from give, see golden/make.py."""

import functools
import json
import math
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from rml import assets
from rml.errors import UserError, install
from rml.models import ConvNet, generate
from rml.models.pretrained import extra, load, load_images, save
from rml.models.pretrained.ends import put_ends
from rml.models.pretrained.onnx import read_onnx
from rml.models.pretrained.tensors import variable_specs
from rml.retrieval import TextEmbedder
from rml.sparsity import relufy

GOLDEN = Path(__file__).parent / "golden"
WHOLE = "a whole number of at least 1"
SCALINGS = json.loads((GOLDEN / "scalings.json").read_text())


def golden(name):
    return dict(np.load(GOLDEN / f"{name}.npz"))


def batched(pretrained, texts, length=None):
    found = [encoding.ids for encoding in pretrained.tokenizer.encode_batch(texts)]
    cut = pretrained.max_length
    # A text that is too long keeps its last special token.
    found = [ids if len(ids) <= cut else [*ids[: cut - 1], ids[-1]] for ids in found]
    tokens = np.zeros((len(found), length or max(map(len, found))), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(found):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.optimised
@pytest.mark.slow
def test_minilm_embeds_texts_as_the_original():
    texts = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))
    expected = golden("minilm")["embeddings"]
    pretrained = load("minilm")
    encoder, variables = pretrained.text_encoder()
    assert (pretrained.pooling, pretrained.max_length, pretrained.normalize) == ("mean", 256, True)
    encode = jax.jit(encoder.apply)
    sizes = [len(encoding.ids) for encoding in pretrained.tokenizer.encode_batch(texts)]
    order = np.argsort(sizes, kind="stable").tolist()
    found = np.empty_like(expected)
    for rows, length in ((order[:82], 27), (order[82:], 256)):
        tokens, mask = batched(pretrained, [texts[i] for i in rows], length)
        found[rows] = encode(variables, tokens, mask)
    assert len(texts) == 100
    cosines = np.sum(found * expected, axis=1)  # both have unit length
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert cosines.min() >= 0.99999
    assert np.abs(found - expected).max() < 1e-5


@pytest.fixture(scope="module")
def smollm2():
    return load("smollm2")


@pytest.mark.optimised
@pytest.mark.slow
def test_smollm2_continues_texts_as_the_original(smollm2):
    expected = golden("smollm2")
    module, variables = smollm2.module, smollm2.variables
    prompts = [str(prompt) for prompt in expected["prompts"]]
    tokens, mask = batched(smollm2, prompts)

    @jax.jit
    def last_logits(variables, tokens, mask):
        hidden = module.apply(variables, tokens, mask)
        hidden = hidden[jnp.arange(len(tokens)), mask.sum(axis=1) - 1]
        return module.apply(variables, hidden, method="logits")

    logits = np.asarray(last_logits(variables, tokens, mask))
    added = np.asarray(generate(module, variables, tokens, mask, steps=24))
    tokens, mask = np.asarray(tokens), np.asarray(mask)
    for i in range(len(prompts)):
        np.testing.assert_array_equal(tokens[i][mask[i]], expected[f"tokens{i}"])
        step = -(-logits.shape[1] // len(expected[f"logits{i}"]))
        assert np.abs(logits[i, ::step] - expected[f"logits{i}"]).max() < 2e-4
        assert logits[i].argmax() == expected[f"argmax{i}"]
        np.testing.assert_array_equal(added[i], expected[f"added{i}"])


@pytest.mark.slow
def test_smollm2_tokenizer_keeps_every_text(smollm2):
    tokenizer = smollm2.tokenizer
    texts = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
    # Every digit is a token, and so is every special one; the numbers are llama.cpp's.
    assert tokenizer.encode("Sum 1234567890 and 42.").ids == [
        *(13764, 216, *range(33, 42), 32, 284, 216, 36, 34, 30)
    ]
    assert tokenizer.encode("<|im_start|>a<|im_end|>").ids == [1, 81, 2]


@pytest.mark.slow
def test_bert_with_a_head_on_it_equals_the_original():
    expected = golden("bert")
    pretrained = load(f"hf:{GOLDEN / 'bert'}")
    assert pretrained.module.activation == "gelu_tanh"
    assert (pretrained.pooling, pretrained.max_length, pretrained.normalize) == ("mean", 16, False)
    mask = expected["mask"]
    module = pretrained.module
    apply = jax.jit(functools.partial(module.apply, return_hidden=True, return_attention=True))
    tokens, segments = (jnp.asarray(expected[name], jnp.int32) for name in ("tokens", "segments"))
    states = apply(pretrained.variables, tokens, jnp.asarray(mask), segments=segments)
    states = jax.tree.map(np.asarray, states)
    np.testing.assert_allclose(states.hidden[:, mask], expected["hidden"][:, mask], atol=1e-5)
    np.testing.assert_allclose(states.attention, expected["attention"], atol=1e-5)


def with_config(directory, source, **changes):
    """A copy of a golden directory whose config says otherwise."""
    shutil.copytree(GOLDEN / source, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("scaling", SCALINGS)
def test_llama_equals_the_original_under_every_rope_scaling(tmp_path, scaling):
    options = {"rope_parameters": None, "rope_theta": 10_000.0, "rope_scaling": SCALINGS[scaling]}
    if scaling == "linear":  # the older name of the key
        options["rope_scaling"] = {"type": "linear", "factor": SCALINGS[scaling]["factor"]}
    pretrained = load(f"hf:{with_config(tmp_path / 'model', 'llama', **options)}", scan=False)
    expected = golden("llama")
    module = pretrained.module

    @jax.jit
    def run(variables, tokens):
        hidden = module.apply(variables, tokens)
        return module.apply(variables, hidden, method="logits")

    logits = np.asarray(run(pretrained.variables, jnp.asarray(expected["tokens"], jnp.int32)))
    np.testing.assert_allclose(logits, expected[scaling], atol=2e-5)
    if scaling != "default":
        assert np.abs(logits - expected["default"]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("source", ["bert", "llama"])
def test_saving_and_loading_changes_nothing(tmp_path, source):
    first = load(f"hf:{GOLDEN / source}")
    changed = first._replace(pooling="cls", max_length=7, normalize=True)
    save(tmp_path / "new" / "model", changed)
    second = load(f"hf:{tmp_path / 'new' / 'model'}")
    equal(first.variables, second.variables)
    assert second.module == first.module
    assert (second.pooling, second.max_length, second.normalize) == ("cls", 7, True)
    assert second.tokenizer.to_str() == first.tokenizer.to_str()
    # Every tensor is the original's, under its name; what is left out has no place in the module.
    ours = load_file(tmp_path / "new" / "model" / "model.safetensors")
    theirs = load_file(GOLDEN / source / "model.safetensors")
    theirs = {name.removeprefix("bert."): tensor for name, tensor in theirs.items()}
    equal(ours, {name: theirs[name] for name in ours})
    assert all(name.startswith("cls.") for name in theirs.keys() - ours.keys())
    with pytest.raises(ValueError, match="exists and is not an empty directory"):
        save(tmp_path / "new" / "model", first)


@pytest.mark.slow
def test_a_changed_rotary_base_is_saved(tmp_path):
    scaling = {"rope_type": "linear", "factor": 4.0}
    first = load(f"hf:{GOLDEN / 'llama'}", theta=5e5, rope_scaling=scaling)
    assert first.config["rope_parameters"]["rope_theta"] == 1e4
    save(tmp_path / "saved", first)
    assert load(f"hf:{tmp_path / 'saved'}").module == first.module
    # As transformers has it, the older key wins where a config has both.
    both = load(f"hf:{with_config(tmp_path / 'both', 'llama', rope_scaling=scaling)}")
    assert dict(both.module.rope_scaling) == scaling


@pytest.mark.slow
def test_transformers_reads_the_saved_tokenizer_as_it_is(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = {"[PAD]": 0, "[UNK]": 1, "A": 2, "a": 3, "b": 4, "<e>": 5}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    letters = {"<e>": 0, "a": 1, "b": 2, "Ġ": 3, "A": 4}
    level = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    level.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name, tokenizer, said, padding in (
        ("bert", pieces, {}, "[PAD]"),
        ("bert", pieces, {"pad_token_id": 5}, "<e>"),
        ("llama", level, {"eos_token_id": [0, 1]}, "<e>"),
        ("llama", pieces, {"eos_token_id": 5}, "[PAD]"),
    ):
        first = load(f"hf:{GOLDEN / name}")
        first = first._replace(tokenizer=tokenizer, config={**first.config, **said})
        where = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        save(where, first._replace(max_length=7))
        theirs = transformers.AutoTokenizer.from_pretrained(where)
        assert (theirs.pad_token, theirs.model_max_length) == (padding, 7)
        found = theirs(["A b", "a"], padding=True)
        for ids, mask, text in zip(
            *(found[k] for k in ("input_ids", "attention_mask")), ["A b", "a"], strict=True
        ):
            assert [i for i, m in zip(ids, mask, strict=True) if m] == tokenizer.encode(text).ids


@pytest.mark.slow
def test_loops_and_bfloat16_parameters_save_as_well(tmp_path):
    first = load(f"hf:{GOLDEN / 'llama'}", scan=False, param_dtype="bfloat16")
    assert first.variables["params"]["block1"]["gate"]["kernel"].dtype == jnp.bfloat16
    save(tmp_path, first)
    second = load(f"hf:{tmp_path}", param_dtype="bfloat16")
    third = load(f"hf:{GOLDEN / 'llama'}", param_dtype="bfloat16")
    equal(second.variables, third.variables)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"threshold": 0.01}, {"shift": 0.25}, {"threshold": 0.0}, {}])
def test_a_relufied_decoder_loads_back_with_its_number(tmp_path, change):
    first = load(f"hf:{GOLDEN / 'llama'}")
    first = first._replace(module=relufy(first.module, **change))
    save(tmp_path / "once", first)
    second = load(f"hf:{tmp_path / 'once'}")
    assert second.module == first.module != load(f"hf:{GOLDEN / 'llama'}").module
    equal(first.variables, second.variables)
    # Saved once more with another nonlinearity, the old number says nothing.
    save(tmp_path / "twice", second._replace(module=second.module.clone(activation="silu")))
    assert load(f"hf:{tmp_path / 'twice'}").module.activation == "silu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "activation"),
    [("llama", "top_silu:3"), ("llama", "relu6"), ("bert", "fatrelu:0.1")],
)
def test_a_nonlinearity_without_a_name_is_not_saved(tmp_path, source, activation):
    first = load(f"hf:{GOLDEN / source}")
    with pytest.raises(UserError, match=f"activation '{activation}' cannot be saved; expected one"):
        save(tmp_path, first._replace(module=first.module.clone(activation=activation)))


def test_weights_in_several_files(tmp_path):
    for file in (GOLDEN / "llama" / "sharded").iterdir():
        shutil.copy(file, tmp_path)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(GOLDEN / "llama" / name, tmp_path)
    whole = load(f"hf:{GOLDEN / 'llama'}")
    equal(load(f"hf:{tmp_path}").variables, whole.variables)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"names tensor 'model.norm.weight' in model-00001"):
        load(f"hf:{tmp_path}")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*model-00002-of-00003"):
        load(f"hf:{tmp_path}")


def test_files_of_weights_may_lie_in_a_folder_but_not_elsewhere(tmp_path):
    directory = with_config(tmp_path / "model", "llama")
    (directory / "parts").mkdir()
    whole = directory / "model.safetensors"
    names = list(load_file(whole))
    whole.rename(directory / "parts" / "a.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "parts/a.safetensors")}))
    equal(load(directory).variables, load(GOLDEN / "llama").variables)
    for other in (str(directory / "parts" / "a.safetensors"), "parts/../parts/a.safetensors"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, other)}))
        with pytest.raises(UserError, match=f"names '{other}' in .*; expected a file below it"):
            load(directory)


def sentence_model(directory, modules=("Transformer", "Pooling"), pooling=None, **options):
    shutil.copytree(GOLDEN / "bert", directory)
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    content = [
        {"type": f"sentence_transformers.models.{m}", "path": paths.get(m, m)} for m in modules
    ]
    (directory / "modules.json").write_text(json.dumps(content))
    (directory / "1_Pooling").mkdir()
    config = {"pooling_mode_cls_token": True} if pooling is None else pooling
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (directory / "sentence_bert_config.json").write_text(json.dumps(options))
    return f"hf:{directory}"


def test_sentence_transformers_settings(tmp_path):
    found = load(sentence_model(tmp_path / "a", max_seq_length=9, do_lower_case=True))
    assert (found.pooling, found.max_length, found.normalize) == ("cls", 9, False)
    assert found.tokenizer.encode("aB").ids == [1, 2]
    found = load(
        sentence_model(
            tmp_path / "b", ("Transformer", "Pooling", "Normalize"), {"pooling_mode": "lasttoken"}
        )
    )
    assert (found.pooling, found.max_length, found.normalize) == ("last", 16, True)
    # RoBERTa's say 514 beside 512 positions.
    assert load(sentence_model(tmp_path / "f", max_seq_length=18)).max_length == 16
    with pytest.raises(ValueError, match=r"module 'Dense' in .*modules.json is not implemented"):
        load(sentence_model(tmp_path / "c", ("Transformer", "Pooling", "Dense")))
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    with pytest.raises(ValueError, match=r"names the poolings \['mean', 'cls'\]; expected one"):
        load(sentence_model(tmp_path / "d", pooling=both))
    with pytest.raises(ValueError, match=r"unknown pooling in .* 'weightedmean'"):
        load(sentence_model(tmp_path / "e", pooling={"pooling_mode": "weightedmean"}))


def test_a_pooling_is_a_name(tmp_path):
    said = {"pooling_mode": None, "pooling_mode_cls_token": True}
    assert load(sentence_model(tmp_path / "model", pooling=said)).pooling == "cls"
    file = tmp_path / "model" / "1_Pooling" / "config.json"
    for mode in (5, [["mean"]], {"mean": True}):
        file.write_text(json.dumps({"pooling_mode": mode}))
        message = re.escape(f"pooling_mode is {mode!r} in {file}; expected a name")
        with pytest.raises(UserError, match=message):
            load(tmp_path / "model")


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]
)
def test_older_names_of_the_settings(tmp_path, kind):
    path = sentence_model(tmp_path / "a", max_seq_length=9, do_lower_case=True)
    file = tmp_path / "a" / "sentence_bert_config.json"
    file.rename(file.with_name(f"sentence_{kind}_config.json"))
    if kind != "xlnet":  # the last one, which counts where there is no other
        file.with_name("sentence_xlnet_config.json").write_text('{"max_seq_length": 7}')
    found = load(path)
    assert (found.max_length, found.tokenizer.encode("aB").ids) == (9, [1, 2])


def test_a_prompt_before_every_text_is_refused(tmp_path):
    path = sentence_model(tmp_path / "a")
    file = tmp_path / "a" / "config_sentence_transformers.json"

    def said(name):
        prompts = {"query": "query: ", "document": ""}
        file.write_text(json.dumps({"prompts": prompts, "default_prompt_name": name}))

    for name in (None, "document"):
        said(name)
        assert load(path).pooling == "cls"
    said("query")
    with pytest.raises(UserError, match=r"default_prompt_name is 'query' in .*transformers.json"):
        load(path)


def test_padding_and_truncation_of_the_tokenizer_are_off(tmp_path):
    shutil.copytree(GOLDEN / "bert", tmp_path / "model")
    tokenizer = load(f"hf:{tmp_path / 'model'}").tokenizer
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    assert load(f"hf:{tmp_path / 'model'}").tokenizer.encode("abcde").ids == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.norm.weight"),
            r"do not fit a Llama of depth 2: there is no 'model.norm.weight' \(8,\)$",
        ),
        (
            lambda t: t.update({"model.layers.7.x": np.ones(2, np.float32)}),
            r"do not fit a Llama of depth 2: no place for 'model.layers.7.x' \(2,\)$",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(9, np.float32)}),
            r"'model.norm.weight' of .*model.safetensors has shape \(9,\), expected \(8,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(8, np.int8)}),
            r"'model.norm.weight' of .*model.safetensors has dtype I8, expected one of F64, F32",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    directory = with_config(tmp_path / "model", "llama")
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(f"hf:{directory}")


def test_tied_embeddings(tmp_path):
    directory = with_config(tmp_path / "model", "llama", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"'lm_head.weight' of .* differs from .*embed_tokens"):
        load(f"hf:{directory}")
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, directory / "model.safetensors")
    assert "head" not in load(f"hf:{directory}").variables["params"]


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        (
            "bert",
            {"architectures": ["GPT2LMHeadModel"]},
            "names the architecture 'GPT2LMHeadModel'; expected one of: BERT, RoBERTa, DistilBERT",
        ),
        ("bert", {"architectures": None, "model_type": "t5"}, "names the architecture 't5'"),
        ("bert", {"hidden_act": "gelu_fast"}, "unknown activation in .* 'gelu_fast'"),
        ("llama", {"hidden_act": "fatrelu"}, "there is no 'hidden_act_param'"),
        (
            "llama",
            {"hidden_act": "shifted_relu", "hidden_act_param": -1},
            "hidden_act_param is -1 in .*; expected a number of at least 0",
        ),
        ("bert", {"position_embedding_type": "relative_key"}, "only 'absolute' is implemented"),
        ("bert", {"is_decoder": True}, "only False is implemented"),
        ("llama", {"is_causal": False}, "is_causal is False in .*; only True is implemented"),
        (
            "bert",
            {"num_hidden_layers": 3},
            r"there is no 'encoder.layer.2.attention.output.LayerNorm.bias' \(8,\), .* 12 more$",
        ),
        ("llama", {"rope_scaling": {"rope_type": "ntk"}, "rope_parameters": None}, "'ntk'"),
        *(
            (source, {key: value}, f"{key} is .* in .*config.json; expected {expected}")
            for source, key, values, expected in (
                ("llama", "num_attention_heads", ("3", None, 0, True, 1.5), WHOLE),
                ("llama", "num_key_value_heads", (0, "2"), WHOLE),
                ("llama", "max_position_embeddings", ({}, None), WHOLE),
                ("llama", "rms_norm_eps", (None, "0", math.inf), "a finite number above 0"),
                ("llama", "rope_parameters", ([1], "x"), "an object"),
                ("llama", "rope_theta", ("x", 0), "a finite number above 0"),
                ("bert", "layer_norm_eps", (None, math.nan), "a finite number above 0"),
                ("bert", "intermediate_size", (None, -1), WHOLE),
                ("bert", "architectures", (3, "BertModel"), "a list of names"),
            )
            for value in values
        ),
        *(
            (source, {f"num_{key}": 3}, rf"{said} 3 in .*config\.json; expected a divisor of {of}")
            for source, key, said, of in (
                ("bert", "attention_heads", "heads are", "width 8"),
                ("llama", "key_value_heads", "heads of keys are", "4"),
            )
        ),
        ("llama", {"hidden_act": None}, "unknown activation in .*config.json 'None'; expected one"),
        ("bert", {"hidden_act": ["gelu"]}, "unknown activation in .*config.json "),
    ],
)
def test_configs_that_do_not_fit(tmp_path, source, config, message):
    directory = with_config(tmp_path / "model", source, **config)
    with pytest.raises(ValueError, match=message):
        load(f"hf:{directory}")


def test_files_that_are_missing_or_damaged(tmp_path):
    directory = tmp_path / "model"
    with pytest.raises(ValueError, match="there is no directory"):
        load(f"hf:{directory}")
    shutil.copytree(GOLDEN / "bert", directory)
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 5, 200, len(whole) - 4):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.safetensors cannot be read as safetensors"):
            load(f"hf:{directory}")
    weights.unlink()
    with pytest.raises(ValueError, match=r"no file .*model.safetensors, nor pytorch_model.bin"):
        load(f"hf:{directory}")
    (directory / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read as weights of PyTorch"):
        load(f"hf:{directory}")
    weights.write_bytes(whole)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer"):
        load(f"hf:{directory}")
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*tokenizer.json"):
        load(f"hf:{directory}")
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        load(f"hf:{directory}")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[]", r"config.json holds \[\]; expected an object"),
        ("config.json", "[" * 100_000, "config.json is no JSON: maximum recursion depth"),
        ("config.json", '{"n": ' + "1" * 5000 + "}", "config.json is no JSON: Exceeds the limit"),
        ("modules.json", "{}", "modules.json holds {}; expected a list"),
        ("modules.json", '[{"idx": 0}]', "lists {'idx': 0}; expected a module with 'type' and"),
        ("modules.json", "[3]", "lists 3; expected a module with 'type' and 'path'"),
        ("tokenizer_config.json", "[]", "holds .*; expected an object"),
        *(
            (
                "tokenizer_config.json",
                f'{{"model_max_length": {value}}}',
                f"model_max_length is {m}",
            )
            for value, m in (
                ('"a"', "'a' in .*; expected a number"),
                (0, "0 in"),
                ("NaN", "nan in"),
            )
        ),
        ("model.safetensors.index.json", "[]", "index.json holds .*; expected an object"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "weight_map is {'a': 3} in"),
    ],
)
def test_files_of_another_form(tmp_path, file, content, message):
    directory = with_config(tmp_path / "model", "bert")
    (directory / file).write_text(content)
    if "index" in file:
        (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=message):
        load(f"hf:{directory}")


@pytest.mark.parametrize(
    ("before", "after", "said", "expected"),
    [
        ([], [], {"add_eos_token": True}, [1, 2, 5]),
        ([4], [], {"add_eos_token": True}, [4, 1, 2, 5]),  # e5-mistral's
        ([4], [], {"add_bos_token": True, "add_eos_token": True}, [4, 1, 2, 5]),
        ([4], [5], {"add_bos_token": False}, [1, 2, 5]),
        ([4], [5], {"add_eos_token": False}, [4, 1, 2]),
        ([3], [5, 3], {"add_bos_token": True, "add_eos_token": False}, [4, 1, 2, 3]),
        ([4], [5], {"bos_token": None, "add_bos_token": False}, [4, 1, 2, 5]),
        ([3], [5], {}, [3, 1, 2, 5]),
    ],
)
def test_tokens_before_and_after_a_text_are_those_of_the_config(
    tmp_path, before, after, said, expected
):
    directory = with_config(tmp_path / "model", "bert")
    tokenizer = load(f"hf:{directory}").tokenizer
    put_ends(tokenizer, before, after)
    assert tokenizer.encode("ab").ids == [*before, 1, 2, *after]
    tokenizer.save(str(directory / "tokenizer.json"))
    tokens = {"bos_token": "d", "eos_token": {"content": "e"}}
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps({**tokens, **said}))
    assert load(f"hf:{directory}").tokenizer.encode("ab").ids == expected


@pytest.mark.parametrize(
    ("stored", "said", "expected"),
    [
        ({"lowercase": True}, {"do_lower_case": False}, "AÉ"),
        ({"lowercase": False}, {"do_lower_case": True}, "ae"),
        ({"lowercase": False}, {"do_lower_case": True, "strip_accents": False}, "aé"),
        ({"lowercase": True, "strip_accents": False}, {"strip_accents": None}, "ae"),
        ({"lowercase": True, "strip_accents": False}, {}, "aé"),
        ({"lowercase": False}, {"tokenizer_class": "BertTokenizerFast"}, "AÉ"),
        *(
            ({"lowercase": False}, {"tokenizer_class": name, "do_lower_case": True}, expected)
            for name, expected in (
                ("BertTokenizerFast", "ae"),
                ("DistilBertTokenizer", "ae"),
                ("PreTrainedTokenizerFast", "AÉ"),
            )
        ),
    ],
)
def test_letters_of_a_bert_are_those_of_the_config(tmp_path, stored, said, expected):
    directory = with_config(tmp_path / "model", "bert")
    file = directory / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(**stored)
    tokenizer.save(str(file))
    (directory / "tokenizer_config.json").write_text(json.dumps(said))
    found = load(f"hf:{directory}").tokenizer
    assert found.normalizer.normalize_str("AÉ") == expected
    assert found.encode("A").ids == ([1] if expected[0] == "a" else [0])
    assert found.normalizer.normalize_str("中") == " 中 "
    (directory / "tokenizer_config.json").write_text('{"tokenize_chinese_chars": false}')
    assert load(f"hf:{directory}").tokenizer.normalizer.normalize_str("中") == "中"


def test_a_setting_of_letters_that_is_no_truth_value(tmp_path):
    directory = with_config(tmp_path / "model", "bert")
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": True,
    }  # fmt: skip
    file.write_text(json.dumps(content))
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    with pytest.raises(UserError, match=r"do_lower_case is 'no' in .*; expected true or false"):
        load(f"hf:{directory}")


def test_a_token_without_a_vector_is_refused(tmp_path):
    directory = with_config(tmp_path / "model", "bert")
    loaded = load(f"hf:{directory}")
    count, tokenizer = loaded.module.vocabulary, loaded.tokenizer
    tokenizer.add_tokens([f"new{i}" for i in range(count - tokenizer.get_vocab_size())])
    tokenizer.save(str(directory / "tokenizer.json"))
    assert load(f"hf:{directory}").tokenizer.get_vocab_size() == count
    tokenizer.add_tokens(["one more"])
    tokenizer.save(str(directory / "tokenizer.json"))
    message = (
        rf"'one more' of .*tokenizer.json has the id {count}; expected ids below {count}, .*"
        "by .*config.json"
    )
    with pytest.raises(UserError, match=message):
        load(f"hf:{directory}")


def test_a_token_that_is_to_be_added_and_is_none(tmp_path):
    directory = with_config(tmp_path / "model", "bert")
    file = directory / "tokenizer_config.json"
    for name in (None, "<s>"):
        file.write_text(json.dumps({"add_bos_token": True, "bos_token": name}))
        with pytest.raises(UserError, match=f"add_bos_token is True in .*bos_token is {name!r}; "):
            load(f"hf:{directory}")


@pytest.mark.parametrize(("limit", "expected"), [("Infinity", 16), ("1e30", 16), ("9", 9)])
def test_a_limit_of_the_tokenizer_may_be_none(tmp_path, limit, expected):
    directory = with_config(tmp_path / "model", "bert")
    (directory / "tokenizer_config.json").write_text(f'{{"model_max_length": {limit}}}')
    assert load(f"hf:{directory}").max_length == expected


def test_a_path_that_is_no_string():
    equal(load(GOLDEN / "bert").variables, load(f"hf:{GOLDEN / 'bert'}").variables)
    with pytest.raises(UserError, match="unknown pretrained model 'none'"):
        load(Path("none"))
    with pytest.raises(UserError, match="there is no directory or file models/none"):
        load(Path("models/none"))


def test_names_and_packages_that_do_not_exist():
    for name in ("minilm2", "hf:", "bert:x"):
        with pytest.raises(ValueError, match=f"unknown pretrained model '{name}'"):
            load(name)
    with pytest.raises(ValueError, match="model is 'gs://b/m', a URL"):
        load("gs://b/m")
    with pytest.raises(ValueError, match="image encoder is 'gs://b/m', a URL"):
        load_images("gs://b/m")
    with pytest.raises(ValueError, match="did you mean 'scan'"):
        load(f"hf:{GOLDEN / 'bert'}", scam=False)
    with pytest.raises(ValueError, match="pip install --no-deps some-weights"):
        extra.package_directory("some_weights_nobody_has", "some-weights")
    with pytest.raises(ValueError, match=re.escape(f"'nothing_like_it': {install('pretrained')}")):
        extra.require("nothing_like_it")


def test_shapes_of_a_module_are_found_whether_its_attributes_are_tuples_or_lists():
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    pair, listed, other = (
        variable_specs(ConvNet(widths=widths, features=5), image)
        for widths in ((2, 3), [2, 3], [4, 3])
    )
    assert pair == listed != other
    assert (2, 3) in {spec.shape[-2:] for spec in pair.values()}


def test_an_onnx_tensor_without_a_name():
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    tensor = b"\x10\x01" + field(9, bytes(4))  # one float32
    with pytest.raises(UserError, match=r"a.onnx cannot be read .*: a tensor has no name"):
        read_onnx(field(7, field(5, tensor)), "a.onnx")
    found, _ = read_onnx(field(7, field(5, tensor + field(8, b"w"))), "a.onnx")
    assert found["w"] == 0


@pytest.mark.slow
def test_the_onnx_file_of_minilm_l3_gives_its_tensors(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path_factory.getbasetemp().parent / "archives"))
    assets.fetch(["minilm_l3"])
    model = load("minilm_l3")
    assert model.config["num_hidden_layers"] == 3
    encoder, variables = model.text_encoder()
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The market fell."]
    embedder = TextEmbedder(encoder, variables, model.tokenizer, max_length=32)
    vectors = embedder(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.4
    assert far < 0.2
    with pytest.raises(UserError, match="no ONNX file"):
        read_onnx(b"", "empty.onnx")
    with pytest.raises(UserError, match="bytes early"):
        read_onnx(assets.read("minilm_l3", "*.onnx")[:1000], "cut.onnx")
