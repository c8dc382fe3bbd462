// What a BvhRoute node says in its attributes, and its tensors as a call brings them.
#pragma once

#include <string>
#include <vector>

#include "ort_abi.h"
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

/// One tensor of a call, in the memory of the provider.
struct Tensor {
    const void *data = nullptr;
    Element element = Element::undefined;
    std::vector<std::int64_t> shape;

    [[nodiscard]] std::size_t numbers() const;
};

class RouteNode {
  public:
    /// Throws UserError when the attributes do not fit one another.
    RouteNode(Api api, const KernelInfo *info);

    [[nodiscard]] const Api &api() const { return api_; }
    [[nodiscard]] const RouteSpec &spec() const { return spec_; }
    /// Weights are float32 whatever the hidden states are.
    [[nodiscard]] bool float_weights() const { return float_weights_; }

    /// The hidden states. Throws UserError unless they are [T, D].
    [[nodiscard]] Tensor states(const KernelContext *context) const;
    [[nodiscard]] Tensor input(const KernelContext *context, std::size_t index) const;
    /// The same; throws UserError when it has another number of numbers.
    [[nodiscard]] Tensor input(const KernelContext *context, Input index, std::size_t count) const;
    /// The memory of an output of [T, K].
    [[nodiscard]] void *output(KernelContext *context, std::size_t index,
                               std::int64_t tokens) const;

  private:
    void read_attributes(const KernelInfo *info);
    [[nodiscard]] std::string text(const KernelInfo *info, const char *name) const;
    [[nodiscard]] Tensor described(const Value *value) const;

    Api api_;
    RouteSpec spec_{};
    bool float_weights_ = false;
};

/// One node of a session on one provider.
class Kernel {
  public:
    explicit Kernel(RouteNode node) : node_(std::move(node)) {}
    Kernel(const Kernel &) = delete;
    Kernel &operator=(const Kernel &) = delete;
    virtual ~Kernel() = default;
    virtual void compute(KernelContext *context) = 0;
    [[nodiscard]] const Api &api() const { return node_.api(); }

  protected:
    RouteNode node_;
};

} // namespace spectral::ort
