// One BvhRoute node of a session on the CPU.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "route_node.h"
#include "route_step.h"

namespace spectral::ort {

/// Reads the node's arrays on the first call, and again should they move.
class RouteKernel final : public Kernel {
  public:
    using Kernel::Kernel;
    void compute(KernelContext *context) override;

  private:
    [[nodiscard]] std::shared_ptr<const cpu::RouteStep> step(const KernelContext *context);
    [[nodiscard]] std::vector<float> floats(const KernelContext *context, Input index,
                                            std::size_t count) const;
    void route(const cpu::RouteStep &step, KernelContext *context, const Tensor &states) const;

    std::mutex mutex_;
    std::shared_ptr<const cpu::RouteStep> step_;
    const void *made_from_ = nullptr;
};

} // namespace spectral::ort
