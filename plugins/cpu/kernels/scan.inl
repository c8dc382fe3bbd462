// The exhaustive scan: scores for a few tokens at a time, then a filter per token.

template <std::size_t TT, std::size_t BB>
[[gnu::always_inline]] inline void score_tile(const BlocksView &v, std::size_t block,
                                              const float *points, std::size_t stride, float *out,
                                              std::size_t out_stride) {
    const std::size_t size = (v.rank + 2) * lanes;
    const float *values = v.values + block * size;
    Floats acc[TT][BB];
#pragma GCC unroll 8
    for (std::size_t b = 0; b < BB; ++b) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < TT; ++t) {
            acc[t][b] = load(values + b * size);
        }
    }
    for (std::size_t r = 0; r < v.rank; ++r) {
        const float *row = values + (r + 1) * lanes;
#pragma GCC unroll 8
        for (std::size_t b = 0; b < BB; ++b) {
            const Floats direction = load(row + b * size);
#pragma GCC unroll 8
            for (std::size_t t = 0; t < TT; ++t) {
                acc[t][b] = fma(direction, set1(points[t * stride + r]), acc[t][b]);
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t t = 0; t < TT; ++t) {
#pragma GCC unroll 8
        for (std::size_t b = 0; b < BB; ++b) {
            store(out + t * out_stride + b * lanes, acc[t][b]);
        }
    }
}

template <std::size_t TT>
inline void score_blocks(const BlocksView &v, std::size_t first, std::size_t blocks,
                         const float *points, std::size_t stride, float *out,
                         std::size_t out_stride) {
    std::size_t b = 0;
    for (; b + 2 <= blocks; b += 2) {
        score_tile<TT, 2>(v, first + b, points, stride, out + b * lanes, out_stride);
    }
    if (b < blocks) {
        score_tile<TT, 1>(v, first + b, points, stride, out + b * lanes, out_stride);
    }
}

void score(const BlocksView &v, std::size_t first, std::size_t blocks, const float *points,
           std::size_t stride, std::size_t tokens, float *scores) {
    const std::size_t out_stride = blocks * lanes;
    std::size_t t = 0;
    for (; t + scan_tokens <= tokens; t += scan_tokens) {
        score_blocks<scan_tokens>(v, first, blocks, points + t * stride, stride,
                                  scores + t * out_stride, out_stride);
    }
    for (; t < tokens; ++t) {
        score_blocks<1>(v, first, blocks, points + t * stride, stride, scores + t * out_stride,
                        out_stride);
    }
}

/// Turns one token's chunk of scores into choice scores, in place.
inline void choose_chunk(const BlocksView &v, ChoiceView choice, std::size_t first,
                         std::size_t blocks, float *scores) {
    if (choice.choice == Choice::identity && !choice.biased) {
        return;
    }
    for (std::size_t b = 0; b < blocks; ++b) {
        const float *bias = v.values + ((first + b + 1) * (v.rank + 2) - 1) * lanes;
        store(scores + b * lanes, choose(choice, load(scores + b * lanes), bias));
    }
}

/// Maxima of the lanes of `groups` interleaved sets of blocks, over all chunks so far: four chains
/// each, for a maximum has to wait for the one before.
inline void raise_maxima(const float *scores, std::size_t blocks, std::size_t groups,
                         float *maxima) {
    for (std::size_t g = 0; g < groups; ++g) {
        Floats best[4];
#pragma GCC unroll 4
        for (std::size_t i = 0; i < 4; ++i) {
            best[i] = load(maxima + g * lanes);
        }
        std::size_t b = g;
        for (; b + 3 * groups < blocks; b += 4 * groups) {
#pragma GCC unroll 4
            for (std::size_t i = 0; i < 4; ++i) {
                best[i] = max(load(scores + (b + i * groups) * lanes), best[i]);
            }
        }
        for (; b < blocks; b += groups) {
            best[0] = max(load(scores + b * lanes), best[0]);
        }
        store(maxima + g * lanes, max(max(best[0], best[1]), max(best[2], best[3])));
    }
}

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "pairs of masks are read as one integer");
static_assert(chunk_blocks <= 128, "one bit a pair of blocks");

/// Appends what reaches the threshold, in two passes: all masks first, then only those that are not
/// empty. A branch per block would be mispredicted at nearly every hit.
inline void select_above(const BlocksView &v, std::size_t first, std::size_t blocks,
                         const float *scores, Selection &s) {
    alignas(64) std::uint16_t hits[chunk_blocks];
    const Floats threshold = set1(s.threshold);
    for (std::size_t b = 0; b < blocks; ++b) {
        hits[b] = static_cast<std::uint16_t>(not_less(load(scores + b * lanes), threshold));
    }
    if (first + blocks == v.blocks) {
        hits[blocks - 1] &= v.valid[v.blocks - 1];
    }
    const std::size_t words = (blocks + 31) / 32;
    for (std::size_t b = blocks; b < words * 32; ++b) {
        hits[b] = 0;
    }
    std::uint64_t pairs = 0;
    for (std::size_t w = 0; w < words; ++w) {
        const Mask empty =
            equal(load(reinterpret_cast<const std::int32_t *>(hits) + w * lanes), set1(0));
        pairs |= static_cast<std::uint64_t>(~empty & 0xFFFFU) << (w * lanes);
    }
    const std::int32_t *ids = v.ids + first * lanes;
    for (; pairs != 0; pairs &= pairs - 1) {
        const auto pair = static_cast<std::size_t>(__builtin_ctzll(pairs));
        std::uint32_t m;
        __builtin_memcpy(&m, hits + 2 * pair, sizeof m);
        do {
            const std::size_t i = pair * 2 * lanes + static_cast<std::size_t>(__builtin_ctz(m));
            s.scores[s.held] = scores[i];
            s.ids[s.held++] = ids[i];
            m &= m - 1;
        } while (m != 0);
    }
}

inline void select_chunk(const BlocksView &v, std::size_t first, std::size_t blocks,
                         const float *scores, Selection &s) {
    if (s.threshold > -__builtin_inff()) {
        select_above(v, first, blocks, scores, s);
    } else {
        for (std::size_t b = 0; b < blocks; ++b) {
            accept(s, load(scores + b * lanes), v.ids + (first + b) * lanes, v.valid[first + b]);
        }
    }
    // Few entries wait for the end; many are cut now.
    if (first + blocks < v.blocks && s.held > s.count + waiting_limit) {
        prune(s);
    }
}

void scan(const BlocksView &v, ChoiceView choice, const float *points, std::size_t stride,
          std::size_t tokens, float *buffer, Selection *selections) {
    const std::size_t count = selections[0].count;
    const std::size_t wanted = (2 * count + lanes - 1) / lanes;
    const std::size_t groups = count <= lane_count_limit && v.blocks >= 2 * wanted ? wanted : 0;
    alignas(64) float maxima[scan_tokens][2 * lane_count_limit];
    for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t g = 0; g < groups; ++g) {
            store(maxima[t] + g * lanes, set1(-__builtin_inff()));
        }
    }
    for (std::size_t first = 0; first < v.blocks; first += chunk_blocks) {
        const std::size_t left = v.blocks - first;
        const std::size_t blocks = left < chunk_blocks ? left : chunk_blocks;
        score(v, first, blocks, points, stride, tokens, buffer);
        for (std::size_t t = 0; t < tokens; ++t) {
            float *scores = buffer + t * blocks * lanes;
            choose_chunk(v, choice, first, blocks, scores);
            // Thresholds rise ever more slowly: after chunks 1, 2, 4, 8 ...
            const std::size_t chunk = first / chunk_blocks + 1;
            if (groups > 0 && (chunk & (chunk - 1)) == 0) {
                raise_maxima(scores, blocks, groups, maxima[t]);
                threshold_from_maxima(selections[t], maxima[t], groups);
            }
            select_chunk(v, first, blocks, scores, selections[t]);
        }
    }
}
