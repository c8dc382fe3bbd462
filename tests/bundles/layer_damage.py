"""Ways to break the values of a layer: numbers, radii, the tree, its bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
from bundles.damage import Draft, draft_of, refused
from pico_bundles import Arithmetic, bounded_tree, make_geometry, make_layer, make_manifest

from spectral_runtime.bundle import LayerTensors


def _inner(draft: Draft) -> np.ndarray:
    return np.flatnonzero(draft.array("bvh.count") == 0)


@refused(r"layers\.0\.projection\[1, 2\]: expected finite values, found nan")
def nan_value(draft: Draft) -> None:
    draft.array("projection")[1, 2] = np.nan


@refused(r"layers\.0\.mean\[3\]: expected finite values, found -inf")
def infinite_value(draft: Draft) -> None:
    draft.array("mean")[3] = -np.inf


@refused(r"layers\.0\.residual\[5\]: expected a norm, at least 0, found -1.0")
def negative_residual(draft: Draft) -> None:
    draft.array("residual")[5] = -1.0


@refused(r"layers\.0\.radii\[0, 3\]: expected the radii of centres and beta")
def radii_inconsistent(draft: Draft) -> None:
    draft.array("radii")[0, 3] += 0.01


@refused(r"bvh\.first\[\d\]: expected children after their parent")
def cyclic_tree(draft: Draft) -> None:
    draft.array("bvh.first")[_inner(draft)[1]] = 0


@refused(r"bvh\.first\[0\]: expected two children within 7 nodes, found 6")
def child_out_of_range(draft: Draft) -> None:
    draft.array("bvh.first")[0] = 6


@refused(r"bvh\.first\[0\]: expected two children within 7 nodes, found 2147483647")
def child_at_the_largest_integer(draft: Draft) -> None:
    draft.array("bvh.first")[0] = 2**31 - 1


@refused(r"bvh\.first\[0\]: expected two children within 7 nodes, found -1")
def negative_child(draft: Draft) -> None:
    draft.array("bvh.first")[0] = -1


@refused("expected one parent for every node but the root, found 0")
def node_with_two_parents(draft: Draft) -> None:
    inner = _inner(draft)
    draft.array("bvh.first")[inner[1]] = draft.array("bvh.first")[inner[2]]


@refused(r"bvh\.count\[6\]: expected at least 0, found -2")
def negative_count(draft: Draft) -> None:
    draft.array("bvh.count")[6] = -2


@refused(r"bvh\.first\[6\]: expected leaves within 8 experts, found 7")
def leaf_outside(draft: Draft) -> None:
    draft.array("bvh.first")[6] = 7


@refused("expected leaves that share out the 8 experts, each once")
def leaves_overlap(draft: Draft) -> None:
    draft.array("bvh.first")[6] = 0


@refused(r"bvh\.count: expected 8 experts in the leaves, found 7")
def leaves_leave_one_out(draft: Draft) -> None:
    draft.array("bvh.count")[6] = 1


@refused(r"bvh\.experts\[2\]: expected a permutation of 0 to 7, found 8")
def expert_out_of_range(draft: Draft) -> None:
    draft.array("bvh.experts")[2] = 8


@refused(r"bvh\.experts\[\d\]: expected a permutation of 0 to 7")
def experts_not_a_permutation(draft: Draft) -> None:
    draft.array("bvh.experts")[2] = draft.array("bvh.experts")[3]


@refused("expected at most 64 nodes on any path, found a deeper tree")
def tree_too_deep(draft: Draft) -> None:
    experts = 70
    groups = [np.arange(experts)]
    for left in range(experts - 1):  # every inner node splits off one expert as its first child
        groups += [np.array([left]), np.arange(left + 1, experts)]
    first = [int(group[0]) if len(group) == 1 else 2 * int(group[0]) + 1 for group in groups]
    count = [1 if len(group) == 1 else 0 for group in groups]
    numbers = Arithmetic()
    geometry = make_geometry(numbers, experts, hidden=2)
    bvh = bounded_tree(geometry, None, groups, (first, count, list(range(experts))))
    entry = make_layer(numbers, experts=experts, hidden=2, levels=1, colour=0).entry
    chain = LayerTensors(entry=dataclasses.replace(entry, nodes=bvh.nodes), geometry=geometry, bvh=bvh)
    vars(draft).update(vars(draft_of(make_manifest((chain,)), (chain,))))


@refused(r"bvh\.upper\[6\]: expected a bound on the leaf's experts, found one too small")
def box_too_small(draft: Draft) -> None:
    draft.array("bvh.upper")[6, 1] -= 0.5


@refused(r"bvh\.lower\[0\]: expected a bound on the node's children, found one too small")
def box_without_its_children(draft: Draft) -> None:
    draft.array("bvh.lower")[0, 4] += 0.5


@refused(r"bvh\.power\[6\]: expected a bound on the leaf's experts")
def power_too_small(draft: Draft) -> None:
    draft.array("bvh.power")[6, 0] -= 0.5


@refused(r"bvh\.beta\[6\]: expected a bound on the leaf's experts")
def beta_bound_too_small(draft: Draft) -> None:
    draft.array("bvh.beta")[6] -= 0.5


@refused(r"bvh\.choice_bias\[6\]: expected a bound on the leaf's experts")
def choice_bias_bound_too_small(draft: Draft) -> None:
    draft.array("bvh.choice_bias")[6] -= 0.5
