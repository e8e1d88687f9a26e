"""Rewritings that make a correct graph small and fast, each safe on its own."""

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
from export.passes.cse import merge_common_subexpressions
from export.passes.fold import fold_affines, pull_factors
from export.passes.layout import absorb_flatten, convolve_patches, hoist_transposes, join_reshapes, sink_reshapes
from export.passes.moments import fuse_group_norm, fuse_layer_norm, fuse_mean, keep_reduced_axes
from export.passes.resize import fuse_resize, multiply_channels_first

PASSES = (
    simplify_gelu,
    merge_common_subexpressions,
    drop_expansions,
    fuse_leaky_relu,
    fuse_elu,
    fuse_clip,
    fuse_hard_sigmoid,
    fuse_softmax,
    fuse_mean,
    sink_reshapes,
    join_reshapes,
    hoist_transposes,
    join_reshapes,
    pull_factors,
    fuse_layer_norm,
    fuse_group_norm,
    keep_reduced_axes,
    convolve_patches,
    hoist_transposes,  # the patches' own were in the way
    multiply_channels_first,
    hoist_transposes,
    fuse_resize,
    absorb_flatten,
    fuse_gelu,
    fold_affines,
    merge_common_subexpressions,  # what has become the same
)


def run(graph: Graph) -> None:
    """Applies all of them in order."""
    for each in PASSES:
        each(graph)
        graph.prune()
