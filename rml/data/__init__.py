"""Data: sources, Grain pipelines, and augmentation on the device.

* `load`, `load_text`, `load_documents`, `load_retrieval`, `load_table`: a data set by its name.
* `collections`: which texts of a data set ask, which are found, and which answer.
* `load_pairs`, `load_clips`, `load_interactions`, `load_boxes`: your own data of further kinds.
* `batches`: shuffled batches of a source, resumable bit for bit.
* `class_batches`: batches of so many classes with so many examples each.
* `augment`: views of images, made on the device by the step that trains on them.
* `oddities`, `require_labels`: what is odd in sources that can be read.
* `open_parts`, `split_classes`, `select_classes`: classes split into base, validation and novel.
* `open_domains`, `groups_of_classes`: parts by designer or style, classes by a group of theirs.
* `pieces`, `piece_batches`, `tokens`: texts as tokens; `long_documents`: the really long ones.
* `subword`, `subword_search`: vocabularies of pieces of words, their likelihood.

WORKSPACE.md and the guide on data say which names there are and how to add one.
"""

from rml.data import augment, collections, subword, subword_search, tokens
from rml.data.boxes import Boxes, load_boxes
from rml.data.classes import (
    first_of_each_class,
    open_parts,
    read_feature_parts,
    select_classes,
    split_classes,
)
from rml.data.clips import Clips, Event, load_clips
from rml.data.domains import groups_of_classes, open_domains
from rml.data.drawn import class_batches
from rml.data.errors import DataError
from rml.data.interactions import Interactions, load_interactions
from rml.data.load import load
from rml.data.long_documents import long_documents
from rml.data.oddities import oddities, require_labels
from rml.data.pairs import Pairs, load_pairs
from rml.data.pieces import piece_batches, piece_spec, pieces
from rml.data.pipeline import batches, decode_and_resize, stacked_views
from rml.data.source import NO_LABEL, Arrays, ArraySource, Source
from rml.data.special import SpecialTokens
from rml.data.tables import load_table
from rml.data.text import load_documents, load_retrieval, load_text

__all__ = [
    "NO_LABEL",
    "ArraySource",
    "Arrays",
    "Boxes",
    "Clips",
    "DataError",
    "Event",
    "Interactions",
    "Pairs",
    "Source",
    "SpecialTokens",
    "augment",
    "batches",
    "class_batches",
    "collections",
    "decode_and_resize",
    "first_of_each_class",
    "groups_of_classes",
    "load",
    "load_boxes",
    "load_clips",
    "load_documents",
    "load_interactions",
    "load_pairs",
    "load_retrieval",
    "load_table",
    "load_text",
    "long_documents",
    "oddities",
    "open_domains",
    "open_parts",
    "piece_batches",
    "piece_spec",
    "pieces",
    "read_feature_parts",
    "require_labels",
    "select_classes",
    "split_classes",
    "stacked_views",
    "subword",
    "subword_search",
    "tokens",
]
