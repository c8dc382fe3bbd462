// Sixteen floats as plain arrays that the compiler vectorises for its base instruction set (SSE2,
// NEON). Included inside the namespace of one kernel source file.

struct Floats {
    float v[16];
};
struct Ints {
    std::int32_t v[16];
};
using Mask = std::uint32_t;

inline constexpr std::size_t tile_tokens = 1;
inline constexpr std::size_t tile_rows = 2;
inline constexpr std::size_t wide_tokens = 2;
inline constexpr std::size_t wide_blocks = 1;

template <class F> inline Floats lanewise(F f) {
    Floats out;
    for (std::size_t i = 0; i < 16; ++i) {
        out.v[i] = f(i);
    }
    return out;
}
template <class F> inline Mask lanemask(F f) {
    Mask out = 0;
    for (std::size_t i = 0; i < 16; ++i) {
        out |= static_cast<Mask>(f(i)) << i;
    }
    return out;
}

inline Floats load(const float *p) {
    return lanewise([&](std::size_t i) { return p[i]; });
}
inline void store(float *p, Floats a) {
    __builtin_memcpy(p, a.v, sizeof a.v);
}
inline Floats set1(float x) {
    return lanewise([&](std::size_t) { return x; });
}
inline Floats add(const Floats &a, const Floats &b) {
    return lanewise([&](std::size_t i) { return a.v[i] + b.v[i]; });
}
inline Floats sub(const Floats &a, const Floats &b) {
    return lanewise([&](std::size_t i) { return a.v[i] - b.v[i]; });
}
inline Floats mul(const Floats &a, const Floats &b) {
    return lanewise([&](std::size_t i) { return a.v[i] * b.v[i]; });
}
inline Floats div(const Floats &a, const Floats &b) {
    return lanewise([&](std::size_t i) { return a.v[i] / b.v[i]; });
}
inline Floats sqrt(const Floats &a) {
    return lanewise([&](std::size_t i) { return __builtin_sqrtf(a.v[i]); });
}
inline Floats fma(const Floats &a, const Floats &b, const Floats &c) {
#if defined(__FP_FAST_FMAF)
    return lanewise([&](std::size_t i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
#else
    return lanewise([&](std::size_t i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
}
/// max and min return `b` where either is NaN.
inline Floats max(const Floats &a, const Floats &b) {
    return lanewise([&](std::size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Floats min(const Floats &a, const Floats &b) {
    return lanewise([&](std::size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Floats absolute(const Floats &a) {
    return lanewise([&](std::size_t i) { return __builtin_fabsf(a.v[i]); });
}
/// a where x >= 0, else b.
inline Floats where_positive(const Floats &x, const Floats &a, const Floats &b) {
    return lanewise([&](std::size_t i) { return x.v[i] >= 0.0F ? a.v[i] : b.v[i]; });
}
/// NaN stays NaN: x where x is NaN, else a.
inline Floats keep_nan(const Floats &x, const Floats &a) {
    return lanewise([&](std::size_t i) { return x.v[i] != x.v[i] ? x.v[i] : a.v[i]; });
}
inline Mask not_less(const Floats &a, const Floats &b) {
    return lanemask([&](std::size_t i) { return !(a.v[i] < b.v[i]); });
}
inline Floats nearest(const Floats &a) {
    return lanewise([&](std::size_t i) { return __builtin_rintf(a.v[i]); });
}
inline std::int32_t bits_of(float x) {
    return __builtin_bit_cast(std::int32_t, x);
}
/// a * 2^n for integral n in [-126, 127].
inline Floats scale(const Floats &a, const Floats &n) {
    return lanewise([&](std::size_t i) {
        const auto exponent = static_cast<std::uint32_t>(static_cast<std::int32_t>(n.v[i])) << 23;
        return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits_of(a.v[i])) + exponent);
    });
}
inline float sum(const Floats &a) {
    float x[8];
    for (std::size_t i = 0; i < 8; ++i) {
        x[i] = a.v[i] + a.v[i + 8];
    }
    for (std::size_t i = 0; i < 4; ++i) {
        x[i] += x[i + 4];
    }
    return (x[0] + x[2]) + (x[1] + x[3]);
}

/// Largest lane; no lane is NaN.
inline float maximum(const Floats &a) {
    float best = a.v[0];
    for (std::size_t i = 1; i < 16; ++i) {
        best = a.v[i] > best ? a.v[i] : best;
    }
    return best;
}

inline Ints load(const std::int32_t *p) {
    Ints out;
    __builtin_memcpy(out.v, p, sizeof out.v);
    return out;
}
inline void store(std::int32_t *p, const Ints &a) {
    __builtin_memcpy(p, a.v, sizeof a.v);
}
inline Ints set1(std::int32_t x) {
    Ints out;
    for (std::int32_t &lane : out.v) {
        lane = x;
    }
    return out;
}
inline Mask greater(const Ints &a, const Ints &b) {
    return lanemask([&](std::size_t i) { return a.v[i] > b.v[i]; });
}
inline Mask equal(const Ints &a, const Ints &b) {
    return lanemask([&](std::size_t i) { return a.v[i] == b.v[i]; });
}
/// Order-preserving integers: -0 as +0, NaN below everything.
inline Ints ordered(const Floats &a) {
    Ints out;
    for (std::size_t i = 0; i < 16; ++i) {
        const std::int32_t bits = bits_of(a.v[i] + 0.0F);
        out.v[i] = a.v[i] != a.v[i] ? INT32_MIN : bits ^ (bits < 0 ? INT32_MAX : 0);
    }
    return out;
}

/// Writes the selected lanes together; may write 16 values whatever the mask.
inline void compress(float *out, Mask m, const Floats &a) {
    for (; m != 0; m &= m - 1) {
        *out++ = a.v[__builtin_ctz(m)];
    }
}
inline void compress(std::int32_t *out, Mask m, const Ints &a) {
    for (; m != 0; m &= m - 1) {
        *out++ = a.v[__builtin_ctz(m)];
    }
}
