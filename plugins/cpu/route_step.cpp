// Runs tiles of tokens: one pass over the gate's rows where many are needed, single rows where few.
#include "route_step.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "dispatch.h"
#include "gate_select.h"

namespace spectral::cpu {
namespace {

/// A row alone runs at about an eighth of the speed of a row in a full pass.
inline constexpr std::size_t single_row_cost = 8;

std::size_t round_up(std::size_t n) {
    return (n + lanes - 1) / lanes * lanes;
}

/// The geometry as the router wants it: centres are half the linear coefficients.
struct RouterArrays {
    std::vector<float> centres, colour;
    Geometry geometry;

    RouterArrays(const RouteSpec &spec, const RouteArrays &arrays) {
        const auto levels = static_cast<std::size_t>(spec.levels);
        const auto colours = static_cast<std::size_t>(spec.colours);
        const auto experts = static_cast<std::size_t>(spec.rule.experts);
        const auto rows = static_cast<std::size_t>(spec.rows());
        centres.resize(levels * experts * 3);
        colour.resize(experts * colours);
        for (std::size_t e = 0; e < experts; ++e) {
            const float *row = arrays.directions + e * rows;
            for (std::size_t i = 0; i < 3 * levels; ++i) {
                centres[(i / 3 * experts + e) * 3 + i % 3] = 0.5F * row[i];
            }
            std::copy_n(row + 3 * levels, colours, colour.data() + e * colours);
        }
        const std::size_t rank = 3 * levels + colours;
        geometry.hidden = static_cast<std::size_t>(spec.hidden);
        geometry.experts = experts;
        geometry.levels = levels;
        geometry.colours = colours;
        geometry.mean = arrays.mean;
        geometry.projection = arrays.projection;
        geometry.centres = centres.data();
        geometry.colour = colour.data();
        geometry.beta = arrays.beta;
        geometry.common = spec.centred != 0 ? arrays.projection + rank * geometry.hidden : nullptr;
    }
};

Aligned<float> copied(const float *values, std::size_t count, bool present) {
    return present ? Aligned<float>(values, values + count) : Aligned<float>();
}

} // namespace

/// Memory of one thread, kept between calls.
struct RouteStep::Scratch {
    Aligned<float> sums, part, logits, exact, wide;
    std::vector<std::uint8_t> allowed;
    std::vector<std::uint32_t> keys;
    SelectScratch select;

    static Scratch &mine() {
        thread_local Scratch scratch;
        return scratch;
    }
};

RouteStep::RouteStep(const RouteSpec &spec, const RouteArrays &arrays)
    : spec_(spec), hidden_(static_cast<std::size_t>(spec.hidden)),
      experts_(static_cast<std::size_t>(spec.rule.experts)), kernels_(kernels_for("auto")),
      gate_bias_(copied(arrays.gate_bias, experts_, spec.exact() && spec.gate_bias != 0)),
      choice_bias_(copied(arrays.choice_bias, experts_, spec.choice_bias != 0)),
      spread_(copied(arrays.spread, experts_, spec.mode == RouteMode::prefilter)) {
    check_spec(spec);
    if (spec.geometric()) {
        const RouterArrays views(spec, arrays);
        RouterConfig config;
        config.threads = 1;
        geometry_ = std::make_unique<CpuRouter>(views.geometry, nullptr, config);
    }
    if (spec.exact()) {
        store_gate(arrays.gate_weight);
    }
}

/// Whether every token meets every row of the gate.
bool RouteStep::all_rows() const {
    return spec_.mode == RouteMode::gate ||
           static_cast<std::size_t>(spec_.candidates) * single_row_cost >= experts_;
}

void RouteStep::store_gate(const float *weight) {
    const std::size_t stride = round_up(hidden_);
    zeros_.assign(stride, 0.0F);
    if (!all_rows()) {
        gate_.assign(experts_ * stride, 0.0F);
        for (std::size_t e = 0; e < experts_; ++e) {
            std::copy_n(weight + e * hidden_, hidden_, gate_.data() + e * stride);
        }
        return;
    }
    gate_.assign(round_up(experts_) * hidden_, 0.0F);
    for (std::size_t e = 0; e < experts_; ++e) {
        float *lane = gate_.data() + e / lanes * hidden_ * lanes + e % lanes;
        for (std::size_t d = 0; d < hidden_; ++d) {
            lane[d * lanes] = weight[e * hidden_ + d];
        }
    }
}

void RouteStep::run(const float *hidden, std::size_t tokens, std::int32_t *ids,
                    float *weights) const {
    Scratch &scratch = Scratch::mine();
    const auto top_k = static_cast<std::size_t>(spec_.rule.top_k);
    const float *bias = choice_bias_.empty() ? nullptr : choice_bias_.data();
    scratch.allowed.resize(experts_);
    for (std::size_t begin = 0; begin < tokens; begin += tile) {
        const std::size_t count = std::min(tile, tokens - begin);
        const float *states = hidden + begin * hidden_;
        logits(states, count, scratch);
        for (std::size_t t = 0; t < count; ++t) {
            const bool prefilter = spec_.mode == RouteMode::prefilter;
            if (prefilter) {
                mix(states, t, scratch);
            }
            select_experts(spec_.rule, scratch.logits.data() + t * experts_, bias,
                           prefilter ? scratch.allowed.data() : nullptr, scratch.select,
                           ids + (begin + t) * top_k, weights + (begin + t) * top_k);
        }
    }
}

/// Geometric scores or the gate's logits [T, E]; in `prefilter` both, where all rows are worth it.
void RouteStep::logits(const float *hidden, std::size_t tokens, Scratch &scratch) const {
    scratch.logits.resize(tokens * experts_);
    if (spec_.geometric()) {
        geometry_->scores(hidden, tokens, scratch.logits.data());
    } else {
        exact_logits(hidden, tokens, scratch.logits.data(), scratch);
    }
    if (spec_.mode == RouteMode::prefilter && all_rows()) {
        scratch.exact.resize(tokens * experts_);
        exact_logits(hidden, tokens, scratch.exact.data(), scratch);
    } else {
        scratch.exact.clear();
    }
}

void RouteStep::exact_logits(const float *hidden, std::size_t tokens, float *out,
                             Scratch &scratch) const {
    const std::size_t stride = round_up(experts_);
    scratch.part.resize(tokens * stride);
    kernels_.multiply({hidden_, stride / lanes, gate_.data()}, hidden, tokens, scratch.part.data(),
                      stride);
    for (std::size_t t = 0; t < tokens; ++t) {
        const float *row = scratch.part.data() + t * stride;
        float *target = out + t * experts_;
        if (gate_bias_.empty()) {
            std::copy_n(row, experts_, target);
        } else {
            std::transform(row, row + experts_, gate_bias_.data(), target, std::plus<>());
        }
    }
}

void RouteStep::exact_row(const float *hidden, std::size_t expert, Scratch &scratch,
                          float *out) const {
    const std::size_t stride = round_up(hidden_);
    const ProjectionView row{hidden_, stride,        1,
                             stride,  zeros_.data(), gate_.data() + expert * stride};
    scratch.sums.resize(lanes);
    kernels_.project(row, hidden, 1, scratch.sums.data(), out);
    *out += gate_bias_.empty() ? 0.0F : gate_bias_[expert];
}

/// Marks the C experts of highest choice score, each given the benefit of its spread.
void RouteStep::candidates(const float *scores, Scratch &scratch, std::uint8_t *allowed) const {
    scratch.wide.resize(2 * experts_);
    float *widened = scratch.wide.data();
    float *choice = widened + experts_;
    std::transform(scores, scores + experts_, spread_.data(), widened,
                   [](float score, float spread) { return score + spread; });
    // A softmax alone ranks like its logits; the others may saturate, and their ties count.
    const bool plain = spec_.rule.score == GateScore::softmax && spec_.rule.softcap == 0.0F;
    const float *ranked = plain && choice_bias_.empty() ? widened : choice;
    if (ranked == choice) {
        expert_scores(spec_.rule, widened, choice);
    }
    for (std::size_t e = 0; e < experts_ && !choice_bias_.empty(); ++e) {
        choice[e] += choice_bias_[e];
    }
    mark_best(ranked, experts_, static_cast<std::size_t>(spec_.candidates), scratch.keys, allowed);
}

/// The logits the rule sees: exact for candidates, elsewhere the log-normal mean completes a
/// softmax.
void RouteStep::mix(const float *hidden, std::size_t token, Scratch &scratch) const {
    float *row = scratch.logits.data() + token * experts_;
    candidates(row, scratch, scratch.allowed.data());
    std::transform(row, row + experts_, spread_.data(), row,
                   [](float score, float spread) { return score + spread * spread / 2.0F; });
    const float *exact = scratch.exact.empty() ? nullptr : scratch.exact.data() + token * experts_;
    for (std::size_t e = 0; e < experts_; ++e) {
        if (exact != nullptr) {
            row[e] = scratch.allowed[e] != 0 ? exact[e] : row[e];
        } else if (scratch.allowed[e] != 0) {
            exact_row(hidden + token * hidden_, e, scratch, row + e);
        }
    }
}

} // namespace spectral::cpu
