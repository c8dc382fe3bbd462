// Scores, choice and weights of one token; twin of spectral_runtime.gate.select_experts.
#include "gate_select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace spectral::cpu {
namespace {

constexpr float lowest = -std::numeric_limits<float>::infinity();

/// Larger key, better rank: the order of the floats, then the smaller id; NaN below everything.
std::uint64_t rank_key(float value, std::size_t id) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value == 0.0F ? 0.0F : value);
    const std::uint32_t ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
    const std::uint64_t high = std::isnan(value) ? 0 : ordered;
    return high << 32U | (0xFFFFFFFFU - static_cast<std::uint32_t>(id));
}

/// e^x to about 1 ulp for x <= 0 (Cephes expf), written so that compilers vectorise it.
float exp_of(float x) {
    x = x < -87.0F ? -87.0F : x;
    const float n = std::floor(1.44269504088896341F * x + 0.5F);
    const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    const auto exponent = static_cast<std::int32_t>(n) + 127;
    return p * std::bit_cast<float>(exponent << 23);
}

/// In place; NaN anywhere makes every share NaN, as in the other implementations.
void softmax(float *values, std::size_t count) {
    float best = lowest;
    bool missing = false;
    for (std::size_t i = 0; i < count; ++i) {
        best = std::max(best, values[i]);
        missing = missing || std::isnan(values[i]);
    }
    for (std::size_t i = 0; i < count; ++i) {
        const float share = values[i] == lowest ? 0.0F : exp_of(values[i] - best);
        values[i] = share;
    }
    float total = 0.0F;
    for (std::size_t i = 0; i < count; ++i) {
        total += values[i];
    }
    const float factor = missing ? std::numeric_limits<float>::quiet_NaN() : 1.0F / total;
    for (std::size_t i = 0; i < count; ++i) {
        values[i] *= factor;
    }
}

float sigmoid(float x) {
    return x >= 0.0F ? 1.0F / (1.0F + std::exp(-x)) : std::exp(x) / (1.0F + std::exp(x));
}

float bent(const GateRule &rule, float logit) {
    const float scaled = logit * rule.logit_scale;
    return rule.softcap == 0.0F ? scaled : std::tanh(scaled / rule.softcap) * rule.softcap;
}

float group_total(const GateRule &rule, const float *choice, std::size_t size) {
    float first = lowest;
    float second = lowest;
    for (std::size_t i = 0; i < size; ++i) {
        const float value = choice[i];
        second = value > first ? first : std::max(second, value);
        first = std::max(first, value);
    }
    return rule.group_top2 != 0 ? first + second : first;
}

void limit_groups(const GateRule &rule, float *choice, std::vector<std::uint64_t> &keys) {
    const auto groups = static_cast<std::size_t>(rule.groups);
    const std::size_t size = static_cast<std::size_t>(rule.experts) / groups;
    std::vector<float> totals(groups);
    for (std::size_t g = 0; g < groups; ++g) {
        totals[g] = group_total(rule, choice + g * size, size);
    }
    std::vector<std::int32_t> order(groups);
    top_ids(totals.data(), groups, groups, keys, order.data());
    const float fill = rule.fill_zero != 0 ? 0.0F : lowest;
    for (auto i = static_cast<std::size_t>(rule.groups_kept); i < groups; ++i) {
        const auto g = static_cast<std::size_t>(order[i]);
        std::fill_n(choice + g * size, size, fill);
    }
}

/// Each pick's share of a softmax over the logits near it, earlier picks left out.
void sparsemixer(const GateRule &rule, const float *logits, SelectScratch &scratch,
                 const std::int32_t *ids, float *weights) {
    const auto experts = static_cast<std::size_t>(rule.experts);
    scratch.left.assign(logits, logits + experts);
    std::vector<float> &near = scratch.choice;
    for (std::int32_t k = 0; k < rule.top_k; ++k) {
        const auto mine = static_cast<std::size_t>(ids[k]);
        const float best = *std::max_element(scratch.left.begin(), scratch.left.end());
        near = scratch.left;
        for (std::size_t e = 0; e < experts; ++e) {
            const float reach = std::max(std::abs(logits[e]), best);
            if (e != mine && (best - logits[e]) / reach > rule.threshold) {
                near[e] = lowest;
            }
        }
        softmax(near.data(), experts);
        weights[k] = near[mine] * rule.scale;
        scratch.left[mine] = lowest;
    }
}

void weigh(const GateRule &rule, const float *scores, const float *logits, const std::int32_t *ids,
           float *weights) {
    const auto count = static_cast<std::size_t>(rule.top_k);
    for (std::size_t k = 0; k < count; ++k) {
        const auto e = static_cast<std::size_t>(ids[k]);
        weights[k] = rule.weight == GateWeight::score ? scores[e] : bent(rule, logits[e]);
        weights[k] = rule.weight == GateWeight::sigmoid ? sigmoid(weights[k]) : weights[k];
    }
    if (rule.weight == GateWeight::softmax) {
        softmax(weights, count);
    }
    float total = 0.0F;
    for (std::size_t k = 0; k < count; ++k) {
        total += weights[k];
    }
    const float divisor =
        rule.normalise != 0 ? std::max(total, rule.normalise_min) + rule.normalise_eps : 1.0F;
    for (std::size_t k = 0; k < count; ++k) {
        weights[k] = weights[k] / divisor * rule.scale;
    }
}

} // namespace

void top_ids(const float *values, std::size_t experts, std::size_t count,
             std::vector<std::uint64_t> &keys, std::int32_t *ids) {
    keys.resize(experts);
    for (std::size_t e = 0; e < experts; ++e) {
        keys[e] = rank_key(values[e], e);
    }
    const auto end = keys.begin() + static_cast<std::ptrdiff_t>(count);
    if (count < experts) {
        std::nth_element(keys.begin(), end - 1, keys.end(), std::greater<>());
    }
    std::sort(keys.begin(), end, std::greater<>());
    for (std::size_t i = 0; i < count; ++i) {
        ids[i] = static_cast<std::int32_t>(0xFFFFFFFFU - static_cast<std::uint32_t>(keys[i]));
    }
}

void expert_scores(const GateRule &rule, const float *logits, float *scores) {
    const auto experts = static_cast<std::size_t>(rule.experts);
    for (std::size_t e = 0; e < experts; ++e) {
        scores[e] = bent(rule, logits[e]);
    }
    switch (rule.score) {
    case GateScore::softmax:
        softmax(scores, experts);
        break;
    case GateScore::sigmoid:
        std::transform(scores, scores + experts, scores, sigmoid);
        break;
    case GateScore::sqrtsoftplus:
        std::transform(scores, scores + experts, scores, [](float x) {
            return std::sqrt(std::max(x, 0.0F) + std::log1p(std::exp(-std::abs(x))));
        });
        break;
    case GateScore::logits:
        break;
    }
}

void select_experts(const GateRule &rule, const float *logits, const float *choice_bias,
                    const std::uint8_t *allowed, SelectScratch &scratch, std::int32_t *ids,
                    float *weights) {
    const auto experts = static_cast<std::size_t>(rule.experts);
    scratch.scores.resize(experts);
    scratch.choice.resize(experts);
    expert_scores(rule, logits, scratch.scores.data());
    for (std::size_t e = 0; e < experts; ++e) {
        const float bias = choice_bias != nullptr ? choice_bias[e] : 0.0F;
        const bool usable = allowed == nullptr || allowed[e] != 0;
        scratch.choice[e] = usable ? scratch.scores[e] + bias : lowest;
    }
    if (rule.groups > 1) {
        limit_groups(rule, scratch.choice.data(), scratch.keys);
    }
    top_ids(scratch.choice.data(), experts, static_cast<std::size_t>(rule.top_k), scratch.keys, ids);
    if (rule.weight == GateWeight::sparsemixer) {
        sparsemixer(rule, logits, scratch, ids, weights);
    } else {
        weigh(rule, scratch.scores.data(), logits, ids, weights);
    }
}

} // namespace spectral::cpu
