// How a product is cut into tiles and clusters; the choices come from measurements.
#pragma once

#include <cstdint>

#include "kernels/params.h"

namespace spectral::cuda {

/// A tile shape that a kernel was compiled for.
struct TileShape {
    const char *kernel; ///< of the gate: without the width of a lane
    int tokens;
    int rows; ///< of the weight that a warp multiplies at once
};

/// A choice of shape and cluster; zeros in a request mean "choose".
struct Plan {
    const TileShape *shape = nullptr;
    int tile_tokens = 0;
    int cluster = 0; ///< blocks that split the hidden columns of a tile, a power of two
};

/// What a plan is chosen from.
struct Workload {
    int tokens, rows, hidden;
    int multiprocessors;
    bool clusters; ///< compute capability 9.0 and later
};

/// What the kernel keeps in shared memory beside the partial sums.
struct Needs {
    int pitch;         ///< floats of a row of sums, at least the rows of the weight
    int scratch_bytes; ///< after them
};

/// The exact gate of weights of `dtype`.
Plan plan_gate(const Workload &work, int dtype, const Needs &needs, const Plan &wanted);
/// The projection of the geometric router; `rows`: the kernel of the whole rule.
Plan plan_route(const Workload &work, bool matrix, bool rows, const Plan &wanted);

/// Fills the tiling fields of `product` and returns the grid, the cluster and the shared memory.
struct Grid {
    std::uint32_t tiles, cluster, shared_bytes;
};
Grid apply(const Plan &plan, const Needs &needs, Product &product);

/// Bytes of shared memory that a block of this plan takes.
int shared_bytes(const Plan &plan, const Needs &needs, const Workload &work);

/// Experts a lane of the gate holds: 2, 4, 8, 16 or 32; a row of sums is read 32 times as far.
int lane_width(int experts);

} // namespace spectral::cuda
