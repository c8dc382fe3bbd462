// Where a tree walk beats a scan on a GPU. Written from `spectral bench-route --crossover`.
#pragma once

#include <cstdint>

namespace spectral::cuda {

/// The tree is walked from this many experts on, whatever the batch.
inline constexpr std::int64_t search_min_experts = 2048;
/// Hidden states that one call from host memory stages at a time, in bytes.
inline constexpr std::int64_t staging_bytes = 256LL << 20;

} // namespace spectral::cuda
