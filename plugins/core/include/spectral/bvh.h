// The BVH as plain arrays: owned (Bvh) and borrowed (BvhView). No algorithm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace spectral {

/// Binary tree, node 0 the root, children `first` and `first + 1`, both above their parent's index.
/// A leaf (`count > 0`) holds `experts[first : first + count]`. See spectral_runtime.geometry.Bvh.
struct Bvh {
    std::vector<float> lower;          ///< [N, R]
    std::vector<float> upper;          ///< [N, R]
    std::vector<float> power;          ///< [N, L], max |centre|^2, level 1 with beta added
    std::vector<float> beta;           ///< [N], max beta
    std::vector<float> choice_bias;    ///< [N], max choice bias
    std::vector<std::int32_t> first;   ///< [N]
    std::vector<std::int32_t> count;   ///< [N]
    std::vector<std::int32_t> experts; ///< [E]
};

/// What a router needs of a Bvh: the shape of the tree. Routers compute the bounds they use from
/// the geometry itself, so a damaged bound in a file cannot lose an expert.
struct Topology {
    std::size_t nodes = 0;
    std::size_t experts = 0;
    const std::int32_t *first = nullptr;       ///< [N]
    const std::int32_t *count = nullptr;       ///< [N]
    const std::int32_t *permutation = nullptr; ///< [E]
};

} // namespace spectral
