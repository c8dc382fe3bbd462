// Partial products of a tile of tokens with a block's rows: matrix instructions or float32 FMA.
//
// Experts are the M side of mma.m16n8k16 and tokens the N side, so that a decode batch of 8 tokens
// wastes nothing. A stage in shared memory is [tokens + rows][columns] of 16-bit numbers, 16 bytes
// of padding a row, so that ldmatrix is conflict-free; a thread fetches a whole row with one bulk
// copy.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "params.h"

namespace spectral::cuda {

template <int Tokens_, int WarpsT_, int Tiles_> struct Shape {
    static constexpr int tokens = Tokens_;               ///< of a tile
    static constexpr int warps_t = WarpsT_;              ///< warps side by side along the tokens
    static constexpr int warps_e = warps / WarpsT_;      ///< and along the rows
    static constexpr int tiles = Tiles_;                 ///< row tiles of 16 a warp can hold
    static constexpr int pieces = Tokens_ / WarpsT_ / 8; ///< token tiles of 8 a warp holds
};

struct Bf16 {
    using Type = __nv_bfloat16;
    static constexpr bool matrix = true;
    static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                     "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

struct F16 {
    using Type = __half;
    static constexpr bool matrix = true;
    static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                     "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

/// Float32 weights and hidden states of any dtype: no rounding beyond float32's own.
struct F32 {
    using Type = float;
    static constexpr bool matrix = false;
};

__device__ inline unsigned shared_address(const void *p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// The block's place in its cluster, from the grid alone: blockIdx.x counts tiles, y the splits.
struct Place {
    int split_hidden, split_rows;
    int first_token, first_row, rows, first_chunk, chunks;

    template <class S> static __device__ Place of(const Product &p) {
        Place at;
        at.split_hidden = static_cast<int>(blockIdx.x) % p.splits_hidden;
        at.split_rows = static_cast<int>(blockIdx.x) / p.splits_hidden % p.splits_rows;
        at.first_token =
            static_cast<int>(blockIdx.x) / (p.splits_hidden * p.splits_rows) * S::tokens;
        at.first_row = at.split_rows * p.rows_of_block;
        at.rows = min(p.rows_of_block, p.outputs * p.planes - at.first_row);
        const int all = (p.hidden + chunk - 1) / chunk;
        at.first_chunk =
            static_cast<int>(static_cast<long long>(all) * at.split_hidden / p.splits_hidden);
        at.chunks = static_cast<int>(static_cast<long long>(all) * (at.split_hidden + 1) /
                                     p.splits_hidden) -
                    at.first_chunk;
        return at;
    }
};

template <class S> using Accumulators = float[S::tiles][S::pieces][4];

// ---- matrix instructions -------------------------------------------------------------------

__device__ inline void barrier_init(unsigned barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ inline void barrier_expect(unsigned barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
#endif
}

/// Waits for the copies of a stage; before Hopper for all copies.
__device__ inline void barrier_wait(unsigned barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred done;\nwait:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra wait;\n}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
#endif
}

__device__ inline void copy_row(unsigned target, const void *source, unsigned bytes,
                                unsigned barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(target),
        "l"(source), "r"(bytes), "r"(barrier)
        : "memory");
#else
    for (unsigned at = 0; at < bytes; at += 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target + at),
                     "l"(static_cast<const char *>(source) + at)
                     : "memory");
    }
#endif
}

/// A ring of stages, `columns` of the hidden state each.
struct Ring {
    unsigned base, pitch, stage_bytes, barriers;
    int rows;       ///< tokens and weight rows of a stage
    int first, end; ///< columns of this block's share

    template <class S>
    static __device__ Ring of(const Product &p, const Place &at, const void *shared,
                              const void *barriers) {
        Ring r;
        r.base = shared_address(shared);
        r.pitch = static_cast<unsigned>(p.stage_columns) * 2U + 16U;
        r.rows = S::tokens + (at.rows + 15) / 16 * 16;
        r.stage_bytes = static_cast<unsigned>(S::tokens + p.rows_of_block) * r.pitch;
        r.barriers = shared_address(barriers);
        r.first = at.first_chunk * chunk;
        r.end = min(p.hidden, (at.first_chunk + at.chunks) * chunk);
        return r;
    }
};

/// Starts the copies of one stage. Rows beyond the ends repeat the last one: nobody reads their
/// results.
template <class S, class Op>
__device__ void fill_stage(const Product &p, const Place &at, const Ring &ring, int step,
                           int slot) {
    using Type = typename Op::Type;
    const int column = ring.first + step * p.stage_columns;
    const int width = min(p.stage_columns, ring.end - column);
    const unsigned barrier = ring.barriers + static_cast<unsigned>(slot) * 8U;
    const unsigned stage = ring.base + static_cast<unsigned>(slot) * ring.stage_bytes;
    if (threadIdx.x == 0) {
        barrier_expect(barrier, static_cast<unsigned>(ring.rows * width) * 2U);
    }
    for (int row = static_cast<int>(threadIdx.x); row < ring.rows; row += warps * 32) {
        const bool token = row < S::tokens;
        const long long r = token ? min(at.first_token + row, p.tokens - 1)
                                  : at.first_row + min(row - S::tokens, at.rows - 1);
        const Type *source = static_cast<const Type *>(token ? p.x : p.weight) +
                             (token ? r * p.stride : r * p.hidden) + column;
        const unsigned target = stage + static_cast<unsigned>(row) * ring.pitch;
        if ((width & 15) != 0) { // half a k-step is left: the other half must be zeros
            asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(
                             target + static_cast<unsigned>(width) * 2U),
                         "r"(0U)
                         : "memory");
        }
        copy_row(target, source, static_cast<unsigned>(width) * 2U, barrier);
    }
}

__device__ inline void load_matrices(unsigned (&out)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

template <class S, class Op>
__device__ void multiply_stage(unsigned stage, unsigned pitch, int width, int row_tiles,
                               Accumulators<S> &acc) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int warp_e = warp / S::warps_t, warp_t = warp % S::warps_t;
    constexpr int pairs = (S::pieces + 1) / 2;
    // Lanes 0-7, 8-15: columns k, k + 8 of the first 8 tokens; lanes 16-31: of the next 8.
    const int token = warp_t * S::pieces * 8 + (lane & 7) + (S::pieces == 1 ? 0 : (lane >> 4) * 8);
    unsigned b_at = stage + static_cast<unsigned>(token) * pitch + (lane >> 3 & 1) * 16U;
    unsigned a_at = stage + static_cast<unsigned>(S::tokens + warp_e * 16 + (lane & 15)) * pitch +
                    (lane >> 4) * 16U;
#pragma unroll 2
    for (int k = 0; k < width; k += 16, a_at += 32, b_at += 32) {
        unsigned b[pairs][4];
#pragma unroll
        for (int n = 0; n < pairs; ++n) {
            load_matrices(b[n], b_at + static_cast<unsigned>(n * 16) * pitch);
        }
#pragma unroll
        for (int i = 0; i < S::tiles; ++i) {
            if (warp_e + i * S::warps_e < row_tiles) {
                unsigned a[4];
                load_matrices(a, a_at + static_cast<unsigned>(i * S::warps_e * 16) * pitch);
#pragma unroll
                for (int n = 0; n < S::pieces; ++n) {
                    Op::multiply(acc[i][n], a, b[n / 2][2 * (n & 1)], b[n / 2][2 * (n & 1) + 1]);
                }
            }
        }
    }
}

/// All columns of this block through a ring of stages.
template <class S, class Op>
__device__ void multiply_matrix(const Product &p, const Place &at, char *shared,
                                Accumulators<S> &acc) {
    __shared__ unsigned long long barriers[max_stages];
    const Ring ring = Ring::of<S>(p, at, shared, barriers);
    const int steps = (ring.end - ring.first + p.stage_columns - 1) / p.stage_columns;
    const int row_tiles = (at.rows + 15) / 16;
    if (threadIdx.x < max_stages) {
        barrier_init(ring.barriers + threadIdx.x * 8U);
    }
    __syncthreads();
    // One loop for filling and running: the code is fetched once a launch, and that is what costs.
    int slot = 0;
    unsigned parity = 0;
#pragma unroll 1
    for (int step = -p.stages; step < steps; ++step) {
        if (step >= 0) {
            const int width = min(p.stage_columns, ring.end - ring.first - step * p.stage_columns);
            barrier_wait(ring.barriers + static_cast<unsigned>(slot) * 8U, parity);
            if ((width & 15) != 0) {
                __syncthreads();
            }
            multiply_stage<S, Op>(ring.base + static_cast<unsigned>(slot) * ring.stage_bytes,
                                  ring.pitch, width, row_tiles, acc);
        }
        if (step + p.stages < steps) {
            if (step >= 0) {
                __syncthreads(); // every warp has read the stage
            }
            fill_stage<S, Op>(p, at, ring, step + p.stages, slot);
        }
        slot = slot + 1 == p.stages ? 0 : slot + 1;
        parity ^= slot == 0 && step >= 0 ? 1U : 0U;
    }
    __syncthreads();
}

// ---- float32 -------------------------------------------------------------------------------

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

template <class S, class Op>
__device__ void multiply(const Product &p, const Place &at, char *shared, Accumulators<S> &acc) {
    if constexpr (Op::matrix) {
        multiply_matrix<S, Op>(p, at, shared, acc);
    } else {
        multiply_float<S>(p, at, shared, acc);
    }
}

} // namespace spectral::cuda
