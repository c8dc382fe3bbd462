// A whole routing step, hidden state to experts and weights, as an exported model's node carries
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "spectral/bvh.h"

namespace spectral {

/// How logits become scores, and chosen experts' scores become weights; see
/// spectral_runtime.gate.GateRule.
enum class GateScore : std::int32_t { softmax, sigmoid, sqrtsoftplus, logits };
enum class GateWeight : std::int32_t { score, softmax, sigmoid, sparsemixer };

/// The family's rule. Plain 32-bit fields: it is copied to devices and into engines as it is.
struct GateRule {
    std::int32_t experts = 0, top_k = 0;
    GateScore score = GateScore::softmax;
    GateWeight weight = GateWeight::score;
    std::int32_t groups = 1, groups_kept = 1;
    std::int32_t group_top2 = 1; ///< a group counts by its best two experts, else by its best
    std::int32_t fill_zero = 0;  ///< experts of other groups score zero, else minus infinity
    std::int32_t normalise = 0;
    float normalise_eps = 0.0F, normalise_min = 0.0F, scale = 1.0F;
    float logit_scale = 1.0F, softcap = 0.0F, threshold = 0.0F;
};

/// What decides: the gate, the gate among candidates of the geometry, or the geometry alone.
enum class RouteMode : std::int32_t { gate, prefilter, geometric };

/// Everything about a step but its arrays.
struct RouteSpec {
    GateRule rule{};
    RouteMode mode = RouteMode::gate;
    std::int32_t candidates = 0; ///< C of prefilter
    std::int32_t hidden = 0;     ///< D
    std::int32_t levels = 0, colours = 0;
    std::int32_t centred = 0; ///< the last row of projection and directions is the common mode
    std::int32_t gate_bias = 0, choice_bias = 0;

    [[nodiscard]] constexpr bool geometric() const { return mode != RouteMode::gate; }
    [[nodiscard]] constexpr bool exact() const { return mode != RouteMode::geometric; }
    /// R, with the common mode.
    [[nodiscard]] constexpr std::int32_t rows() const { return 3 * levels + colours + centred; }
};

/// The arrays, float32 and contiguous, in the memory of whoever routes; unused ones may be null.
struct RouteArrays {
    const float *mean = nullptr;        ///< [D]
    const float *projection = nullptr;  ///< [R, D]
    const float *directions = nullptr;  ///< [E, R]
    const float *beta = nullptr;        ///< [E]
    const float *spread = nullptr;      ///< [E]
    const float *gate_weight = nullptr; ///< [E, D]
    const float *gate_bias = nullptr;   ///< [E]
    const float *choice_bias = nullptr; ///< [E]
};

/// Reads one attribute of a node by its name; the rest of the world calls these for every attribute
/// it finds. Unknown names are left alone. Throws UserError for a value without meaning.
void set_attribute(RouteSpec &spec, const std::string &name, std::int64_t value);
void set_attribute(RouteSpec &spec, const std::string &name, float value);
void set_attribute(RouteSpec &spec, const std::string &name, const std::string &value);

/// Throws UserError unless the numbers fit one another.
void check_spec(const RouteSpec &spec);

} // namespace spectral
