"""Writes `lofit.npz` anew with the authors' LLaMA, loss and ranking of heads.

    python tests/sparsity/golden/make_lofit.py CLONE

CLONE is fc2869/lo-fit at ebd344a; it needs torch and transformers.
"""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from transformers import LlamaConfig

sys.path.insert(0, sys.argv[1])
from models.modeling_llama import LlamaForCausalLM

# What the trainers import and do not use here.
absent = ("datasets", "pandas", "wandb", "accelerate", "peft", "utils.evaluate", "transformers")
trl = SimpleNamespace(DPOTrainer=object, SFTTrainer=object, DataCollatorForCompletionOnlyLM=None)
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in absent} | {"trl": trl}):
    from utils.trainers import CustomSFTTrainer

sizes = {"hidden_size": 8, "intermediate_size": 6, "vocab_size": 7, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
config = LlamaConfig(**sizes, **heads, use_cache=False, pad_token_id=None)
config.rope_scaling = None  # newer versions have a dictionary here
rng, model, found = np.random.default_rng(0), LlamaForCausalLM(config), {}
for name, weight in model.named_parameters():
    whole = np.rint(12 * rng.normal(size=weight.shape)).astype(np.int8)  # in sixteenths
    weight.data = torch.tensor(whole / 16, dtype=torch.float32)
    found |= {} if "attn_" in name else {name: whole}
own = [layer.self_attn for layer in model.model.layers]
edits = {part: [head for x in own for head in getattr(x, f"attn_{part}")] for part in "Av"}
found |= {part: torch.stack(x).detach().reshape(2, 4, 2) for part, x in edits.items()}
found |= {"tokens": rng.integers(0, 7, (2, 5)), "mask": np.arange(5) < np.array([[5], [3]])}
tokens, mask = torch.tensor(found["tokens"]), torch.tensor(found["mask"])
for layers in ([1], [0, 1]):  # the last one stays
    model.model.set_applied_modules_to_layers("attention", layers)
    found[f"logits{len(layers)}"] = model(tokens, mask, return_dict=True).logits.detach()
inputs = {"input_ids": tokens, "attention_mask": mask, "labels": torch.where(mask, tokens, -100)}
for part, factor in (("A", 0.05), ("v", 0.0)):
    model.requires_grad_(False)
    chosen = [head.requires_grad_() for head in edits[part]]
    trainer = SimpleNamespace(args=SimpleNamespace(past_index=-1), l1_lambda=factor)
    loss = CustomSFTTrainer.compute_loss(trainer, model, {**inputs, "return_dict": True})
    slopes = torch.stack(torch.autograd.grad(loss, chosen)).reshape(2, 4, 2)
    found |= {f"loss_{part}": loss.detach(), f"slopes_{part}": slopes}
# Their script ranks heads in the body of a condition, and saves them.
parts = ast.parse(Path(sys.argv[1], "lofit_trainer.py").read_text()).body
body = next(x for x in parts if isinstance(x, ast.If) and "linalg.norm" in ast.unparse(x)).body
names = {"trainer": SimpleNamespace(model=model), "np": np, "torch": torch, "os": mock.MagicMock()}
with mock.patch.object(np, "save") as saved:
    args = mock.MagicMock(use_topk_heads=8, lofit_component="A")
    exec(compile(ast.Module(body, []), "lofit_trainer.py", "exec"), names | {"args": args})
np.savez_compressed(Path(__file__).with_name("lofit.npz"), ranking=saved.call_args[0][1], **found)
