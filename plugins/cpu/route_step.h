// A whole routing step on the CPU: geometric scores, candidates, exact logits, the family's rule.
#pragma once

#include <memory>

#include "aligned.h"
#include "cpu_router.h"
#include "spectral/route.h"

namespace spectral::cpu {

/// Copies what it needs of the arrays; `run` may be called from several threads at once.
class RouteStep {
  public:
    /// Throws UserError when spec and arrays do not fit.
    RouteStep(const RouteSpec &spec, const RouteArrays &arrays);

    /// Tokens that one task of a parallel loop should take.
    static constexpr std::size_t tile = 16;

    /// hidden float32 [T, D] to ids [T, K] and weights [T, K], in the calling thread.
    void run(const float *hidden, std::size_t tokens, std::int32_t *ids, float *weights) const;

    [[nodiscard]] const RouteSpec &spec() const { return spec_; }

  private:
    struct Scratch;

    void logits(const float *hidden, std::size_t tokens, Scratch &scratch) const;
    void exact_logits(const float *hidden, std::size_t tokens, float *out, Scratch &scratch) const;
    void exact_row(const float *hidden, std::size_t expert, Scratch &scratch, float *out) const;
    void candidates(const float *scores, Scratch &scratch, std::uint8_t *allowed) const;
    void mix(const float *hidden, std::size_t token, Scratch &scratch) const;
    [[nodiscard]] bool all_rows() const;
    void store_gate(const float *weight);

    RouteSpec spec_;
    std::size_t hidden_, experts_;
    std::unique_ptr<CpuRouter> geometry_; ///< scores only; null in the mode `gate`
    const Kernels &kernels_;
    Aligned<float> zeros_; ///< [D rounded up], the gate takes off no mean
    Aligned<float> gate_;  ///< blocks of 16 experts, or [E, D rounded up] where few rows are asked
    Aligned<float> gate_bias_, choice_bias_, spread_;
};

} // namespace spectral::cpu
