// What every back-end's router answers, whatever it runs on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral {

/// How candidates are found; `automatic` follows the measured thresholds of the back-end. The
/// answer is the same, bit for bit.
enum class Method : std::uint8_t { automatic, scan, search };

/// Where the best C experts of T tokens go: both [T, C], descending by choice score, ties by
/// smaller id, NaN last.
struct Candidates {
    std::size_t count = 0; ///< C, 1 to E
    std::int32_t *ids = nullptr;
    float *scores = nullptr;
};

/// Work done by one call.
struct RouteStatistics {
    std::uint64_t nodes = 0;    ///< inner nodes opened
    std::uint64_t leaves = 0;   ///< leaf blocks opened by searches that finished
    std::uint64_t searched = 0; ///< tokens answered by a search
    std::uint64_t scanned = 0;  ///< tokens answered by a scan
};

/// Routes tokens of one layer. All arrays are float32, row-major, contiguous, in the back-end's
/// memory.
class Router {
  public:
    Router() = default;
    Router(const Router &) = delete;
    Router &operator=(const Router &) = delete;
    virtual ~Router() = default;

    /// Approximate logits [T, E] of hidden states [T, D], the common mode included.
    virtual void scores(const float *hidden, std::size_t tokens, float *out) = 0;

    /// Candidates of hidden states [T, D].
    virtual RouteStatistics route(const float *hidden, std::size_t tokens, Method method,
                                  Candidates out) = 0;

    /// Candidates of projected points [T, R].
    virtual RouteStatistics route_points(const float *points, std::size_t tokens, Method method,
                                         Candidates out) = 0;
};

} // namespace spectral
