"""What recipes of all areas share; it knows configs and no area.

* `images`, `texts`: sources, batches, augmentations and text encoders that a config names.
* `encoders`: the image encoder that a config names, and the encoder of another run. `weights`:
  published weights as encoders.
* `class_parts`: images of some classes of a source, and intervals over splits of the classes.
* `evaluators`: features judged by neighbours and a probe. `supervised`: classifiers of images.
* `small_lm`: small language models that differ in one part.
* `pretraining`: the course of a run that learns features; `many`: many runs in one program.
* `comparison`, `variants`: several methods in one run, and a config but for one value.
* `trial`: the engine that compares arms; `trial_table`: its words, `trial_programs`: its runs,
  `trial_answers`: differences, intervals and power, `trial_figures`: the pictures that all have.
* `selection`: the metric by which options are chosen. `tries`: the options that are tried.
* `claims`: families of claims. `timing`: the least seconds of a call.
* `figures`: one house style, one function a kind of figure.
"""
