// Experts in blocks of 32 and the 32-wide tree over them, as the kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "spectral/bvh.h"
#include "spectral/geometry.h"

namespace spectral::cuda {

/// Blocks [n, R + 2, 32] of beta, choice bias and linear coefficients, and ids [n, 32] (-1: none).
struct HostBlocks {
    std::vector<float> values;
    std::vector<std::int32_t> ids;
    [[nodiscard]] std::size_t count() const { return ids.size() / 32; }
    /// Appends one block; returns its index.
    std::int32_t append(const Geometry &geometry, const std::int32_t *experts, std::size_t count);
};

/// Experts in the order of their ids.
HostBlocks blocks_in_order(const Geometry &geometry);

struct HostTree {
    std::vector<float> values;          ///< [nodes, 3R + L + 4, 32], rows as in kernels/params.h
    std::vector<std::int32_t> children; ///< [nodes, 32]
    std::vector<float> reach;           ///< [R + 1]
    HostBlocks blocks;
    int roots = 0; ///< nodes 0..roots-1 hold the children of the root
};

/// Collapses a checked binary tree so that nodes are as full as they get: the root has up to 128
/// children, and what has no more than 32 blocks is one node of blocks. Throws UserError if the
/// topology is not a tree over all experts.
HostTree widen_tree(const Geometry &geometry, const Topology &topology);

} // namespace spectral::cuda
