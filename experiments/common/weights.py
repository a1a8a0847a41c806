"""Published weights as encoders: `weights:NAME`, where another name is the directory of a run."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.registry import texts_of
from rml import assets
from rml.embedding import TextEmbedder, on_mesh
from rml.encoder import Encoder, ImageEmbedder
from rml.errors import MissingError, UserError, local_path, unknown
from rml.models import pretrained
from rml.models.layers import MIN_IMAGE
from rml.models.pretrained.images import ARCHIVES
from rml.training import make_mesh

WEIGHTS = "weights:"
"""Begins the name of published weights."""

SIDE = 64
"""Pixels of the shorter side of images, where the encoder takes any size."""

TEXTS = {one.partition(":")[0] for one in pretrained.NAMES} - {"PATH"}
"""Names and kinds of models of texts; a path alone is that of an encoder of images."""


def pretrained_encoder(name: str, image_shape: Any, *, key: str = "features.run") -> ImageEmbedder:
    """A pretrained encoder of images, see `rml.models.pretrained.load_images`.

    Args:
      name: "weights:NAME", such as "weights:efficientnet_lite0", then "/LAYER" for the features of
        an earlier layer, such as "/stage3", or "weights:PATH"; then "@SIDE" for the length that the
        shorter side of images is resized to, if not given the encoder's own or 64.
      image_shape: Shape of the images that it is given, grey or coloured.
      key: Key of the config that named the encoder, for messages.

    Returns:
      The encoder.

    Raises:
      UserError: There are no such weights, no such layer, or no images of this shape.
    """
    model, side = _load_images(name, key)
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise UserError(
            f"{name} encodes images of 1 or 3 channels, data.image_shape is {list(image_shape)}"
        )
    return _image_embedder(model, side, make_mesh())


def archives_named(config: ConfigDict) -> list[str]:
    """Names of the archives with published weights that values of a config name."""
    texts = [*texts_of(config.to_dict())]
    given = (one.removeprefix(WEIGHTS) for one in texts if one.startswith(WEIGHTS))
    named = [re.split("[/@]", one)[0] for one in given]
    found = dict.fromkeys([*named, *(one for one in texts if one in TEXTS)])
    return [name for name in found if name in assets.listed()]  # packages carry the others


def open_weights(name: str, mesh: Mesh) -> Encoder:
    """Published weights as an encoder of images or texts; see `rml.load`.

    Args:
      name: "weights:" and a name of `rml.models.pretrained.load`, such as "weights:minilm", or as
        `pretrained_encoder` takes it.
      mesh: Mesh on which it is applied.

    Returns:
      The encoder, whose config says what the weights are and how images are prepared.

    Raises:
      UserError: There are no such weights, no such layer, or a layer or side of those of texts.
    """
    weights = name.removeprefix(WEIGHTS)
    if weights.partition(":")[0] in TEXTS:
        loaded = _present(pretrained.load, weights)
        module, variables = loaded.text_encoder()
        embedder = TextEmbedder(
            module, on_mesh(variables, mesh), loaded.tokenizer, loaded.max_length, mesh=mesh
        )
        return Encoder("texts", {"weights": _origin(weights), "data": {}}, name, None, embedder)
    path = re.sub(r"@\d+$", "", weights)
    archive = path.partition("/")[0]
    if archive not in ARCHIVES and not (path and local_path(path, "the path of weights").exists()):
        text = re.split("[/@]", weights)[0]
        if text in TEXTS and text in pretrained.NAMES:
            raise UserError(
                f"the name of the weights is {name!r}, expected '{WEIGHTS}{text}': weights of "
                "texts take no /LAYER and no @SIDE"
            )
        raise unknown("weights", path, [*ARCHIVES, *pretrained.NAMES])
    model, side = _load_images(name, "the name of the weights")
    config = {
        "weights": _origin(archive if archive in ARCHIVES else path),
        "data": {"image_shape": (side, side, 3), "image_dtype": "uint8"},
        "normalisation": {"mean": model.mean, "deviation": model.deviation},
    }
    return Encoder("images", config, name, None, _image_embedder(model, side, mesh))


def _load_images(name: str, key: str) -> tuple[pretrained.PretrainedImages, int]:
    """The encoder that a name says, and the length of the shorter side of its images."""
    match = re.fullmatch(WEIGHTS + r"(.+?)(?:@(\d+))?", name)
    if match is None or ("@" in match[1] and not Path(match[1]).expanduser().exists()):
        raise UserError(f"{key} is {name!r}, expected weights:NAME, weights:NAME/LAYER@SIDE")
    weights, given = match[1], int(match[2]) if match[2] else None
    if given is not None and given < MIN_IMAGE:
        raise UserError(f"{key} is {name!r}, expected a side of at least {MIN_IMAGE} pixels")
    archive, _, layer = weights.partition("/")
    if archive in ARCHIVES and layer:
        model = _present(pretrained.load_images, archive, layer=layer)
    else:
        model = _present(pretrained.load_images, weights)
    side = given or model.side or SIDE
    if model.side not in (None, side):
        raise UserError(f"{key} is {name!r}, expected @{model.side}: its images have that side")
    return model, side


def _image_embedder(model: pretrained.PretrainedImages, side: int, mesh: Mesh) -> ImageEmbedder:
    encode = functools.partial(model.encode, side=side)
    return ImageEmbedder(encode, on_mesh(model.variables, mesh), mesh=mesh)


def _present(load: Callable[..., Any], name: str, **options: Any) -> Any:
    """What a function loads by name; where something is missing the error says what brings all."""
    try:
        return load(name, **options)
    except MissingError as error:
        raise UserError(f"{error}; `make weights` brings all") from None


def _origin(weights: str) -> dict[str, str]:
    """What is known of weights: of an archive its package, version and licence."""
    asset = assets.listed().get(weights)
    if asset is None:
        return {"name": weights}
    return {
        "name": weights,
        "package": f"{asset.package} {asset.version}",
        "licence": asset.licence,
    }
