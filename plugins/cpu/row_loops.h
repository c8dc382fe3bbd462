// Loops over one token's row of experts that the compiler turns into vector code, one copy per
// instruction set.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace spectral::cpu {

/// Bits that order like the floats; both zeros alike, NaN below everything.
inline std::uint32_t ordered_bits(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value + 0.0F);
    const std::uint32_t sign = static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31);
    return value != value ? 0 : bits ^ (sign | 0x80000000U);
}

/// Softmax in place; a NaN makes every share NaN.
void softmax_row(float *values, std::size_t count);
/// Logistic function in place.
void sigmoid_row(float *values, std::size_t count);
/// ordered_bits of a row.
void order_row(const float *values, std::size_t count, std::uint32_t *keys);
/// The first place from `begin` on whose value is above `least` or NaN; `count` when there is none.
std::size_t next_not_below(const float *values, std::size_t begin, std::size_t count, float least);
/// How many keys are at least `least`.
std::size_t count_reaching(const std::uint32_t *keys, std::size_t count, std::uint32_t least);

} // namespace spectral::cpu
