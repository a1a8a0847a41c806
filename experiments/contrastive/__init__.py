"""Recipes of contrastive and other self-supervised pretraining.

`simclr`, `moco_v2`, `moco_v3`, `supcon`: a recipe each. `views`: methods that compare two views, a
row each. `two_towers`: CLIP and SigLIP on drawings and names. `ablation`: SimCLR's choices one at
a time; `<paper>_ablation`: those of another paper, compared likewise.
"""
