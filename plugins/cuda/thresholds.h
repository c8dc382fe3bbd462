// Where a tree walk beats a scan on a GPU: tests/benchmarks/evidence/route_h100.json (H100, K = 8).
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral::cuda {

/// With three coordinates: from 2 048 experts on, unless a small batch leaves the GPU to the scan.
/// Measured: E = 4 096 tree 34 against scan 25 us at B = 1, 36 against 41 at B = 32, 1 031 against
/// 1 751 at B = 65 536; E = 65 536 tree 56 against scan 106 us already at B = 1.
inline constexpr std::int64_t shallow_experts = 2048;
inline constexpr std::int64_t shallow_tokens = 16;
inline constexpr std::int64_t shallow_experts_always = 16'384;
/// With more coordinates boxes bound badly. Measured with twelve: E = 4 096 the scan wins at every
/// batch; E = 65 536 scan 185 against tree 1 021 us at B = 1, 938 against 891 at B = 32.
inline constexpr std::int64_t deep_experts = 32'768;
inline constexpr std::int64_t deep_tokens = 32;

/// Whether the tree is walked.
inline bool tree_pays(std::int64_t experts, std::size_t rank, std::int64_t tokens) {
    if (rank > 3) {
        return experts >= deep_experts && tokens >= deep_tokens;
    }
    return experts >= shallow_experts_always ||
           (experts >= shallow_experts && tokens >= shallow_tokens);
}

/// Whether the exact gate is faster in one launch than as a library's product and a launch for the
/// rule.
inline bool one_launch_pays(std::int64_t experts, std::int64_t tokens) {
    return experts <= 64 ? tokens <= 1024 : experts <= 128 ? tokens <= 256 : tokens <= 32;
}

/// Hidden states that one call from host memory stages at a time, in bytes.
inline constexpr std::int64_t staging_bytes = 256LL << 20;

} // namespace spectral::cuda
