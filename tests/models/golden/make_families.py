"""Writes `families/` anew: small models of other libraries, computed in float64.

    python -m tests.models.golden.make_families [NAME ...]

It needs torch, torchvision, transformers, timm and open_clip_torch. Weights are drawn by name, see
`families.draw`, so that only names, shapes and results are written.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
import torchvision
import transformers
from safetensors import safe_open
from timm.models import resnet as timm_resnet
from torchvision.models import resnet

from tests.models.golden.families import CASES, draw, images

VERSIONS = {lib.__name__: lib.__version__ for lib in (torch, torchvision, transformers, timm)}
VERSIONS["open_clip"] = open_clip.__version__
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 16, "attn_implementation": "eager",
}  # fmt: skip


def drawn(model):
    """The model with weights drawn by their names in its state dictionary, in float64."""
    state = {
        name: torch.tensor(draw(name, tuple(t.shape))) for name, t in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.double().eval()


def saved(model):
    """A model of Hugging Face with weights drawn by their names in its files, and its config."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        config = json.loads((Path(directory) / "config.json").read_text())
        with safe_open(f"{directory}/model.safetensors", "pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        from safetensors.torch import save_file

        save_file(
            {name: torch.tensor(draw(name, shape)) for name, shape in shapes.items()},
            f"{directory}/model.safetensors",
            metadata={"format": "pt"},
        )
        loaded = type(model).from_pretrained(
            directory, dtype=torch.float64, attn_implementation="eager"
        )
    return loaded.eval(), config, shapes


def write(name, shapes, config=None, **found):
    content = {"made_with": VERSIONS, "config": config, "tensors": shapes}
    text = json.dumps(content, indent=1)
    text = text.replace("[\n   ", "[").replace(",\n   ", ", ").replace("\n  ]", "]")
    (CASES / f"{name}.json").write_text(text + "\n")
    arrays = {key: np.asarray(value) for key, value in found.items()}
    floats = {k: v.astype(np.float32) for k, v in arrays.items() if v.dtype == np.float64}
    np.savez_compressed(CASES / f"{name}.npz", **{**arrays, **floats})


def given(side):
    """The images as torch has them, channels first."""
    return torch.tensor(images(side)).double().permute(0, 3, 1, 2)


def shapes_of(model):
    return {name: list(t.shape) for name, t in model.state_dict().items()}


def resnets():
    x = given(40)
    for name, block, depths in (
        ("resnet", resnet.BasicBlock, [2, 1, 1, 1]),
        ("resnet_bottleneck", resnet.Bottleneck, [1, 2, 1, 1]),
    ):
        model = drawn(resnet.ResNet(block, depths, num_classes=5))
        shapes, logits = shapes_of(model), model(x)
        theirs = drawn(
            timm_resnet.ResNet(getattr(timm_resnet, block.__name__), depths, num_classes=5)
        )
        assert shapes_of(theirs) == shapes
        torch.testing.assert_close(theirs(x), logits, atol=1e-9, rtol=1e-9)
        model.fc = torch.nn.Identity()
        write(name, shapes, logits=logits, features=model(x))


def mobilenet():
    setting = [[1, 16, 1, 1], [6, 24, 2, 2]]
    model = drawn(torchvision.models.MobileNetV2(num_classes=5, inverted_residual_setting=setting))
    x, shapes = given(40), shapes_of(model)
    logits = model(x)
    model.classifier = torch.nn.Identity()
    write("mobilenet_v2", shapes, logits=logits, features=model(x))


def efficientnet():
    rows = [
        (1, 3, 1, 16, 8, 2), (4, 3, 2, 8, 12, 1), (6, 5, 2, 12, 16, 1), (6, 3, 2, 16, 20, 1),
        (4, 5, 1, 20, 20, 1), (6, 5, 2, 20, 24, 1), (6, 3, 1, 24, 32, 1),
    ]  # fmt: skip
    setting = [torchvision.models.efficientnet.MBConvConfig(*row) for row in rows]
    model = drawn(
        torchvision.models.EfficientNet(setting, dropout=0.0, num_classes=5, last_channel=64)
    )
    x, shapes = given(40), shapes_of(model)
    logits = model(x)
    model.classifier = torch.nn.Identity()
    write("efficientnet", shapes, logits=logits, features=model(x))


def vit_torchvision():
    model = drawn(torchvision.models.VisionTransformer(16, 8, 2, 2, 32, 64, num_classes=5))
    x, shapes = given(16), shapes_of(model)
    logits = model(x)
    model.heads = torch.nn.Identity()
    write("vit_torchvision", shapes, logits=logits, features=model(x))


def vit_timm():
    model = drawn(
        timm.models.vision_transformer.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
        )
    )
    x, shapes = given(16), shapes_of(model)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    write("vit_timm", shapes, logits=model(x), features=features)


def vit_hf():
    config = transformers.ViTConfig(
        **VIT, intermediate_size=64, image_size=16, patch_size=8, num_labels=5,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3,
    )  # fmt: skip
    model, config, shapes = saved(transformers.ViTForImageClassification(config))
    x = given(16)
    features = model.vit(x).last_hidden_state[:, 0]
    write("vit_hf", shapes, config, logits=model(x).logits, features=features)


def clip_tokens():
    """Texts of different lengths that end with their largest token, and which are text."""
    tokens = np.random.RandomState(1).randint(4, 38, (3, 9))
    mask = np.arange(9) < np.array([9, 6, 2])[:, None]
    tokens[~mask] = 0
    tokens[np.arange(3), mask.sum(1) - 1] = 39
    return torch.tensor(tokens), mask


def clip_hf():
    text = {
        **VIT, "intermediate_size": 64, "vocab_size": 40, "max_position_embeddings": 16,
        "eos_token_id": 39, "bos_token_id": 1, "layer_norm_eps": 1e-3,
    }  # fmt: skip
    vision = {**VIT, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 16}
    vision |= {"patch_size": 8, "hidden_act": "gelu"}
    model, config, shapes = saved(
        transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        )
    )
    x = given(16)
    tokens, mask = clip_tokens()
    both = model(input_ids=tokens, pixel_values=x, attention_mask=torch.tensor(mask).long())
    write(
        "clip_hf", shapes, config, tokens=tokens, mask=mask,
        features=model.get_image_features(x).pooler_output,
        texts=model.get_text_features(tokens).pooler_output, logits=both.logits_per_image,
    )  # fmt: skip


def clip_openai():
    width = {"width": 128, "layers": 2}
    model = drawn(
        open_clip.model.CLIP(
            24,
            {**width, "image_size": 16, "patch_size": 8},
            {**width, "heads": 2, "context_length": 9, "vocab_size": 40},
            quick_gelu=True,
        )
    )
    x = given(16)
    tokens, mask = clip_tokens()
    image, text = model.encode_image(x), model.encode_text(tokens)
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    write(
        "clip_openai", shapes_of(model), tokens=tokens, mask=mask,
        features=image, texts=text, logits=model.logit_scale.exp() * cosines,
    )  # fmt: skip


def texts(padding=0):
    tokens = np.random.RandomState(2).randint(2, 40, (3, 12))
    mask = np.arange(12) < np.array([12, 7, 2])[:, None]
    return torch.tensor(np.where(mask, tokens, padding)), mask


def alone(function, tokens, mask):
    """Results of each text by itself, without padding; zeros where there is none."""
    rows = [function(row[seen][None])[0] for row, seen in zip(tokens, mask, strict=True)]
    return np.stack([np.pad(row, ((0, tokens.shape[1] - len(row)), (0, 0))) for row in rows])


def roberta():
    tokens, mask = texts(padding=1)
    options = dict(TEXT, max_position_embeddings=16, type_vocab_size=1, layer_norm_eps=1e-3)
    found = {}
    for kind in ("Roberta", "XLMRoberta"):
        config = getattr(transformers, f"{kind}Config")(**options)
        model, config, shapes = saved(getattr(transformers, f"{kind}ForMaskedLM")(config))
        hidden = model.roberta(tokens, torch.tensor(mask).long()).last_hidden_state
        found[kind] = (hidden, config, shapes)
    torch.testing.assert_close(found["Roberta"][0], found["XLMRoberta"][0])
    hidden, config, shapes = found["Roberta"]
    write("roberta", shapes, config, tokens=tokens, mask=mask, hidden=hidden)


def distilbert():
    tokens, mask = texts()
    config = transformers.DistilBertConfig(
        vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=16,
        activation="relu", attn_implementation="eager",
    )  # fmt: skip
    model, config, shapes = saved(transformers.DistilBertForMaskedLM(config))
    hidden = model.distilbert(tokens, torch.tensor(mask).long()).last_hidden_state
    write("distilbert", shapes, config, tokens=tokens, mask=mask, hidden=hidden)


def modernbert():
    tokens, mask = texts()
    config = transformers.ModernBertConfig(
        **{**TEXT, "num_hidden_layers": 4}, local_attention=6, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, cls_token_id=1, sep_token_id=2, norm_eps=1e-3,
    )  # fmt: skip
    model, config, shapes = saved(transformers.ModernBertForMaskedLM(config))
    hidden = alone(lambda text: model.model(text).last_hidden_state, tokens, mask)
    write("modernbert", shapes, config, tokens=tokens, mask=mask, hidden=hidden)


def decoders():
    tokens, mask = texts()
    options = dict(TEXT, num_key_value_heads=2)
    for name, model in (
        ("mistral", transformers.MistralForCausalLM(
            transformers.MistralConfig(**options, head_dim=6, sliding_window=4)
        )),
        ("qwen2", transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(
                **options, use_sliding_window=True, sliding_window=3, max_window_layers=1,
                tie_word_embeddings=False, rope_theta=1e6,
            )
        )),
    ):  # fmt: skip
        model, config, shapes = saved(model)
        logits = alone(lambda text, model=model: model(text).logits, tokens, mask)
        write(name, shapes, config, tokens=tokens, mask=mask, logits=logits)


def pickles():
    """A checkpoint in PyTorch's two forms: views, a parameter, other dtypes."""
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "whole": whole, "transposed": whole.T, "part": whole[1:3, 2:5], "number": torch.tensor(7),
        "half": whole[0].to(torch.bfloat16), "parameter": torch.nn.Parameter(whole[2].double()),
    }  # fmt: skip
    checkpoint = {"state_dict": state, "epoch": 3}
    torch.save(checkpoint, CASES / "checkpoint.pt")
    torch.save(checkpoint, CASES / "older.pth", _use_new_zipfile_serialization=False)


MAKERS = (
    resnets, mobilenet, efficientnet, vit_torchvision, vit_timm, vit_hf, clip_hf, clip_openai,
    roberta, distilbert, modernbert, decoders, pickles,
)  # fmt: skip

if __name__ == "__main__":
    CASES.mkdir(exist_ok=True)
    with torch.no_grad():
        for maker in MAKERS:
            if not sys.argv[1:] or maker.__name__ in sys.argv[1:]:
                print(maker.__name__)
                maker()
