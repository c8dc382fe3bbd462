// Tiles: their shapes, their element types, and a block's place in its cluster.
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

/// The block's place: blockIdx.x is its rank in the cluster, y counts tiles of tokens.
struct Place {
    int split_hidden, split_rows;
    int first_token, first_row, rows, first_chunk, chunks;

    template <class S> static __device__ Place of(const Product &p) {
        Place at;
        const int rank = static_cast<int>(blockIdx.x);
        at.split_hidden = rank & (p.splits_hidden - 1);
        at.split_rows = rank >> p.hidden_shift;
        at.first_token = static_cast<int>(blockIdx.y) * S::tokens;
        at.first_row = at.split_rows * p.rows_of_block;
        at.rows = min(p.rows_of_block, p.outputs * p.planes - at.first_row);
        const int all = (p.hidden + chunk - 1) / chunk;
        at.first_chunk = min(all, at.split_hidden * p.chunks_of_split);
        at.chunks = min(p.chunks_of_split, all - at.first_chunk);
        return at;
    }
};

template <class S> using Accumulators = float[S::tiles][S::pieces][4];

} // namespace spectral::cuda
