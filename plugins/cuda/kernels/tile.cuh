// Tiles: their shapes, their element types, and a block's place in its cluster.
//
// Tokens are the M side of mma.m16n8k16 and rows of the weight the N side: what a lane loads of a
// row is then an operand as it lies in the registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "params.h"

namespace spectral::cuda {

/// A warp multiplies `Tokens_` tokens (8, or a multiple of 16) with 8 `RowTiles_` rows.
template <int Tokens_, int RowTiles_> struct Shape {
    static constexpr int tokens = Tokens_;
    static constexpr int row_tiles = RowTiles_;
    static constexpr int rows = 8 * RowTiles_;
    static constexpr bool half = Tokens_ == 8; ///< the upper half of the M side is zeros
    static constexpr int token_tiles = half ? 1 : Tokens_ / 16;
};

struct Bf16 {
    static constexpr bool matrix = true;
    static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
            "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

struct F16 {
    static constexpr bool matrix = true;
    static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
            "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

/// Float32 weights and hidden states of any dtype: no rounding beyond float32's own.
struct F32 {
    static constexpr bool matrix = false;
};

/// blockIdx.x is the block's rank in its cluster, y counts tiles of tokens.
struct Place {
    int rank, first_token;
    int live;         ///< tokens of the tile that there are
    int first, count; ///< tokens of the tile that this block finishes

    template <class S> static __device__ Place of(const Product &p) {
        Place at;
        at.rank = static_cast<int>(blockIdx.x);
        at.first_token = static_cast<int>(blockIdx.y) * S::tokens;
        at.live = min(S::tokens, p.tokens - at.first_token);
        at.first = at.rank << p.token_shift;
        at.count = max(0, min(p.tokens_of_block, at.live - at.first));
        return at;
    }
};

template <class S> using Accumulators = float[S::token_tiles][S::row_tiles][4];

} // namespace spectral::cuda
