// The gate: [T, D] x [E, D]^T with sixteen experts in a register and one hidden value for all of
// them.
//
// Each (token, expert) pair owns one lane that runs over D in order, in every tile shape: a token's
// logits do not depend on its neighbours, on the batch size or on the thread.

template <std::size_t TT, std::size_t BB>
inline void multiply_tile(const GateView &gate, const float *hidden, std::size_t block, float *out,
                          std::size_t stride) {
    Floats acc[TT][BB];
#pragma GCC unroll 8
    for (std::size_t t = 0; t < TT; ++t) {
#pragma GCC unroll 8
        for (std::size_t b = 0; b < BB; ++b) {
            acc[t][b] = set1(0.0F);
        }
    }
    const std::size_t size = gate.hidden * lanes;
    const float *values = gate.values + block * size;
    for (std::size_t d = 0; d < gate.hidden; ++d) {
        Floats w[BB];
#pragma GCC unroll 8
        for (std::size_t b = 0; b < BB; ++b) {
            w[b] = load(values + b * size + d * lanes);
        }
#pragma GCC unroll 8
        for (std::size_t t = 0; t < TT; ++t) {
            const Floats x = set1(hidden[t * gate.hidden + d]);
#pragma GCC unroll 8
            for (std::size_t b = 0; b < BB; ++b) {
                acc[t][b] = fma(x, w[b], acc[t][b]);
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t t = 0; t < TT; ++t) {
#pragma GCC unroll 8
        for (std::size_t b = 0; b < BB; ++b) {
            store(out + t * stride + (block + b) * lanes, acc[t][b]);
        }
    }
}

/// BB blocks for all tokens: the blocks are in the L2 cache after the first tile.
template <std::size_t BB>
inline void multiply_blocks(const GateView &gate, const float *hidden, std::size_t tokens,
                            std::size_t block, float *out, std::size_t stride) {
    std::size_t t = 0;
    for (; t + wide_tokens <= tokens; t += wide_tokens) {
        multiply_tile<wide_tokens, BB>(gate, hidden + t * gate.hidden, block, out + t * stride,
                                       stride);
    }
    for (; t + 2 <= tokens; t += 2) {
        multiply_tile<2, BB>(gate, hidden + t * gate.hidden, block, out + t * stride, stride);
    }
    if (t < tokens) {
        multiply_tile<1, BB>(gate, hidden + t * gate.hidden, block, out + t * stride, stride);
    }
}

void multiply(const GateView &gate, const float *hidden, std::size_t tokens, float *out,
              std::size_t stride) {
    std::size_t block = 0;
    // One token has as many independent sums as blocks: four hide the latency of an addition.
    for (; tokens == 1 && block + 4 <= gate.blocks; block += 4) {
        multiply_tile<1, 4>(gate, hidden, block, out, stride);
    }
    for (; block + wide_blocks <= gate.blocks; block += wide_blocks) {
        multiply_blocks<wide_blocks>(gate, hidden, tokens, block, out, stride);
    }
    for (; block < gate.blocks; ++block) {
        multiply_blocks<1>(gate, hidden, tokens, block, out, stride);
    }
}
