// Bit patterns of the 16-bit floats; no compiler support for them is assumed.
#include "half.h"

#include <bit>
#include <cmath>

namespace spectral::ort {
namespace {

float from_f16(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16U;
    const std::uint32_t rest = half & 0x7FFFU;
    if (rest >= 0x7C00U) {
        return std::bit_cast<float>(sign | 0x7F800000U | (rest & 0x3FFU) << 13U);
    }
    // A multiplication by 2^112 moves the exponent's bias, subnormals included.
    const float scaled = std::bit_cast<float>(rest << 13U) * std::bit_cast<float>(0x77800000U);
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

std::uint16_t to_f16(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>(bits >> 16U & 0x8000U);
    const std::uint32_t rest = bits & 0x7FFFFFFFU;
    if (rest >= 0x7F800000U) {
        return static_cast<std::uint16_t>(sign | (rest > 0x7F800000U ? 0x7E00U : 0x7C00U));
    }
    if (rest >= 0x477FF000U) {
        return static_cast<std::uint16_t>(sign | 0x7C00U);
    }
    if (rest < 0x38800000U) { // subnormal: the addition rounds at 2^-24
        const float rounded = std::bit_cast<float>(rest) + 0.5F;
        return static_cast<std::uint16_t>(sign |
                                          (std::bit_cast<std::uint32_t>(rounded) - 0x3F000000U));
    }
    const std::uint32_t rounded = rest + 0xFFFU + (rest >> 13U & 1U) - 0x38000000U;
    return static_cast<std::uint16_t>(sign | rounded >> 13U);
}

std::uint16_t to_bf16(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if (std::isnan(value)) {
        return static_cast<std::uint16_t>(bits >> 16U | 0x40U);
    }
    return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U);
}

} // namespace

void widen(const std::uint16_t *halves, Element element, std::size_t count, float *out) {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = element == Element::bf16
                     ? std::bit_cast<float>(static_cast<std::uint32_t>(halves[i]) << 16U)
                     : from_f16(halves[i]);
    }
}

void narrow(const float *values, Element element, std::size_t count, std::uint16_t *out) {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = element == Element::bf16 ? to_bf16(values[i]) : to_f16(values[i]);
    }
}

} // namespace spectral::ort
