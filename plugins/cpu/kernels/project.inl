// The projection: [T, D] x [R, D]^T with the mean taken off on the way; reads every hidden state
// once.
//
// Each (token, row) pair owns one 16-lane accumulator that runs over D in order, in every tile
// shape: a token's points do not depend on its neighbours, on the batch size or on the thread.

/// Tokens and columns whose differences from the mean are laid out for the tiles: 32 KiB.
inline constexpr std::size_t pack_tokens = 16;
inline constexpr std::size_t pack_columns = 512;

/// x - mean of a tile's tokens, taken where the caller has them.
struct Direct {
    const float *hidden;
    const float *mean;
    std::size_t stride;

    [[nodiscard]] Floats at(std::size_t, std::size_t t, std::size_t d) const {
        return sub(load(hidden + t * stride + d), load(mean + d));
    }
};

/// The same, laid out in the order of use: rows whose distance is a power of two would share a few
/// sets of the L1 cache, and push each other out.
struct Packed {
    const float *values;
    std::size_t begin;

    [[nodiscard]] Floats at(std::size_t tile, std::size_t t, std::size_t d) const {
        return load(values + ((d - begin) * tile + t * lanes));
    }
};

template <std::size_t TT, std::size_t RR, class Source>
inline void project_tile(const ProjectionView &p, Source source, std::size_t row, std::size_t begin,
                         std::size_t end, float *sums) {
    Floats acc[TT][RR];
#pragma GCC unroll 8
    for (std::size_t t = 0; t < TT; ++t) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < RR; ++r) {
            acc[t][r] = begin == 0 ? set1(0.0F) : load(sums + (t * p.rows + r) * lanes);
        }
    }
    const float *directions = p.directions + row * p.stride;
    for (std::size_t d = begin; d < end; d += lanes) {
        Floats x[TT];
#pragma GCC unroll 8
        for (std::size_t t = 0; t < TT; ++t) {
            x[t] = source.at(TT, t, d);
        }
#pragma GCC unroll 8
        for (std::size_t r = 0; r < RR; ++r) {
            const Floats direction = load(directions + r * p.stride + d);
#pragma GCC unroll 8
            for (std::size_t t = 0; t < TT; ++t) {
                acc[t][r] = fma(x[t], direction, acc[t][r]);
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t t = 0; t < TT; ++t) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < RR; ++r) {
            store(sums + (t * p.rows + r) * lanes, acc[t][r]);
        }
    }
}

/// RR rows for all tokens: the rows' columns stay in the L1 cache while the tokens pass.
template <std::size_t RR>
inline void project_tokens(const ProjectionView &p, const float *packed, std::size_t tokens,
                           std::size_t row, std::size_t begin, std::size_t end, float *scratch) {
    float *sums = scratch + row * lanes;
    const std::size_t width = end - begin;
    std::size_t t = 0;
    for (; t + tile_tokens <= tokens; t += tile_tokens) {
        project_tile<tile_tokens, RR>(p, Packed{packed + t * width, begin}, row, begin, end,
                                      sums + t * p.rows * lanes);
    }
    for (; t < tokens; ++t) {
        project_tile<1, RR>(p, Packed{packed + t * width, begin}, row, begin, end,
                            sums + t * p.rows * lanes);
    }
}

template <std::size_t TT>
inline void pack_tile(const ProjectionView &p, const float *hidden, std::size_t begin,
                      std::size_t end, float *packed) {
    const Direct source{hidden, p.mean, p.hidden};
    for (std::size_t d = begin; d < end; d += lanes) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < TT; ++t) {
            store(packed + (d - begin) * TT + t * lanes, source.at(TT, t, d));
        }
    }
}

/// Columns [begin, end) of at most pack_tokens tokens, in tiles of rows and tokens.
inline void project_block(const ProjectionView &p, const float *hidden, std::size_t tokens,
                          std::size_t begin, std::size_t end, float *scratch) {
    alignas(64) float packed[pack_tokens * pack_columns];
    const std::size_t width = end - begin;
    std::size_t t = 0;
    for (; t + tile_tokens <= tokens; t += tile_tokens) {
        pack_tile<tile_tokens>(p, hidden + t * p.hidden, begin, end, packed + t * width);
    }
    for (; t < tokens; ++t) {
        pack_tile<1>(p, hidden + t * p.hidden, begin, end, packed + t * width);
    }
    std::size_t row = 0;
    for (; row + tile_rows <= p.rows; row += tile_rows) {
        project_tokens<tile_rows>(p, packed, tokens, row, begin, end, scratch);
    }
    for (; row + 3 <= p.rows; row += 3) {
        project_tokens<3>(p, packed, tokens, row, begin, end, scratch);
    }
    for (; row < p.rows; ++row) {
        project_tokens<1>(p, packed, tokens, row, begin, end, scratch);
    }
}

/// The last D % 16 columns, through a zero-padded copy: lanes past D must not be read.
inline void project_tail(const ProjectionView &p, const float *hidden, std::size_t tokens,
                         float *scratch) {
    const std::size_t begin = p.stride - lanes;
    for (std::size_t t = 0; t < tokens; ++t) {
        float padded[lanes] = {};
        __builtin_memcpy(padded, hidden + t * p.hidden + begin, (p.hidden - begin) * sizeof(float));
        const Floats x = sub(load(padded), load(p.mean + begin));
        for (std::size_t r = 0; r < p.rows; ++r) {
            float *sums = scratch + (t * p.rows + r) * lanes;
            const Floats acc = begin == 0 ? set1(0.0F) : load(sums);
            store(sums, fma(x, load(p.directions + r * p.stride + begin), acc));
        }
    }
}

void project(const ProjectionView &p, const float *hidden, std::size_t tokens, float *scratch,
             float *points) {
    const std::size_t whole = p.hidden / lanes * lanes;
    if (tokens == 1 && p.rows == 1) { // nothing is used twice
        project_tile<1, 1>(p, Direct{hidden, p.mean, p.hidden}, 0, 0, whole, scratch);
    } else {
        const std::size_t block = p.block < pack_columns ? p.block : pack_columns;
        for (std::size_t t = 0; t < tokens; t += pack_tokens) {
            const std::size_t count = tokens - t < pack_tokens ? tokens - t : pack_tokens;
            for (std::size_t begin = 0; begin < whole; begin += block) {
                const std::size_t end = begin + block < whole ? begin + block : whole;
                project_block(p, hidden + t * p.hidden, count, begin, end,
                              scratch + t * p.rows * lanes);
            }
        }
    }
    if (whole != p.hidden) {
        project_tail(p, hidden, tokens, scratch);
    }
    for (std::size_t i = 0; i < tokens * p.rows; ++i) {
        points[i] = sum(load(scratch + i * lanes));
    }
}
