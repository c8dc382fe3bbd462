// Partial products of a tile of tokens with a block's rows: matrix instructions or float32 FMA.
#pragma once

#include "product_float.cuh"
#include "tile.cuh"

namespace spectral::cuda {

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

/// Stages of so many columns; widths are 64, 128 or 256.
__device__ inline int stages_in(int columns, int width) {
    return (columns + width - 1) >> (width == 256 ? 8 : width == 128 ? 7 : 6);
}

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
    const int steps = stages_in(ring.end - ring.first, p.stage_columns);
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

template <class S, class Op>
__device__ void multiply(const Product &p, const Place &at, char *shared, Accumulators<S> &acc) {
    if constexpr (Op::matrix) {
        multiply_matrix<S, Op>(p, at, shared, acc);
    } else {
        multiply_float<S>(p, at, shared, acc);
    }
}

} // namespace spectral::cuda
