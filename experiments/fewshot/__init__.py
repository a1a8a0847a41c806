"""Few-shot learning: base training, methods compared on episodes, clustering."""
