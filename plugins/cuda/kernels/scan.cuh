// Candidates of eight tokens by a whole block, all experts scored.
//
// First only maxima: of every lane, whose K-th best is a threshold that K experts reach, and of every
// chunk of blocks. Then the few chunks that reach the threshold are scored again for the one token,
// and what reaches it is ranked.
#pragma once

#include "points.cuh"

namespace spectral::cuda {

inline constexpr int max_met = 128; ///< experts that may reach a token's threshold

/// Shared memory of a block.
struct Scan {
    float most[group_tokens][warps * 32]; ///< of every lane
    unsigned chunk[max_chunks][group_tokens];
    float least[group_tokens];
    int met[group_tokens];
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
    template <bool Three> __device__ void survey(Scan &scan) const {
        const int warp = static_cast<int>(threadIdx.x) >> 5, blocks = a.space.block_count;
        float most[group_tokens];
#pragma unroll
        for (int t = 0; t < group_tokens; ++t) {
            most[t] = -INFINITY;
        }
#pragma unroll 1
        for (int c = warp; c * a.chunk_blocks < blocks; c += warps) {
            float own[group_tokens];
#pragma unroll
            for (int t = 0; t < group_tokens; ++t) {
                own[t] = -INFINITY;
            }
            const int end = min(blocks, (c + 1) * a.chunk_blocks);
#pragma unroll 4
            for (int block = c * a.chunk_blocks; block < end; ++block) {
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
            const unsigned holders = __ballot_sync(all_lanes, own == least);
            own = (holders & (0U - holders)) == 1U << lane_id() ? 0U : own;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            least = heap.pop().order;
        }
    }
    return least <= nan_order ? -INFINITY : unordered(least);
}

/// Scores one chunk again for one token and keeps what reaches the threshold.
__device__ inline void collect(const RouteArguments &a, const Query &q, int c, int token,
                               Scan &scan) {
    const float least = scan.least[token];
    const int end = min(a.space.block_count, (c + 1) * a.chunk_blocks);
#pragma unroll 4
    for (int block = c * a.chunk_blocks; block < end; ++block) {
        float logit;
        const float s = q.score(q.block(block), logit);
        const int id = block * 32 + lane_id();
        if (id < a.space.experts && s >= least) {
            const int slot = atomicAdd(&scan.met[token], 1);
            if (slot < max_met) {
                scan.key[token][slot] = key_of(ordered(s), id);
            }
        }
    }
}

__device__ inline void collect_all(const RouteArguments &a, const Points &points, Scan &scan) {
    const int warp = static_cast<int>(threadIdx.x) >> 5, lane = lane_id();
    const int chunks = (a.space.block_count + a.chunk_blocks - 1) / a.chunk_blocks;
    const int token = lane % group_tokens;
    const float bound = scan.least[token];
    const unsigned least = ordered(bound);
#pragma unroll 1
    for (int first = warp; first < chunks; first += 4 * warps) {
        const int c = first + lane / group_tokens * warps;
        const bool reaches =
            c < chunks && bound < INFINITY && scan.chunk[min(c, chunks - 1)][token] >= least;
        for (unsigned left = __ballot_sync(all_lanes, reaches); left != 0U; left &= left - 1U) {
            const int from = __ffs(static_cast<int>(left)) - 1;
            const int t = from % group_tokens;
            collect(a, Query::of(a, points, t), first + from / group_tokens * warps, t, scan);
        }
    }
}

/// The list of one token from what was collected, by one warp; a scan alone where that cannot tell.
__device__ inline void rank_met(const RouteArguments &a, const Points &points, int token,
                                const Scan &scan, Key *key, List &list) {
    const int met = scan.met[token], lane = lane_id();
    if (met < list.count || met > max_met) {
        scan_alone(Query::of(a, points, token), list);
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
    const Key mine = lane < met ? key[lane] : 0;
    int rank = 0;
#pragma unroll 4
    for (int i = 0; i < met; ++i) {
        rank += key[i] > mine ? 1 : 0;
    }
    __syncwarp();
    if (lane < met) {
        key[rank] = mine;
    }
    __syncwarp();
    list.mine = lane < list.count ? key[lane] : 0;
}

/// The lists of eight tokens; warp w gets that of token w. Every warp of the block comes here.
__device__ inline void scan_group(const RouteArguments &a, const Points &points, int tokens,
                                  Scan &scan, List &list) {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    {
        const Eight eight(a, points);
        if (a.space.rank == 3) {
            eight.survey<true>(scan);
        } else {
            eight.survey<false>(scan);
        }
    }
    __syncthreads();
    const float least = threshold(scan.most[warp], list.count);
    if (lane_id() == 0) {
        scan.least[warp] = warp < tokens ? least : INFINITY;
        scan.met[warp] = 0;
    }
    __syncthreads();
    collect_all(a, points, scan);
    __syncthreads();
    if (warp < tokens) {
        rank_met(a, points, warp, scan, scan.key[warp], list);
    }
}

} // namespace spectral::cuda
