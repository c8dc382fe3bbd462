// The CPU router: projection, then a SIMD scan or a best-first search, tokens in parallel.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "aligned.h"
#include "expert_blocks.h"
#include "kernels.h"
#include "spectral/bvh.h"
#include "spectral/choice.h"
#include "spectral/executor.h"
#include "spectral/geometry.h"
#include "spectral/router.h"
#include "wide_tree.h"

namespace spectral::cpu {

/// Settings of a CpuRouter.
struct RouterConfig {
    spectral::Choice choice = spectral::Choice::identity;
    std::size_t threads = 1; ///< 0 means one per core
    std::string simd = "auto";
};

/// Copies what it needs of the geometry; calls from several threads are safe and take turns.
class CpuRouter final : public Router {
  public:
    /// Without a topology every call scans.
    CpuRouter(const Geometry &geometry, const Topology *topology, const RouterConfig &config);

    void scores(const float *hidden, std::size_t tokens, float *out) override;
    RouteStatistics route(const float *hidden, std::size_t tokens, Method method,
                          Candidates out) override;
    RouteStatistics route_points(const float *points, std::size_t tokens, Method method,
                                 Candidates out) override;

    [[nodiscard]] std::size_t hidden() const { return hidden_; }
    [[nodiscard]] std::size_t rank() const { return rank_; }
    [[nodiscard]] std::size_t experts() const { return experts_; }
    [[nodiscard]] const char *simd() const { return kernels_.name; }
    [[nodiscard]] bool has_tree() const { return tree_.has_value(); }

  private:
    struct Call;

    [[nodiscard]] ProjectionView projection(std::size_t rows) const;
    [[nodiscard]] std::size_t tile_of(std::size_t tokens) const;
    [[nodiscard]] bool use_search(Method method) const;
    void check(Method method, Candidates out) const;
    void score_tile(const float *hidden, std::size_t tokens, float *out) const;
    [[nodiscard]] bool worth_searching(const Call &call) const;
    void note(std::size_t tried, std::size_t failed) const;
    void route_tile(Call &call, const float *points, std::size_t tokens, Candidates out) const;
    void scan(Call &call, const float *points, std::size_t tokens, Candidates out) const;
    void search(Call &call, const float *points, std::size_t tokens, Candidates out) const;

    std::size_t hidden_, rank_, experts_;
    bool common_;
    ChoiceView choice_;
    const Kernels &kernels_;
    std::shared_ptr<Executor> executor_;
    ExpertBlocks blocks_;
    std::optional<WideTree> tree_;
    mutable std::atomic<std::uint32_t> tried_{0}, failed_{0}, skipped_{0}; ///< recent searches
    Aligned<float> mean_;                                                  ///< [D rounded up]
    Aligned<float> directions_; ///< [R + 1, D rounded up], the last row is the common mode
};

} // namespace spectral::cpu
