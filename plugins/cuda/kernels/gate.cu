// The fused exact gate: x W^T + bias, choice score, group limit, top-k and weights in one launch.
#include "cluster.cuh"
#include "select.cuh"

namespace spectral::cuda {
namespace {

/// Bias, rounding and the listing of logits; each is skipped as a whole where it is not asked for.
template <int V>
__device__ void settle(const GateArguments &a, long long token, float (&value)[V]) {
    const int last = a.rule.experts - 1;
    if (a.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            value[j] += a.bias[min(j * 32 + lane_id(), last)];
        }
    }
    if (a.rule.round_dtype != dtype_f32) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            value[j] = rounded(value[j], a.rule.round_dtype);
        }
    }
    if (a.output.logits != nullptr) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const int e = j * 32 + lane_id();
            if (e <= last) {
                store_as(a.output.logits, token * a.rule.experts + e, value[j],
                         a.output.logits_dtype);
            }
        }
    }
}

template <int V>
__device__ void finish_short_tokens(const GateArguments &a, const Sums &sums, int first_token,
                                    Share share) {
    for (int i = static_cast<int>(threadIdx.x) >> 5; i < share.count; i += warps) {
        const long long token = first_token + share.first + i;
        float value[V];
        sums.gather(share.first + i, value);
        settle(a, token, value);
        finish_short(a.rule, a.output, value, token);
    }
}

/// One copy for all tile shapes: not inlined.
template <int V>
__device__ __noinline__ void finish_tokens(const GateArguments &a, const Sums &sums,
                                           int first_token, Share share, unsigned *scratch) {
    Row row = Row::at(scratch, a.rule.experts);
    for (int i = static_cast<int>(threadIdx.x) >> 5; i < share.count; i += warps) {
        const long long token = first_token + share.first + i;
#pragma unroll 2
        for (int e = lane_id(); e < a.rule.experts; e += 32) {
            const float bias = a.bias == nullptr ? 0.0F : a.bias[e];
            row.logit[e] = rounded(sums.at(share.first + i, e) + bias, a.rule.round_dtype);
        }
        __syncwarp();
        store_logits(row, a.rule, a.output, token);
        row.choose(a.rule);
        finish_row<V>(a.rule, a.output, row, token);
    }
}

/// `Narrow`: at most 64 experts, and only the code for them.
template <class S, class Op, bool Narrow = false> __device__ void gate(const GateArguments &a) {
    extern __shared__ __align__(128) char shared[];
    const Place at = Place::of<S>(a.product);
    {
        Accumulators<S> acc = {};
        multiply<S, Op>(a.product, at, shared, acc);
        store_partials<S>(a.product, at, reinterpret_cast<float *>(shared), acc);
    }
    cluster_arrive();
    cluster_wait();
    unsigned *scratch = reinterpret_cast<unsigned *>(shared + a.product.exchange_offset) +
                        (static_cast<int>(threadIdx.x) >> 5) * Row::words(a.rule.experts);
    const Sums sums = Sums::of(a.product, shared);
    const Share share = Share::of<S>(a.product, at);
    if constexpr (Narrow) {
        finish_short_tokens<2>(a, sums, at.first_token, share);
    } else if (a.rule.experts <= 256 && short_rule(a.rule)) {
        finish_short_tokens<8>(a, sums, at.first_token, share);
    } else if (a.rule.experts <= 512 && short_rule(a.rule)) {
        finish_short_tokens<16>(a, sums, at.first_token, share);
    } else {
        finish_tokens<32>(a, sums, at.first_token, share, scratch);
    }
    cluster_arrive(); // nobody leaves while a peer still reads its sums
    cluster_wait();
}

} // namespace

#define SPECTRAL_GATE(name, blocks, op, ...)                                                       \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                               \
        name(const __grid_constant__ GateArguments a) {                                            \
        gate<Shape<__VA_ARGS__>, op>(a);                                                           \
    }

#define SPECTRAL_NARROW(name, blocks, op, ...)                                                     \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                               \
        name(const __grid_constant__ GateArguments a) {                                            \
        gate<Shape<__VA_ARGS__>, op, true>(a);                                                     \
    }

SPECTRAL_NARROW(spectral_gate_narrow_8, 2, Bf16, 8, 1, 1)
SPECTRAL_NARROW(spectral_gate_narrow_64, 2, Bf16, 64, 2, 1)
SPECTRAL_GATE(spectral_gate_bf16_8, 1, Bf16, 8, 1, 2)
SPECTRAL_GATE(spectral_gate_bf16_64, 2, Bf16, 64, 2, 4)
SPECTRAL_GATE(spectral_gate_bf16_128, 1, Bf16, 128, 2, 4)
SPECTRAL_GATE(spectral_gate_f16_8, 1, F16, 8, 1, 2)
SPECTRAL_GATE(spectral_gate_f16_64, 2, F16, 64, 2, 4)
SPECTRAL_GATE(spectral_gate_f32_32, 1, F32, 32, 4, 8)

} // namespace spectral::cuda
