// The plugin's life: capabilities, shapes and types while an engine is built, launches while it
// runs.
#include "route_plugin.h"

#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include "device_step.h"
#include "spectral/error.h"

namespace spectral::trt {
namespace {

using cuda::Scalar;

thread_local std::string error_of_thread;

/// Nothing may be thrown across TensorRT's boundary: a failure is a status and a text.
template <class Body> std::int32_t guarded(Body body) noexcept {
    try {
        body();
        return 0;
    } catch (const std::exception &error) {
        error_of_thread = error.what();
        return 1;
    }
}

Scalar scalar_of(Type type) {
    return type == Type::f16 ? Scalar::f16 : type == Type::bf16 ? Scalar::bf16 : Scalar::f32;
}

bool is_float(Type type) {
    return type == Type::f32 || type == Type::f16 || type == Type::bf16;
}

const float *floats(const void *data) {
    return static_cast<const float *>(data);
}

void require_states(const RouteSpec &spec, const Dims &dims) {
    if (dims.count != 2 || dims.lengths[1] != spec.hidden) {
        throw UserError("BvhRoute.hidden", "[T, " + std::to_string(spec.hidden) + "]",
                        std::to_string(dims.count) + " dimensions");
    }
}

} // namespace

const std::string &RoutePlugin::last_error() {
    return error_of_thread;
}

RoutePlugin::RoutePlugin(NodeAttributes attributes) : node_(std::move(attributes)) {
    serial_float_weights_ = node_.float_weights ? 1 : 0;
    serial_ = {Field{"serial_format", &serial_format_, FieldType::i32, 1},
               Field{"spec", &node_.spec, FieldType::blob, sizeof(RouteSpec)},
               Field{"digest", node_.digest.data(), FieldType::text,
                     static_cast<std::int32_t>(node_.digest.size())},
               Field{"float_weights", &serial_float_weights_, FieldType::i32, 1}};
    serial_fields_ = {static_cast<std::int32_t>(serial_.size()), serial_.data()};
}

CapabilityBase *RoutePlugin::getCapabilityInterface(Capability type) noexcept {
    // Each through its own base: a detour over void* would lose the offset.
    switch (type) {
    case Capability::core:
        return static_cast<PluginCore *>(&core_);
    case Capability::build:
        return static_cast<PluginBuild *>(&build_);
    case Capability::runtime:
        return static_cast<PluginRuntime *>(&runtime_);
    }
    return nullptr;
}

RoutePlugin *RoutePlugin::copied() const {
    auto *copy = new RoutePlugin(node_);
    copy->tactic_ = tactic_;
    return copy;
}

PluginV3 *RoutePlugin::clone() noexcept {
    RoutePlugin *copy = nullptr;
    guarded([&] { copy = copied(); });
    return copy;
}

std::int32_t RoutePlugin::BuildPart::configurePlugin(const DynamicDesc *in, std::int32_t inputs,
                                                     const DynamicDesc *,
                                                     std::int32_t outputs) noexcept {
    return guarded([&] {
        if (inputs != input_count || outputs != output_count) {
            throw UserError("BvhRoute", std::to_string(input_count) + " inputs and 2 outputs",
                            std::to_string(inputs) + " and " + std::to_string(outputs));
        }
        require_states(node_.spec, in[in_hidden].desc.dims);
    });
}

std::int32_t RoutePlugin::BuildPart::getOutputDataTypes(Type *out, std::int32_t outputs,
                                                        const Type *in,
                                                        std::int32_t) const noexcept {
    if (outputs != output_count || !is_float(in[in_hidden])) {
        return 1;
    }
    out[0] = Type::i32;
    out[1] = node_.float_weights ? Type::f32 : in[in_hidden];
    return 0;
}

std::int32_t RoutePlugin::BuildPart::getOutputShapes(const DimsExprs *in, std::int32_t inputs,
                                                     const DimsExprs *, std::int32_t,
                                                     DimsExprs *out, std::int32_t outputs,
                                                     ExprBuilder &builder) noexcept {
    if (inputs != input_count || outputs != output_count || in[in_hidden].count != 2) {
        return 1;
    }
    for (std::int32_t i = 0; i < output_count; ++i) {
        out[i].count = 2;
        out[i].lengths[0] = in[in_hidden].lengths[0];
        out[i].lengths[1] = builder.implementation->constant(node_.spec.rule.top_k);
    }
    return 0;
}

bool RoutePlugin::BuildPart::supportsFormatCombination(std::int32_t position,
                                                       const DynamicDesc *tensors, std::int32_t,
                                                       std::int32_t) noexcept {
    const TensorDesc &mine = tensors[position].desc;
    if (mine.format != Format::linear) {
        return false;
    }
    const Type states = tensors[in_hidden].desc.type;
    switch (position) {
    case in_hidden:
        return is_float(mine.type);
    case in_gate_weight:
    case in_gate_bias:
        // A layer without these has float32 placeholders.
        return mine.type == states || (!node_.spec.exact() && mine.type == Type::f32) ||
               (position == in_gate_bias && node_.spec.gate_bias == 0 && mine.type == Type::f32);
    case in_bvh_first:
    case in_bvh_count:
    case in_bvh_experts:
    case input_count: // the ids
        return mine.type == Type::i32;
    case input_count + 1: // the weights
        return mine.type == (node_.float_weights ? Type::f32 : states);
    default:
        return mine.type == Type::f32;
    }
}

std::size_t RoutePlugin::BuildPart::getWorkspaceSize(const DynamicDesc *in, std::int32_t,
                                                     const DynamicDesc *,
                                                     std::int32_t) const noexcept {
    const std::int64_t tokens = in[in_hidden].most.lengths[0];
    return cuda::step_workspace(node_.spec, tokens) + rays_workspace(node_.spec, tokens);
}

std::int32_t RoutePlugin::BuildPart::getValidTactics(std::int32_t *tactics,
                                                     std::int32_t count) noexcept {
    if (count != getNbTactics()) {
        return 1;
    }
    tactics[0] = cuda_tactic;
    if (count > 1) {
        tactics[1] = optix_tactic;
    }
    return 0;
}

/// TensorRT times both and keeps the faster; asking for OptiX opens the driver.
std::int32_t RoutePlugin::BuildPart::getNbTactics() noexcept {
    std::int32_t count = 1;
    guarded([&] { count = rays_fit(node_.spec) && rays_present() ? 2 : 1; });
    return count;
}

std::int32_t RoutePlugin::RuntimePart::setTactic(std::int32_t tactic) noexcept {
    owner_.tactic_ = tactic;
    return tactic == cuda_tactic || tactic == optix_tactic || tactic == 0 ? 0 : 1;
}

std::int32_t RoutePlugin::RuntimePart::onShapeChange(const TensorDesc *in, std::int32_t inputs,
                                                     const TensorDesc *, std::int32_t) noexcept {
    return guarded([&] {
        if (inputs != input_count) {
            throw UserError("BvhRoute", std::to_string(input_count) + " inputs",
                            std::to_string(inputs));
        }
        require_states(owner_.node_.spec, in[in_hidden].dims);
    });
}

std::int32_t RoutePlugin::RuntimePart::enqueue(const TensorDesc *in, const TensorDesc *out,
                                               const void *const *inputs, void *const *outputs,
                                               void *workspace, void *stream) noexcept {
    return guarded([&] {
        cuda::StepArguments a{};
        a.spec = owner_.node_.spec;
        a.arrays = {floats(inputs[in_mean]),       floats(inputs[in_projection]),
                    floats(inputs[in_directions]), floats(inputs[in_beta]),
                    floats(inputs[in_spread]),     floats(inputs[in_gate_weight]),
                    floats(inputs[in_gate_bias]),  floats(inputs[in_choice_bias])};
        a.hidden = inputs[in_hidden];
        a.ids = static_cast<std::int32_t *>(outputs[0]);
        a.weights = outputs[1];
        a.workspace = static_cast<float *>(workspace);
        a.tokens = static_cast<std::int32_t>(in[in_hidden].dims.lengths[0]);
        a.scalar = scalar_of(in[in_hidden].type);
        a.weight_scalar = scalar_of(out[1].type);
        if (a.tokens == 0) {
            return; // a grid of no blocks would be an error
        }
        // Inside a capture, or on a machine without OptiX, the kernel finds the candidates itself.
        if (owner_.tactic_ == optix_tactic) {
            const std::size_t used = cuda::step_workspace(a.spec, a.tokens);
            auto *found = reinterpret_cast<std::int32_t *>(static_cast<char *>(workspace) + used);
            a.candidates = owner_.rays_.run(a, found, stream) ? found : nullptr;
        }
        cuda::launch_step(a, stream);
    });
}

/// A clone of its own for every execution context, its kernel loaded: enqueue may then be captured.
PluginV3 *RoutePlugin::RuntimePart::attachToContext(void *) noexcept {
    RoutePlugin *copy = nullptr;
    guarded([&] {
        const std::string reason = cuda::step_absent();
        if (!reason.empty()) {
            error_of_thread =
                reason; // enqueue will say it again; without a GPU nothing else can be done
        }
        copy = owner_.copied();
    });
    return copy;
}

const Fields *RoutePlugin::RuntimePart::getFieldsToSerialize() noexcept {
    return &owner_.serial_fields_;
}

} // namespace spectral::trt
