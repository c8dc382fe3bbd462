// The geometric router of one layer on OptiX, with its CUDA twin for what rays cannot do.
#pragma once

#include <cstdint>

#include "cuda_router.h"
#include "sphere_search.h"

namespace spectral::optix {

/// Host arrays [T, C], and [T, 2] of experts scored and structures traversed (-1: scanned), or
/// null.
struct HostCandidates {
    Candidates candidates;
    std::int32_t *work = nullptr;
};

class OptixRouter {
  public:
    /// Copies what it needs to the device, for both back-ends. Throws UserError for sizes beyond
    /// them.
    OptixRouter(cuda::Device device, const Geometry &geometry, const Topology *topology,
                const cuda::Rule &rule);

    /// Candidates, C up to 32, with scores or weights; weights need C = K. Returns whether rays
    /// were traced: while the stream captures a CUDA graph the CUDA back-end answers, because a
    /// captured optixLaunch does nothing when replayed.
    bool candidates(const SearchCall &call) const;

    /// Host arrays in and out, through buffers that grow and stay: float32 hidden [T, D].
    void candidates_on_host(const float *hidden, std::size_t tokens, const HostCandidates &out);

    /// The CUDA back-end, which also has all approximate logits.
    [[nodiscard]] cuda::CudaRouter &cuda_router() { return cuda_; }
    [[nodiscard]] const SphereSearch &search() const { return search_; }

  private:
    std::int32_t top_k_;
    cuda::CudaRouter cuda_;
    SphereSearch search_;
    cuda::DeviceBuffer staging_x_, staging_ids_, staging_scores_, staging_work_;
};

} // namespace spectral::optix
