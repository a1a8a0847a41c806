"""Fusion of two transformers: units of one are put in the places of the other by transport."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rml.errors import UserError, unknown
from rml.merging.transport import (
    RESIDUALS,
    ground_cost,
    over_heads,
    residual_map,
    transport_map,
    width_map,
)
from rml.merging.unit_activations import (
    LayerActivations,
    blocks,
    shortcut_shares,
    standardised,
    stream,
)
from rml.models import WidthMap, map_width, transformer_sizes
from rml.models.layouts import ENDS, kind_of, transformers
from rml.ops import normalize
from rml.ops.precision import full_precision
from rml.ops.shapes import check_between
from rml.ops.trees import check_leaf, check_trees, leaf_name

FEATURES = ("activations", "weights")
QUERY_KEY = ("separate", "shared", "joint")
HEADS = ("mixed", "kept")
SHARED = "shared"
"""The policy, ours, of one map for the whole residual stream."""
_NAMES = ("query", "key", "value", "branch", "mlp", "out")


class Aligned(NamedTuple):
    """A model whose units were put in the places of another's.

    Attributes:
      params: Its parameters, in the shapes of the other.
      transports: The map of each space of `rml.models.layouts.SPACES`, [n0, n1] or [L, n0, n1].
      costs: The mean cost of a unit's transport, by the space whose map it decided, [] or [L].
    """

    params: dict[str, Any]
    transports: dict[str, Array]
    costs: dict[str, Array]


def fuse(
    params0: PyTree, params1: PyTree, acts0: LayerActivations | None = None,
    acts1: LayerActivations | None = None, *, weight: ArrayLike = 0.5, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Averages two transformers after the units of model 0 are aligned with those of model 1.

    θ = (1 - w) θ̂_0 + w θ_1, with θ̂_0 as `align` returns it. Of more than two models each is given
    to `align` with the same anchor, and `merge("average", ...)` takes the mean of all; the command
    `python -m experiments.merge A B C --method=ot` does it.

    Args:
      params0: Parameters of model 0.
      params1: Parameters of model 1, the anchor, whose width the result has.
      acts0: Activations of model 0, see `layer_activations`.
      acts1: Those of model 1, of the same inputs.
      weight: w, the share of the anchor, from 0 to 1.
      **options: Options of `align`.

    Returns:
      Parameters of one model.

    Raises:
      UserError: As `align`.
      ValueError: `weight` is not between 0 and 1.

    Source: Imfeld et al., Transformer Fusion with Optimal Transport, arXiv:2310.05719.
    """
    check_between(0, 1, weight=weight)
    found = align(params0, params1, acts0, acts1, **options).params
    return jax.tree.map(
        lambda a, b: ((1 - jnp.asarray(weight)) * a + weight * b).astype(b.dtype), found, params1
    )


@full_precision
def align(
    params0: PyTree, params1: PyTree, acts0: LayerActivations | None = None,
    acts1: LayerActivations | None = None, *, features: str = "activations",
    solver: str = "sinkhorn", reg: ArrayLike = 0.08, residual: str | Array = "mean",
    query_key: str = "separate", heads: str = "mixed", metric: str = "euclidean",
    scale: str = "max",
) -> Aligned:  # fmt: skip
    """Puts the units of one transformer in the places of another's, layer after layer.

    The map of a layer's outputs transports its units onto the anchor's; what reads them gets the
    same map: K̂ = AᵀKB. Norms pass a map on. Where two maps meet in a residual sum a policy makes
    one of them. Embeddings have one map, of their sum, where the public code has one each for
    patches, positions and the class token. A norm behind a sum (BERT) has the sum's map; there it
    has the branch's. Both are ours, as are "kept" and the policy "shared", which with "exact" and
    shared queries and keys keep the function of model 0 to the bit of rounding.

    Args:
      params0: Parameters of model 0: a `ViT` with learned positions or a `Bert`, alone or with
        its heads.
      params1: Parameters of model 1, the anchor, as deep; widths may differ.
      acts0: Activations of model 0, for `features="activations"`.
      acts1: Those of the anchor, of the same inputs; also for the weighted policies.
      features: What units are compared by: "activations", of mean 0 and deviation 1 for each unit,
        or "weights", what they read, after its alignment and scaled to unit length.
      solver: "sinkhorn", soft, or "exact", see `transport_map`.
      reg: Weight of the entropy, for "sinkhorn".
      residual: A policy of `residual_map`; or "shared", one map for the whole stream; or the share
        of the shortcut in both sums of each layer, [L, 2, n1 or 1], see `shortcut_shares`.
      query_key: Whether queries and keys have "separate" maps, a "shared" one, or a "joint" one of
        both as one set of units, by which units of keys may become units of queries; products of
        queries and keys survive a shared one only. The public code's joint map is made of
        activations of keys and then queries, and applied to queries and then keys.
      heads: Whether heads are "mixed", or "kept" whole, see `over_heads`.
      metric: See `ground_cost`.
      scale: See `ground_cost`.

    Returns:
      Parameters, transports and their costs. A joint map has the name "query_key" and no place in
      `rml.models.layouts.SPACES`: its rows and columns are units of queries, then those of keys.

    Raises:
      UserError: An option is unknown or lacks activations, activations are of no token that
        counts, heads are to be kept by a joint map, a model is not of a kind that can be aligned,
        depths or shapes differ beyond the width, or a value is not finite.

    Source: Imfeld et al., Transformer Fusion with Optimal Transport, arXiv:2310.05719, and the
      public code.
    """
    _check_options(features, residual, query_key, heads, acts0, acts1)
    for number, acts in enumerate((acts0, acts1)):
        for name, leaf in ({} if acts is None else acts._asdict()).items():
            if leaf is not None:
                check_leaf(f"{name} of acts{number}", leaf)
        own = None if acts is None else acts.mask
        if not (own is None or isinstance(own, jax.core.Tracer) or np.asarray(own).any()):
            raise UserError(f"mask of acts{number} counts no token, expected at least 1")
    own0, own1 = (_transformer(name, own) for name, own in (("0", params0), ("1", params1)))
    sizes = transformer_sizes(params0), transformer_sizes(params1)
    if sizes[0].depth != sizes[1].depth or kind_of(own0) != kind_of(own1):
        raise UserError(
            f"model 0 has {sizes[0].depth} blocks of kind {kind_of(own0)}, model 1 "
            f"{sizes[1].depth} of kind {kind_of(own1)}; expected models that differ in width alone"
        )
    mask = acts1.mask if acts1 is not None and features == "activations" else None

    shared = isinstance(residual, str) and residual == SHARED

    def cost(x0: Array, x1: Array) -> Array:
        if features == "weights":
            x0, x1 = normalize(x0), normalize(x1)
        else:
            x0, x1 = standardised(x0, mask), standardised(x1, mask)
        return ground_cost(x0, x1, metric=metric, scale=scale)

    def solve(cost: Array) -> Array:
        return transport_map(cost, solver=solver, reg=reg)

    def moved(cost: Array, transport: Array) -> Array:
        return jnp.mean(jnp.sum(cost * transport, axis=-1))

    def attention(coordinates: Any, reads: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Maps of queries, keys and values, and costs."""
        parts = {name: coordinates(name, reads) for name in ("query", "key", "value")}
        if query_key == "shared":
            both = tuple(map(lambda a, b: jnp.concatenate([a, b], 1), parts["query"], parts["key"]))
            parts["query"] = parts["key"] = both
        if query_key == "joint":
            both = tuple(map(lambda a, b: jnp.concatenate([a, b]), parts.pop("query"),
                             parts.pop("key")))  # fmt: skip
            parts["query_key"] = both
        costs = {name: cost(*both) for name, both in parts.items()}
        if heads == "kept":
            counts = sizes[0].heads, sizes[1].heads
            return over_heads(costs, counts, solver=solver, reg=reg), costs
        if query_key == "shared":
            maps = {name: solve(costs[name]) for name in ("query", "value")}
            return maps | {"key": maps["query"]}, costs
        return {name: solve(own) for name, own in costs.items()}, costs

    if features == "activations":
        assert acts0 is not None
        assert acts1 is not None
        start = tuple(stream(a) if shared else a.embedded.T for a in (acts0, acts1))
        layers: Any = tuple({n: getattr(a, n) for n in _NAMES} for a in (acts0, acts1))
    else:
        start = _embedding(own0), _embedding(own1)
        layers = blocks(own0), blocks(own1)

    def layer(passed: Array, given: Any) -> tuple[Array, tuple[dict[str, Array], ...]]:
        own, shares = given

        def coordinates(name: str, reads: Array) -> tuple[Array, Array]:
            if features == "activations":
                return own[0][name].T, own[1][name].T
            first, second = (_kernel(block, name) for block in own)
            return first.T @ reads, second.T

        def joined(shortcut: Array, name: str, reads: Array, at: int) -> tuple[Array, Array]:
            if shared:
                return shortcut, shortcut
            costs[f"stream.{name}"] = cost(*coordinates(name, reads))
            branch = solve(costs[f"stream.{name}"])
            policy = residual if shares is None else shares[at]
            return branch, residual_map(shortcut, branch, policy=policy)

        found, costs = attention(coordinates, width_map(passed).reads)
        branch, mid = joined(passed, "branch", width_map(found["value"]).reads, 0)
        costs["mlp"] = cost(*coordinates("mlp", width_map(mid).reads))
        mlp = solve(costs["mlp"])
        out, after = joined(mid, "out", width_map(mlp).reads, 1)
        maps = found | {
            "heads": found["value"], "mlp": mlp, "stream.in": passed, "stream.branch": branch,
            "stream.mid": mid, "stream.out": out, "stream.after": after,
        }  # fmt: skip
        return after, (maps, {name: moved(own, maps[name]) for name, own in costs.items()})

    of_start = cost(*start)
    first = solve(of_start)
    shares = None if isinstance(residual, str) else residual
    if isinstance(residual, str) and acts1 is not None and residual.startswith("weighted"):
        shares = shortcut_shares(acts1, residual)
    last, (maps, costs) = jax.lax.scan(layer, first, (layers, shares))
    maps = {"stream.embed": first, **maps, "stream.last": last}
    widths = {name: width_map(own) for name, own in maps.items()}
    params = _mapped(params0, widths, sizes[1].head_width)
    check_trees(params1, {"model 0, aligned": params})
    return Aligned(params, maps, {"stream.embed": moved(of_start, first), **costs})


def _mapped(params: PyTree, maps: Mapping[str, WidthMap], head_width: int) -> dict[str, Any]:
    """`map_width`, where queries and keys may be mapped together.

    Of a joint map the parts that stay (queries to queries, keys to keys) map the parameters, and
    those that cross map the parameters with queries and keys exchanged; what they give adds up.
    """
    if "query_key" not in maps:
        return map_width(params, maps, head_width=head_width)
    joint, others = maps["query_key"], {n: own for n, own in maps.items() if n != "query_key"}
    n0, n1 = (size // 2 for size in joint.writes.shape[-2:])
    first, second = np.s_[..., :n0, :], np.s_[..., n0:, :]

    def with_parts(rows: tuple[Any, Any], tree: PyTree) -> dict[str, Any]:
        query, key = joint.writes[rows[0]][..., :n1], joint.writes[rows[1]][..., n1:]
        own = {"query": WidthMap(query, query), "key": WidthMap(key, key)}
        return map_width(tree, others | own, head_width=head_width)

    stays = with_parts((first, second), params)
    return _added(stays, with_parts((second, first), _exchanged(params)))


def _exchanged(tree: Any) -> Any:
    """Parameters in which queries are keys and keys are queries."""
    if not isinstance(tree, Mapping):
        return tree
    result = {name: _exchanged(own) for name, own in tree.items()}
    if "qkv" in tree:  # queries, keys and values lie along the third axis from the end
        result["qkv"] = {
            name: jnp.take(jnp.asarray(own), jnp.array([1, 0, 2]), axis=-3)
            for name, own in tree["qkv"].items()
        }
    if "query" in tree:
        result |= {"query": tree["key"], "key": tree["query"]}
    return result


def _added(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters whose queries and keys are the sum of those of two trees."""
    result: dict[str, Any] = {}
    for name, own in tree.items():
        if name in ("query", "key"):
            result[name] = jax.tree.map(jnp.add, own, other[name])
        elif name == "qkv":
            result[name] = {
                at: leaf.at[..., :2, :, :].add(other[name][at][..., :2, :, :])
                for at, leaf in own.items()
            }
        else:
            result[name] = _added(own, other[name]) if isinstance(own, Mapping) else own
    return result


def _check_options(
    features: str, residual: str | Array, query_key: str, heads: str, acts0: Any, acts1: Any
) -> None:
    named = residual if isinstance(residual, str) else "mean"
    given: dict[str, tuple[str, tuple[str, ...]]] = {
        "features": (features, FEATURES), "residual": (named, (*RESIDUALS, SHARED)),
        "query_key": (query_key, QUERY_KEY), "heads": (heads, HEADS),
    }  # fmt: skip
    for name, (value, valid) in given.items():
        if value not in valid:
            raise unknown(name, value, valid)
    if query_key == "joint" and heads == "kept":
        raise UserError("heads are 'kept' with query_key='joint', expected 'mixed'")
    if features == "weights" and named == SHARED:
        raise UserError("residual is 'shared' with features='weights', expected 'activations'")
    if features == "activations" and (acts0 is None or acts1 is None):
        raise UserError("features are 'activations' and acts0 or acts1 is missing, expected both")
    if named.startswith("weighted") and acts1 is None:
        raise UserError(f"residual is {named!r} and acts1 is missing, expected the anchor's")
    for number, acts in enumerate((acts0, acts1)):
        if acts is not None and not len(acts.embedded):
            raise UserError(f"acts{number} has no row, expected at least 1 to compare units by")
    if features == "activations" and len(acts0.embedded) != len(acts1.embedded):
        raise UserError(
            f"acts0 has {len(acts0.embedded)} rows, acts1 {len(acts1.embedded)}; expected the same "
            "inputs"
        )


def _transformer(number: str, params: PyTree) -> Mapping[str, Any]:
    """The one ViT or Bert of a tree whose values are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        check_leaf(f"leaf {leaf_name(path)!r} of model {number}", leaf)
    trees = [own for _, own in transformers(params)]
    kinds = [kind_of(own) for own in trees]
    if kinds not in (["vit"], ["bert"]):
        raise UserError(f"model {number} has {kinds}, expected one ViT or one Bert")
    if "positions" not in trees[0]:
        raise UserError(
            f"model {number} has fixed positions, which no map reaches; expected learned ones"
        )
    return trees[0]


def _kernel(block: Mapping[str, Any], name: str) -> Float[Array, "n m"]:
    """The matrix from what a block's units read to the units."""
    if name in ("mlp", "out"):
        return jnp.asarray(block["mlp_in" if name == "mlp" else "mlp_out"]["kernel"])
    attention = block.get("attention", block)
    if name == "branch":
        kernel = jnp.asarray(attention["out"]["kernel"])
        return kernel.reshape(-1, kernel.shape[-1])
    if "qkv" in block:
        kernel = jnp.asarray(block["qkv"]["kernel"])[:, ("query", "key", "value").index(name)]
    else:
        kernel = jnp.asarray(attention[name]["kernel"])
    return kernel.reshape(kernel.shape[0], -1)


def _embedding(tree: Mapping[str, Any]) -> Float[Array, "d n"]:
    """All that tables, patches and positions write into each unit of the stream."""
    found = []
    for place, axes in ENDS[str(kind_of(tree))].items():
        parent, _, name = place.partition("/")
        if not axes.endswith(">stream.embed") or parent.startswith("norm") or parent not in tree:
            continue
        leaf = tree[parent][name] if name else tree[parent]
        found.append(jnp.asarray(leaf).reshape(-1, leaf.shape[-1]))
    return jnp.concatenate(found).T
