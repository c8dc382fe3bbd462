// What the host hands to the ray programs: one plain struct in device memory, the same on both
// sides.
#pragma once

#include <cstdint>

#include "kernels/params.h"

namespace spectral::optix {

inline constexpr int max_shells = 6; ///< acceleration structures of one router
inline constexpr int max_list = cuda::max_list;
inline constexpr int max_rank = cuda::max_rank;

/// Spheres of one common constant: expert e has radius^2 = weight_e + constant.
struct Shell {
    std::uint64_t handle;    ///< OptixTraversableHandle
    const std::int32_t *ids; ///< expert of each primitive
    float constant;
    std::int32_t count;
};

/// Four floats that are loaded at once.
struct alignas(16) Quad {
    float v[4];
};

/// An expert's row: beta, choice bias, then R linear coefficients, padded to whole quads.
struct SearchParams {
    Shell shells[max_shells];
    const Quad *rows;    ///< [E, quads]
    const float *points; ///< [tokens, R]
    const float *reach;  ///< [R + 1]: largest |coordinate|, then largest |beta|
    void *ids;           ///< [tokens, count] int32, or int64 if `wide_ids`
    float *scores;       ///< [tokens, count] choice scores, or null
    float *weights;      ///< [tokens, count] softmax over the scores, or null
    std::int32_t *work;  ///< [tokens, 2]: experts scored, structures traversed (-1: scanned)
    float scale;         ///< power of two that brings spheres near one
    float bias_max;      ///< largest choice bias, zero without one
    std::int32_t shell_count, quads;
    std::int32_t experts, rank, tokens, count;
    std::int32_t score; ///< cuda::ScoreCode
    std::int32_t biased, wide_ids;
    std::int32_t spread; ///< threads a token: all but the first do nothing
};

} // namespace spectral::optix
