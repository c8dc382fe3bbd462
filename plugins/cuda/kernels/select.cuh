// The gate rule on one token's row of logits, a warp a token.
//
// Rules without groups choose from registers (choose.cuh), others keep the row in shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "choose.cuh"

namespace spectral::cuda {

__device__ inline float rounded(float value, int dtype) {
    if (dtype == dtype_bf16) {
        return __bfloat162float(__float2bfloat16_rn(value));
    }
    return dtype == dtype_f16 ? __half2float(__float2half_rn(value)) : value;
}

__device__ inline void store_as(void *target, long long at, float value, int dtype) {
    if (dtype == dtype_bf16) {
        static_cast<__nv_bfloat16 *>(target)[at] = __float2bfloat16_rn(value);
    } else if (dtype == dtype_f16) {
        static_cast<__half *>(target)[at] = __float2half_rn(value);
    } else {
        static_cast<float *>(target)[at] = value;
    }
}

__device__ inline void store_id(const Output &out, long long at, int id) {
    if (out.wide_ids != 0) {
        static_cast<long long *>(out.ids)[at] = id;
    } else {
        static_cast<int *>(out.ids)[at] = id;
    }
}

__device__ inline float score_of(const Rule &rule, float logit, float peak, float total) {
    return rule.score == score_softmax ? expf(logit - peak) / total : transform(rule.score, logit);
}

/// One token's row in shared memory.
struct Row {
    float *logit;      ///< [E]
    unsigned *order;   ///< [E + groups], ordered choice scores; zero: not eligible
    float peak, total; ///< softmax: largest logit, sum of exponentials

    static __device__ Row at(float *logit, unsigned *order) { return {logit, order, 0.0F, 1.0F}; }

    __device__ void soften(int experts) {
        peak = -INFINITY;
#pragma unroll 1
        for (int e = lane_id(); e < experts; e += 32) {
            peak = fmaxf(peak, logit[e]);
        }
        peak = warp_max(peak);
        total = 0.0F;
#pragma unroll 1
        for (int e = lane_id(); e < experts; e += 32) {
            total += expf(logit[e] - peak);
        }
        total = warp_sum(total);
    }

    /// Choice scores; without bias and groups a softmax ranks like its logits.
    __device__ void choose(const Rule &rule) {
        const bool plain =
            rule.score == score_softmax && rule.choice_bias == nullptr && rule.groups == 1;
        if (rule.score == score_softmax) {
            soften(rule.experts);
        }
#pragma unroll 1
        for (int e = lane_id(); e < rule.experts; e += 32) {
            float choice = plain ? logit[e] : score_of(rule, logit[e], peak, total);
            if (rule.choice_bias != nullptr) {
                choice += rule.choice_bias[e];
            }
            // The rule counts NaN as -inf; only lists of candidates tell them apart.
            order[e] = ordered(choice != choice ? -INFINITY : choice);
        }
        __syncwarp();
    }
};

/// The keys of a row that one lane holds: experts lane, lane + 32, ...
template <int V> struct Keys {
    unsigned order[V];
    unsigned best; ///< the largest of them
    int place;     ///< and its index

    __device__ void load(const Row &row, int experts) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            order[j] = j * 32 + lane_id() < experts ? row.order[j * 32 + lane_id()] : 0U;
        }
        refresh();
    }

    __device__ void refresh() {
        best = 0U;
        place = 0;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const bool more = order[j] > best; // the first of equals has the smaller id
            best = more ? order[j] : best;
            place = more ? j : place;
        }
    }

    /// Takes the warp's best entry out and returns its expert; ties by smaller id.
    __device__ int pop() {
        const unsigned top = __reduce_max_sync(all_lanes, best);
        const unsigned mine =
            best == top ? static_cast<unsigned>(place * 32 + lane_id()) : 0xFFFFFFFFU;
        const unsigned expert = __reduce_min_sync(all_lanes, mine);
        if (mine == expert) {
#pragma unroll
            for (int j = 0; j < V; ++j) {
                order[j] = j == place ? 0U : order[j];
            }
            refresh();
        }
        return static_cast<int>(expert);
    }
};

/// Masks all groups but the best, as the rule's group limit does.
__device__ __noinline__ void limit_groups(const Rule &rule, Row &row) {
    const int size = rule.experts / rule.groups, lane = lane_id();
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; lane < rule.groups && i < size; ++i) {
        // Lanes start at different places, or all would read one bank when size is a multiple
        // of 32.
        const unsigned order = row.order[lane * size + (i + lane) % size];
        const float choice = order == 0U ? -INFINITY : unordered(order);
        second = fmaxf(second, fminf(first, choice));
        first = fmaxf(first, choice);
    }
    const float total = rule.group_max != 0 || size == 1 ? first : first + second;
    Keys<1> groups;
    groups.order[0] = lane < rule.groups ? ordered(total != total ? -INFINITY : total) : 0U;
    groups.refresh();
    unsigned kept = 0;
    for (int i = 0; i < rule.groups_kept; ++i) {
        kept |= 1U << groups.pop();
    }
    const unsigned fill = ordered(rule.group_zero != 0 ? 0.0F : -INFINITY);
    for (int e = lane; e < rule.experts; e += 32) {
        if ((kept >> (e / size) & 1U) == 0U && row.order[e] != 0U) {
            row.order[e] = fill;
        }
    }
    __syncwarp();
}

/// Sum over the first lanes, `width` of them a power of two.
__device__ inline float first_sum(float value, int width) {
#pragma unroll 1
    for (int step = width >> 1; step > 0; step >>= 1) {
        value += __shfl_xor_sync(all_lanes, value, step);
    }
    return value;
}

/// Weights of the chosen experts in lanes 0..K-1.
__device__ inline float weigh(const Rule &rule, float logit, float peak, float total) {
    const bool chosen = lane_id() < rule.top_k;
    const int width = rule.top_k > 16 ? 32 : rule.top_k > 8 ? 16 : 8;
    float weight = 0.0F;
    if (rule.weight == weight_softmax) {
        const float most = warp_max(chosen ? logit : -INFINITY);
        weight = chosen ? expf(logit - most) : 0.0F;
        weight /= first_sum(weight, width);
    } else {
        const int kind = rule.weight == weight_sigmoid ? score_sigmoid : rule.score;
        weight = !chosen                 ? 0.0F
                 : kind == score_softmax ? expf(logit - peak) / total
                                         : transform(kind, logit);
    }
    if (rule.normalise != 0) {
        weight /= fmaxf(first_sum(weight, width), rule.normalise_min) + rule.normalise_eps;
    }
    return weight * rule.scale;
}

__device__ inline void store_choice(const Rule &rule, const Output &out, long long token, int id,
                                    float weight) {
    const int lane = lane_id();
    if (lane < rule.top_k) {
        store_id(out, token * rule.top_k + lane, id);
        if (out.weights != nullptr) {
            store_as(out.weights, token * rule.top_k + lane, weight, out.weights_dtype);
        }
    }
}

__device__ inline void store_logits(const Row &row, const Rule &rule, const Output &out,
                                    long long token) {
    if (out.logits != nullptr) {
#pragma unroll 1
        for (int e = lane_id(); e < rule.experts; e += 32) {
            store_as(out.logits, token * rule.experts + e, row.logit[e], out.logits_dtype);
        }
    }
}

/// Whether `finish_short` executes the rule: no groups, and no bias after a softmax.
__device__ inline bool short_rule(const Rule &rule) {
    return rule.groups == 1 && (rule.score != score_softmax || rule.choice_bias == nullptr);
}

/// A row without groups from registers, whose logits are also in `row`. Stores ids and weights.
template <int V>
__device__ void finish_short(const Rule &rule, const Output &out, const float (&value)[V],
                             const float *row, long long token, Key *slots) {
    const bool plain = rule.score == score_softmax;
    unsigned order[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
        const int e = place_of<V>(j);
        float choice = value[j];
        if (!plain) {
            choice = transform(rule.score, choice);
        }
        if (rule.choice_bias != nullptr && e < rule.experts) {
            choice += rule.choice_bias[e];
        }
        order[j] = e < rule.experts ? ordered(choice != choice ? -INFINITY : choice) : 0U;
    }
    const int id = choose(order, rule.top_k, slots);
    const float logit = row[id];
    float peak = 0.0F, total = 1.0F;
    if (plain && rule.weight == weight_score) {
        peak = __shfl_sync(all_lanes, logit, 0); // the first chosen is the largest
    }
    // A plain renormalisation cancels the denominator of the softmax.
    const bool cancels =
        rule.normalise != 0 && rule.normalise_eps == 0.0F && rule.normalise_min == 0.0F;
    if (plain && rule.weight == weight_score && !cancels) {
        total = 0.0F;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            total += place_of<V>(j) < rule.experts ? expf(value[j] - peak) : 0.0F;
        }
        total = warp_sum(total);
    }
    store_choice(rule, out, token, id, weigh(rule, logit, peak, total));
    __syncwarp();
}

/// From choice scores in the row to stored ids and weights.
template <int V>
__device__ __noinline__ void finish_row(const Rule &rule, const Output &out, Row &row,
                                        long long token) {
    if (rule.groups > 1) {
        limit_groups(rule, row);
    }
    Keys<V> keys;
    keys.load(row, rule.experts);
    int id = 0;
#pragma unroll 1
    for (int i = 0; i < rule.top_k; ++i) {
        const int expert = keys.pop();
        id = lane_id() == i ? expert : id;
    }
    const float logit = row.logit[id];
    store_choice(rule, out, token, id, weigh(rule, logit, row.peak, row.total));
    __syncwarp();
}

} // namespace spectral::cuda
