// Where one way beats another on a GPU: tests/benchmarks/evidence/sweep_h100.json (H100, D = 2 048,
// K = 8), written by tests/benchmarks/gpu_sweep.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral::cuda {

/// With three coordinates the tree is walked from here on. Measured, us, scan against tree:
/// E = 4 096: 11 and 19 at B = 1, 16 and 20 at 1 024, 486 and 533 at 65 536;
/// E = 16 384: 23 and 22 at B = 1, 34 and 26 at 1 024, 1 077 and 841 at 65 536.
inline constexpr std::int64_t tree_experts = 16'384;

/// Whether the tree is walked. With more coordinates boxes bound badly: with twelve and E = 65 536
/// the scan takes 349 us against 460 at B = 1, 393 against 767 at 1 024, 12.0 ms against 24.9 at
/// 65 536.
inline bool tree_pays(std::int64_t experts, std::size_t rank) {
    return rank <= 3 && experts >= tree_experts;
}

/// Whether the exact gate is faster in one launch than as a library's product and a launch for the
/// rule. Measured, us, one launch against two: E = 64: 7.6 and 9.0 at B = 1 024, 19.6 and 13.6 at
/// 4 096; E = 256: 7.3 and 10 at B = 32, 9.2 and 10.4 at 256, 14.8 and 11.5 at 1 024; E = 512: 9.9
/// and 11.9 at B = 32, 13.8 and 12.6 at 256; E = 896: 14.2 and 15.1 at B = 32.
inline bool one_launch_pays(std::int64_t experts, std::int64_t tokens) {
    return tokens <= (experts <= 64 ? 1024 : experts <= 256 ? 256 : 64);
}

/// Hidden states that one call from host memory stages at a time, in bytes.
inline constexpr std::int64_t staging_bytes = 256LL << 20;

} // namespace spectral::cuda
