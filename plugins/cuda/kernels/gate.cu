// The fused exact gate: x W^T + bias, choice score, group limit, top-k and weights in one launch.
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

/// The tokens of this block, a warp each.
template <int V>
__device__ void finish_tokens(const GateArguments &a, const Place &at, float *received,
                              unsigned *scratch, Key *slots) {
    const bool quick = short_rule(a.rule);
    for (int i = static_cast<int>(threadIdx.x) >> 5; i < at.count; i += warps) {
        const long long token = at.first_token + at.first + i;
        float *row = received + i * a.product.pitch;
        float value[V];
        gather(a.product, row, value);
        settle(a, token, value, row);
        if (quick) {
            finish_short(a.rule, a.output, value, row, token, slots);
        } else {
            Row whole = Row::at(row, scratch);
            whole.choose(a.rule);
            finish_row<V>(a.rule, a.output, whole, token);
        }
    }
}

template <class S, class Op> __device__ void gate(const GateArguments &a) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Key slots[warps][most_met];
    const Place at = Place::of<S>(a.product);
    float *received = project<S, Op>(a.product, at, shared);
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    unsigned *scratch = reinterpret_cast<unsigned *>(shared + a.product.scratch_offset) +
                        warp * (a.rule.experts + max_groups);
    if (a.rule.experts <= 64) {
        finish_tokens<2>(a, at, received, scratch, slots[warp]);
    } else if (a.rule.experts <= 128) {
        finish_tokens<4>(a, at, received, scratch, slots[warp]);
    } else if (a.rule.experts <= 256) {
        finish_tokens<8>(a, at, received, scratch, slots[warp]);
    } else if (a.rule.experts <= 512) {
        finish_tokens<16>(a, at, received, scratch, slots[warp]);
    } else {
        finish_tokens<32>(a, at, received, scratch, slots[warp]);
    }
}

} // namespace

#define SPECTRAL_GATE(name, op, row_tiles, token_tiles)                                            \
    extern "C" __global__ void __launch_bounds__(warps * 32, 1)                                    \
        name(const __grid_constant__ GateArguments a) {                                            \
        gate<Shape<row_tiles, token_tiles>, op>(a);                                                \
    }

SPECTRAL_GATE(spectral_gate_bf16_8, Bf16, 4, 1)
SPECTRAL_GATE(spectral_gate_bf16_16, Bf16, 4, 2)
SPECTRAL_GATE(spectral_gate_bf16_32, Bf16, 4, 4)
SPECTRAL_GATE(spectral_gate_bf16_64, Bf16, 4, 8)
SPECTRAL_GATE(spectral_gate_f16_8, F16, 4, 1)
SPECTRAL_GATE(spectral_gate_f16_32, F16, 4, 4)
SPECTRAL_GATE(spectral_gate_f32_16, F32, 2, 2)

} // namespace spectral::cuda
