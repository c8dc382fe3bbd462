// Reads attributes and tensors of a BvhRoute node and runs its tokens on ONNX Runtime's threads.
#include "route_kernel.h"

#include <bit>
#include <exception>
#include <string>

#include "half.h"
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

/// What a parallel loop's tasks share; the first error is kept.
struct Loop {
    const cpu::RouteStep &step;
    const void *states;
    Element element;
    std::size_t tokens;
    std::int32_t *ids;
    void *weights;
    bool float_weights;
    std::mutex mutex;
    std::exception_ptr error;

    void run(std::size_t task);
};

void Loop::run(std::size_t task) {
    const RouteSpec &spec = step.spec();
    const auto width = static_cast<std::size_t>(spec.hidden);
    const auto top_k = static_cast<std::size_t>(spec.rule.top_k);
    const std::size_t begin = task * cpu::RouteStep::tile;
    const std::size_t count = std::min(cpu::RouteStep::tile, tokens - begin);
    if (element == Element::f32) {
        step.run(static_cast<const float *>(states) + begin * width, count, ids + begin * top_k,
                 static_cast<float *>(weights) + begin * top_k);
        return;
    }
    thread_local std::vector<float> widened, wide_weights;
    widened.resize(count * width);
    wide_weights.resize(count * top_k);
    const auto *halves = static_cast<const std::uint16_t *>(states) + begin * width;
    widen(halves, element, widened.size(), widened.data());
    step.run(widened.data(), count, ids + begin * top_k, wide_weights.data());
    if (float_weights) {
        std::copy(wide_weights.begin(), wide_weights.end(),
                  static_cast<float *>(weights) + begin * top_k);
    } else {
        narrow(wide_weights.data(), element, wide_weights.size(),
               static_cast<std::uint16_t *>(weights) + begin * top_k);
    }
}

void run_task(void *shared, std::size_t task) {
    auto &loop = *static_cast<Loop *>(shared);
    try {
        loop.run(task);
    } catch (...) {
        const std::lock_guard lock(loop.mutex);
        loop.error = std::current_exception();
    }
}

} // namespace

void Api::check(Status *status, const char *what) const {
    if (status != nullptr) {
        release(Slot::ReleaseStatus, status);
        throw UserError(what, "an answer of ONNX Runtime", "an error status");
    }
}

RouteKernel::RouteKernel(Api api, const KernelInfo *info) : api_(api) {
    read_attributes(info);
    check_spec(spec_);
}

/// Absent attributes keep their defaults.
void RouteKernel::read_attributes(const KernelInfo *info) {
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

std::string RouteKernel::text(const KernelInfo *info, const char *name) const {
    char buffer[256] = {};
    std::size_t size = sizeof(buffer);
    api_.check(api_.call(Slot::KernelInfoGetAttribute_string, info, name,
                         static_cast<char *>(buffer), &size),
               name);
    return buffer;
}

RouteKernel::Tensor RouteKernel::described(const Value *value) const {
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

RouteKernel::Tensor RouteKernel::input(const KernelContext *context, std::size_t index) const {
    const Value *value = nullptr;
    api_.check(api_.call(Slot::KernelContext_GetInput, context, index, &value), "input");
    return described(value);
}

void *RouteKernel::output(KernelContext *context, std::size_t index, std::int64_t tokens) const {
    const std::int64_t shape[] = {tokens, spec_.rule.top_k};
    Value *value = nullptr;
    void *data = nullptr;
    api_.check(api_.call(Slot::KernelContext_GetOutput, context, index,
                         static_cast<const std::int64_t *>(shape), std::size_t{2}, &value),
               "output");
    api_.check(api_.call(Slot::GetTensorMutableData, value, &data), "output");
    return data;
}

/// An array of the node as float32. Throws UserError when it has another size.
std::vector<float> RouteKernel::floats(const KernelContext *context, Input index,
                                       std::size_t count) const {
    const Tensor tensor = input(context, index);
    std::size_t size = 1;
    for (const std::int64_t length : tensor.shape) {
        size *= static_cast<std::size_t>(length);
    }
    if (size != count) {
        throw UserError("BvhRoute input " + std::to_string(index),
                        std::to_string(count) + " numbers", std::to_string(size),
                        "export the model again");
    }
    if (tensor.element == Element::f32) {
        const auto *values = static_cast<const float *>(tensor.data);
        return {values, values + count};
    }
    std::vector<float> values(count);
    widen(static_cast<const std::uint16_t *>(tensor.data), tensor.element, count, values.data());
    return values;
}

std::shared_ptr<const cpu::RouteStep> RouteKernel::step(const KernelContext *context) {
    const Tensor key = input(context, spec_.exact() ? gate_weight : projection);
    const std::lock_guard lock(mutex_);
    if (step_ && key.data == made_from_) {
        return step_;
    }
    const auto experts = static_cast<std::size_t>(spec_.rule.experts);
    const auto width = static_cast<std::size_t>(spec_.hidden);
    const auto rows = static_cast<std::size_t>(spec_.rows());
    const auto read = [&](bool used, Input index, std::size_t count) {
        return used ? floats(context, index, count) : std::vector<float>{};
    };
    const bool geometric = spec_.geometric();
    const auto mean_ = read(geometric, mean, width);
    const auto projection_ = read(geometric, projection, rows * width);
    const auto directions_ = read(geometric, directions, experts * rows);
    const auto beta_ = read(geometric, beta, experts);
    const auto spread_ = read(spec_.mode == RouteMode::prefilter, spread, experts);
    const auto weight_ = read(spec_.exact(), gate_weight, experts * width);
    const auto bias_ = read(spec_.exact() && spec_.gate_bias != 0, gate_bias, experts);
    const auto choice_ = read(spec_.choice_bias != 0, choice_bias, experts);
    const RouteArrays arrays{mean_.data(), projection_.data(), directions_.data(),
                             beta_.data(), spread_.data(),     weight_.data(),
                             bias_.data(), choice_.data()};
    step_ = std::make_shared<const cpu::RouteStep>(spec_, arrays);
    made_from_ = key.data;
    return step_;
}

void RouteKernel::compute(KernelContext *context) {
    const std::shared_ptr<const cpu::RouteStep> ready = step(context);
    const Tensor states = input(context, hidden);
    if (states.shape.size() != 2 || states.shape[1] != spec_.hidden) {
        throw UserError("BvhRoute.hidden", "shape [T, " + std::to_string(spec_.hidden) + "]",
                        std::to_string(states.shape.size()) + " dimensions, the last of " +
                            std::to_string(states.shape.empty() ? 0 : states.shape.back()));
    }
    route(*ready, context, states);
}

void RouteKernel::route(const cpu::RouteStep &step, KernelContext *context,
                        const Tensor &states) const {
    const std::int64_t tokens = states.shape[0];
    auto *ids = static_cast<std::int32_t *>(output(context, 0, tokens));
    void *weights = output(context, 1, tokens);
    Loop loop{step, states.data, states.element, static_cast<std::size_t>(tokens),
              ids,  weights,     float_weights_, {},
              {}};
    const std::size_t tasks = (loop.tokens + cpu::RouteStep::tile - 1) / cpu::RouteStep::tile;
    if (tasks == 1) {
        run_task(&loop, 0);
    } else if (tasks > 1) {
        api_.check(api_.call(Slot::KernelContext_ParallelFor,
                             static_cast<const KernelContext *>(context), &run_task, tasks,
                             std::size_t{0}, static_cast<void *>(&loop)),
                   "KernelContext_ParallelFor");
    }
    if (loop.error) {
        std::rethrow_exception(loop.error);
    }
}

} // namespace spectral::ort
