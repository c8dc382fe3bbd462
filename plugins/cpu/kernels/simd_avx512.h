// Sixteen floats in one AVX-512 register. Included inside the namespace of one kernel source file.

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};
using Mask = std::uint32_t;

inline constexpr std::size_t tile_tokens = 4;
inline constexpr std::size_t tile_rows = 6;
inline constexpr std::size_t wide_tokens = 8;
inline constexpr std::size_t wide_blocks = 2;

inline Floats load(const float *p) {
    return {_mm512_loadu_ps(p)};
}
inline void store(float *p, Floats a) {
    _mm512_storeu_ps(p, a.v);
}
inline Floats set1(float x) {
    return {_mm512_set1_ps(x)};
}
inline Floats add(Floats a, Floats b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline Floats sub(Floats a, Floats b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
inline Floats mul(Floats a, Floats b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline Floats div(Floats a, Floats b) {
    return {_mm512_div_ps(a.v, b.v)};
}
inline Floats sqrt(Floats a) {
    return {_mm512_sqrt_ps(a.v)};
}
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
/// max and min return `b` where either is NaN.
inline Floats max(Floats a, Floats b) {
    return {_mm512_max_ps(a.v, b.v)};
}
inline Floats min(Floats a, Floats b) {
    return {_mm512_min_ps(a.v, b.v)};
}
inline Floats absolute(Floats a) {
    return {_mm512_abs_ps(a.v)};
}
/// a where x >= 0, else b.
inline Floats where_positive(Floats x, Floats a, Floats b) {
    return {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GE_OQ), b.v, a.v)};
}
/// NaN stays NaN: x where x is NaN, else a.
inline Floats keep_nan(Floats x, Floats a) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), a.v, x.v)};
}
inline Mask not_less(Floats a, Floats b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ);
}
inline Floats nearest(Floats a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/// a * 2^n for integral n in [-126, 127].
inline Floats scale(Floats a, Floats n) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), exponent))};
}
inline float sum(Floats a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

/// Largest lane; no lane is NaN.
inline float maximum(Floats a) {
    return _mm512_reduce_max_ps(a.v);
}

inline Ints load(const std::int32_t *p) {
    return {_mm512_loadu_si512(p)};
}
inline void store(std::int32_t *p, Ints a) {
    _mm512_storeu_si512(p, a.v);
}
inline Ints set1(std::int32_t x) {
    return {_mm512_set1_epi32(x)};
}
inline Mask greater(Ints a, Ints b) {
    return _mm512_cmpgt_epi32_mask(a.v, b.v);
}
inline Mask equal(Ints a, Ints b) {
    return _mm512_cmpeq_epi32_mask(a.v, b.v);
}
/// Order-preserving integers: -0 as +0, NaN below everything.
inline Ints ordered(Floats a) {
    const __m512i bits = _mm512_castps_si512(_mm512_add_ps(a.v, _mm512_setzero_ps()));
    const __m512i flip = _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return {
        _mm512_mask_blend_epi32(nan, _mm512_xor_si512(bits, flip), _mm512_set1_epi32(INT32_MIN))};
}

/// Writes the selected lanes together; may write 16 values whatever the mask.
inline void compress(float *out, Mask m, Floats a) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(m), a.v));
}
inline void compress(std::int32_t *out, Mask m, Ints a) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(m), a.v));
}
