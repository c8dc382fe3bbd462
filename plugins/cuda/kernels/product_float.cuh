// Partial products in float32: hidden states of any dtype with float32 weights, no rounding beyond
// float32.
#pragma once

#include "tile.cuh"

namespace spectral::cuda {

inline constexpr int float_stride = chunk + 1; ///< odd, so that rows fall into different banks

__device__ inline float load_hidden(const Product &p, long long at) {
    if (p.x_dtype == dtype_f32) {
        return static_cast<const float *>(p.x)[at];
    }
    if (p.x_dtype == dtype_f16) {
        return __half2float(static_cast<const __half *>(p.x)[at]);
    }
    return __bfloat162float(static_cast<const __nv_bfloat16 *>(p.x)[at]);
}

template <class S>
__device__ void load_floats(const Product &p, const Place &at, int step, float *tile) {
    const int column = (at.first_chunk + step) * chunk;
    for (int i = static_cast<int>(threadIdx.x); i < (S::tokens + at.rows) * chunk;
         i += warps * 32) {
        const int row = i / chunk, x = column + i % chunk;
        float value = 0.0F;
        if (row < S::tokens) {
            const int t = at.first_token + row;
            value = x < p.hidden && t < p.tokens ? load_hidden(p, t * p.stride + x) : 0.0F;
        } else if (x < p.hidden) {
            const long long r = at.first_row + row - S::tokens;
            value = static_cast<const float *>(p.weight)[r * p.hidden + x];
        }
        tile[row * float_stride + i % chunk] = value;
    }
}

/// The same elements in the same registers as the matrix instruction would leave them.
template <class S>
__device__ void multiply_floats_tile(const float *tile, int rows, Accumulators<S> &acc) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int warp_e = warp / S::warps_t, warp_t = warp % S::warps_t;
    const int group = lane >> 2, column = (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < S::tiles; ++i) {
        const int row = (warp_e + i * S::warps_e) * 16 + group;
        if (row - group >= rows) {
            continue;
        }
        // Rows beyond the end compute with the last one; nobody reads their results.
        const float *w0 = tile + (S::tokens + min(row, rows - 1)) * float_stride;
        const float *w1 = tile + (S::tokens + min(row + 8, rows - 1)) * float_stride;
#pragma unroll
        for (int n = 0; n < S::pieces; ++n) {
            const float *x = tile + ((warp_t * S::pieces + n) * 8 + column) * float_stride;
            for (int k = 0; k < chunk; ++k) {
                acc[i][n][0] = fmaf(w0[k], x[k], acc[i][n][0]);
                acc[i][n][1] = fmaf(w0[k], x[float_stride + k], acc[i][n][1]);
                acc[i][n][2] = fmaf(w1[k], x[k], acc[i][n][2]);
                acc[i][n][3] = fmaf(w1[k], x[float_stride + k], acc[i][n][3]);
            }
        }
    }
}

template <class S>
__device__ void multiply_float(const Product &p, const Place &at, char *shared,
                               Accumulators<S> &acc) {
    float *tile = reinterpret_cast<float *>(shared);
    for (int step = 0; step < at.chunks; ++step) {
        load_floats<S>(p, at, step, tile);
        __syncthreads();
        multiply_floats_tile<S>(tile, at.rows, acc);
        __syncthreads();
    }
}

} // namespace spectral::cuda
