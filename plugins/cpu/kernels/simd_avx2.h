// Sixteen floats in two AVX2 registers. Included inside the namespace of one kernel source file.

struct Floats {
    __m256 lo, hi;
};
struct Ints {
    __m256i lo, hi;
};
using Mask = std::uint32_t;

inline constexpr std::size_t tile_tokens = 2;
inline constexpr std::size_t tile_rows = 3;
inline constexpr std::size_t wide_tokens = 4;
inline constexpr std::size_t wide_blocks = 1;

inline Floats load(const float *p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float *p, Floats a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline Floats set1(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Floats add(Floats a, Floats b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Floats sub(Floats a, Floats b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline Floats mul(Floats a, Floats b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Floats div(Floats a, Floats b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline Floats sqrt(Floats a) {
    return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
/// max and min return `b` where either is NaN.
inline Floats max(Floats a, Floats b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline Floats min(Floats a, Floats b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline Floats absolute(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0F);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
/// a where x >= 0, else b.
inline Floats where_positive(Floats x, Floats a, Floats b) {
    const __m256 zero = _mm256_setzero_ps();
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, zero, _CMP_GE_OQ)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, zero, _CMP_GE_OQ))};
}
/// NaN stays NaN: x where x is NaN, else a.
inline Floats keep_nan(Floats x, Floats a) {
    return {_mm256_blendv_ps(a.lo, x.lo, _mm256_cmp_ps(x.lo, x.lo, _CMP_UNORD_Q)),
            _mm256_blendv_ps(a.hi, x.hi, _mm256_cmp_ps(x.hi, x.hi, _CMP_UNORD_Q))};
}
inline Mask join(int lo, int hi) {
    return static_cast<Mask>(lo) | static_cast<Mask>(hi) << 8;
}
inline Mask bits(__m256 lo, __m256 hi) {
    return join(_mm256_movemask_ps(lo), _mm256_movemask_ps(hi));
}
inline Mask not_less(Floats a, Floats b) {
    return bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ));
}
inline Floats nearest(Floats a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline __m256 scale_half(__m256 a, __m256 n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
/// a * 2^n for integral n in [-126, 127].
inline Floats scale(Floats a, Floats n) {
    return {scale_half(a.lo, n.lo), scale_half(a.hi, n.hi)};
}
inline float sum(Floats a) {
    const __m256 half = _mm256_add_ps(a.lo, a.hi);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

/// Largest lane; no lane is NaN.
inline float maximum(Floats a) {
    const __m256 half = _mm256_max_ps(a.lo, a.hi);
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline Ints load(const std::int32_t *p) {
    const auto *q = reinterpret_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void store(std::int32_t *p, Ints a) {
    auto *q = reinterpret_cast<__m256i *>(p);
    _mm256_storeu_si256(q, a.lo);
    _mm256_storeu_si256(q + 1, a.hi);
}
inline Ints set1(std::int32_t x) {
    return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
inline Mask bits(__m256i lo, __m256i hi) {
    return bits(_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi));
}
inline Mask greater(Ints a, Ints b) {
    return bits(_mm256_cmpgt_epi32(a.lo, b.lo), _mm256_cmpgt_epi32(a.hi, b.hi));
}
inline Mask equal(Ints a, Ints b) {
    return bits(_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi));
}
inline __m256i ordered_half(__m256 a) {
    const __m256i bits = _mm256_castps_si256(_mm256_add_ps(a, _mm256_setzero_ps()));
    const __m256i flip = _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_xor_si256(bits, flip), _mm256_set1_epi32(INT32_MIN), nan);
}
/// Order-preserving integers: -0 as +0, NaN below everything.
inline Ints ordered(Floats a) {
    return {ordered_half(a.lo), ordered_half(a.hi)};
}

/// Writes the selected lanes together; may write 16 values whatever the mask.
inline void compress(float *out, Mask m, Floats a) {
    alignas(32) float all[16];
    store(all, a);
    for (; m != 0; m &= m - 1) {
        *out++ = all[__builtin_ctz(m)];
    }
}
inline void compress(std::int32_t *out, Mask m, Ints a) {
    alignas(32) std::int32_t all[16];
    store(all, a);
    for (; m != 0; m &= m - 1) {
        *out++ = all[__builtin_ctz(m)];
    }
}
