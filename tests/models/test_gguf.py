"""GGUF files: the golden LLaMA, and vocabularies that golden/make_tokenizers.py made."""

import json
import math
import shutil
import struct
import unicodedata

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rml.errors import UserError
from rml.models.pretrained import load
from rml.models.pretrained.gguf import Gguf
from rml.models.pretrained.gguf_tokenizer import read_tokenizer
from tests.models.golden.families import CASES, config, weights

GOLDEN = CASES.parent
VOCABULARIES = json.loads((GOLDEN / "tokenizers.json").read_text())


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


PLAIN = {gguf.GGMLQuantizationType.F64: np.float64, gguf.GGMLQuantizationType.I8: np.int8}


def write_gguf(
    file,
    *,
    arch="llama",
    pre="smollm",
    heads=4,
    mlp=12,
    drop=(),
    kind=None,
    tied=False,
    factors=None,
    **fields,
):
    """The golden LLaMA as a GGUF file: query and key rows of a head stand in pairs."""
    tensors = load_file(GOLDEN / "llama" / "model.safetensors")
    config = json.loads((GOLDEN / "llama" / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), arch)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    writer.add_embedding_length(8)
    writer.add_block_count(2)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_key_length(4)
    writer.add_feed_forward_length(mlp)
    writer.add_context_length(16)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["<end>", *letters, "Ġ", "1", "2", "ab", "abc", "<x>", "12", "Ċ", "!"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * 31, 4, *[1] * 3])
    writer.add_token_merges(["a b", "ab c", "1 2"])
    add_fields(writer, fields)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in tensors.items():
        if name in drop or (tied and name == "lm_head.weight"):
            continue
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0)
        if heads:
            halves = tensor.reshape(heads, 2, 2, *tensor.shape[1:])
            tensor = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
        raw = kind if kind and tensor.ndim > 1 else None
        if raw in PLAIN:
            tensor = tensor.astype(PLAIN[raw])
        elif raw:
            tensor = gguf.quants.quantize(tensor, raw)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor, raw_dtype=raw)
    return written(writer, file)


KINDS = {
    bool: gguf.GGUFValueType.BOOL,
    str: gguf.GGUFValueType.STRING,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
}


def add_fields(writer, fields):
    for name, value in fields.items():
        writer.add_key_value(name.replace("__", "."), value, KINDS[type(value)])


def written(writer, file):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.slow
def test_gguf_equals_safetensors(tmp_path):
    whole = load(f"hf:{GOLDEN / 'llama'}")
    found = load(f"gguf:{write_gguf(tmp_path / 'model.gguf')}")
    equal(found.variables, whole.variables)
    assert found.module == whole.module
    assert (found.pooling, found.max_length, found.normalize) == ("last", 16, False)
    tokenizer = found.tokenizer
    assert tokenizer.encode("abc ab12<x><end>").tokens == [
        *("abc", "Ġ", "ab", "1", "2", "<x>", "<end>")
    ]
    tied = load(f"gguf:{write_gguf(tmp_path / 'tied.gguf', tied=True)}")
    assert tied.module.tied
    assert "head" not in tied.variables["params"]
    double = write_gguf(tmp_path / "double.gguf", kind=gguf.GGMLQuantizationType.F64)
    equal(load(f"gguf:{double}").variables, whole.variables)
    half = load(f"gguf:{write_gguf(tmp_path / 'half.gguf', kind=gguf.GGMLQuantizationType.F16)}")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        half.variables,
        whole.variables,
    )


@pytest.mark.slow
def test_gguf_misuse(tmp_path):
    def refused(match, **options):
        file = write_gguf(tmp_path / "model.gguf", **options)
        with pytest.raises(ValueError, match=match):
            load(f"gguf:{file}")

    refused("holds the architecture 'phi3'; expected one of: llama, qwen2", arch="phi3")
    refused("unknown tokenizer.ggml.pre in .* 'falcon'", pre="falcon")
    refused("unknown rope scaling in .* 'longrope'", llama__rope__scaling__type="longrope")
    whole_numbers = gguf.GGMLQuantizationType.I8
    refused(r"has dtype I8, expected one of F64, F32", kind=whole_numbers)
    refused("there is no 'model.norm.weight'", drop=("model.norm.weight",))
    refused("llama.attention.head_count is 0 in .*model.gguf; expected a whole number", heads=0)
    refused(r"head_count is \[4, 2\] in .*; expected a whole number of at least 1", heads=[4, 2])
    refused(r"llama.feed_forward_length is \[12, 8\] in", mlp=[12, 8])
    refused("rope.freq_base is 0.0 in .*; expected a finite", llama__rope__freq_base=0.0)
    file = write_gguf(tmp_path / "model.gguf")
    whole = file.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 100):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.gguf cannot be read as GGUF"):
            load(f"gguf:{file}")
    with pytest.raises(ValueError, match="there is no file"):
        load(f"gguf:{tmp_path / 'none.gguf'}")


@pytest.mark.parametrize(
    ("number", "pooling"), [(None, "last"), (0, "last"), (1, "mean"), (2, "cls"), (3, "last")]
)
def test_the_pooling_of_a_file(tmp_path, number, pooling):
    said = {} if number is None else {"llama__pooling_type": number}
    found = load(write_gguf(tmp_path / "a.gguf", llama__attention__causal=True, **said))
    assert found.pooling == pooling


def test_encoders_and_rerankers_are_refused(tmp_path):
    file = tmp_path / "a.gguf"
    for said, message in (
        ({"llama__attention__causal": False}, "llama.attention.causal is False in .*; only True"),
        (
            {"llama__pooling_type": 4},
            "llama.pooling_type is 4 in .*a.gguf; expected a number below 4",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load(write_gguf(file, **said))


def test_an_array_that_is_longer_than_its_file(tmp_path):
    file = tmp_path / "a.gguf"
    array = struct.pack("<IIQ", 9, 0, 2**16)  # of bytes, none of which follows
    file.write_bytes(b"GGUF" + struct.pack("<IQQQ3s", 3, 0, 1, 3, b"a.b") + array)
    assert file.stat().st_size == 51
    with pytest.raises(UserError, match="cannot be read as GGUF: it ends before the 1 values at b"):
        load(f"gguf:{file}")


@pytest.mark.parametrize(
    "said",
    [
        {"scale_linear": 4.0},  # the older key
        {"scaling__factor": 4.0},
        {"scaling__factor": 4.0, "scaling__type": "linear"},
        {"scaling__factor": 4.0, "scaling__type": "none"},
        {"scaling__factor": 0.0},  # llama.cpp's word for none
    ],
)
def test_linear_scaling_needs_no_type(tmp_path, said):
    fields = {f"llama__rope__{key}": value for key, value in said.items()}
    found = Gguf(write_gguf(tmp_path / "a.gguf", **fields)).config().get("rope_scaling")
    scaled = said.get("scaling__type") != "none" and 0.0 not in said.values()
    assert found == ({"rope_type": "linear", "factor": 4.0} if scaled else None)


YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 8}


def scaled(tmp_path, **said):
    """The scaling of a file that says so."""
    fields = {f"llama__rope__scaling__{key}": value for key, value in said.items()}
    return Gguf(write_gguf(tmp_path / "a.gguf", **fields)).config().get("rope_scaling")


def test_numbers_of_yarn(tmp_path):
    plain = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    assert scaled(tmp_path, **YARN, yarn_beta_fast=16.5, yarn_beta_slow=0.7) == {
        **plain,
        "beta_fast": 16.5,
        "beta_slow": 0.7,
    }
    usual = {"attn_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0}
    for ext_factor in (1.0, -1.0):
        assert scaled(tmp_path, **YARN, **usual, yarn_ext_factor=ext_factor) == plain
    with pytest.raises(UserError, match=r"yarn_beta_fast is 0\.0 in .*; expected a finite number"):
        scaled(tmp_path, **YARN, yarn_beta_fast=0.0)


@pytest.mark.parametrize(
    "name", ["attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"]
)
def test_numbers_of_a_scaling_that_are_not_implemented(tmp_path, name):
    with pytest.raises(UserError, match=f"llama.rope.scaling.{name} is 0.5 in .*a.gguf; only"):
        scaled(tmp_path, **YARN, **{name: 0.5})


def logits(model, tokens):
    hidden = model.module.apply(model.variables, tokens)
    return model.module.apply(model.variables, hidden, method="logits")


@pytest.mark.slow
def test_scaled_rotary_positions_are_those_of_transformers(tmp_path):
    expected = np.load(GOLDEN / "llama.npz")
    scalings = json.loads((GOLDEN / "scalings.json").read_text())
    tokens = jnp.asarray(expected["tokens"], jnp.int32)
    # llama.cpp divides each frequency by a number of its own: those of Llama 3's rule.
    rule, factors = scalings["llama3"], []
    for turned in (1.0, 10_000.0**-0.5):
        wavelength = 2 * math.pi / turned
        turns = rule["original_max_position_embeddings"] / wavelength
        low, high = rule["low_freq_factor"], rule["high_freq_factor"]
        kept = min(max((turns - low) / (high - low), 0), 1)
        factors.append(1 / (kept + (1 - kept) / rule["factor"]))
    model = load(str(write_gguf(tmp_path / "llama3.gguf", factors=factors)), scan=False)
    np.testing.assert_allclose(logits(model, tokens), expected["llama3"], atol=2e-5)
    cache = model.module.init_cache(2, 40)  # longer than in training: nothing turns anew
    states = model.module.apply(model.variables, tokens, cache=cache)
    again = model.module.apply(model.variables, states.last, method="logits")
    np.testing.assert_allclose(again, expected["llama3"], atol=2e-5)
    fields = {
        "llama__rope__scaling__type": "yarn",
        "llama__rope__scaling__factor": 4.0,
        "llama__rope__scaling__original_context_length": 8,
    }
    model = load(str(write_gguf(tmp_path / "yarn.gguf", **fields)), scan=False)
    assert dict(model.module.rope_scaling) == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8,
    }


@pytest.mark.slow
def test_qwen2_equals_safetensors(tmp_path):
    tensors, said = weights("qwen2"), config("qwen2")
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "qwen2")
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(48)
    writer.add_context_length(16)
    writer.add_layer_norm_rms_eps(said["rms_norm_eps"])
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*VOCABULARIES["qwen2"]["tokens"][:39], "!#"])
    writer.add_token_merges(["! #"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, tensor in tensors.items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor)
    found = load(str(written(writer, tmp_path / "model.gguf")))
    directory = tmp_path / "model"
    directory.mkdir()
    said = {**said, "use_sliding_window": False}
    (directory / "config.json").write_text(json.dumps(said))
    save_file(tensors, directory / "model.safetensors")
    shutil.copy(GOLDEN / "llama" / "tokenizer.json", directory)
    whole = load(str(directory))
    equal(found.variables, whole.variables)
    assert found.module == whole.module.clone(head_width=8)


BYTES = {  # of a block
    "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q2_K": 84, "Q3_K": 110,
    "Q4_K": 144, "Q5_K": 176, "Q6_K": 210,
}  # fmt: skip


def blocks(name, shape, seed):
    """Random blocks, the half-precision scales in them small numbers."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (*shape, BYTES[name]), dtype=np.uint8)
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(
        name, (0, 2) if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)
    )
    for at in places:
        scale = rng.normal(size=(*shape, 1)).astype(np.float16)
        raw[..., at : at + 2] = scale.view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def q4_k(block):
    """The values of a block, as ggml defines them."""
    d, least = (float(block[at : at + 2].view(np.float16)[0]) for at in (0, 2))
    packed, codes, found = block[4:16].astype(int), block[16:].astype(int), []
    for group in range(8):
        if group < 4:
            scale, offset = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4
            offset = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4
        part = codes[group // 2 * 32 :][:32] >> (4 * (group % 2)) & 15
        found.append(d * scale * part - least * offset)
    return np.concatenate(found)


def q6_k(block):
    """The values of a block, as ggml defines them."""
    low, high = block[:128].astype(int), block[128:192].astype(int)
    scales, d = block[192:208].view(np.int8), float(block[208:].view(np.float16)[0])
    found = np.zeros(256)
    for at in range(256):
        half, quarter, place = at // 128, at % 128 // 32, at % 32
        code = low[64 * half + 32 * (quarter % 2) + place] >> (4 * (quarter // 2)) & 15
        code |= (high[32 * half + place] >> (2 * quarter) & 3) << 4
        found[at] = d * scales[at // 16] * (code - 32)
    return found


def test_quantised_tensors(tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    stored = {}
    for number, name in enumerate(BYTES):
        kind = getattr(gguf.GGMLQuantizationType, name)
        wide = 1 if name.endswith("_K") else 8  # 256 values a row
        stored[name] = blocks(name, (8, wide), number)
        tensor = f"blk.{number}.attn_q.weight"
        writer.add_tensor(tensor, stored[name], raw_dtype=kind)
    written(writer, file)
    tensors = Gguf(file).tensors({"num_attention_heads": 2, "num_key_value_heads": 2})
    for number, (name, raw) in enumerate(stored.items()):
        tensor = tensors[f"model.layers.{number}.self_attn.q_proj.weight"]
        assert (tensor.shape, tensor.dtype) == ((8, 256), "F32")
        value = tensor.read()[[0, 2, 1, 3, 4, 6, 5, 7]]  # rows of a head in pairs, as stored
        kind = getattr(gguf.GGMLQuantizationType, name)
        np.testing.assert_array_equal(value, gguf.quants.dequantize(raw, kind))
        if (ours := {"Q4_K": q4_k, "Q6_K": q6_k}.get(name)) is not None:
            np.testing.assert_allclose(value, [ours(row) for row in raw], rtol=1e-5, atol=1e-5)


def fields(name, **more):
    vocabulary = VOCABULARIES[name]
    kinds = {"spm_bpe": "llama", "spm_unigram": "t5"}
    found = {"model": kinds.get(name, "gpt2"), "tokens": vocabulary["tokens"], "pre": name}
    if "merges" in vocabulary:
        found["merges"] = vocabulary["merges"]
    else:
        found |= {"scores": vocabulary["scores"], "token_type": vocabulary["types"]}
        found["unknown_token_id"] = vocabulary["unknown"]
    if "charsmap" in vocabulary:
        found["precompiled_charsmap"] = list(bytes.fromhex(vocabulary["charsmap"]))
    return {f"tokenizer.ggml.{key}": value for key, value in {**found, **more}.items()}


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "spm_bpe", "spm_unigram"])
def test_tokens_are_those_of_the_original_programs(tmp_path, name):
    expected, texts = VOCABULARIES[name], VOCABULARIES["texts"]
    plain = read_tokenizer(
        fields(name, add_bos_token=False, add_eos_token=False), tmp_path / "x.gguf"
    )
    found = [plain.encode(text).ids for text in texts]
    assert found == expected["ids"]
    for text, ids, back in zip(texts, found, expected.get("decoded", texts), strict=True):
        if name == "qwen2":  # composes characters first
            back = unicodedata.normalize("NFC", text)
        if expected.get("unknown") not in ids:
            assert plain.decode(ids, skip_special_tokens=False) == back
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    usual = read_tokenizer(fields(name, **ends), tmp_path / "x.gguf")
    before, after = {"qwen2": ([], []), "spm_unigram": ([], [2])}.get(name, ([1], []))
    assert usual.encode(texts[0]).ids == [*before, *found[0], *after]


def test_vocabularies_that_are_not_ours(tmp_path):
    file = tmp_path / "x.gguf"
    for changes, message in (
        ({"model": "rwkv"}, "unknown tokenizer.ggml.model in .*x.gguf 'rwkv'"),
        ({"pre": "falcon"}, "unknown tokenizer.ggml.pre in .*x.gguf 'falcon'"),
        ({"merges": None}, "there is no 'tokenizer.ggml.merges' in"),
        ({"add_bos_token": True}, "there is no 'tokenizer.ggml.bos_token_id' in"),
        (
            {"add_bos_token": True, "bos_token_id": 10**6},
            r"tokenizer.ggml.bos_token_id is 1000000 in .*x.gguf; expected one of \d+ tokens",
        ),
        ({"merges": ["!#"]}, "tokenizer.ggml.merges has '!#' in .*x.gguf; expected two tokens"),
        ({"merges": ["! nothing"]}, "merges has '! nothing' in .*; expected two tokens"),
    ):
        with pytest.raises(UserError, match=message):
            read_tokenizer(fields("qwen2", **changes), file)


@pytest.mark.parametrize("name", ["spm_bpe", "spm_unigram"])
@pytest.mark.parametrize("key", ["scores", "token_type"])
@pytest.mark.parametrize("more", [-1, 2])
def test_each_token_has_one_score_and_one_type(tmp_path, name, key, more):
    whole = fields(name)
    said = whole[f"tokenizer.ggml.{key}"]
    said = said[:more] if more < 0 else [*said, *said[:more]]
    count = len(whole["tokenizer.ggml.tokens"])
    message = rf"ggml\.{key} has {count + more} entries in .*x\.gguf; expected {count}, one a token"
    with pytest.raises(UserError, match=message):
        read_tokenizer({**whole, f"tokenizer.ggml.{key}": said}, tmp_path / "x.gguf")
