// Sums of the partial products: over a block's warps, then pushed to the block of the cluster that
// finishes the token.
//
// Pushes are asynchronous stores that count their bytes on a barrier of the receiver: a barrier of
// the whole cluster would flush the L1 caches and wait for every store to reach the L2.
#pragma once

#include "product.cuh"

namespace spectral::cuda {

__device__ inline unsigned shared_address(const void *p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// Waits for the kernels before this one in the stream: until here a launch may overlap their end.
__device__ inline void wait_for_stream() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Expects what the peers will push, and tells them that this block runs.
__device__ inline void cluster_announce(const Product &p, const Place &at, unsigned barrier) {
#if __CUDA_ARCH__ >= 900
    if (p.cluster > 1) {
        if (threadIdx.x == 0) {
            const int quads = (p.outputs * p.planes + 3) / 4;
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                         "r"(p.cluster * at.count * quads * 16)
                         : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
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

/// What was pushed to this block is there afterwards.
__device__ inline void cluster_receive(const Product &p, const Place &at, unsigned barrier) {
#if __CUDA_ARCH__ >= 900
    if (p.cluster > 1) {
        if (at.count > 0) {
            asm volatile("{\n.reg .pred done;\nwait:\n"
                         "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
                         "@!done bra wait;\n}" ::"r"(barrier)
                         : "memory");
        }
        return;
    }
#endif
    __syncthreads();
}

/// Four floats to the same place in another block's shared memory.
__device__ inline void push(unsigned address, unsigned barrier, int rank, float4 v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .b32 peer, counter;\n"
                 "mapa.shared::cluster.u32 peer, %0, %2;\n"
                 "mapa.shared::cluster.u32 counter, %1, %2;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[peer], {%3, %4, %5, %6}, [counter];\n}" ::"r"(address),
                 "r"(barrier), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
#endif
}

/// Adds the warps' partial sums, in their order, and pushes them: [ranks][tokens of block][pitch].
template <class S>
__device__ void reduce_and_push(const Product &p, const Place &at, const float *partial,
                                float *received, unsigned barrier) {
    const int quads = (p.outputs * p.planes + 3) >> 2, parts = warps >> p.row_shift;
    const int plane = S::tokens * p.partial_pitch;
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    // Tokens to warps, rows to lanes; with few rows a warp takes several tokens.
    const int width = quads > 16 ? 32 : quads > 8 ? 16 : quads > 4 ? 8 : 4;
    const int together = 32 / width;
#pragma unroll 1
    for (int token = warp * together + lane / width; token < at.live; token += warps * together) {
        const int owner = token >> p.token_shift, slot = token - (owner << p.token_shift);
        float *target = received + ((at.rank << p.token_shift) + slot) * p.pitch;
#pragma unroll 1
        for (int quad = lane % width; quad < quads; quad += width) {
            const float *from = partial + token * p.partial_pitch + quad * 4;
            float4 sum = *reinterpret_cast<const float4 *>(from);
#pragma unroll 4
            for (int k = 1; k < parts; ++k) {
                const float4 more = *reinterpret_cast<const float4 *>(from + k * plane);
                sum.x += more.x;
                sum.y += more.y;
                sum.z += more.z;
                sum.w += more.w;
            }
            if (p.cluster > 1) {
                push(shared_address(target + quad * 4), barrier, owner, sum);
            } else {
                *reinterpret_cast<float4 *>(target + quad * 4) = sum;
            }
        }
    }
}

/// Hidden states to received sums; returns them.
template <class S, class Op>
__device__ float *project(const Product &p, const Place &at, char *shared) {
    __shared__ __align__(8) unsigned long long counter;
    float *partial = reinterpret_cast<float *>(shared);
    float *received = reinterpret_cast<float *>(shared + p.received_offset);
    const unsigned barrier = shared_address(&counter);
    cluster_announce(p, at, barrier);
    wait_for_stream();
    multiply<S, Op>(p, at, partial);
    __syncthreads();
    cluster_meet(p);
    reduce_and_push<S>(p, at, partial, received, barrier);
    cluster_receive(p, at, barrier);
    return received;
}

/// Where V values a lane sit in a row: runs of up to four, so that a lane loads 16 bytes.
template <int V> __device__ inline int place_of(int j) {
    constexpr int run = V < 4 ? V : 4;
    return j / run * 32 * run + (static_cast<int>(threadIdx.x) & 31) * run + j % run;
}

/// V sums a lane of one finished token; beyond the outputs they are whatever was there.
template <int V> __device__ void gather(const Product &p, const float *row, float (&value)[V]) {
    constexpr int run = V < 4 ? V : 4;
    const int step = p.tokens_of_block * p.pitch;
#pragma unroll
    for (int j = 0; j < V; ++j) {
        value[j] = 0.0F;
    }
    const float *from = row + place_of<V>(0);
#pragma unroll(V <= 4 ? 4 : 1)
    for (int r = 0; r < p.cluster; ++r, from += step) {
#pragma unroll
        for (int j = 0; j < V; j += run) {
            alignas(16) float part[run];
            if constexpr (run == 4) {
                *reinterpret_cast<float4 *>(part) =
                    *reinterpret_cast<const float4 *>(from + j / run * 128);
            } else {
                *reinterpret_cast<float2 *>(part) = *reinterpret_cast<const float2 *>(from);
            }
#pragma unroll
            for (int k = 0; k < run; ++k) {
                value[j + k] += part[k];
            }
        }
    }
    // Further summands of the weight are further rows, in general not aligned.
#pragma unroll 1
    for (int i = p.cluster; i < p.planes * p.cluster; ++i) {
        const float *more = row + i % p.cluster * step + i / p.cluster * p.outputs;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            value[j] += more[place_of<V>(j)];
        }
    }
}

} // namespace spectral::cuda
