// Where a search of the tree beats a scan on a CPU. Measured by `python
// tests/benchmarks/bench_crossover.py` (evidence/crossover_cpu.json); run it again and edit these
// when a kernel changes.
//
// The break-even lies at 1/14 of the leaf blocks (E = 4096, 12 dimensions), 1/23 (E = 4096, 3
// dimensions) and 1/20 to 1/90 (E = 65536, where a search misses the cache); its median is 1/25. So
// with 3 dimensions a search wins from 8192 (equal radii) to 32768 experts on, and in 6 or more
// only where experts lie in clusters: there a scan is the better answer.
#pragma once

#include <cstddef>

namespace spectral::cpu {

/// A search is tried from this many experts on: below, even an easy one (19 visits) costs a scan.
inline constexpr std::size_t search_min_experts = 8192;
/// A search gives up after this fraction (one in ...) of as many visits as there are leaf blocks:
/// it has cost a scan.
inline constexpr std::size_t search_budget_divisor = 24;

} // namespace spectral::cpu
