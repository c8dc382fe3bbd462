// One BvhRoute node of a session on the CUDA provider.
#pragma once

#include <map>
#include <mutex>

#include "device_step.h"
#include "route_node.h"

namespace spectral::ort {

/// Launches the step kernel of plugins/cuda on the provider's stream; arrays stay where the session
/// put them.
class CudaKernel final : public Kernel {
  public:
    /// Throws UserError when the kernel has no room for the step or cannot run on this GPU.
    explicit CudaKernel(RouteNode node);
    void compute(KernelContext *context) override;

  private:
    [[nodiscard]] float *workspace(void *stream, std::int64_t tokens);

    std::mutex mutex_;
    std::map<void *, cuda::DeviceBuffer> workspaces_; ///< one a stream: its launches run in order
};

} // namespace spectral::ort
