// How rays are laid out where no ray-tracing core traverses them:
// tests/benchmarks/evidence/optix_h100.json.
#pragma once

#include <cstdint>

namespace spectral::optix {

/// Threads a token. Traversal in software runs in the warp's own threads, and the rays of 32 tokens
/// meet different spheres: one token a warp is faster until the GPU is full.
inline constexpr std::int32_t lonely_tokens = 4096;
inline constexpr std::int32_t sparse_tokens = 32'768;

inline std::int32_t spread_for(std::int32_t tokens) {
    return tokens <= lonely_tokens ? 32 : tokens <= sparse_tokens ? 8 : 1;
}

} // namespace spectral::optix
