"""Rewritings that make a correct graph small and fast, each safe on its own."""

from export.graph import Graph
from export.passes.broadcast import drop_expansions
from export.passes.fold import fold_affines
from export.passes.fuse import fuse_leaky_relu, fuse_softmax
from export.passes.layout import absorb_flatten, convolve_patches, hoist_transposes, join_reshapes

PASSES = (
    drop_expansions,
    fuse_leaky_relu,
    fuse_softmax,
    join_reshapes,
    hoist_transposes,
    convolve_patches,
    hoist_transposes,  # the patches' own were in the way
    absorb_flatten,
    fold_affines,
)


def run(graph: Graph) -> None:
    """Applies all of them in order."""
    for each in PASSES:
        each(graph)
        graph.prune()
