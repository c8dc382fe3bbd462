// The row loops; on x86-64 the loader picks the copy for the machine.
#include "row_loops.h"

#include <limits>

// Sixteen independent sums: the order of additions is ours, not the compiler's.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define SPECTRAL_VECTOR_CLONES                                                                     \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SPECTRAL_VECTOR_CLONES
#endif

namespace spectral::cpu {
namespace {

constexpr std::size_t width = 16;

/// e^x to about 1 ulp for x <= 0 (Cephes expf); below -87 it stays at e^-87. Always inlined, or a
/// copy for one instruction set would call that of another.
[[gnu::always_inline]] inline float exp_of(float x) {
    x = x < -87.0F ? -87.0F : x;
    constexpr float rounding = 12582912.0F; // 1.5 * 2^23: adding it rounds to whole numbers
    const float n = (1.44269504088896341F * x + rounding) - rounding;
    const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    return p * std::bit_cast<float>((static_cast<std::int32_t>(n) + 127) << 23);
}

[[gnu::always_inline]] inline float largest(const float *values, std::size_t count) {
    float best[width];
    for (float &lane : best) {
        lane = -std::numeric_limits<float>::infinity();
    }
    std::size_t i = 0;
    for (; i + width <= count; i += width) {
        for (std::size_t j = 0; j < width; ++j) {
            best[j] = values[i + j] > best[j] ? values[i + j] : best[j];
        }
    }
    for (; i < count; ++i) {
        best[0] = values[i] > best[0] ? values[i] : best[0];
    }
    for (std::size_t j = 1; j < width; ++j) {
        best[0] = best[j] > best[0] ? best[j] : best[0];
    }
    return best[0];
}

} // namespace

/// e^(x - best); e^-87 is not zero: minus infinity must be, and NaN must stay.
[[gnu::always_inline]] static inline float share_of(float x, float best) {
    const float share = exp_of(x - best);
    return x - best < -87.0F ? 0.0F : (x != x ? x : share);
}

SPECTRAL_VECTOR_CLONES void softmax_row(float *values, std::size_t count) {
    const float best = largest(values, count);
    float sums[width] = {};
    std::size_t i = 0;
    for (; i + width <= count; i += width) {
        for (std::size_t j = 0; j < width; ++j) {
            values[i + j] = share_of(values[i + j], best);
            sums[j] += values[i + j];
        }
    }
    for (; i < count; ++i) {
        values[i] = share_of(values[i], best);
        sums[0] += values[i];
    }
    for (std::size_t step = width / 2; step > 0; step /= 2) {
        for (std::size_t j = 0; j < step; ++j) {
            sums[j] += sums[j + step];
        }
    }
    const float factor = 1.0F / sums[0];
    for (i = 0; i < count; ++i) {
        values[i] *= factor;
    }
}

SPECTRAL_VECTOR_CLONES void sigmoid_row(float *values, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const float x = values[i];
        const float tail = exp_of(x > 0.0F ? -x : x);
        const float share = (x > 0.0F ? 1.0F : tail) / (1.0F + tail);
        values[i] = x != x ? x : share;
    }
}

SPECTRAL_VECTOR_CLONES void order_row(const float *values, std::size_t count, std::uint32_t *keys) {
    for (std::size_t i = 0; i < count; ++i) {
        keys[i] = ordered_bits(values[i]);
    }
}

SPECTRAL_VECTOR_CLONES std::size_t next_not_below(const float *values, std::size_t begin,
                                                  std::size_t count, float least) {
    constexpr std::size_t stretch = 4 * width;
    std::size_t i = begin;
    for (; i + stretch <= count; i += stretch) {
        std::uint32_t found = 0;
        for (std::size_t j = 0; j < stretch; ++j) {
            found |= values[i + j] <= least ? 0U : 1U; // NaN counts
        }
        if (found != 0) {
            break;
        }
    }
    for (; i < count && values[i] <= least; ++i) {
    }
    return i;
}

SPECTRAL_VECTOR_CLONES std::size_t count_reaching(const std::uint32_t *keys, std::size_t count,
                                                  std::uint32_t least) {
    std::uint32_t reached = 0;
    for (std::size_t i = 0; i < count; ++i) {
        reached += keys[i] >= least ? 1U : 0U;
    }
    return reached;
}

} // namespace spectral::cpu
