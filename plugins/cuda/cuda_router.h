// The geometric router of one layer on the GPU: device copies of its arrays, one launch a call.
#pragma once

#include <cstdint>
#include <memory>

#include "driver_api.h"
#include "kernels/params.h"
#include "launch_plan.h"
#include "spectral/bvh.h"
#include "spectral/geometry.h"
#include "spectral/router.h"

namespace spectral::cuda {

/// One batch on the device; `stream` is the caller's.
struct RouteCall {
    Address x = 0;
    std::int64_t stride = 0;
    std::int32_t tokens = 0;
    std::int32_t x_dtype = dtype_bf16;
    Output output{};
    Method method = Method::automatic;
    Rerank rerank{}; ///< a gate: candidates get exact logits, the rule chooses among them
    Stream stream = nullptr;
    Plan plan{};
};

class CudaRouter {
  public:
    /// Copies what it needs to the device. Without a topology every call scans. `rule.choice_bias`
    /// is taken from the geometry. Throws UserError for sizes beyond the kernels.
    CudaRouter(Device device, const Geometry &geometry, const Topology *topology, const Rule &rule);

    /// Candidates: `output.count` ids and choice scores a token, by scan or tree; C up to 32. With
    /// `output.weights` also the gate's weights of the best K (softmax over the chosen). Enqueues
    /// one launch: no allocation, no synchronisation, capturable.
    void candidates(const RouteCall &call) const;

    /// The whole gate rule on approximate logits, E up to 1 024: ids and weights of the K chosen.
    void select(const RouteCall &call) const;

    /// Host arrays in and out (through buffers that grow and stay): float32 hidden [T, D].
    void candidates_on_host(const float *hidden, std::size_t tokens, Method method, Candidates out);
    /// All approximate logits [T, E], the common mode included.
    void scores_on_host(const float *hidden, std::size_t tokens, float *out);

    [[nodiscard]] std::size_t hidden() const { return hidden_; }
    [[nodiscard]] std::size_t experts() const { return static_cast<std::size_t>(space_.experts); }
    [[nodiscard]] bool has_tree() const { return tree_.values != nullptr; }
    [[nodiscard]] bool searches(Method method) const;
    [[nodiscard]] Device device() const { return device_; }

  private:
    void upload(const Geometry &geometry, const Topology *topology);
    void upload_projection(const Geometry &geometry);
    void run(const RouteCall &call, bool rows) const;
    [[nodiscard]] RouteArguments arguments(const RouteCall &call, bool matrix) const;

    Device device_;
    std::size_t hidden_;
    Rule rule_;
    DeviceFacts facts_;
    Space space_{};      ///< blocks in the order of the ids
    Space tree_space_{}; ///< blocks in the order of the tree
    Tree tree_{};
    DeviceBuffer planes_, projection_, offset_, choice_bias_, values_, ids_;
    DeviceBuffer tree_blocks_, tree_ids_, tree_values_, tree_children_, reach_;
    DeviceBuffer staging_x_, staging_ids_, staging_scores_;
};

} // namespace spectral::cuda
