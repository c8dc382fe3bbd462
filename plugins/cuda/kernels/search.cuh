// Candidates of one token by a warp: a walk of the 32-wide tree, level by level.
//
// A node's bound is the smaller, per level, of the interval bound of 2 c.p over the child's box and
// the power bound |p|^2 + max |c|^2 - dist^2(p, box), plus the colour's interval and a slack that
// covers float32 rounding: the same formula as plugins/cpu/kernels/search.inl. Of every child one
// expert is known; the K-th best of these is a score that K experts reach, so that a child below it
// is dropped before any leaf was seen. The answer is that of the scan.
#pragma once

#include "points.cuh"

namespace spectral::cuda {

inline constexpr int max_frontier = 256; ///< nodes of one level still to visit
inline constexpr int max_leaves = 256;   ///< blocks still to score
inline constexpr int max_bag = 64;       ///< experts that may be among the best: two a lane

/// Shared memory of one warp: ordered bounds, and what they bound.
struct Walk {
    unsigned order[2][max_frontier];
    std::int32_t node[2][max_frontier];
    unsigned leaf_order[max_leaves];
    std::int32_t leaf[max_leaves];
    Key met[max_bag];
};

/// Entries of one token that may be among its best, unsorted; and a score that as many are known to
/// reach as are wanted, whoever they are.
struct Bag {
    Key *key;
    int count;
    int met = 0;
    unsigned least = 1U;
    bool lost = false; ///< more equals than the bag holds

    /// The `count`-th best of the lanes' best.
    __device__ void raise(unsigned known) {
        if (__popc(__ballot_sync(all_lanes, known > least)) < count) {
            return;
        }
        unsigned reached = 0U;
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            reached = __reduce_max_sync(all_lanes, known);
            known = known == reached ? 0U : known; // equals go together: it is only lower for it
        }
        least = max(least, reached);
    }

    /// Raises the bar by what is in the bag and drops what is below it.
    __device__ void squeeze() {
        const int lane = lane_id();
        __syncwarp();
        const Key first = lane < met ? key[lane] : 0;
        const Key second = lane + 32 < met ? key[lane + 32] : 0;
        raise(max(order_of(first), order_of(second)));
        const bool keep = order_of(first) >= least, also = order_of(second) >= least;
        const unsigned before = (1U << lane) - 1U;
        const unsigned kept = __ballot_sync(all_lanes, keep);
        const unsigned more = __ballot_sync(all_lanes, also);
        __syncwarp();
        if (keep) {
            key[__popc(kept & before)] = first;
        }
        met = __popc(kept);
        if (also) {
            key[met + __popc(more & before)] = second;
        }
        met += __popc(more);
        __syncwarp();
    }

    /// Offers an entry a lane; order zero: none.
    __device__ void offer(unsigned order, int id) {
        unsigned in = __ballot_sync(all_lanes, order >= least);
        if (in == 0U) {
            return;
        }
        if (met + __popc(in) > max_bag) {
            squeeze();
            in = __ballot_sync(all_lanes, order >= least);
            lost = lost || met + __popc(in) > max_bag;
            if (lost) {
                return;
            }
        }
        if (order >= least) {
            key[met + __popc(in & ((1U << lane_id()) - 1U))] = key_of(order, id);
        }
        met += __popc(in);
    }
};

/// Upper bound of the choice scores below a child whose rows begin at v.
__device__ inline float bound_of(const Query &q, const float *v) {
    const int rank = q.space.rank, levels = q.space.levels, points = 3 * levels;
    const float beta = v[(2 * rank + levels) * 32];
    float sum = 0.0F;
#pragma unroll 1
    for (int l = 0; l < levels; ++l) {
        float interval = l == 0 ? beta : 0.0F;
        float power = v[(2 * rank + l) * 32] + q.squared[8 * l];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const float p = q.point[8 * (3 * l + i)];
            const float low = v[(3 * l + i) * 32], high = v[(rank + 3 * l + i) * 32];
            const float gap = fmaxf(fmaxf(low - p, p - high), 0.0F);
            power -= gap * gap;
            interval = fmaf(p >= 0.0F ? high : low, 2.0F * p, interval);
        }
        sum += fminf(power, interval);
    }
#pragma unroll 1
    for (int r = points; r < rank; ++r) {
        const float f = q.point[8 * r];
        sum = fmaf(f >= 0.0F ? v[(rank + r) * 32] : v[r * 32], f, sum);
    }
    sum += q.slack;
    if (!q.plain()) {
        sum = transform(q.rule.score, sum) * (1.0F + 2.0e-6F);
    }
    return q.space.biased != 0 ? sum + v[(2 * rank + levels + 1) * 32] : sum;
}

/// The same of a simple query: nine rows, no loop.
__device__ inline float simple_bound(const Query &q, const float *v) {
    float interval = v[224], power = v[192] + q.squared[0];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const float p = q.point[8 * i];
        const float low = v[i * 32], high = v[(3 + i) * 32];
        const float gap = fmaxf(fmaxf(low - p, p - high), 0.0F);
        power -= gap * gap;
        interval = fmaf(p >= 0.0F ? high : low, 2.0F * p, interval);
    }
    return fminf(power, interval) + q.slack;
}

/// Slack of one point's bounds; false when float32 could overflow and only a scan is safe.
__device__ inline bool prepare(Query &q, Points &points, int token) {
    const int rank = q.space.rank, coordinates = 3 * q.space.levels;
    float reach = 0.0F;
    for (int r = lane_id(); r < rank; r += 32) {
        const float x = q.point[8 * r], m = q.tree.reach[r];
        reach += fabsf(r < coordinates ? 2.0F * x : x) * m +
                 (r < coordinates ? 8.0F * (x * x + m * m) : 0.0F);
    }
    reach = warp_sum(reach) + q.tree.reach[rank];
    if (lane_id() < q.space.levels) {
        const float *p = q.point + 24 * lane_id();
        points.squared[lane_id()][token] = p[0] * p[0] + p[8] * p[8] + p[16] * p[16];
    }
    __syncwarp();
    q.slack = 4.0F * (static_cast<float>(rank) + 8.0F) * 0x1p-24F * reach + 0x1p-120F;
    return reach < 1e37F;
}

/// The walk of one token; `Simple` as in Query::simple.
template <bool Simple> struct Search {
    const Query &q;
    Walk &walk;
    Bag &bag;
    int next = 0, target = 0; ///< nodes found for the next level, and where they are kept
    int leaves = 0;
    bool lost = false; ///< more nodes than the frontier holds

    /// Opens up to four nodes; absent ones are negative.
    __device__ void visit(const int (&node)[batch]) {
        const int rank = Simple ? 3 : q.space.rank, levels = Simple ? 1 : q.space.levels;
        const int rows = 3 * rank + levels + 4, known_row = 2 * rank + levels + 2;
        unsigned bound[batch], known = 0U;
        std::int32_t child[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            bound[i] = 0U;
            child[i] = no_child;
            if (node[i] >= 0) {
                const float *v =
                    q.tree.values + static_cast<long long>(node[i]) * rows * 32 + lane_id();
                child[i] = q.tree.children[node[i] * 32 + lane_id()];
                float most, one;
                if constexpr (Simple) {
                    most = simple_bound(q, v);
                    one = q.simple_score(v + known_row * 32);
                } else {
                    float logit;
                    most = bound_of(q, v);
                    one = q.score(v + known_row * 32, logit);
                }
                const bool real = child[i] != no_child;
                bound[i] = !real ? 0U : ordered(most != most ? INFINITY : most);
                known = real ? max(known, ordered(one)) : known;
            }
        }
        bag.raise(known);
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            if (node[i] >= 0) {
                keep(child[i], bound[i]);
            }
        }
    }

    /// Remembers the children that may hold a candidate.
    __device__ void keep(std::int32_t child, unsigned bound) {
        const bool alive = bound >= bag.least;
        const bool inner = alive && child >= 0, leaf = alive && child < 0;
        const unsigned before = (1U << lane_id()) - 1U;
        const unsigned inners = __ballot_sync(all_lanes, inner);
        const unsigned found = __ballot_sync(all_lanes, leaf);
        if (leaves + __popc(found) > max_leaves) {
            open_leaves();
        }
        lost = lost || next + __popc(inners) > max_frontier;
        if (lost) {
            return;
        }
        if (inner) {
            const int slot = next + __popc(inners & before);
            walk.order[target][slot] = bound;
            walk.node[target][slot] = child;
        }
        if (leaf) {
            const int slot = leaves + __popc(found & before);
            walk.leaf_order[slot] = bound;
            walk.leaf[slot] = ~child;
        }
        next += __popc(inners);
        leaves += __popc(found);
    }

    /// Takes the best four of 32 entries, one a lane; false when none can hold a candidate.
    __device__ bool take(unsigned &order, int what, int (&best)[batch]) const {
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const unsigned top = __reduce_max_sync(all_lanes, order);
            best[i] = -1;
            if (top >= bag.least) {
                const int lane =
                    __ffs(static_cast<int>(__ballot_sync(all_lanes, order == top))) - 1;
                best[i] = __shfl_sync(all_lanes, what, lane);
                order = lane_id() == lane ? 0U : order;
            }
        }
        return best[0] >= 0;
    }

    /// Scores up to four blocks.
    __device__ void score(const int (&block)[batch]) {
        unsigned order[batch];
        int id[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            order[i] = 0U;
            if (block[i] >= 0) {
                id[i] = q.space.ids[block[i] * 32 + lane_id()];
                float s;
                if constexpr (Simple) {
                    s = q.simple_score(q.block(block[i]));
                } else {
                    float logit;
                    s = q.score(q.block(block[i]), logit);
                }
                order[i] = id[i] < 0 ? 0U : ordered(s);
            }
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            bag.offer(order[i], id[i]);
        }
        if (bag.met > bag.count) {
            bag.squeeze();
        }
    }

    __device__ void open_leaves() {
        __syncwarp();
#pragma unroll 1
        for (int first = 0; first < leaves; first += 32) {
            const bool real = first + lane_id() < leaves;
            unsigned order = real ? walk.leaf_order[first + lane_id()] : 0U;
            const int block = real ? walk.leaf[first + lane_id()] : -1;
            for (int best[batch]; take(order, block, best);) {
                score(best);
            }
        }
        leaves = 0;
        __syncwarp();
    }

    /// All levels; false when the frontier overflowed and only a scan is sure.
    __device__ bool run() {
        int first[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            first[i] = i < q.tree.roots ? i : -1;
        }
        visit(first);
#pragma unroll 1
        while (next > 0 && !lost) {
            const int count = next, source = target;
            target ^= 1;
            next = 0;
            __syncwarp();
#pragma unroll 1
            for (int at = 0; at < count; at += 32) {
                const bool real = at + lane_id() < count;
                unsigned order = real ? walk.order[source][at + lane_id()] : 0U;
                const int node = real ? walk.node[source][at + lane_id()] : -1;
                for (int best[batch]; take(order, node, best);) {
                    visit(best);
                }
            }
        }
        open_leaves();
        return !lost && !bag.lost && bag.met >= bag.count;
    }
};

} // namespace spectral::cuda
