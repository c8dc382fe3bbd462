// One BvhRoute node of a session on the CPU.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "ort_abi.h"
#include "route_step.h"
#include "spectral/route.h"

namespace spectral::ort {

/// Inputs of the node, in order; see spectral_convert.export.routes.INPUTS.
enum Input : std::size_t {
    hidden,
    mean,
    projection,
    directions,
    beta,
    spread,
    gate_weight,
    gate_bias,
    choice_bias,
    bvh_first,
    bvh_count,
    bvh_experts,
    inputs
};

/// Reads the node's attributes once, its arrays on the first call, and again should they move.
class RouteKernel {
  public:
    RouteKernel(Api api, const KernelInfo *info);

    void compute(KernelContext *context);
    [[nodiscard]] const Api &api() const { return api_; }

  private:
    struct Tensor {
        const void *data = nullptr;
        Element element = Element::undefined;
        std::vector<std::int64_t> shape;
    };

    void read_attributes(const KernelInfo *info);
    [[nodiscard]] std::string text(const KernelInfo *info, const char *name) const;
    [[nodiscard]] Tensor input(const KernelContext *context, std::size_t index) const;
    [[nodiscard]] void *output(KernelContext *context, std::size_t index,
                               std::int64_t tokens) const;
    [[nodiscard]] Tensor described(const Value *value) const;
    [[nodiscard]] std::shared_ptr<const cpu::RouteStep> step(const KernelContext *context);
    [[nodiscard]] std::vector<float> floats(const KernelContext *context, Input index,
                                            std::size_t count) const;
    void route(const cpu::RouteStep &step, KernelContext *context, const Tensor &states) const;

    Api api_;
    RouteSpec spec_{};
    bool float_weights_ = false; ///< weights are float32 whatever the hidden states are
    std::mutex mutex_;
    std::shared_ptr<const cpu::RouteStep> step_;
    const void *made_from_ = nullptr;
};

} // namespace spectral::ort
