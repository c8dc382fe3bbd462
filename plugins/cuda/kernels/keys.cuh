// Keys of experts, ordered by score and then by id: what every list of candidates is made of.
#pragma once

#include <cstdint>

#include "params.h"

namespace spectral::cuda {

using Key = unsigned long long; ///< ordered score in the high word, complement of the id in the low

inline constexpr unsigned nan_order = 1U; ///< NaN ranks after everything, -inf included

/// Unsigned numbers in the order of the floats; zero is left for "nothing".
__device__ inline unsigned ordered(float value) {
    if (value != value) {
        return nan_order;
    }
    const unsigned bits = __float_as_uint(value + 0.0F); // -0 becomes +0: they tie
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ inline float unordered(unsigned order) {
    if (order <= nan_order) {
        return __uint_as_float(0x7FC00000U);
    }
    return __uint_as_float((order >> 31) != 0 ? order & 0x7FFFFFFFU : ~order);
}

__device__ inline Key key_of(unsigned order, int id) {
    return static_cast<Key>(order) << 32 | (0xFFFFFFFFU - static_cast<unsigned>(id));
}

__device__ inline int id_of(Key key) {
    return static_cast<int>(0xFFFFFFFFU - static_cast<unsigned>(key));
}

__device__ inline unsigned order_of(Key key) {
    return static_cast<unsigned>(key >> 32);
}

/// The family's score of one logit; a softmax is ranked by its logits.
__device__ inline float family_score(int score, float x) {
    if (score == score_sigmoid) {
        const float e = expf(-fabsf(x));
        return x != x ? x : (x > 0.0F ? 1.0F : e) / (1.0F + e);
    }
    if (score == score_sqrtsoftplus) {
        return x != x ? x : sqrtf(fmaxf(x, 0.0F) + log1pf(expf(-fabsf(x))));
    }
    return x;
}

} // namespace spectral::cuda
