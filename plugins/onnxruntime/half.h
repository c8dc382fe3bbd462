// float16 and bfloat16 to float32 and back, rounding to nearest even.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ort_abi.h"

namespace spectral::ort {

void widen(const std::uint16_t *halves, Element element, std::size_t count, float *out);
void narrow(const float *values, Element element, std::size_t count, std::uint16_t *out);

} // namespace spectral::ort
