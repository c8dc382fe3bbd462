// Candidates of eight tokens by a whole block, all experts scored.
//
// First only maxima: of every lane, whose K-th best is a threshold that K experts reach, and of
// every chunk of blocks. Then what the few lanes that reach it scored, in the chunks that reach it,
// is scored again for the one token, spread over all threads, and what reaches it is ranked.
#pragma once

#include "points.cuh"

namespace spectral::cuda {

inline constexpr int max_met = 128;   ///< experts that may reach a token's threshold
inline constexpr int max_hits = 1024; ///< lanes that reach it, with their chunks, of eight tokens

/// Shared memory of a block.
struct Scan {
    float most[group_tokens][warps * 32]; ///< of every lane
    unsigned chunk[max_chunks][group_tokens];
    float least[group_tokens];
    int met[group_tokens];
    int hits;
    unsigned hit[max_hits]; ///< token, lane, chunk
    Key key[group_tokens][max_met];
};

/// Scores of one lane's expert for eight tokens; -inf where there is none.
struct Eight {
    const RouteArguments &a;
    const Points &points;
    float p[3][group_tokens]; ///< of rank 3

    __device__ Eight(const RouteArguments &arguments, const Points &tokens)
        : a(arguments), points(tokens) {
#pragma unroll
        for (int r = 0; r < 3; ++r) {
#pragma unroll
            for (int t = 0; t < group_tokens; ++t) {
                p[r][t] = points.value[r][t];
            }
        }
    }

    template <bool Three> __device__ void score(int block, float (&s)[group_tokens]) const {
        const Space &space = a.space;
        const float *v =
            space.blocks + static_cast<long long>(block) * (space.rank + 2) * 32 + lane_id();
        const bool real = block * 32 + lane_id() < space.experts;
        const float beta = real ? v[0] : -INFINITY;
        if constexpr (Three) {
            const float c0 = v[64], c1 = v[96], c2 = v[128];
#pragma unroll
            for (int t = 0; t < group_tokens; ++t) {
                s[t] = fmaf(c2, p[2][t], fmaf(c1, p[1][t], fmaf(c0, p[0][t], beta)));
            }
        } else {
#pragma unroll
            for (int t = 0; t < group_tokens; ++t) {
                s[t] = beta;
            }
#pragma unroll 2
            for (int r = 0; r < space.rank; ++r) {
                const float c = v[(r + 2) * 32];
                const float4 low = *reinterpret_cast<const float4 *>(&points.value[r][0]);
                const float4 high = *reinterpret_cast<const float4 *>(&points.value[r][4]);
                const float q[group_tokens] = {low.x,  low.y,  low.z,  low.w,
                                               high.x, high.y, high.z, high.w};
#pragma unroll
                for (int t = 0; t < group_tokens; ++t) {
                    s[t] = fmaf(c, q[t], s[t]);
                }
            }
        }
        const bool plain = a.rule.score == score_softmax || a.rule.score == score_logits;
        if (!plain || space.biased != 0) {
            const float bias = space.biased != 0 ? v[32] : 0.0F;
#pragma unroll
            for (int t = 0; t < group_tokens; ++t) {
                const float choice = plain ? s[t] : transform(a.rule.score, s[t]);
                s[t] = real ? choice + bias : -INFINITY;
            }
        }
    }

    /// Maxima of this warp's chunks, chunk by chunk and of every lane.
    template <bool Three> __device__ void survey(Scan &scan, float (&most)[group_tokens]) const {
        const int warp = static_cast<int>(threadIdx.x) >> 5, blocks = a.space.block_count;
#pragma unroll 1
        for (int c = warp; c << a.chunk_shift < blocks; c += warps) {
            float own[group_tokens];
#pragma unroll
            for (int t = 0; t < group_tokens; ++t) {
                own[t] = -INFINITY;
            }
            const int end = min(blocks, (c + 1) << a.chunk_shift);
#pragma unroll(Three ? 8 : 2)
            for (int block = c << a.chunk_shift; block < end; ++block) {
                float s[group_tokens];
                score<Three>(block, s);
#pragma unroll
                for (int t = 0; t < group_tokens; ++t) {
                    own[t] = fmaxf(own[t], s[t]);
                }
            }
            unsigned kept = 0U;
#pragma unroll
            for (int t = 0; t < group_tokens; ++t) {
                most[t] = fmaxf(most[t], own[t]);
                const unsigned best = __reduce_max_sync(all_lanes, ordered(own[t]));
                kept = lane_id() == t ? best : kept;
            }
            if (lane_id() < group_tokens) {
                scan.chunk[c][lane_id()] = kept;
            }
        }
#pragma unroll
        for (int t = 0; t < group_tokens; ++t) {
            scan.most[t][threadIdx.x] = most[t];
        }
    }
};

/// The K-th best of the lanes' maxima of one token, by one warp.
__device__ inline float threshold(const float *most, int count) {
    Heap<warps> heap;
    unsigned own = 0U;
#pragma unroll
    for (int j = 0; j < warps; ++j) {
        heap.order[j] = ordered(most[j * 32 + lane_id()]);
        heap.id[j] = j * 32 + lane_id();
        own = max(own, heap.order[j]);
    }
    unsigned least = 0U;
    if (count <= 8) { // the lanes' best of eight are enough and need no ids
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            least = __reduce_max_sync(all_lanes, own);
            own = own == least ? 0U : own; // equals go together: the threshold is only lower
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            least = heap.pop().order;
        }
    }
    return least <= nan_order ? -INFINITY : unordered(least);
}

/// Notes the chunks in which this lane may have scored an expert that reaches a token's threshold.
__device__ inline void note_hits(const RouteArguments &a, const float (&most)[group_tokens],
                                 Scan &scan) {
    const int warp = static_cast<int>(threadIdx.x) >> 5, blocks = a.space.block_count;
    unsigned reaching = 0U; // few lanes reach anything: one loop for all tokens
#pragma unroll
    for (int t = 0; t < group_tokens; ++t) {
        reaching |= most[t] >= scan.least[t] ? 1U << t : 0U;
    }
#pragma unroll 1
    for (; reaching != 0U; reaching &= reaching - 1U) {
        const int t = __ffs(static_cast<int>(reaching)) - 1;
        const unsigned least = ordered(scan.least[t]);
#pragma unroll 1
        for (int c = warp; c << a.chunk_shift < blocks; c += warps) {
            if (scan.chunk[c][t] >= least) {
                const int slot = atomicAdd(&scan.hits, 1);
                if (slot < max_hits) {
                    scan.hit[slot] = static_cast<unsigned>(t | lane_id() << 3 | c << 8);
                }
            }
        }
    }
}

/// Scores the noted experts again, each thread one at a time.
__device__ inline void collect(const RouteArguments &a, const Points &points, Scan &scan) {
    const int hits = scan.hits;
    if (hits > max_hits) { // nothing can be told: scans alone
        if (threadIdx.x < group_tokens) {
            scan.met[threadIdx.x] = max_met + 1;
        }
        return;
    }
    const int all = hits << a.chunk_shift, mask = (1 << a.chunk_shift) - 1;
    for (int i = static_cast<int>(threadIdx.x); i < all; i += warps * 32) {
        const unsigned hit = scan.hit[i >> a.chunk_shift];
        const int t = static_cast<int>(hit & 7U), lane = static_cast<int>(hit >> 3 & 31U);
        const int block = static_cast<int>(hit >> 8 << a.chunk_shift) + (i & mask);
        const int id = block * 32 + lane;
        if (id < a.space.experts) {
            const Query q = Query::of(a, points, t);
            float logit;
            const float s = q.score(q.block(block) - lane_id() + lane, logit);
            if (s >= scan.least[t]) {
                const int slot = atomicAdd(&scan.met[t], 1);
                if (slot < max_met) {
                    scan.key[t][slot] = key_of(ordered(s), id);
                }
            }
        }
    }
}

/// The list of one token from what was collected, by one warp; a scan alone where that cannot tell.
__device__ inline void rank_met(const RouteArguments &a, const Points &points, int token,
                                const Scan &scan, Key *key, List &list) {
    const int met = scan.met[token], lane = lane_id();
    if (met < list.count || met > max_met) {
        list.mine = scan_alone(Query::of(a, points, token), list.count);
        return;
    }
    if (met > 32) {
        Heap<max_met / 32> heap;
#pragma unroll
        for (int j = 0; j < max_met / 32; ++j) {
            const Key mine = j * 32 + lane < met ? key[j * 32 + lane] : 0;
            heap.order[j] = order_of(mine);
            heap.id[j] = mine == 0 ? 0x7FFFFFFF : id_of(mine);
        }
        list.rebuild(heap);
        return;
    }
    list.rank(key, met);
}

/// The lists of eight tokens; warp w gets that of token w. Every warp of the block comes here.
__device__ inline void scan_group(const RouteArguments &a, const Points &points, int tokens,
                                  Scan &scan, List &list) {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    float most[group_tokens];
#pragma unroll
    for (int t = 0; t < group_tokens; ++t) {
        most[t] = -INFINITY;
    }
    {
        const Eight eight(a, points);
        if (a.space.rank == 3) {
            eight.survey<true>(scan, most);
        } else {
            eight.survey<false>(scan, most);
        }
    }
    __syncthreads();
    const float least = threshold(scan.most[warp], list.count);
    if (lane_id() == 0) {
        scan.least[warp] = warp < tokens ? least : INFINITY;
        scan.met[warp] = 0;
        scan.hits = 0;
    }
    __syncthreads();
    note_hits(a, most, scan);
    __syncthreads();
    collect(a, points, scan);
    __syncthreads();
    if (warp < tokens) {
        rank_met(a, points, warp, scan, scan.key[warp], list);
    }
}

} // namespace spectral::cuda
