// Scores, choice and weights of one token; twin of spectral_runtime.gate.select_experts.
#include "gate_select.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "row_loops.h"

namespace spectral::cpu {
namespace {

constexpr float lowest = -std::numeric_limits<float>::infinity();
/// Lists up to this length are kept sorted by insertion.
constexpr std::size_t insertion_limit = 16;

/// Larger key, better rank: the order of the floats, then the smaller id; NaN below everything.
std::uint64_t rank_key(float value, std::size_t id) {
    return std::uint64_t{ordered_bits(value)} << 32U |
           (0xFFFFFFFFU - static_cast<std::uint32_t>(id));
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

void limit_groups(const GateRule &rule, SelectScratch &scratch) {
    const auto groups = static_cast<std::size_t>(rule.groups);
    const std::size_t size = static_cast<std::size_t>(rule.experts) / groups;
    float *choice = scratch.choice.data();
    scratch.left.resize(groups);
    scratch.order.resize(groups);
    for (std::size_t g = 0; g < groups; ++g) {
        scratch.left[g] = group_total(rule, choice + g * size, size);
    }
    top_ids(scratch.left.data(), groups, groups, scratch.keys, scratch.order.data());
    const float fill = rule.fill_zero != 0 ? 0.0F : lowest;
    for (auto i = static_cast<std::size_t>(rule.groups_kept); i < groups; ++i) {
        std::fill_n(choice + static_cast<std::size_t>(scratch.order[i]) * size, size, fill);
    }
}

/// What only the choice sees: the bias, who may be chosen, and the limit of groups.
void adjust_choice(const GateRule &rule, const float *bias, const std::uint8_t *allowed,
                   SelectScratch &scratch) {
    float *choice = scratch.choice.data();
    const std::size_t experts = scratch.choice.size();
    for (std::size_t e = 0; bias != nullptr && e < experts; ++e) {
        choice[e] += bias[e];
    }
    for (std::size_t e = 0; allowed != nullptr && e < experts; ++e) {
        choice[e] = allowed[e] != 0 ? choice[e] : lowest;
    }
    if (rule.groups > 1) {
        limit_groups(rule, scratch);
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
        softmax_row(near.data(), experts);
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
    }
    if (rule.weight == GateWeight::softmax) {
        softmax_row(weights, count);
    } else if (rule.weight == GateWeight::sigmoid) {
        sigmoid_row(weights, count);
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

namespace {

/// The list while it is short: sorted insertion, which a row rarely causes. False when NaN is met.
bool insert_best(const float *values, std::size_t experts, std::size_t count, std::int32_t *ids) {
    std::size_t held = 0;
    for (std::size_t e = 0; e < experts; ++e) {
        if (held == count) {
            e = next_not_below(values, e, experts, values[ids[count - 1]]);
            if (e == experts) {
                break;
            }
        }
        const float value = values[e];
        if (std::isnan(value)) {
            return false;
        }
        if (held == count && !(value > values[ids[count - 1]])) {
            continue;
        }
        std::size_t place = held < count ? held++ : count - 1;
        for (; place > 0 && values[ids[place - 1]] < value; --place) {
            ids[place] = ids[place - 1];
        }
        ids[place] = static_cast<std::int32_t>(e);
    }
    return true;
}

} // namespace

void top_ids(const float *values, std::size_t experts, std::size_t count,
             std::vector<std::uint64_t> &keys, std::int32_t *ids) {
    if (count <= insertion_limit && insert_best(values, experts, count, ids)) {
        return;
    }
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

void mark_best(const float *values, std::size_t experts, std::size_t count,
               std::vector<std::uint32_t> &keys, std::uint8_t *allowed) {
    keys.resize(experts);
    order_row(values, experts, keys.data());
    // Bisection on the ordered bits: the largest key that at least `count` values reach.
    std::uint32_t low = 0;
    for (std::uint32_t bit = 0x80000000U; bit != 0; bit >>= 1U) {
        if (count_reaching(keys.data(), experts, low | bit) >= count) {
            low |= bit;
        }
    }
    std::size_t left = count;
    for (std::size_t e = 0; e < experts; ++e) {
        allowed[e] = keys[e] > low ? 1 : 0;
        left -= allowed[e];
    }
    for (std::size_t e = 0; e < experts && left > 0; ++e) {
        if (keys[e] == low) {
            allowed[e] = 1;
            --left;
        }
    }
}

void expert_scores(const GateRule &rule, const float *logits, float *scores) {
    const auto experts = static_cast<std::size_t>(rule.experts);
    if (rule.softcap == 0.0F && rule.logit_scale == 1.0F) {
        std::copy_n(logits, experts, scores);
    } else if (rule.softcap == 0.0F) { // without tanh the compiler makes vector code of it
        std::transform(logits, logits + experts, scores,
                       [scale = rule.logit_scale](float logit) { return logit * scale; });
    } else {
        std::transform(logits, logits + experts, scores,
                       [&rule](float logit) { return bent(rule, logit); });
    }
    switch (rule.score) {
    case GateScore::softmax:
        softmax_row(scores, experts);
        break;
    case GateScore::sigmoid:
        sigmoid_row(scores, experts);
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
    expert_scores(rule, logits, scratch.scores.data());
    const float *choice = scratch.scores.data();
    if (choice_bias != nullptr || allowed != nullptr || rule.groups > 1) {
        scratch.choice.assign(choice, choice + experts);
        adjust_choice(rule, choice_bias, allowed, scratch);
        choice = scratch.choice.data();
    }
    top_ids(choice, experts, static_cast<std::size_t>(rule.top_k), scratch.keys, ids);
    if (rule.weight == GateWeight::sparsemixer) {
        sparsemixer(rule, logits, scratch, ids, weights);
    } else {
        weigh(rule, scratch.scores.data(), logits, ids, weights);
    }
}

} // namespace spectral::cpu
