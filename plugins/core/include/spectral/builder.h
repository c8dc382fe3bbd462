// Builds the BVH over expert spheres.
#pragma once

#include <cstddef>

#include "spectral/bvh.h"
#include "spectral/executor.h"
#include "spectral/geometry.h"

namespace spectral {

/// Settings of build_bvh.
struct BuildConfig {
    /// Most experts in a leaf. 16 is one SIMD block of the CPU router and half a warp.
    std::size_t leaf_size = 16;
    /// [R], typical size of every coordinate of the projected queries: weighs the axes. Null: as
    /// large as the experts' own coordinates (root mean square).
    const float *query_scale = nullptr;
};

/// Builds the tree: the same bits whatever the number of threads of `executor`, depth at most 63.
/// Throws UserError on a value that is not finite, or on a leaf size of 0.
Bvh build_bvh(const Geometry &geometry, const BuildConfig &config, Executor &executor);

} // namespace spectral
