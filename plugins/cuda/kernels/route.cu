// The fused geometric router: projection, then rows of scores, a scan or a tree walk, in one
// launch.
#include "scan.cuh"
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

/// V approximate logits a lane, the common mode included, and in the row.
template <int V>
__device__ void score_row(const RouteArguments &a, const Points &points, int slot,
                          float (&value)[V], Row &row) {
    const int rank = a.space.rank, experts = a.rule.experts;
#pragma unroll
    for (int j = 0; j < V; ++j) {
        const int e = place_of<V>(j);
        const int real = min(e, experts - 1);
        const float *v = a.space.blocks + (real >> 5) * (rank + 2) * 32 + (real & 31);
        float logit = v[0];
#pragma unroll 4
        for (int r = 0; r < rank; ++r) {
            logit = fmaf(v[(r + 2) * 32], points.value[r][slot], logit);
        }
        value[j] = logit + points.common[slot];
        if (e < experts) {
            row.logit[e] = value[j];
        }
    }
    __syncwarp();
}

/// The tokens of this block, a warp each.
template <int V>
__device__ void finish_rows(const RouteArguments &a, const Place &at, const Points *points,
                            unsigned *scratch, Key *slots) {
    Row row = Row::at(reinterpret_cast<float *>(scratch), scratch + a.rule.experts);
    for (int i = static_cast<int>(threadIdx.x) >> 5; i < at.count; i += warps) {
        const long long token = at.first_token + at.first + i;
        float value[V];
        score_row(a, points[i / group_tokens], i % group_tokens, value, row);
        if (a.rerank.gate == nullptr && short_rule(a.rule)) {
            store_logits(row, a.rule, a.output, token);
            finish_short(a.rule, a.output, value, row.logit, token, slots);
            continue;
        }
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

/// One token's list by its warp.
__device__ void search(const RouteArguments &a, Points &points, int token, Walk &walk, List &list) {
    Query q = Query::of(a, points, token);
    Bag bag{walk.met, list.count};
    bool found = !broken_point(q) && prepare(q, points, token);
    if (found) {
        found = q.simple() ? Search<true>{q, walk, bag}.run() : Search<false>{q, walk, bag}.run();
    }
    if (!found) {
        list.mine = scan_alone(q, list.count);
    } else if (bag.met <= 32) {
        list.rank(bag.key, bag.met);
    } else {
        Heap<2> heap;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const Key key = j * 32 + lane_id() < bag.met ? bag.key[j * 32 + lane_id()] : 0;
            heap.order[j] = order_of(key);
            heap.id[j] = key == 0 ? 0x7FFFFFFF : id_of(key);
        }
        list.rebuild(heap);
    }
}

__device__ __noinline__ void store_all_logits(Query q, const Output &out, long long token,
                                              float common) {
    for (int block = 0; block < q.space.block_count; ++block) {
        float logit;
        q.score(q.block(block), logit);
        const int id = block * 32 + lane_id();
        if (id < q.space.experts) {
            static_cast<float *>(out.logits)[token * q.space.experts + id] = logit + common;
        }
    }
}

static_assert(sizeof(Scan) <= scan_bytes && sizeof(Walk) * warps <= walk_bytes);

/// Lists of the block's tokens, eight at a time, a warp each in the end.
__device__ void finish_lists(const RouteArguments &a, const Place &at, Points *points,
                             char *scratch) {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll 1
    for (int first = 0; first < at.count; first += group_tokens) {
        const int tokens = min(group_tokens, at.count - first);
        Points &group = points[first / group_tokens];
        const long long token = at.first_token + at.first + first + warp;
        List list(a.output.count);
        if (a.search == 0) {
            scan_group(a, group, tokens, *reinterpret_cast<Scan *>(scratch), list);
        } else if (warp < tokens) {
            search(a, group, warp, reinterpret_cast<Walk *>(scratch)[warp], list);
        }
        if (warp < tokens) {
            if (a.output.logits != nullptr) {
                store_all_logits(Query::of(a, group, warp), a.output, token, group.common[warp]);
            }
            store_list(a, list, token);
        }
        __syncthreads(); // the next eight use the same memory
    }
}

template <class S, class Op, bool Rows> __device__ void route(const RouteArguments &a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Points points[S::tokens / group_tokens];
    const Place at = Place::of<S>(a.product);
    const float *received = project<S, Op>(a.product, at, shared);
    read_points(a, at, received, points);
    __syncthreads();
    char *scratch = shared + a.product.scratch_offset;
    if constexpr (Rows) {
        __shared__ Key slots[warps][most_met];
        const int warp = static_cast<int>(threadIdx.x) >> 5;
        unsigned *own =
            reinterpret_cast<unsigned *>(scratch) + warp * (2 * a.rule.experts + max_groups);
        if (a.rule.experts <= 64) {
            finish_rows<2>(a, at, points, own, slots[warp]);
        } else if (a.rule.experts <= 256) {
            finish_rows<8>(a, at, points, own, slots[warp]);
        } else {
            finish_rows<32>(a, at, points, own, slots[warp]);
        }
    } else {
        finish_lists(a, at, points, scratch);
    }
}

} // namespace

#define SPECTRAL_ROUTE(name, blocks, rows, op, ...)                                                \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                               \
        name(const __grid_constant__ RouteArguments a) {                                           \
        route<Shape<__VA_ARGS__>, op, rows>(a);                                                    \
    }

SPECTRAL_ROUTE(spectral_rows_bf16_8, 1, true, Bf16, 8, 2)
SPECTRAL_ROUTE(spectral_rows_bf16_32, 1, true, Bf16, 32, 2)
SPECTRAL_ROUTE(spectral_rows_f32_8, 1, true, F32, 8, 2)
SPECTRAL_ROUTE(spectral_lists_bf16_8, 2, false, Bf16, 8, 2)
SPECTRAL_ROUTE(spectral_lists_bf16_32, 2, false, Bf16, 32, 2)
SPECTRAL_ROUTE(spectral_lists_f32_8, 2, false, F32, 8, 2)

} // namespace spectral::cuda
