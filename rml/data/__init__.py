"""Data: sources, Grain pipelines, and augmentation on the device."""

from rml.data import augment as augment
from rml.data.errors import DataError as DataError
from rml.data.load import load as load
from rml.data.pipeline import batches as batches
from rml.data.pipeline import decode_and_resize as decode_and_resize
from rml.data.source import Arrays as Arrays
from rml.data.source import ArraySource as ArraySource
from rml.data.source import Source as Source
from rml.data.text import load_documents as load_documents
from rml.data.text import load_retrieval as load_retrieval
from rml.data.text import load_text as load_text
