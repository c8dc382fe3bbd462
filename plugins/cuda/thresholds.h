// Where one way beats another on a GPU: tests/benchmarks/evidence/sweep_h100.json (H100, D = 2 048,
// K = 8), written by tests/benchmarks/gpu_sweep.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral::cuda {

/// With three coordinates the tree is walked from here on. Measured, us, scan against tree:
/// E = 4 096: 12 and 17 at B = 1, 15 and 18 at 1 024, 450 and 524 at 65 536;
/// E = 16 384: 25 and 20 at B = 1, 30 and 23 at 1 024, 915 and 601 at 65 536.
inline constexpr std::int64_t tree_experts = 16'384;

/// Whether the tree is walked. With more coordinates boxes bound badly: with twelve and E = 65 536
/// the scan takes 354 us against 463 at B = 1, 382 against 741 at 1 024, 11.6 ms against 24.1 at
/// 65 536.
inline bool tree_pays(std::int64_t experts, std::size_t rank) {
    return rank <= 3 && experts >= tree_experts;
}

/// Whether the exact gate is faster in one launch than as a library's product and a launch for the
/// rule. Measured, us, one launch against two: E = 64: 7.0 and 8.4 at B = 1 024, 28 and 12.9 at
/// 4 096; E = 256: 6.6 and 9.3 at B = 32, 9.0 and 9.6 at 256, 14.0 and 10.7 at 1 024; E = 512: 9.4
/// and 11.1 at B = 32, 13.1 and 11.3 at 256; E = 896: 13.2 and 12.3 at B = 1.
inline bool one_launch_pays(std::int64_t experts, std::int64_t tokens) {
    return tokens <= (experts <= 64 ? 1024 : experts <= 256 ? 256 : experts <= 512 ? 64 : 0);
}

/// Hidden states that one call from host memory stages at a time, in bytes.
inline constexpr std::int64_t staging_bytes = 256LL << 20;

} // namespace spectral::cuda
