// The choice rule of a gate: a monotone transform of the score, plus an optional bias per expert.
#pragma once

#include <cstdint>

namespace spectral {

/// softmax without bias and plain logits rank like identity.
enum class Choice : std::uint8_t { identity, sigmoid, sqrtsoftplus };

} // namespace spectral
