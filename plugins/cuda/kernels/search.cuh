// Candidates of one token by a warp: a scan of all blocks, or a depth-first walk of the 32-wide
// tree.
//
// A node's bound is the smaller, per level, of the interval bound of 2 c.p over the child's box and
// the power bound |p|^2 + max |c|^2 - dist^2(p, box), plus the colour's interval and a slack that
// covers float32 rounding: the same formula as plugins/cpu/kernels/search.inl. Children are walked
// best bound first and dropped once they cannot beat the C-th best score, so the answer is that of
// the scan.
#pragma once

#include "list.cuh"

namespace spectral::cuda {

/// Shared memory of one warp.
struct Walk {
    float point[max_rank + 4];
    float squared[4];           ///< |p|^2 a level
    float bound[max_depth][32]; ///< of the children still to visit
    std::int32_t child[max_depth][32];
};

struct Query {
    const Space &space;
    const Tree &tree;
    const Rule &rule;
    const float *point;
    const float *squared;
    float slack;

    [[nodiscard]] __device__ bool plain() const {
        return rule.score == score_softmax || rule.score == score_logits;
    }

    /// Choice score of this lane's expert in a block; the logit comes back too.
    __device__ float score(int block, float &logit) const {
        const float *v =
            space.blocks + static_cast<long long>(block) * (space.rank + 2) * 32 + lane_id();
        logit = v[0];
        if (space.rank == 3) { // one level, no colour: no loop
            logit = fmaf(v[128], point[2], fmaf(v[96], point[1], fmaf(v[64], point[0], logit)));
        } else {
            for (int r = 0; r < space.rank; ++r) {
                logit = fmaf(v[(r + 2) * 32], point[r], logit);
            }
        }
        const float chosen = plain() ? logit : transform(rule.score, logit);
        return space.biased != 0 ? chosen + v[32] : chosen;
    }

    /// Upper bound of the choice scores below this lane's child of a node.
    __device__ float bound(int node) const {
        const int rank = space.rank, points = 3 * space.levels;
        const float *v = tree.values +
                         static_cast<long long>(node) * (2 * rank + space.levels + 2) * 32 +
                         lane_id();
        float sum = v[(2 * rank + space.levels) * 32];
        for (int l = 0; l < space.levels; ++l) {
            float interval = l == 0 ? sum : 0.0F;
            float power = v[(2 * rank + l) * 32] + squared[l];
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                const float p = point[3 * l + i];
                const float low = v[(3 * l + i) * 32], high = v[(rank + 3 * l + i) * 32];
                const float gap = fmaxf(fmaxf(low - p, p - high), 0.0F);
                power -= gap * gap;
                interval = fmaf(p >= 0.0F ? high : low, 2.0F * p, interval);
            }
            sum = (l == 0 ? 0.0F : sum) + fminf(power, interval);
        }
        for (int r = points; r < rank; ++r) {
            const float f = point[r];
            sum = fmaf(f >= 0.0F ? v[(rank + r) * 32] : v[r * 32], f, sum);
        }
        sum += slack;
        if (!plain()) {
            sum = transform(rule.score, sum) * (1.0F + 2.0e-6F);
        }
        return space.biased != 0 ? sum + v[(2 * rank + space.levels + 1) * 32] : sum;
    }
};

/// Slack of one point's bounds; false when float32 could overflow and only a scan is safe.
__device__ inline bool prepare(const Space &space, const Tree &tree, Walk &walk, float &slack) {
    const int rank = space.rank, points = 3 * space.levels;
    float reach = 0.0F;
    for (int r = lane_id(); r < rank; r += 32) {
        const float x = walk.point[r], m = tree.reach[r];
        reach +=
            fabsf(r < points ? 2.0F * x : x) * m + (r < points ? 8.0F * (x * x + m * m) : 0.0F);
    }
    reach = warp_sum(reach) + tree.reach[rank];
    if (lane_id() < space.levels) {
        const float *p = walk.point + 3 * lane_id();
        walk.squared[lane_id()] = p[0] * p[0] + p[1] * p[1] + p[2] * p[2];
    }
    __syncwarp();
    slack = 4.0F * (static_cast<float>(rank) + 8.0F) * 0x1p-24F * reach + 0x1p-120F;
    return reach < 1e37F;
}

inline constexpr int batch = 4; ///< blocks whose loads are in flight together

/// Offers up to four blocks of the tree's order; absent ones are negative.
__device__ inline void offer_blocks(const Query &q, const int (&block)[batch], List &list) {
    float score[batch];
    int id[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
        float logit;
        const int real = max(block[i], 0);
        const int found = q.space.ids[real * 32 + lane_id()];
        score[i] = q.score(real, logit);
        id[i] = block[i] < 0 ? -1 : found;
    }
    list.offer(score, id);
}

/// Blocks [first, last) in the order of the ids, four at a time.
__device__ inline void scan_blocks(const Query &q, List &list, int first, int last) {
#pragma unroll 1
    for (int block = first; block < last; block += batch) {
        float score[batch];
        int id[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            float logit;
            score[i] = q.score(min(block + i, last - 1), logit);
            id[i] = (block + i) * 32 + lane_id();
            id[i] = block + i < last && id[i] < q.space.experts ? id[i] : -1;
        }
        list.offer(score, id);
    }
}

__device__ __noinline__ void store_all_logits(const Query &q, const Output &out, long long token,
                                              float common) {
    for (int block = 0; block < q.space.block_count; ++block) {
        float logit;
        q.score(block, logit);
        const int id = block * 32 + lane_id();
        if (id < q.space.experts) {
            static_cast<float *>(out.logits)[token * q.space.experts + id] = logit + common;
        }
    }
}

/// The children of a node, one a lane: where they lead, and their ordered bounds (zero: done).
struct Children {
    std::int32_t child;
    unsigned order;

    static __device__ Children of(const Query &q, int node) {
        Children c;
        c.child = q.tree.children[node * 32 + lane_id()];
        const float bound = q.bound(node); // absent children have bounds of zeros
        c.order = c.child == no_child ? 0U : ordered(bound != bound ? INFINITY : bound);
        return c;
    }

    /// The lane of the best child that may still hold a candidate, or -1.
    __device__ int best(const List &list) const {
        const unsigned top = __reduce_max_sync(all_lanes, order);
        if (top == 0U || top < order_of(list.last)) {
            return -1;
        }
        return __ffs(static_cast<int>(__ballot_sync(all_lanes, order == top))) - 1;
    }
};

/// Opens the best leaves of a node, up to four at once; returns an inner child to go down to, or -1
/// when leaves were opened.
__device__ inline int open_best(const Query &q, Children &c, int winner, List &list) {
    int block[batch] = {-1, -1, -1, -1};
#pragma unroll
    for (int i = 0; i < batch; ++i) {
        if (winner >= 0) {
            const std::int32_t next = __shfl_sync(all_lanes, c.child, winner);
            if (next >= 0) {
                if (i == 0) {
                    c.order = lane_id() == winner ? 0U : c.order;
                    return next;
                }
                winner = -1;
            } else {
                block[i] = ~next;
                c.order = lane_id() == winner ? 0U : c.order;
                winner = i + 1 < batch ? c.best(list) : -1;
            }
        }
    }
    offer_blocks(q, block, list);
    return -1;
}

__device__ inline void search_tree(const Query &q, Walk &walk, List &list) {
    const int lane = lane_id();
    int depth = 0;
    Children c = Children::of(q, 0);
    for (;;) {
        const int winner = c.best(list);
        if (winner < 0) {
            if (depth == 0) {
                return;
            }
            --depth;
            c.order = __float_as_uint(walk.bound[depth][lane]);
            c.child = walk.child[depth][lane];
            continue;
        }
        const int next = open_best(q, c, winner, list);
        if (next >= 0) {
            walk.bound[depth][lane] = __uint_as_float(c.order);
            walk.child[depth][lane] = c.child;
            ++depth;
            c = Children::of(q, next);
        }
    }
}

} // namespace spectral::cuda
