// Projected tokens of a block, and the score of an expert at a point.
#pragma once

#include "exchange.cuh"
#include "list.cuh"

namespace spectral::cuda {

inline constexpr int group_tokens = 8; ///< that a scan scores together

/// Eight tokens side by side, so that a scan reads a coordinate of all with two loads.
struct Points {
    float value[max_rank][group_tokens];
    float squared[4][group_tokens]; ///< |p|^2 a level
    float common[group_tokens];
};

struct Query {
    const Space &space;
    const Tree &tree;
    const Rule &rule;
    const float *point;   ///< coordinate r at 8 r
    const float *squared; ///< of level l at 8 l
    float slack;

    static __device__ Query of(const RouteArguments &a, const Points &points, int token) {
        return {a.space, a.tree, a.rule, &points.value[0][token], &points.squared[0][token], 0.0F};
    }

    [[nodiscard]] __device__ bool plain() const {
        return rule.score == score_softmax || rule.score == score_logits;
    }

    /// Choice score of an expert whose rows (beta, choice bias, coefficients) begin at v.
    __device__ float score(const float *v, float &logit) const {
        logit = v[0];
        if (space.rank == 3) { // one level, no colour: no loop
            const float c0 = v[64], c1 = v[96], c2 = v[128];
            logit = fmaf(c2, point[16], fmaf(c1, point[8], fmaf(c0, point[0], logit)));
        } else {
#pragma unroll 4
            for (int r = 0; r < space.rank; ++r) {
                logit = fmaf(v[(r + 2) * 32], point[8 * r], logit);
            }
        }
        const float chosen = plain() ? logit : transform(rule.score, logit);
        return space.biased != 0 ? chosen + v[32] : chosen;
    }

    /// The same where the rule is plain, without bias, of one level without colour.
    __device__ float simple_score(const float *v) const {
        return fmaf(v[128], point[16], fmaf(v[96], point[8], fmaf(v[64], point[0], v[0])));
    }
    [[nodiscard]] __device__ bool simple() const {
        return space.rank == 3 && plain() && space.biased == 0;
    }

    __device__ const float *block(int index) const {
        return space.blocks + static_cast<long long>(index) * (space.rank + 2) * 32 + lane_id();
    }
};

/// Sums to points: every thread of the block; the caller has synchronised, and must again.
__device__ inline void read_points(const RouteArguments &a, const Place &at, const float *received,
                                   Points *points) {
    const Product &p = a.product;
    const int all = (at.count + group_tokens - 1) / group_tokens * group_tokens * p.outputs;
    for (int i = static_cast<int>(threadIdx.x); i < all; i += warps * 32) {
        const int token = i / p.outputs, r = i - token * p.outputs;
        float sum = 0.0F;
        if (token < at.count) {
            for (int plane = 0; plane < p.planes; ++plane) {
                const float *from = received + token * p.pitch + plane * p.outputs + r;
                for (int rank = 0; rank < p.cluster; ++rank) {
                    sum += from[rank * p.tokens_of_block * p.pitch];
                }
            }
            sum -= a.space.offset[r];
        }
        Points &group = points[token / group_tokens];
        float *target = r < a.space.rank ? group.value[r] : group.common;
        target[token % group_tokens] = sum;
        if (r == 0 && a.space.common == 0) {
            group.common[token % group_tokens] = 0.0F; // no row of its own, and it is added
        }
    }
}

/// A point with NaN ranks experts by id; so does the reference.
__device__ inline bool broken_point(const Query &q) {
    bool broken = false;
    for (int r = lane_id(); r < q.space.rank; r += 32) {
        broken = broken || q.point[8 * r] != q.point[8 * r];
    }
    return __any_sync(all_lanes, broken);
}

inline constexpr int batch = 4; ///< blocks whose loads are in flight together

/// Offers up to four blocks; absent ones are negative.
__device__ inline void offer_blocks(const Query &q, const int (&block)[batch], List &list) {
    float score[batch];
    int id[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
        const int real = max(block[i], 0);
        id[i] = block[i] < 0 ? -1 : q.space.ids[real * 32 + lane_id()];
        float logit;
        score[i] = q.score(q.block(real), logit);
    }
    list.offer(score, id);
}

/// All blocks by one warp; returns the keys of the list.
__device__ __noinline__ Key scan_alone(Query q, int count) {
    List list(count);
#pragma unroll 1
    for (int block = 0; block < q.space.block_count; block += batch) {
        int four[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            four[i] = block + i < q.space.block_count ? block + i : -1;
        }
        offer_blocks(q, four, list);
    }
    return list.mine;
}

} // namespace spectral::cuda
