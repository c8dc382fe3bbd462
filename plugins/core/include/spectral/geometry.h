// The geometric router of one layer as views on arrays that someone else owns.
#pragma once

#include <cstddef>

namespace spectral {

/// Letters: T tokens, D hidden, E experts, C candidates, L levels, S colour, R = 3L + S, N nodes.
/// All arrays are float32, row-major and contiguous; an absent optional array is null.
struct Geometry {
    std::size_t hidden = 0;
    std::size_t experts = 0;
    std::size_t levels = 0;
    std::size_t colours = 0;
    const float *mean = nullptr;        ///< [D]
    const float *projection = nullptr;  ///< [R, D]
    const float *centres = nullptr;     ///< [L, E, 3]
    const float *colour = nullptr;      ///< [E, S]
    const float *beta = nullptr;        ///< [E]
    const float *common = nullptr;      ///< [D], optional
    const float *choice_bias = nullptr; ///< [E], optional

    [[nodiscard]] std::size_t rank() const { return 3 * levels + colours; }

    /// Coordinate r of expert e in the order of the tree's boxes: centres level by level, then
    /// colour.
    [[nodiscard]] float coordinate(std::size_t e, std::size_t r) const {
        return r < 3 * levels ? centres[(r / 3 * experts + e) * 3 + r % 3]
                              : colour[e * colours + (r - 3 * levels)];
    }

    /// Linear coefficient of the score: twice a centre, or a colour as it is.
    [[nodiscard]] float direction(std::size_t e, std::size_t r) const {
        const float value = coordinate(e, r);
        return r < 3 * levels ? 2.0F * value : value;
    }
};

} // namespace spectral
