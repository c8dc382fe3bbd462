// What the host hands to the projection kernel, by value.
#pragma once

#include <cstdint>

namespace spectral::optix {

struct ProjectArguments {
    const void *x;           ///< [tokens, hidden] of `x_dtype`
    const float *projection; ///< [rank, hidden]
    const float *offset;     ///< [rank], projection of the mean
    float *points;           ///< [tokens, rank]
    std::int64_t stride;     ///< elements between two tokens of x
    std::int32_t tokens, hidden, rank;
    std::int32_t x_dtype; ///< cuda::DtypeCode
};

inline constexpr int project_warps = 8;

} // namespace spectral::optix
