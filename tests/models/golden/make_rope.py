"""Writes `rope.json` anew: rotary frequencies and factors as transformers computes them.

    python -m tests.models.golden.make_rope

It needs torch and transformers.
"""

import json

import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.models.golden.families import CASES

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 9.0, 10.0, 11.0, 12.0],
    "original_max_position_embeddings": 64,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES_OF_ROPE = [  # scaling, length of the text
    ({"rope_type": "linear", "factor": 4.0}, 10),
    ({"rope_type": "dynamic", "factor": 2.0}, 100),
    ({"rope_type": "dynamic", "factor": 2.0}, 1000),
    ({**LLAMA3, "original_max_position_embeddings": 64}, 10),
    (YARN, 10),
    ({**YARN, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False}, 10),
    ({**YARN, "mscale": 0.8, "mscale_all_dim": 0.4}, 10),
    ({**YARN, "attention_factor": 1.3}, 10),
    ({**YARN, "beta_fast": 1e-9, "beta_slow": 1e-9}, 10),
    ({**YARN, "factor": None, "original_max_position_embeddings": 96}, 10),
    (LONG, 64),
    (LONG, 65),
    ({**LONG, "factor": 3.0}, 65),
    ({**LONG, "attention_factor": 0.9}, 10),
]


if __name__ == "__main__":
    rows = []
    for scaling, length in CASES_OF_ROPE:
        config = transformers.LlamaConfig(
            hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=256,
            rope_parameters={**scaling, "rope_theta": 500.0},
        )  # fmt: skip
        found, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=length)
        rows.append(
            {
                "scaling": scaling,
                "length": length,
                "frequencies": found.tolist(),
                "magnitude": float(factor),
            }
        )
    made = {lib.__name__: lib.__version__ for lib in (torch, transformers)}
    content = {"made_with": made, "width": 16, "theta": 500.0, "trained": 256, "rows": rows}
    text = json.dumps(content, indent=1)
    (CASES.parent / "rope.json").write_text(text + "\n")
