"""Parts of the attention configs."""

from typing import Any

from configs import parts


def speeches() -> dict[str, Any]:
    """Long speeches that SmolLM2 reads."""
    return parts.source("sotu", validation="validation", test="test")
