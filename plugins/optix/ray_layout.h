// How rays are laid out where no ray-tracing core traverses them:
// tests/benchmarks/evidence/optix_h100.json.
#pragma once

#include <cstdint>

namespace spectral::optix {

/// Threads a token. Traversal in software runs in the warp's own threads, and the rays of 32 tokens
/// meet different spheres: one token a warp is up to 2.8 times faster at 1 024 tokens, up to twice
/// as slow at 16 384.
inline constexpr std::int32_t lonely_tokens = 4096;

inline std::int32_t spread_for(std::int32_t tokens) {
    return tokens <= lonely_tokens ? 32 : 1;
}

} // namespace spectral::optix
