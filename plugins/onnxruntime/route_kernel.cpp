// Runs the tokens of a BvhRoute node on ONNX Runtime's threads.
#include "route_kernel.h"

#include <exception>
#include <string>

#include "half.h"

namespace spectral::ort {
namespace {

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

/// An array of the node as float32.
std::vector<float> RouteKernel::floats(const KernelContext *context, Input index,
                                       std::size_t count) const {
    const Tensor tensor = node_.input(context, index, count);
    if (tensor.element == Element::f32) {
        const auto *values = static_cast<const float *>(tensor.data);
        return {values, values + count};
    }
    std::vector<float> values(count);
    widen(static_cast<const std::uint16_t *>(tensor.data), tensor.element, count, values.data());
    return values;
}

std::shared_ptr<const cpu::RouteStep> RouteKernel::step(const KernelContext *context) {
    const RouteSpec &spec = node_.spec();
    const Tensor key =
        node_.input(context, static_cast<std::size_t>(spec.exact() ? gate_weight : projection));
    const std::lock_guard lock(mutex_);
    if (step_ && key.data == made_from_) {
        return step_;
    }
    const auto experts = static_cast<std::size_t>(spec.rule.experts);
    const auto width = static_cast<std::size_t>(spec.hidden);
    const auto rows = static_cast<std::size_t>(spec.rows());
    const auto read = [&](bool used, Input index, std::size_t count) {
        return used ? floats(context, index, count) : std::vector<float>{};
    };
    const bool geometric = spec.geometric();
    const auto mean_ = read(geometric, mean, width);
    const auto projection_ = read(geometric, projection, rows * width);
    const auto directions_ = read(geometric, directions, experts * rows);
    const auto beta_ = read(geometric, beta, experts);
    const auto spread_ = read(spec.mode == RouteMode::prefilter, spread, experts);
    const auto weight_ = read(spec.exact(), gate_weight, experts * width);
    const auto bias_ = read(spec.exact() && spec.gate_bias != 0, gate_bias, experts);
    const auto choice_ = read(spec.choice_bias != 0, choice_bias, experts);
    const RouteArrays arrays{mean_.data(), projection_.data(), directions_.data(),
                             beta_.data(), spread_.data(),     weight_.data(),
                             bias_.data(), choice_.data()};
    step_ = std::make_shared<const cpu::RouteStep>(spec, arrays);
    made_from_ = key.data;
    return step_;
}

void RouteKernel::compute(KernelContext *context) {
    const std::shared_ptr<const cpu::RouteStep> ready = step(context);
    route(*ready, context, node_.states(context));
}

void RouteKernel::route(const cpu::RouteStep &step, KernelContext *context,
                        const Tensor &states) const {
    const std::int64_t tokens = states.shape[0];
    auto *ids = static_cast<std::int32_t *>(node_.output(context, 0, tokens));
    void *weights = node_.output(context, 1, tokens);
    Loop loop{step, states.data, states.element,        static_cast<std::size_t>(tokens),
              ids,  weights,     node_.float_weights(), {},
              {}};
    const std::size_t tasks = (loop.tokens + cpu::RouteStep::tile - 1) / cpu::RouteStep::tile;
    if (tasks == 1) {
        run_task(&loop, 0);
    } else if (tasks > 1) {
        api().check(api().call(Slot::KernelContext_ParallelFor,
                               static_cast<const KernelContext *>(context), &run_task, tasks,
                               std::size_t{0}, static_cast<void *>(&loop)),
                    "KernelContext_ParallelFor");
    }
    if (loop.error) {
        std::rethrow_exception(loop.error);
    }
}

} // namespace spectral::ort
