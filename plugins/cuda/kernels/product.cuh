// Partial products of a tile of tokens: matrix instructions or float32 FMA, operands straight from
// global memory to registers.
//
// A lane loads 16 bytes of a row where mma wants 4 and 4 bytes 16 apart: the same permutation of
// the columns on both sides leaves the sum as it is, and nothing passes through shared memory.
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

/// Where a lane reads: its column of the first unit, of every token and row of a warp's tile. Rows
/// and tokens beyond the ends repeat the last one: nobody reads their results.
template <class S> struct Sources {
    static constexpr int halves = S::half ? 1 : 2 * S::token_tiles;
    const uint4 *x[halves];
    const uint4 *w[S::row_tiles];

    static __device__ Sources of(const Product &p, const Place &at, int first_row, int first) {
        const int lane = static_cast<int>(threadIdx.x) & 31, line = lane >> 2;
        const long long column = first * unit + (lane & 3) * 8, last = p.outputs * p.planes - 1;
        const char *x = static_cast<const char *>(p.x) + (at.first_token * p.stride + column) * 2;
        const char *w = static_cast<const char *>(p.weight) + column * 2;
        const unsigned token_bytes = static_cast<unsigned>(p.stride) * 2U;
        const unsigned row_bytes = static_cast<unsigned>(p.hidden) * 2U;
        Sources s;
#pragma unroll
        for (int h = 0; h < halves; ++h) {
            const unsigned token = static_cast<unsigned>(min(h * 8 + line, at.live - 1));
            s.x[h] = reinterpret_cast<const uint4 *>(x + token * token_bytes);
        }
#pragma unroll
        for (int n = 0; n < S::row_tiles; ++n) {
            const int row = min(first_row + n * 8 + line, static_cast<int>(last));
            s.w[n] = reinterpret_cast<const uint4 *>(w + static_cast<unsigned>(row) * row_bytes);
        }
        return s;
    }

    /// Multiplies the unit `step` units further; a lane outside the hidden state takes zeros.
    template <class Op>
    __device__ void multiply(int step, bool inside, Accumulators<S> &acc) const {
        const uint4 zero{0U, 0U, 0U, 0U};
        uint4 a[halves], b[S::row_tiles];
#pragma unroll
        for (int h = 0; h < halves; ++h) {
            a[h] = inside ? __ldg(x[h] + step * 4) : zero;
        }
#pragma unroll
        for (int n = 0; n < S::row_tiles; ++n) {
            b[n] = inside ? __ldg(w[n] + step * 4) : zero;
        }
#pragma unroll
        for (int m = 0; m < S::token_tiles; ++m) {
            const uint4 low = a[S::half ? 0 : 2 * m],
                        high = S::half ? zero : a[(2 * m + 1) % halves];
            const unsigned first[4] = {low.x, high.x, low.y, high.y};
            const unsigned second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (int n = 0; n < S::row_tiles; ++n) {
                Op::multiply(acc[m][n], first, b[n].x, b[n].y);
                Op::multiply(acc[m][n], second, b[n].z, b[n].w);
            }
        }
    }
};

/// Units [first, end) of the columns.
template <class S, class Op>
__device__ void multiply_units(const Product &p, const Place &at, int first_row, int first, int end,
                               Accumulators<S> &acc) {
    constexpr int together = Sources<S>::halves + S::row_tiles <= 4 ? 8 : S::tokens <= 16 ? 2 : 1;
    Sources<S> s = Sources<S>::of(p, at, first_row, first);
    const int full = min(end, p.hidden / unit) - first;
    int done = 0;
#pragma unroll 1
    for (; done + together <= full; done += together) {
#pragma unroll
        for (int i = 0; i < together; ++i) {
            s.template multiply<Op>(done + i, true, acc);
        }
    }
#pragma unroll 1
    for (; done < end - first; ++done) {
        const int column = (first + done) * unit + (static_cast<int>(threadIdx.x) & 3) * 8;
        s.template multiply<Op>(done, column < p.hidden, acc);
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
        float x[Sources<S>::halves];
#pragma unroll
        for (int h = 0; h < Sources<S>::halves; ++h) {
            const int token = at.first_token + min(h * 8 + line, at.live - 1);
            x[h] = load_hidden(p, token * p.stride + c);
        }
#pragma unroll
        for (int n = 0; n < S::row_tiles; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const long long row = min(first_row + n * 8 + pair + j, last_row);
                const float weight = __ldg(w + row * p.hidden + c);
#pragma unroll
                for (int h = 0; h < Sources<S>::halves; ++h) {
                    float &sum = acc[h / 2][n][h % 2 * 2 + j];
                    sum = fmaf(weight, x[h], sum);
                }
            }
        }
    }
}

/// One warp's sums to shared memory, [tokens][rows].
template <class S>
__device__ void store_partials(float *target, int pitch, const Accumulators<S> &acc) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    float *mine = target + (lane >> 2) * pitch + (lane & 3) * 2;
#pragma unroll
    for (int h = 0; h < Sources<S>::halves; ++h) {
        float *token = mine + h * 8 * pitch;
#pragma unroll
        for (int n = 0; n < S::row_tiles; ++n) {
            *reinterpret_cast<float2 *>(token + n * 8) =
                make_float2(acc[h / 2][n][h % 2 * 2], acc[h / 2][n][h % 2 * 2 + 1]);
        }
    }
}

/// All rows by this block's share of the columns: partial sums [column warps][tokens][rows].
template <class S, class Op>
__device__ void multiply(const Product &p, const Place &at, float *partial) {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    const int units = (p.hidden + unit - 1) / unit;
    const int column_shift = 3 - p.row_shift; // eight warps
    const int split = (at.rank << column_shift) + (warp >> p.row_shift);
    const int shift = p.cluster_shift + column_shift;
    const int first = units * split >> shift, end = units * (split + 1) >> shift;
    const int pitch = p.partial_pitch;
    float *target = partial + (warp >> p.row_shift) * S::tokens * pitch;
#pragma unroll 1
    for (int g = warp & (p.row_warps - 1); g < p.groups; g += p.row_warps) {
        Accumulators<S> acc = {};
        if constexpr (Op::matrix) {
            multiply_units<S, Op>(p, at, g * S::rows, first, end, acc);
        } else {
            multiply_floats<S>(p, at, g * S::rows, first, end, acc);
        }
        store_partials<S>(target + g * S::rows, pitch, acc);
    }
}

} // namespace spectral::cuda
