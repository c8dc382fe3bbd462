// Builds the BVH over expert spheres.
#pragma once

#include "spectral/bvh.h"
#include "spectral/executor.h"
#include "spectral/geometry.h"

namespace spectral {

/// Settings of build_bvh.
struct BuildConfig {
    /// Most experts in a leaf.
    std::size_t leaf_size = 16;
};

/// Builds the tree; the same bits whatever the number of threads of `executor`.
Bvh build_bvh(const Geometry &geometry, const BuildConfig &config, Executor &executor);

} // namespace spectral
