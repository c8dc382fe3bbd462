// Tiles: their shapes, their element types, and a block's place in its cluster.
//
// Experts are the M side of mma.m16n8k16 and tokens the N side, so that a decode batch of 8 tokens
// wastes nothing.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "params.h"

namespace spectral::cuda {

/// A warp multiplies 16 `RowTiles_` rows of the weight with the 8 `TokenTiles_` tokens of a tile.
template <int RowTiles_, int TokenTiles_> struct Shape {
    static constexpr int row_tiles = RowTiles_;
    static constexpr int token_tiles = TokenTiles_;
    static constexpr int rows = 16 * RowTiles_;
    static constexpr int tokens = 8 * TokenTiles_;
    /// Floats between two rows of partial sums: 8, 24 modulo 32, so that neither the stores of
    /// fragments nor the loads of the reduction meet in a bank.
    static constexpr int partial_pitch = tokens == 8 ? 8 : tokens + 8;
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

template <class S> using Accumulators = float[S::row_tiles][S::token_tiles][4];

} // namespace spectral::cuda
