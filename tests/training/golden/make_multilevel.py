"""Writes `multilevel.npz` anew with the authors' mappers of BERT and GPT-2.

    python tests/training/golden/make_multilevel.py CLONE

CLONE is Photooon/Multi-Level-Training-Framework at 2137c13; it needs torch and transformers.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, f"{sys.argv[1]}/map_tools")
from mapper import BertMapper, GPT2Mapper, MapMatrix

LARGE, SMALL, RNG = (4, 4), (2, 2), np.random.default_rng(0)  # heads of width 2, layers


def directory(heads, layers, model=None, maps=None):
    config = {
        "vocab_size": 5, "max_position_embeddings": 3, "n_positions": 3, "hidden_size": 2 * heads,
        "n_embd": 2 * heads, "intermediate_size": 8 * heads, "num_attention_heads": heads,
        "n_head": heads, "num_hidden_layers": layers, "n_layer": layers,
    }  # fmt: skip
    where = tempfile.mkdtemp()
    Path(where, "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict() if model else {}, f"{where}/pytorch_model.bin")
    if maps:  # taken instead of the default ones
        torch.save(maps, f"{where}/MapMatrix.bin")
    return where


torch.set_default_dtype(torch.float64)
wide, deep = MapMatrix.get_F(8, 4, [[0, 2, 3], [1]], 2), MapMatrix.get_R(4, 2, [[3, 0], [1, 2]])
maps = dict(zip(("embed_F", "qk_F", "v_F", "inter_F", "R"), (*wide, deep), strict=True))
embed, _, _, inter = MapMatrix.get_T(*wide)
found = {**maps, "embed_T": embed, "inter_T": inter, "G": MapMatrix.get_G(deep)}
for kind, mapper in {"bert": BertMapper, "gpt2": GPT2Mapper}.items():
    large = mapper(directory(*LARGE), directory(*LARGE), None).src_model
    for weight in large.parameters():
        weight.data = torch.tensor(np.rint(RNG.normal(size=weight.shape) * 2))
    models = {"large": large}
    for case, own in (("scheme", maps), ("default", None)):
        args = directory(*LARGE, large, own), directory(*SMALL), None
        small = mapper(*args).coalesce().tgt_model
        up = mapper(directory(*SMALL, small, own), directory(*LARGE), None).decoalesce()
        models |= {f"{case}/coalesced": small, f"{case}/decoalesced": up.tgt_model}
    args = directory(*LARGE, up.tgt_model), directory(*LARGE, large), None
    mixed = mapper(*args, load_tgt_state=True).interpolate(0.25).tgt_model
    models |= {"interpolated": mixed} if kind == "bert" else {}
    for name, model in models.items():  # one array each, as an archive of many is large
        flat = torch.cat([x.detach().ravel() for x in model.parameters()]).numpy()
        found[f"{kind}/{name}"] = flat.astype(np.int8) if name == "large" else flat
        shapes = [(key, " ".join(map(str, x.shape))) for key, x in model.named_parameters()]
        found[f"{kind}/shapes/{len(flat)}"] = np.array(shapes)
np.savez_compressed(Path(__file__).parent / "multilevel.npz", **found)
