"""Icon sets as Iconify packs them: the drawings of one designer in one JSON file."""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rml import assets


class IconSet(NamedTuple):
    """Drawings of one set.

    Attributes:
      icons: Values of each icon by name: `body`, and where they differ, `width`, `height`.
      aliases: Names that stand for another one's drawing.
      characters: Name of the icon by Unicode code points, such as "1f600".
      width: Default width of the drawings.
      height: Default height of the drawings.
    """

    icons: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, Mapping[str, Any]]
    characters: Mapping[str, str]
    width: float
    height: float

    def svg(self, name: str) -> str:
        """Writes the drawing of an icon as an SVG document."""
        icon = self.icons[name if name in self.icons else self.aliases[name]["parent"]]
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
        )


@functools.cache
def read(asset: str) -> IconSet:
    """Reads the icon set of an asset."""
    files = {
        path: json.loads(content)
        for path, content in assets.members(asset, "package/icons.json", "package/[ci]*.json")
    }
    icons, side = files["package/icons.json"], 16  # pixels, Iconify's default
    return IconSet(
        icons=icons["icons"],
        aliases=icons.get("aliases", {}),
        characters=files.get("package/chars.json", {}),
        width=icons.get("width", side),
        height=icons.get("height", side),
    )
