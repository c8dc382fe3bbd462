// Checks a gate once and launches it per call.
#include "cuda_gate.h"

#include <string>

#include "kernel_module.h"
#include "spectral/error.h"
#include "thresholds.h"

namespace spectral::cuda {
namespace {

[[noreturn]] void refuse(const char *what, const std::string &expected, const std::string &found) {
    throw UserError(what, expected, found, "use the torch path for this layer");
}

void check_aligned(const char *what, Address address, std::int64_t stride) {
    if (address % 16 != 0 || stride % 8 != 0) {
        refuse(what, "16-byte aligned rows", "a row stride of " + std::to_string(stride));
    }
}

} // namespace

void check_rule(const Rule &rule) {
    if (rule.experts < 1 || rule.experts > max_row) {
        refuse("rule.experts", "1 to " + std::to_string(max_row), std::to_string(rule.experts));
    }
    if (rule.top_k < 1 || rule.top_k > max_list || rule.top_k > rule.experts) {
        refuse("rule.top_k", "1 to 32 and at most E", std::to_string(rule.top_k));
    }
    if (rule.groups < 1 || rule.groups > max_groups || rule.experts % rule.groups != 0) {
        refuse("rule.groups", "1 to 32 groups that divide the experts",
               std::to_string(rule.groups));
    }
}

CudaGate::CudaGate(Device device, const Rule &rule, const GateArrays &arrays)
    : device_(device), rule_(rule), arrays_(arrays), needs_{} {
    check_rule(rule);
    const CurrentContext context(device);
    facts_ = facts_of(device);
    if (arrays.dtype != dtype_f32) {
        check_aligned("gate.weight", arrays.weight, arrays.hidden);
    }
    if (arrays.planes != 1 && arrays.dtype != dtype_bf16) {
        refuse("gate.planes", "one plane unless bfloat16", std::to_string(arrays.planes));
    }
    if (static_cast<std::int64_t>(arrays.hidden) * rule.experts * arrays.planes >= 1LL << 31) {
        refuse("gate.weight", "less than 4 GiB", std::to_string(arrays.hidden) + " columns");
    }
    const bool quick = // short_rule of kernels/select.cuh: nothing but registers
        rule.groups == 1 && (rule.score != score_softmax || arrays.choice_bias == 0);
    needs_ = {(arrays.planes - 1) * rule.experts + 32 * lane_width(rule.experts),
              quick ? 0 : warps * (rule.experts + max_groups) * 4};
    for (const int tokens : {1, 128, 1 << 20}) { // loaded, so that a capture finds them
        kernel(plan_gate(work(tokens), arrays.dtype, needs_, {}).shape->kernel, context.handle());
    }
    kernel("spectral_gate_pick", context.handle());
}

Workload CudaGate::work(int tokens) const {
    return {tokens, rule_.experts * arrays_.planes, arrays_.hidden, facts_.multiprocessors,
            facts_.capability >= 90};
}

Function CudaGate::kernel(const char *shape, Context context) const {
    std::string name(shape);
    name += '_';
    name += std::to_string(lane_width(rule_.experts));
    return kernel_named(name, context);
}

GateArguments CudaGate::arguments(const GateCall &call) const {
    GateArguments a{};
    a.product.x = reinterpret_cast<const void *>(call.x);
    a.product.stride = call.stride;
    a.product.tokens = call.tokens;
    a.product.outputs = rule_.experts;
    a.product.x_dtype = call.x_dtype;
    a.rule = rule_;
    a.rule.choice_bias = reinterpret_cast<const float *>(arrays_.choice_bias);
    a.output = call.output;
    a.bias = reinterpret_cast<const float *>(arrays_.bias);
    return a;
}

void CudaGate::run(const GateCall &call) const {
    if (call.tokens == 0) {
        return;
    }
    if (arrays_.dtype != dtype_f32) {
        check_aligned("gate input", call.x, call.stride);
        if (call.x_dtype != arrays_.dtype) {
            refuse("gate input", "the dtype of the weights", "another one");
        }
    }
    const CurrentContext context(device_);
    GateArguments a = arguments(call);
    a.product.weight = reinterpret_cast<const void *>(arrays_.weight);
    a.product.hidden = arrays_.hidden;
    a.product.planes = arrays_.planes;
    const Plan plan = plan_gate(work(call.tokens), arrays_.dtype, needs_, call.plan);
    const Grid grid = apply(plan, needs_, a.product);
    launch(kernel(plan.shape->kernel, context.handle()),
           {grid.tiles, grid.cluster, grid.shared_bytes, call.stream, may_overlap(facts_)}, &a);
}

void CudaGate::pick(const GateCall &call) const {
    if (call.tokens == 0) {
        return;
    }
    const CurrentContext context(device_);
    GateArguments a = arguments(call);
    const int shared = warps * (2 * rule_.experts + max_groups) * 4;
    const int blocks = (call.tokens + warps - 1) / warps;
    launch(kernel("spectral_gate_pick", context.handle()),
           {static_cast<std::uint32_t>(blocks), 1, static_cast<std::uint32_t>(shared), call.stream,
            may_overlap(facts_)},
           &a);
}

bool CudaGate::fuses(int tokens) const {
    return one_launch_pays(rule_.experts, tokens);
}

} // namespace spectral::cuda
