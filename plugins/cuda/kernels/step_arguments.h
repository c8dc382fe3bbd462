// What the host hands to the routing-step kernel, by value.
#pragma once

#include "spectral/route.h"

namespace spectral::cuda {

/// Types of hidden states, gate rows and weights.
enum class Scalar : std::int32_t { f32 = 0, f16 = 1, bf16 = 2 };

struct StepArguments {
    RouteSpec spec;
    RouteArrays arrays;             ///< device memory; gate rows and bias are of `scalar`
    const void *hidden;             ///< [T, D] of `scalar`
    std::int32_t *ids;              ///< [T, K]
    void *weights;                  ///< [T, K] of `weight_scalar`
    float *workspace;               ///< [blocks, 3, E]
    const std::int32_t *candidates; ///< [T, C] found before, or null: the kernel finds them
    std::int32_t tokens;
    Scalar scalar, weight_scalar;
};

inline constexpr int step_threads = 256;
inline constexpr int step_blocks = 1024; ///< at most; each walks over its tokens
inline constexpr int max_rows = 256;     ///< R of the geometry

} // namespace spectral::cuda
