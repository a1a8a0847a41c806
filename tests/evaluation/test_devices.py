"""Evaluation by eight devices, parameters split among them, equals that by one."""

import pytest

SHARED = """
import json
import jax, numpy as np
from rml.training import make_mesh
from tests.system import shared_out

alone = shared_out.judgements(None)
worst = []
for shape in ({"data": 8}, {"data": 2, "fsdp": 2, "model": 2}, {"data": 1, "model": 8}):
    found = shared_out.judgements(make_mesh(shape))
    worst.append([float(np.max(np.abs(a - b))) for a, b in zip(alone, found, strict=True)])
print(json.dumps(worst))
"""

SPLIT = """
import json
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
from rml.encoder import ImageEmbedder
from rml.models import MLP
from rml.embedding import compiled, on_mesh
from rml.training import make_mesh
from rml.training.mesh import place

model, mesh = MLP(hidden=(512,), features=256), make_mesh({"data": 1, "fsdp": 2, "model": 4})
init = lambda key: model.init(key, jnp.zeros((1, 16, 16, 1)))
places, _ = place(jax.eval_shape(init, jax.random.key(0)), mesh)
key = jax.random.key(0)
variables = jax.jit(lambda key: nn.meta.unbox(init(key)), out_shardings=places)(key)
placed = on_mesh(variables, mesh)
kept = all(a is b for a, b in zip(*map(jax.tree.leaves, (variables, placed)), strict=True))
encode = ImageEmbedder(lambda v, x: model.apply(v, x), variables, 16, mesh)
encode(np.zeros((16, 16, 16, 1), np.float32))
program = compiled(encode.function, mesh).lower(
    placed, jax.ShapeDtypeStruct((16, 16, 16, 1), jnp.float32)).compile()
total = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
print(json.dumps([kept, program.memory_analysis().argument_size_in_bytes / total]))
"""


@pytest.mark.slow
def test_features_neighbours_and_probes_are_those_of_one_device(forked):
    for features, votes, weights, *accuracies, of_whole in forked(SHARED, devices=8):
        assert features < 1e-5
        assert of_whole < 1e-5
        assert votes < 1e-4
        assert weights < 1e-3
        assert accuracies == [0, 0]


ON_MESH = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from rml import evaluation
from rml.training import make_mesh
from rml.training.mesh import batch_sharding

mesh, rng = make_mesh({"data": 4}), np.random.default_rng(0)
x, y = rng.normal(size=(16, 6)).astype(np.float32), np.arange(16) % 3
found = []
for place in (None, batch_sharding(mesh), NamedSharding(mesh, P())):
    own = [jnp.asarray(a) if place is None else jax.device_put(a, place) for a in (x, y, x, y)]
    probe = evaluation.linear_probe(*own, num_classes=3, key=jax.random.key(0), mesh=mesh)
    votes = evaluation.knn_accuracy(*own, num_classes=3, k=4, mesh=mesh)
    found.append([float(probe.accuracy), float(votes)])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_features_may_lie_on_the_mesh(forked):
    first, *others = forked(ON_MESH, devices=4)
    assert others == [first, first]


@pytest.mark.slow
def test_parameters_stay_split(forked):
    kept, share = forked(SPLIT, devices=8)
    assert kept
    assert share < 0.2  # an eighth, and the images
