// Candidates of a prefilter step by rays: the OptiX tactic, around the CUDA tactic's kernel.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/step_arguments.h"

namespace spectral::trt {

inline constexpr std::int32_t cuda_tactic = 1; ///< zero means "none" to TensorRT
inline constexpr std::int32_t optix_tactic = 2;

/// Whether rays can find the candidates of this step: a prefilter of up to 32 that ranks each
/// expert alone.
bool rays_fit(const RouteSpec &spec);

/// Whether this build and this machine have OptiX.
bool rays_present();

/// Bytes of workspace for the candidates of that many tokens; zero where rays do not fit.
std::size_t rays_workspace(const RouteSpec &spec, std::int64_t tokens);

/// The acceleration structures of one execution context.
class RayCandidates {
  public:
    RayCandidates();
    ~RayCandidates();
    RayCandidates(const RayCandidates &) = delete;
    RayCandidates &operator=(const RayCandidates &) = delete;

    /// Enqueues the search; `out` [T, C] is device memory. The first call, and one with arrays
    /// elsewhere, copies the geometry back, builds and waits: TensorRT gives constants to enqueue
    /// alone, and wants one ordinary enqueue before any capture. Returns false, having done
    /// nothing, where rays do not fit, are absent, or the stream is being captured. Throws
    /// UserError when the driver refuses.
    bool run(const cuda::StepArguments &step, std::int32_t *out, void *stream);

  private:
    struct Built;
    std::unique_ptr<Built> built_;
};

} // namespace spectral::trt
