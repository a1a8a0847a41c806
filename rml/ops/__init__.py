"""Array mathematics that several parts of the library need."""
