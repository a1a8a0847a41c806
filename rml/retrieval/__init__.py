"""Retrieval of text by vectors.

* `embed`: the vectors of a corpus, by any encoder, on any mesh.
"""
