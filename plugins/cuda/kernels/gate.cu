// The fused exact gate: x W^T + bias, choice score, group limit, top-k and weights in one launch,
// and the same from logits that a library multiplied.
#include "select.cuh"

namespace spectral::cuda {
namespace {

/// Bias, rounding and the listing of logits; each is skipped as a whole where it is not asked for.
template <int V>
__device__ void settle(const GateArguments &a, long long token, float (&value)[V], float *row) {
    const int last = a.rule.experts - 1;
    if (a.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            value[j] += a.bias[min(place_of<V>(j), last)];
        }
    }
    if (a.rule.round_dtype != dtype_f32) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            value[j] = rounded(value[j], a.rule.round_dtype);
        }
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < V; ++j) {
        const int e = place_of<V>(j);
        if (e <= last) {
            row[e] = value[j];
            if (a.output.logits != nullptr) {
                store_as(a.output.logits, token * a.rule.experts + e, value[j],
                         a.output.logits_dtype);
            }
        }
    }
    __syncwarp();
}

/// Settled logits to ids and weights.
template <int V>
__device__ void finish(const GateArguments &a, long long token, const float (&value)[V], float *row,
                       unsigned *scratch, Key *slots) {
    if (short_rule(a.rule)) {
        finish_short(a.rule, a.output, value, row, token, slots);
    } else {
        Row whole = Row::at(row, scratch);
        whole.choose(a.rule);
        finish_row<V>(a.rule, a.output, whole, token);
    }
}

/// V experts a lane.
template <class S, class Op, int V> __device__ void gate(const GateArguments &a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Key slots[warps][most_met];
    const Place at = Place::of<S>(a.product);
    float *received = project<S, Op>(a.product, at, shared);
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    unsigned *scratch = reinterpret_cast<unsigned *>(shared + a.product.scratch_offset) +
                        warp * (a.rule.experts + max_groups);
#pragma unroll 1
    for (int i = warp; i < at.count; i += warps) {
        const long long token = at.first_token + at.first + i;
        float *row = received + i * a.product.pitch;
        float value[V];
        gather(a.product, row, value);
        settle(a, token, value, row);
        finish(a, token, value, row, scratch, slots[warp]);
    }
}

__device__ inline float widened(float x) {
    return x;
}
__device__ inline float widened(__half x) {
    return __half2float(x);
}
__device__ inline float widened(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

/// V logits a lane of one row; beyond the experts they are the last one. Every loop is unrolled
/// whole: an index that is not known would put all V into local memory.
template <int V, class T> __device__ void load_row(const T *row, int experts, float (&value)[V]) {
    constexpr int run = V < 4 ? V : 4;
    struct alignas(run * sizeof(T)) Run {
        T of[run];
    };
    if (experts % run == 0 && reinterpret_cast<std::uintptr_t>(row) % sizeof(Run) == 0) {
#pragma unroll
        for (int j = 0; j < V; j += run) { // a run lies within the experts or beyond them
            const int at = min(place_of<V>(j), experts - run);
            const Run found = *reinterpret_cast<const Run *>(row + at);
#pragma unroll
            for (int k = 0; k < run; ++k) {
                value[j + k] = widened(found.of[k]);
            }
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
        value[j] = widened(row[min(place_of<V>(j), experts - 1)]);
    }
}

template <int V>
__device__ void load_logits(const Product &p, long long token, int experts, float (&value)[V]) {
    const long long begin = token * p.stride;
    if (p.x_dtype == dtype_bf16) {
        load_row(static_cast<const __nv_bfloat16 *>(p.x) + begin, experts, value);
    } else if (p.x_dtype == dtype_f16) {
        load_row(static_cast<const __half *>(p.x) + begin, experts, value);
    } else {
        load_row(static_cast<const float *>(p.x) + begin, experts, value);
    }
}

/// From logits [tokens, E] in place of the hidden states: a warp a token.
template <int V> __device__ void pick(const GateArguments &a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Key slots[warps][most_met];
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    const long long token = static_cast<long long>(blockIdx.y) * warps + warp;
    wait_for_stream();
    if (token >= a.product.tokens) {
        return;
    }
    float *row = reinterpret_cast<float *>(shared) + warp * (2 * a.rule.experts + max_groups);
    float value[V];
    load_logits(a.product, token, a.rule.experts, value);
    settle(a, token, value, row);
    finish(a, token, value, row, reinterpret_cast<unsigned *>(row + a.rule.experts), slots[warp]);
}

} // namespace

#define SPECTRAL_GATE(name, blocks, op, tokens, V)                                                 \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                               \
        name##_##tokens##_##V(const __grid_constant__ GateArguments a) {                           \
        gate<Shape<tokens, 8>, op, V>(a);                                                          \
    }

#define SPECTRAL_PICK(V, blocks)                                                                   \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                               \
        spectral_gate_pick_##V(const __grid_constant__ GateArguments a) {                          \
        pick<V>(a);                                                                                \
    }

#define SPECTRAL_GATES(V, blocks)                                                                  \
    SPECTRAL_GATE(spectral_gate_bf16, blocks, Bf16, 8, V)                                          \
    SPECTRAL_GATE(spectral_gate_bf16, blocks, Bf16, 16, V)                                         \
    SPECTRAL_GATE(spectral_gate_bf16, blocks, Bf16, 32, V)                                         \
    SPECTRAL_GATE(spectral_gate_f16, blocks, F16, 16, V)                                           \
    SPECTRAL_GATE(spectral_gate_f32, blocks, F32, 16, V)                                           \
    SPECTRAL_PICK(V, blocks)

SPECTRAL_GATES(2, 2)
SPECTRAL_GATES(4, 2)
SPECTRAL_GATES(8, 2)
SPECTRAL_GATES(16, 1)
SPECTRAL_GATES(32, 1)

} // namespace spectral::cuda
