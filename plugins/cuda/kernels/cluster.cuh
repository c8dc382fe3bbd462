// Exchange of partial products between the blocks of a cluster through distributed shared memory.
#pragma once

#include "product.cuh"

namespace spectral::cuda {

/// Floats between two tokens of the exchange tile: 4 modulo 32, so that the scattered stores of the
/// matrix fragments fall into 32 different banks.
__host__ __device__ inline int exchange_stride(int rows_of_block) {
    return (rows_of_block + 31) / 32 * 32 + 4;
}

__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

/// A float of the same place in another block's shared memory.
__device__ inline float peer_float(unsigned address, int rank) {
    float value;
#if __CUDA_ARCH__ >= 900
    unsigned peer;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(peer));
#else
    (void)rank;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
#endif
    return value;
}

template <class S>
__device__ void store_partials(const Product &p, const Place &at, float *tile,
                               const Accumulators<S> &acc) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int warp_e = warp / S::warps_t, warp_t = warp % S::warps_t;
    const int stride = exchange_stride(p.rows_of_block);
#pragma unroll
    for (int i = 0; i < S::tiles; ++i) {
        const int row = (warp_e + i * S::warps_e) * 16 + (lane >> 2);
        if (row - (lane >> 2) < at.rows) {
#pragma unroll
            for (int n = 0; n < S::pieces; ++n) {
                float *token = tile + ((warp_t * S::pieces + n) * 8 + (lane & 3) * 2) * stride;
                token[row] = acc[i][n][0];
                token[stride + row] = acc[i][n][1];
                token[row + 8] = acc[i][n][2];
                token[stride + row + 8] = acc[i][n][3];
            }
        }
    }
}

/// Sums of a tile after the exchange; rank order fixes the order of additions.
struct Sums {
    unsigned tile; ///< shared address of the exchange tile, the same in every block
    int stride, rows_of_block, splits_hidden, outputs, planes;
    unsigned reciprocal; ///< of rows_of_block

    static __device__ Sums of(const Product &p, const void *tile) {
        return {shared_address(tile),
                exchange_stride(p.rows_of_block),
                p.rows_of_block,
                p.splits_hidden,
                p.outputs,
                p.planes,
                p.rows_reciprocal};
    }
    /// Output `o` of the tile's token `token`.
    __device__ float at(int token, int o) const {
        float sum = 0.0F;
#pragma unroll 1
        for (int plane = 0; plane < planes; ++plane) {
            const int row = plane * outputs + o;
            const int owner = static_cast<int>(__umulhi(static_cast<unsigned>(row), reciprocal));
            const unsigned address =
                tile + static_cast<unsigned>(token * stride + row - owner * rows_of_block) * 4U;
            const int first = owner * splits_hidden;
#pragma unroll 2
            for (int d = 0; d < splits_hidden; ++d) {
                sum += peer_float(address, first + d);
            }
        }
        return sum;
    }

    /// Outputs 32 j + lane of a token, with sixteen loads in flight; outputs beyond the end repeat
    /// the last.
    template <int V> __device__ void gather(int token, float (&value)[V]) const {
        constexpr int together = V >= 16 ? 1 : 16 / V;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            value[j] = 0.0F;
        }
#pragma unroll 1
        for (int plane = 0; plane < planes; ++plane) {
            unsigned address[V];
            int first[V];
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const int row =
                    plane * outputs + min(j * 32 + static_cast<int>(threadIdx.x & 31), outputs - 1);
                const int owner =
                    static_cast<int>(__umulhi(static_cast<unsigned>(row), reciprocal));
                first[j] = owner * splits_hidden;
                address[j] =
                    tile + static_cast<unsigned>(token * stride + row - owner * rows_of_block) * 4U;
            }
#pragma unroll 1
            for (int d = 0; d < splits_hidden; d += together) {
                float part[together][V];
#pragma unroll
                for (int u = 0; u < together; ++u) {
#pragma unroll
                    for (int j = 0; j < V; ++j) {
                        part[u][j] =
                            d + u < splits_hidden ? peer_float(address[j], first[j] + d + u) : 0.0F;
                    }
                }
#pragma unroll
                for (int u = 0; u < together; ++u) {
#pragma unroll
                    for (int j = 0; j < V; ++j) {
                        value[j] += part[u][j];
                    }
                }
            }
        }
    }
};

/// Tokens of the tile that this block finishes: [first, first + count) within the tile.
struct Share {
    int first, count;

    template <class S> static __device__ Share of(const Product &p, const Place &at) {
        Share share{static_cast<int>(blockIdx.x) * p.tokens_of_block, 0};
        const int left = min(S::tokens - share.first, p.tokens - at.first_token - share.first);
        share.count = max(0, min(p.tokens_of_block, left));
        return share;
    }
};

} // namespace spectral::cuda
