// How a product is cut into tiles and clusters; the thresholds come from measurements.
#pragma once

#include <cstdint>

#include "kernels/params.h"

namespace spectral::cuda {

/// A tile shape that a kernel was compiled for.
struct TileShape {
    const char *kernel;
    int tokens;
    int rows; ///< most rows of a block
    bool matrix;
};

/// A choice of shape and cluster; zeros in a request mean "choose".
struct Plan {
    const TileShape *shape = nullptr;
    int tile_tokens = 0;
    int splits_hidden = 0;
    int splits_rows = 0;
};

/// What a plan is chosen from.
struct Workload {
    int tokens, rows, hidden;
    int multiprocessors;
    bool clusters; ///< compute capability 9.0 and later
};

/// The exact gate; `narrow` rules have kernels of their own up to 64 experts. Throws UserError when
/// no shape fits.
Plan plan_gate(const Workload &work, int dtype, bool narrow, const Plan &wanted);
/// The projection of the geometric router.
Plan plan_route(const Workload &work, bool matrix, bool rows, const Plan &wanted);

/// Fills the tiling fields of `product` and returns the grid, the cluster and the shared memory.
/// `scratch_experts` is the length of a warp's row buffer; zero where none is needed.
struct Grid {
    std::uint32_t tiles, cluster, shared_bytes;
};
Grid apply(const Plan &plan, int scratch_experts, int multiprocessors, Product &product);

} // namespace spectral::cuda
