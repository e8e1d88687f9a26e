"""Graph rewrites that make a correct graph small and fast; each keeps the values of the graph's outputs."""

from export.graph import Graph
from export.passes.activations import (
    fuse_clip,
    fuse_elu,
    fuse_gelu,
    fuse_hard_sigmoid,
    fuse_leaky_relu,
    fuse_softmax,
    simplify_gelu,
)
from export.passes.broadcast import drop_expansions
from export.passes.channels_last import normalise_channels_last
from export.passes.cse import merge_common_subexpressions, merge_weights
from export.passes.fold import fold_affines, pull_factors
from export.passes.layout import absorb_flatten, convolve_patches, hoist_transposes, join_reshapes, sink_reshapes
from export.passes.moments import fuse_group_norm, fuse_layer_norm, fuse_mean, keep_reduced_axes
from export.passes.resize import fuse_resize, multiply_channels_first

PASSES = (
    simplify_gelu,
    merge_common_subexpressions,
    # Patterns are recognised in the form that jax.nn and jax.numpy write them.
    drop_expansions,
    fuse_leaky_relu,
    fuse_elu,
    fuse_clip,
    fuse_hard_sigmoid,
    fuse_softmax,
    fuse_mean,
    # Transposes and reshapes move out of the way of what is folded below.
    sink_reshapes,
    join_reshapes,
    hoist_transposes,
    join_reshapes,
    pull_factors,
    fuse_layer_norm,
    fuse_group_norm,
    keep_reduced_axes,
    convolve_patches,
    # Transposes that made the patches were in the way of others.
    hoist_transposes,
    multiply_channels_first,
    hoist_transposes,
    fuse_resize,
    absorb_flatten,
    fuse_gelu,
    normalise_channels_last,
    fold_affines,
    # Folding and fusing can make nodes equal.
    merge_common_subexpressions,
    merge_weights,
)


def run(graph: Graph) -> None:
    """Applies all passes in order, and drops after each what the outputs no longer need."""
    for rewrite in PASSES:
        rewrite(graph)
        graph.prune()
