// Sums of the partial products: over a block's warps, then pushed to the block of the cluster that
// finishes the token.
#pragma once

#include "product.cuh"

namespace spectral::cuda {

__device__ inline unsigned shared_address(const void *p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// Tells the peers that this block runs, so that they may write to its shared memory.
__device__ inline void cluster_announce(const Product &p) {
#if __CUDA_ARCH__ >= 900
    if (p.cluster > 1) {
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
#endif
}

__device__ inline void cluster_meet(const Product &p) {
#if __CUDA_ARCH__ >= 900
    if (p.cluster > 1) {
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
#endif
}

/// What was pushed is there afterwards.
__device__ inline void cluster_exchange(const Product &p) {
#if __CUDA_ARCH__ >= 900
    if (p.cluster > 1) {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

/// A float to the same place in another block's shared memory.
__device__ inline void push(unsigned address, int rank, int cluster, float value) {
#if __CUDA_ARCH__ >= 900
    if (cluster > 1) {
        asm volatile("{\n.reg .b32 peer;\n"
                     "mapa.shared::cluster.u32 peer, %0, %1;\n"
                     "st.shared::cluster.f32 [peer], %2;\n}" ::"r"(address),
                     "r"(rank), "f"(value)
                     : "memory");
        return;
    }
#endif
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

/// Adds the warps' partial sums, in their order, and pushes them: [ranks][tokens of block][pitch].
template <class S>
__device__ void reduce_and_push(const Product &p, const Place &at, const float *partial,
                                unsigned received) {
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    const int rows = p.outputs * p.planes, parts = warps >> p.row_shift;
    const int plane = p.groups * S::rows * S::partial_pitch;
    // A warp takes 16 rows of 8 tokens at a time, in an order that meets every bank once.
    const int lane_row = (lane & 3) + 4 * (lane >> 3), lane_token = (lane >> 2 & 1) * 4;
    constexpr int eights = S::tokens / 8;
    const int all = (rows + 15) / 16 * eights;
#pragma unroll 1
    for (int i = warp; i < all; i += warps) {
        const int row = i / eights * 16 + lane_row, token = i % eights * 8 + lane_token;
        if (row >= rows || token >= at.live) {
            continue;
        }
        const float *from = partial + row * S::partial_pitch + token;
        float4 sum = *reinterpret_cast<const float4 *>(from);
#pragma unroll 4
        for (int k = 1; k < parts; ++k) {
            const float4 more = *reinterpret_cast<const float4 *>(from + k * plane);
            sum.x += more.x;
            sum.y += more.y;
            sum.z += more.z;
            sum.w += more.w;
        }
        const float values[4] = {sum.x, sum.y, sum.z, sum.w};
        const unsigned base =
            received + static_cast<unsigned>((at.rank << p.token_shift) * p.pitch + row) * 4U;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int owner = (token + j) >> p.token_shift;
            const int slot = (token + j) - (owner << p.token_shift);
            push(base + static_cast<unsigned>(slot * p.pitch) * 4U, owner, p.cluster, values[j]);
        }
    }
}

/// Hidden states to received sums; returns them.
template <class S, class Op>
__device__ float *project(const Product &p, const Place &at, char *shared) {
    float *partial = reinterpret_cast<float *>(shared);
    float *received = reinterpret_cast<float *>(shared + p.received_offset);
    cluster_announce(p);
    multiply<S, Op>(p, at, partial);
    __syncthreads();
    cluster_meet(p);
    reduce_and_push<S>(p, at, partial, shared_address(received));
    cluster_exchange(p);
    return received;
}

/// Where V values a lane sit in a row: runs of up to four, so that a lane loads 16 bytes.
template <int V> __device__ inline int place_of(int j) {
    constexpr int run = V < 4 ? V : 4;
    return j / run * 32 * run + (static_cast<int>(threadIdx.x) & 31) * run + j % run;
}

/// V sums a lane of one finished token; beyond the outputs they are whatever was there.
template <int V>
__device__ void gather(const Product &p, const float *row, float (&value)[V]) {
    constexpr int run = V < 4 ? V : 4;
    const int step = p.tokens_of_block * p.pitch;
#pragma unroll
    for (int j = 0; j < V; ++j) {
        value[j] = 0.0F;
    }
#pragma unroll 1
    for (int plane = 0; plane < p.planes; ++plane) {
        const bool aligned = (plane * p.outputs & 3) == 0;
#pragma unroll(V <= 4 ? 4 : 1)
        for (int r = 0; r < p.cluster; ++r) {
            const float *from = row + r * step + plane * p.outputs;
#pragma unroll
            for (int j = 0; j < V; j += run) {
                float part[run];
                const float *at = from + place_of<V>(j);
                if (run == 4 && aligned) {
                    *reinterpret_cast<float4 *>(part) = *reinterpret_cast<const float4 *>(at);
                } else {
#pragma unroll
                    for (int k = 0; k < run; ++k) {
                        part[k] = at[k];
                    }
                }
#pragma unroll
                for (int k = 0; k < run; ++k) {
                    value[j + k] += part[k];
                }
            }
        }
    }
}

} // namespace spectral::cuda
