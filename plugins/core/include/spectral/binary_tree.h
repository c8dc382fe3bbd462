// The checked binary tree between a BVH file and the wide tree: ranges of experts and their bounds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "spectral/bvh.h"
#include "spectral/geometry.h"

namespace spectral {

/// Most experts of a leaf, whatever the file says: one SIMD block.
inline constexpr std::size_t leaf_experts = 16;

/// Nodes in an order where children follow their parent; leaves hold at most 16 experts.
struct BinaryTree {
    struct Node {
        std::int32_t child = -1; ///< first of two adjacent children, or -1
        std::int32_t begin = 0;  ///< range of `order` that the subtree covers
        std::int32_t count = 0;
    };

    std::vector<Node> nodes;
    std::vector<std::int32_t> order; ///< expert ids, leaf by leaf
    std::size_t rows = 0;            ///< 2R + L + 2
    std::vector<float> bounds;       ///< [nodes, rows]: lower, upper, power, beta, choice bias

    [[nodiscard]] const float *bounds_of(std::size_t node) const {
        return bounds.data() + node * rows;
    }
};

/// Throws UserError if the topology is not a tree over all experts.
BinaryTree read_binary_tree(const Geometry &geometry, const Topology &topology);

/// Whether the experts below a node fit one block of `width` lanes.
bool fits_a_block(const BinaryTree &tree, std::size_t node, std::size_t width);

/// The children of a wide node: opens the largest until there are `width`, or only blocks.
std::vector<std::size_t> widen(const BinaryTree &tree, std::size_t node, std::size_t width);

} // namespace spectral
