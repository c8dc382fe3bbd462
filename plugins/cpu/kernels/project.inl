// The projection: [T, D] x [R, D]^T with the mean taken off on the way; reads every hidden state
// once.
//
// Each (token, row) pair owns one 16-lane accumulator that runs over D in order, in every tile
// shape: a token's points do not depend on its neighbours, on the batch size or on the thread.

template <std::size_t TT, std::size_t RR>
inline void project_tile(const ProjectionView &p, const float *hidden, std::size_t row,
                         std::size_t begin, std::size_t end, float *sums, std::size_t sums_stride) {
    Floats acc[TT][RR];
#pragma GCC unroll 8
    for (std::size_t t = 0; t < TT; ++t) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < RR; ++r) {
            acc[t][r] = begin == 0 ? set1(0.0F) : load(sums + (t * sums_stride + r) * lanes);
        }
    }
    const float *directions = p.directions + row * p.stride;
    for (std::size_t d = begin; d < end; d += lanes) {
        const Floats mean = load(p.mean + d);
        Floats x[TT];
#pragma GCC unroll 8
        for (std::size_t t = 0; t < TT; ++t) {
            x[t] = sub(load(hidden + t * p.hidden + d), mean);
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
            store(sums + (t * sums_stride + r) * lanes, acc[t][r]);
        }
    }
}

template <std::size_t TT>
inline void project_rows(const ProjectionView &p, const float *hidden, std::size_t begin,
                         std::size_t end, float *sums) {
    std::size_t row = 0;
    for (; row + tile_rows <= p.rows; row += tile_rows) {
        project_tile<TT, tile_rows>(p, hidden, row, begin, end, sums + row * lanes, p.rows);
    }
    for (; row + 3 <= p.rows; row += 3) {
        project_tile<TT, 3>(p, hidden, row, begin, end, sums + row * lanes, p.rows);
    }
    for (; row < p.rows; ++row) {
        project_tile<TT, 1>(p, hidden, row, begin, end, sums + row * lanes, p.rows);
    }
}

/// Columns [begin, end) for all tokens, in tiles of tokens.
inline void project_block(const ProjectionView &p, const float *hidden, std::size_t tokens,
                          std::size_t begin, std::size_t end, float *scratch) {
    std::size_t t = 0;
    for (; t + tile_tokens <= tokens; t += tile_tokens) {
        project_rows<tile_tokens>(p, hidden + t * p.hidden, begin, end,
                                  scratch + t * p.rows * lanes);
    }
    for (; t < tokens; ++t) {
        project_rows<1>(p, hidden + t * p.hidden, begin, end, scratch + t * p.rows * lanes);
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
    for (std::size_t begin = 0; begin < whole; begin += p.block) {
        const std::size_t end = begin + p.block < whole ? begin + p.block : whole;
        project_block(p, hidden, tokens, begin, end, scratch);
    }
    if (whole != p.hidden) {
        project_tail(p, hidden, tokens, scratch);
    }
    for (std::size_t i = 0; i < tokens * p.rows; ++i) {
        points[i] = sum(load(scratch + i * lanes));
    }
}
