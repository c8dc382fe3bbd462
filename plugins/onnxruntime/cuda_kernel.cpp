// Hands device pointers of the session to one launch.
#include "cuda_kernel.h"

#include <limits>

#include "spectral/error.h"

namespace spectral::ort {
namespace {

cuda::Scalar scalar_of(Element element) {
    return element == Element::f16    ? cuda::Scalar::f16
           : element == Element::bf16 ? cuda::Scalar::bf16
                                      : cuda::Scalar::f32;
}

} // namespace

CudaKernel::CudaKernel(RouteNode node) : Kernel(std::move(node)) {
    cuda::check_step(node_.spec());
    const std::string reason = cuda::step_absent(); // loads the kernel, outside any capture
    if (!reason.empty()) {
        throw UserError("BvhRoute", "a GPU that the CUDA kernel runs on", reason,
                        "do without the CUDA provider, or without register()");
    }
}

void CudaKernel::compute(KernelContext *context) {
    const RouteSpec &spec = node_.spec();
    const auto experts = static_cast<std::size_t>(spec.rule.experts);
    const auto width = static_cast<std::size_t>(spec.hidden);
    const auto rows = static_cast<std::size_t>(spec.rows());
    const auto array = [&](bool used, Input index, std::size_t count) {
        return used ? static_cast<const float *>(node_.input(context, index, count).data) : nullptr;
    };
    const bool geometric = spec.geometric();
    const Tensor states = node_.states(context);
    cuda::StepArguments a{};
    a.spec = spec;
    a.arrays = {array(geometric, mean, width),
                array(geometric, projection, rows * width),
                array(geometric, directions, experts * rows),
                array(geometric, beta, experts),
                array(spec.mode == RouteMode::prefilter, spread, experts),
                array(spec.exact(), gate_weight, experts * width),
                array(spec.exact() && spec.gate_bias != 0, gate_bias, experts),
                array(spec.choice_bias != 0, choice_bias, experts)};
    const std::int64_t tokens = states.shape[0];
    a.hidden = states.data;
    a.ids = static_cast<std::int32_t *>(node_.output(context, 0, tokens));
    a.weights = node_.output(context, 1, tokens);
    a.scalar = scalar_of(states.element);
    a.weight_scalar = node_.float_weights() ? cuda::Scalar::f32 : a.scalar;
    if (tokens == 0) {
        return; // a grid of no blocks would be an error
    }
    if (tokens > std::numeric_limits<std::int32_t>::max()) {
        throw UserError("BvhRoute.hidden", "fewer than 2^31 tokens", std::to_string(tokens));
    }
    a.tokens = static_cast<std::int32_t>(tokens);
    void *stream = nullptr;
    api().check(api().call(Slot::KernelContext_GetGPUComputeStream,
                           static_cast<const KernelContext *>(context), &stream),
                "KernelContext_GetGPUComputeStream");
    a.workspace = workspace(stream, tokens);
    cuda::launch_step(a, stream);
}

float *CudaKernel::workspace(void *stream, std::int64_t tokens) {
    const std::lock_guard lock(mutex_);
    const cuda::CurrentContext context(cuda::current_device());
    cuda::DeviceBuffer &buffer = workspaces_[stream];
    buffer.reserve(cuda::step_workspace(node_.spec(), tokens));
    return reinterpret_cast<float *>(buffer.address());
}

} // namespace spectral::ort
