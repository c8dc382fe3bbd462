// The family's rule on the logits of one token: which experts, with which weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "spectral/route.h"

namespace spectral::cpu {

/// Memory of one thread, kept between calls.
struct SelectScratch {
    std::vector<float> scores, choice, left;
    std::vector<std::int32_t> order;
    std::vector<std::uint64_t> keys;
};

/// Ids of the `count` largest of `values` [E], descending, ties by smaller id, NaN last.
void top_ids(const float *values, std::size_t experts, std::size_t count,
             std::vector<std::uint64_t> &keys, std::int32_t *ids);

/// Sets allowed[e] to 1 for exactly the experts that top_ids would return, else to 0.
void mark_best(const float *values, std::size_t experts, std::size_t count,
               std::vector<std::uint32_t> &keys, std::uint8_t *allowed);

/// scores [E] of logits [E] by the rule.
void expert_scores(const GateRule &rule, const float *logits, float *scores);

/// Chooses and weighs. `allowed` [E] is null when every expert may be chosen; `choice_bias` [E] may
/// be null.
void select_experts(const GateRule &rule, const float *logits, const float *choice_bias,
                    const std::uint8_t *allowed, SelectScratch &scratch, std::int32_t *ids,
                    float *weights);

} // namespace spectral::cpu
