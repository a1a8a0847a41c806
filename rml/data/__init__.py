"""Data: sources, Grain pipelines, and augmentation on the device.

* `load`, `load_text`, `load_documents`, `load_retrieval`, `load_table`: a data set by its name.
* `batches`: shuffled batches of a source, resumable bit for bit.
* `augment`: views of images, made on the device by the step that trains on them.
* `open_parts`, `split_classes`, `select_classes`: classes split into base, validation and novel.
* `pieces`, `piece_batches`, `tokens`: texts as tokens.

WORKSPACE.md and the guide on data say which names there are and how to add one.
"""

from rml.data import augment, tokens
from rml.data.classes import (
    first_of_each_class,
    open_parts,
    read_feature_parts,
    select_classes,
    split_classes,
)
from rml.data.errors import DataError
from rml.data.load import load
from rml.data.pieces import piece_batches, piece_spec, pieces
from rml.data.pipeline import batches, decode_and_resize
from rml.data.source import Arrays, ArraySource, Source
from rml.data.special import SpecialTokens
from rml.data.tables import load_table
from rml.data.text import load_documents, load_retrieval, load_text

__all__ = [
    "ArraySource",
    "Arrays",
    "DataError",
    "Source",
    "SpecialTokens",
    "augment",
    "batches",
    "decode_and_resize",
    "first_of_each_class",
    "load",
    "load_documents",
    "load_retrieval",
    "load_table",
    "load_text",
    "open_parts",
    "piece_batches",
    "piece_spec",
    "pieces",
    "read_feature_parts",
    "select_classes",
    "split_classes",
    "tokens",
]
