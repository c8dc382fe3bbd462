// Partial products of a tile of tokens: matrix instructions or float32 FMA, operands straight from
// global memory to registers.
//
// A lane loads 16 bytes of a row where mma wants 4 and 4 bytes 16 apart: the same permutation of the
// columns on both sides leaves the sum as it is, and nothing passes through shared memory.
#pragma once

#include "tile.cuh"

namespace spectral::cuda {

__device__ inline float load_hidden(const Product &p, long long at) {
    if (p.x_dtype == dtype_f32) {
        return static_cast<const float *>(p.x)[at];
    }
    if (p.x_dtype == dtype_f16) {
        return __half2float(static_cast<const __half *>(p.x)[at]);
    }
    return __bfloat162float(static_cast<const __nv_bfloat16 *>(p.x)[at]);
}

/// Sixteen bytes of a row, zeros beyond its end.
__device__ inline uint4 load_part(const char *base, unsigned offset, bool inside) {
    return inside ? __ldg(reinterpret_cast<const uint4 *>(base + offset)) : uint4{0U, 0U, 0U, 0U};
}

/// Units [first, end) of the columns; rows and tokens beyond the ends repeat the last one: nobody
/// reads their results.
template <class S, class Op>
__device__ void multiply_units(const Product &p, const Place &at, int first_row, int first, int end,
                               Accumulators<S> &acc) {
    const int lane = static_cast<int>(threadIdx.x) & 31, line = lane >> 2;
    const int last_row = p.outputs * p.planes - 1;
    const char *w = static_cast<const char *>(p.weight);
    const char *x = static_cast<const char *>(p.x) + at.first_token * p.stride * 2;
    unsigned w_at[S::row_tiles][2], x_at[S::token_tiles];
#pragma unroll
    for (int i = 0; i < S::row_tiles; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = min(first_row + i * 16 + h * 8 + line, last_row);
            w_at[i][h] = static_cast<unsigned>(row) * static_cast<unsigned>(p.hidden) * 2U;
        }
    }
#pragma unroll
    for (int n = 0; n < S::token_tiles; ++n) {
        const int token = min(n * 8 + line, at.live - 1);
        x_at[n] = static_cast<unsigned>(token) * static_cast<unsigned>(p.stride) * 2U;
    }
    constexpr int loads = 2 * S::row_tiles + S::token_tiles;
    constexpr int together = loads <= 4 ? 8 : loads <= 10 ? 4 : loads <= 12 ? 2 : 1;
#pragma unroll together
    for (int u = first; u < end; ++u) {
        const int column = u * unit + (lane & 3) * 8;
        const bool inside = column < p.hidden;
        const unsigned offset = static_cast<unsigned>(column) * 2U;
        uint4 b[S::token_tiles];
#pragma unroll
        for (int n = 0; n < S::token_tiles; ++n) {
            b[n] = load_part(x, x_at[n] + offset, inside);
        }
#pragma unroll
        for (int i = 0; i < S::row_tiles; ++i) {
            const uint4 low = load_part(w, w_at[i][0] + offset, inside);
            const uint4 high = load_part(w, w_at[i][1] + offset, inside);
            const unsigned a0[4] = {low.x, high.x, low.y, high.y};
            const unsigned a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (int n = 0; n < S::token_tiles; ++n) {
                Op::multiply(acc[i][n], a0, b[n].x, b[n].y);
                Op::multiply(acc[i][n], a1, b[n].z, b[n].w);
            }
        }
    }
}

/// The same sums in the same registers as the matrix instruction leaves them, by FMA.
template <class S>
__device__ void multiply_floats(const Product &p, const Place &at, int first_row, int first,
                                int end, Accumulators<S> &acc) {
    const int lane = static_cast<int>(threadIdx.x) & 31, line = lane >> 2, pair = (lane & 3) * 2;
    const int last_row = p.outputs * p.planes - 1;
    const float *w = static_cast<const float *>(p.weight);
    for (int c = first * unit; c < min(end * unit, p.hidden); ++c) {
        float x[S::token_tiles][2];
#pragma unroll
        for (int n = 0; n < S::token_tiles; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int token = at.first_token + min(n * 8 + pair + j, at.live - 1);
                x[n][j] = load_hidden(p, token * p.stride + c);
            }
        }
#pragma unroll
        for (int i = 0; i < S::row_tiles; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const long long row = min(first_row + i * 16 + h * 8 + line, last_row);
                const float weight = __ldg(w + row * p.hidden + c);
#pragma unroll
                for (int n = 0; n < S::token_tiles; ++n) {
                    acc[i][n][2 * h] = fmaf(weight, x[n][0], acc[i][n][2 * h]);
                    acc[i][n][2 * h + 1] = fmaf(weight, x[n][1], acc[i][n][2 * h + 1]);
                }
            }
        }
    }
}

/// One warp's sums to shared memory, [rows][tokens].
template <class S>
__device__ void store_partials(float *target, const Accumulators<S> &acc) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    float *mine = target + (lane >> 2) * S::partial_pitch + (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < S::row_tiles; ++i) {
#pragma unroll
        for (int n = 0; n < S::token_tiles; ++n) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                *reinterpret_cast<float2 *>(mine + (i * 16 + h * 8) * S::partial_pitch + n * 8) =
                    make_float2(acc[i][n][2 * h], acc[i][n][2 * h + 1]);
            }
        }
    }
}

/// All rows by this block's share of the columns: partial sums [column warps][rows][tokens].
template <class S, class Op>
__device__ void multiply(const Product &p, const Place &at, float *partial) {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    const int units = (p.hidden + unit - 1) / unit;
    const int column_shift = 3 - p.row_shift; // eight warps
    const int split = (at.rank << column_shift) + (warp >> p.row_shift);
    const int shift = p.cluster_shift + column_shift;
    const int first = units * split >> shift, end = units * (split + 1) >> shift;
    float *target = partial + (warp >> p.row_shift) * p.groups * S::rows * S::partial_pitch;
#pragma unroll 1
    for (int g = warp & (p.row_warps - 1); g < p.groups; g += p.row_warps) {
        Accumulators<S> acc = {};
        if constexpr (Op::matrix) {
            multiply_units<S, Op>(p, at, g * S::rows, first, end, acc);
        } else {
            multiply_floats<S>(p, at, g * S::rows, first, end, acc);
        }
        store_partials<S>(target + g * S::rows * S::partial_pitch, acc);
    }
}

} // namespace spectral::cuda
