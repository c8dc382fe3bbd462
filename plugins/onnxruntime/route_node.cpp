// Reads attributes and tensors through ONNX Runtime's table.
#include "route_node.h"

#include "spectral/error.h"

namespace spectral::ort {
namespace {

constexpr const char *int_names[] = {"format",   "candidates", "hidden_size",   "levels",
                                     "colours",  "centred",    "has_gate_bias", "has_choice_bias",
                                     "experts",  "top_k",      "groups",        "groups_kept",
                                     "normalise"};
constexpr const char *float_names[] = {"normalise_eps", "normalise_min", "scale",
                                       "logit_scale",   "softcap",       "threshold"};
constexpr const char *text_names[] = {"mode", "score", "weight", "group_score", "group_fill"};

} // namespace

void Api::check(Status *status, const char *what) const {
    if (status != nullptr) {
        release(Slot::ReleaseStatus, status);
        throw UserError(what, "an answer of ONNX Runtime", "an error status");
    }
}

std::size_t Tensor::numbers() const {
    std::size_t count = 1;
    for (const std::int64_t length : shape) {
        count *= static_cast<std::size_t>(length);
    }
    return count;
}

RouteNode::RouteNode(Api api, const KernelInfo *info) : api_(api) {
    read_attributes(info);
    check_spec(spec_);
}

/// Absent attributes keep their defaults.
void RouteNode::read_attributes(const KernelInfo *info) {
    const auto found = [this](Status *status) {
        if (status != nullptr) {
            api_.release(Slot::ReleaseStatus, status);
        }
        return status == nullptr;
    };
    for (const char *name : int_names) {
        std::int64_t value = 0;
        if (found(api_.call(Slot::KernelInfoGetAttribute_int64, info, name, &value))) {
            set_attribute(spec_, name, value);
        }
    }
    for (const char *name : float_names) {
        float value = 0.0F;
        if (found(api_.call(Slot::KernelInfoGetAttribute_float, info, name, &value))) {
            set_attribute(spec_, name, value);
        }
    }
    for (const char *name : text_names) {
        set_attribute(spec_, name, text(info, name));
    }
    float_weights_ = text(info, "returns") == "float32";
}

std::string RouteNode::text(const KernelInfo *info, const char *name) const {
    char buffer[256] = {};
    std::size_t size = sizeof(buffer);
    api_.check(api_.call(Slot::KernelInfoGetAttribute_string, info, name,
                         static_cast<char *>(buffer), &size),
               name);
    return buffer;
}

Tensor RouteNode::described(const Value *value) const {
    Tensor tensor;
    TensorInfo *info = nullptr;
    std::size_t count = 0;
    void *data = nullptr;
    api_.check(api_.call(Slot::GetTensorTypeAndShape, value, &info), "tensor");
    api_.check(api_.call(Slot::GetTensorElementType, static_cast<const TensorInfo *>(info),
                         &tensor.element),
               "tensor");
    api_.check(api_.call(Slot::GetDimensionsCount, static_cast<const TensorInfo *>(info), &count),
               "tensor");
    tensor.shape.resize(count);
    api_.check(api_.call(Slot::GetDimensions, static_cast<const TensorInfo *>(info),
                         tensor.shape.data(), count),
               "tensor");
    api_.release(Slot::ReleaseTensorTypeAndShapeInfo, info);
    api_.check(api_.call(Slot::GetTensorMutableData, const_cast<Value *>(value), &data), "tensor");
    tensor.data = data;
    return tensor;
}

Tensor RouteNode::input(const KernelContext *context, std::size_t index) const {
    const Value *value = nullptr;
    api_.check(api_.call(Slot::KernelContext_GetInput, context, index, &value), "input");
    return described(value);
}

void *RouteNode::output(KernelContext *context, std::size_t index, std::int64_t tokens) const {
    const std::int64_t shape[] = {tokens, spec_.rule.top_k};
    Value *value = nullptr;
    void *data = nullptr;
    api_.check(api_.call(Slot::KernelContext_GetOutput, context, index,
                         static_cast<const std::int64_t *>(shape), std::size_t{2}, &value),
               "output");
    api_.check(api_.call(Slot::GetTensorMutableData, value, &data), "output");
    return data;
}

Tensor RouteNode::input(const KernelContext *context, Input index, std::size_t count) const {
    Tensor tensor = input(context, static_cast<std::size_t>(index));
    if (tensor.numbers() != count) {
        throw UserError("BvhRoute input " + std::to_string(index),
                        std::to_string(count) + " numbers", std::to_string(tensor.numbers()),
                        "export the model again");
    }
    return tensor;
}

Tensor RouteNode::states(const KernelContext *context) const {
    Tensor states = input(context, static_cast<std::size_t>(hidden));
    if (states.shape.size() != 2 || states.shape[1] != spec_.hidden) {
        throw UserError("BvhRoute.hidden", "shape [T, " + std::to_string(spec_.hidden) + "]",
                        std::to_string(states.shape.size()) + " dimensions, the last of " +
                            std::to_string(states.shape.empty() ? 0 : states.shape.back()));
    }
    return states;
}

} // namespace spectral::ort
