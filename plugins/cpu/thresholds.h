// Where a search of the tree beats a scan on a CPU. Written from `python
// tests/benchmarks/bench_crossover.py`.
#pragma once

#include <cstddef>

namespace spectral::cpu {

/// A search is tried from this many experts on.
inline constexpr std::size_t search_min_experts = 2048;
/// A search gives up after opening this fraction (one in ...) of the leaf blocks, and the token is
/// scanned.
inline constexpr std::size_t search_budget_divisor = 8;
/// After this many tries in a call, a share of failures above one in four sends the rest to the
/// scan.
inline constexpr std::size_t search_trial_tokens = 32;

} // namespace spectral::cpu
