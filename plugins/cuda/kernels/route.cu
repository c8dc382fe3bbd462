// The fused geometric router: projection, then rows of scores, a scan or a tree walk, in one
// launch.
#include "cluster.cuh"
#include "search.cuh"
#include "select.cuh"

namespace spectral::cuda {
namespace {

__device__ float load_any(const void *source, int dtype, long long at) {
    if (dtype == dtype_f32) {
        return static_cast<const float *>(source)[at];
    }
    return dtype == dtype_f16 ? __half2float(static_cast<const __half *>(source)[at])
                              : __bfloat162float(static_cast<const __nv_bfloat16 *>(source)[at]);
}

/// Eight bf16 products at once.
__device__ float dot8(const uint4 &a, const uint4 &b, float sum) {
    const auto *x = reinterpret_cast<const __nv_bfloat162 *>(&a);
    const auto *w = reinterpret_cast<const __nv_bfloat162 *>(&b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 u = __bfloat1622float2(x[i]), v = __bfloat1622float2(w[i]);
        sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
    }
    return sum;
}

/// Exact logit of one expert for one token, in every lane.
__device__ __noinline__ float exact_logit(const RouteArguments &a, long long token, int expert) {
    const Product &p = a.product;
    const long long x = token * p.stride, w = static_cast<long long>(expert) * p.hidden;
    float sum = 0.0F;
    if (p.x_dtype == dtype_bf16 && a.rerank.gate_dtype == dtype_bf16 && p.hidden % 8 == 0 &&
        p.stride % 8 == 0) {
        const auto *xs =
            reinterpret_cast<const uint4 *>(static_cast<const __nv_bfloat16 *>(p.x) + x);
        const auto *ws =
            reinterpret_cast<const uint4 *>(static_cast<const __nv_bfloat16 *>(a.rerank.gate) + w);
        for (int i = lane_id(); i < p.hidden / 8; i += 32) {
            sum = dot8(xs[i], ws[i], sum);
        }
    } else {
        for (int i = lane_id(); i < p.hidden; i += 32) {
            sum = fmaf(load_any(p.x, p.x_dtype, x + i),
                       load_any(a.rerank.gate, a.rerank.gate_dtype, w + i), sum);
        }
    }
    return rounded(warp_sum(sum) + (a.rerank.bias == nullptr ? 0.0F : a.rerank.bias[expert]),
                   a.rule.round_dtype);
}

/// Projects one token into the warp's point; returns the common mode.
__device__ float read_point(const RouteArguments &a, const Sums &sums, int token, Walk &walk) {
    float common = 0.0F;
    float value[2];
    if (a.product.outputs <= 32) {
        float one[1];
        sums.gather(token, one);
        value[0] = one[0];
    } else {
        sums.gather(token, value);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int r = j * 32 + lane_id();
        if (r < a.product.outputs) {
            const float projected = value[j] - a.space.offset[r];
            if (r < a.space.rank) {
                walk.point[r] = projected;
            } else {
                common = projected;
            }
        }
    }
    common = warp_sum(common); // only one lane holds it
    __syncwarp();
    return common;
}

// ---- rows: the whole gate rule on approximate logits ------------------------------------------

/// Replaces the C best approximate logits by exact ones and leaves only these eligible. The others
/// get the log-normal mean: half the square of the spread on top.
__device__ __noinline__ void rerank_row(const RouteArguments &a, Row &row, long long token) {
    const float *spread = a.rerank.spread;
    for (int e = lane_id(); spread != nullptr && e < a.rule.experts; e += 32) {
        row.logit[e] += spread[e];
    }
    row.choose(a.rule);
    Keys<32> keys;
    keys.load(row, a.rule.experts);
    for (int e = lane_id(); spread != nullptr && e < a.rule.experts; e += 32) {
        row.logit[e] += spread[e] * spread[e] * 0.5F - spread[e];
    }
    unsigned mask = 0; // bit j of lane l: expert 32 j + l
    for (int i = 0; i < a.rerank.candidates; ++i) {
        const int id = keys.pop();
        const float exact = exact_logit(a, token, id);
        if ((id & 31) == lane_id()) {
            row.logit[id] = exact;
            mask |= 1U << (id >> 5);
        }
    }
    __syncwarp();
    row.choose(a.rule);
    for (int e = lane_id(); e < a.rule.experts; e += 32) {
        row.order[e] = (mask >> (e >> 5) & 1U) != 0U ? row.order[e] : 0U;
    }
    __syncwarp();
}

template <int V>
__device__ __noinline__ void finish_rows(const RouteArguments &a, const Sums &sums, int first_token,
                                         Share share, Walk &walk, unsigned *scratch) {
    Row row = Row::at(scratch, a.rule.experts);
    for (int i = static_cast<int>(threadIdx.x) >> 5; i < share.count; i += warps) {
        const long long token = first_token + share.first + i;
        const float common = read_point(a, sums, share.first + i, walk);
        const Query q{a.space, a.tree, a.rule, walk.point, walk.squared, 0.0F};
#pragma unroll 2
        for (int block = 0; block < a.space.block_count; ++block) {
            float logit;
            q.score(block, logit);
            if (block * 32 + lane_id() < a.rule.experts) {
                row.logit[block * 32 + lane_id()] = logit + common;
            }
        }
        __syncwarp();
        if (a.rerank.gate != nullptr) {
            rerank_row(a, row, token);
        } else {
            row.choose(a.rule);
        }
        store_logits(row, a.rule, a.output, token);
        finish_row<V>(a.rule, a.output, row, token);
    }
}

// ---- lists: scan or search -------------------------------------------------------------------

/// Orders the candidates by exact choice scores; lane i then holds the i-th id and logit.
__device__ void rerank_list(const RouteArguments &a, List &list, long long token, int &id,
                            float &logit) {
    const int count = list.count;
    float exact = 0.0F;
    for (int i = 0; i < count; ++i) {
        const float value = exact_logit(a, token, __shfl_sync(all_lanes, id, i));
        exact = lane_id() == i ? value : exact;
    }
    const bool real = lane_id() < count;
    const bool plain = a.rule.score == score_softmax;
    float choice = plain ? exact : transform(a.rule.score, exact);
    choice += real && a.rule.choice_bias != nullptr ? a.rule.choice_bias[id] : 0.0F;
    List best(a.rule.top_k);
    const float choices[1] = {choice};
    const int ids[1] = {real ? id : -1};
    best.offer(choices, ids);
    const int old = id;
    const int wanted = id_of(best.mine);
    for (int i = 0; i < a.rule.top_k; ++i) {
        const int found = __shfl_sync(all_lanes, wanted, i);
        const unsigned where = __ballot_sync(all_lanes, real && old == found);
        const float value = __shfl_sync(all_lanes, exact, __ffs(static_cast<int>(where)) - 1);
        logit = lane_id() == i ? value : logit;
    }
    id = wanted;
}

__device__ void store_list(const RouteArguments &a, List &list, long long token) {
    int id = id_of(list.mine);
    float logit = unordered(order_of(list.mine));
    if (a.output.scores != nullptr && lane_id() < list.count) {
        a.output.scores[token * list.count + lane_id()] = logit;
        store_id(a.output, token * list.count + lane_id(), id);
    }
    if (a.output.weights != nullptr) {
        if (a.rerank.gate != nullptr) {
            rerank_list(a, list, token, id, logit);
        }
        const float peak = warp_max(lane_id() < a.rule.top_k ? logit : -INFINITY);
        store_choice(a.rule, a.output, token, id, weigh(a.rule, logit, peak, 1.0F));
    }
}

/// A point with NaN ranks experts by id; so does the reference.
__device__ bool broken_point(const RouteArguments &a, const Walk &walk) {
    bool broken = false;
    for (int r = lane_id(); r < a.space.rank; r += 32) {
        broken = broken || walk.point[r] != walk.point[r];
    }
    return __any_sync(all_lanes, broken);
}

/// Warps that share one token's scan when a block has fewer tokens than warps.
__device__ int team_of(const RouteArguments &a, int tokens) {
    const int spare = a.search != 0 || tokens == 0 ? 1 : warps / tokens;
    return spare >= 8 ? 8 : spare >= 4 ? 4 : spare >= 2 ? 2 : 1;
}

/// Joins the lists of a team in its first warp; every warp of the block comes here exactly once.
__device__ void join_lists(Walk *walks, int team, List &list) {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    reinterpret_cast<Key *>(walks[warp].bound)[lane_id()] = list.mine;
    __syncthreads();
    if (warp % team == 0) {
        Heap<warps> heap;
#pragma unroll
        for (int i = 0; i < warps; ++i) {
            const Key key =
                i < team ? reinterpret_cast<const Key *>(walks[warp + i].bound)[lane_id()] : 0;
            heap.order[i] = order_of(key);
            heap.id[i] = key == 0 ? 0x7FFFFFFF : id_of(key);
        }
        list.rebuild(heap);
    }
}

__device__ void find(const RouteArguments &a, Walk &walk, List &list, int part, int team) {
    float slack = 0.0F;
    const bool walks =
        a.search != 0 && !broken_point(a, walk) && prepare(a.space, a.tree, walk, slack);
    const Query q{a.space, a.tree, a.rule, walk.point, walk.squared, slack};
    const int blocks = a.space.block_count;
    if (walks) {
        search_tree(q, walk, list);
    } else if (a.search != 0) {
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
            const int one[batch] = {block, -1, -1, -1};
            offer_blocks(q, one, list);
        }
    } else {
        scan_blocks(q, list, static_cast<int>(static_cast<long long>(blocks) * part / team),
                    static_cast<int>(static_cast<long long>(blocks) * (part + 1) / team));
    }
}

__device__ __noinline__ void finish_lists(const RouteArguments &a, const Sums &sums,
                                          int first_token, Share share, Walk *walks) {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    const int team = team_of(a, share.count);
    Walk &walk = walks[warp];
    for (int i = warp / team; i < share.count || (team > 1 && i < warps / team);
         i += warps / team) {
        const bool real =
            i < share.count; // in a team all warps meet at the barrier, also idle ones
        const long long token = first_token + share.first + i;
        List list(a.output.count);
        if (real) {
            const float common = read_point(a, sums, share.first + i, walk);
            find(a, walk, list, warp % team, team);
            if (a.output.logits != nullptr && warp % team == 0) {
                const Query q{a.space, a.tree, a.rule, walk.point, walk.squared, 0.0F};
                store_all_logits(q, a.output, token, common);
            }
        }
        __syncwarp();
        if (team > 1) {
            join_lists(walks, team, list);
        }
        if (real && warp % team == 0) {
            store_list(a, list, token);
        }
        __syncwarp();
    }
}

template <class S, class Op> __device__ void route(const RouteArguments &a, bool rows) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Walk walks[warps];
    const Place at = Place::of<S>(a.product);
    {
        Accumulators<S> acc = {};
        multiply<S, Op>(a.product, at, shared, acc);
        store_partials<S>(a.product, at, reinterpret_cast<float *>(shared), acc);
    }
    cluster_arrive();
    cluster_wait();
    const Sums sums = Sums::of(a.product, shared);
    const Share share = Share::of<S>(a.product, at);
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    if (rows) {
        unsigned *scratch = reinterpret_cast<unsigned *>(shared + a.product.exchange_offset) +
                            warp * Row::words(a.rule.experts);
        if (a.rule.experts <= 128) {
            finish_rows<4>(a, sums, at.first_token, share, walks[warp], scratch);
        } else {
            finish_rows<32>(a, sums, at.first_token, share, walks[warp], scratch);
        }
    } else {
        finish_lists(a, sums, at.first_token, share, walks);
    }
    cluster_arrive(); // nobody leaves while a peer still reads its sums
    cluster_wait();
}

} // namespace

#define SPECTRAL_ROUTE(name, blocks, rows, op, ...)                                                \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                               \
        name(const __grid_constant__ RouteArguments a) {                                           \
        route<Shape<__VA_ARGS__>, op>(a, rows);                                                    \
    }

SPECTRAL_ROUTE(spectral_rows_bf16, 1, true, Bf16, 32, 4, 5)
SPECTRAL_ROUTE(spectral_rows_f32, 1, true, F32, 32, 4, 5)
SPECTRAL_ROUTE(spectral_lists_bf16, 2, false, Bf16, 32, 4, 5)
SPECTRAL_ROUTE(spectral_lists_f32, 2, false, F32, 32, 4, 5)

} // namespace spectral::cuda
