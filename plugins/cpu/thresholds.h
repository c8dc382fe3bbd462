// Where a search of the tree beats a scan on a CPU. Written from `python
// tests/benchmarks/bench_crossover.py`.
#pragma once

#include <cstddef>

namespace spectral::cpu {

/// A search is tried from this many experts on.
inline constexpr std::size_t search_min_experts = 8192;
/// A search gives up after opening this fraction (one in ...) of as many nodes and blocks as there
/// are leaf blocks: about where it has cost a scan.
inline constexpr std::size_t search_budget_divisor = 32;

} // namespace spectral::cpu
