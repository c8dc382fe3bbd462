// Weighs the experts' coordinates for the builder.
#include "split_keys.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "spectral/error.h"

namespace spectral {
namespace {

void check_array(const char *name, const float *values, std::size_t rows, std::size_t columns) {
    if (values == nullptr) {
        return;
    }
    for (std::size_t i = 0; i < rows * columns; ++i) {
        if (!std::isfinite(values[i])) {
            throw UserError(std::string(name) + "[" + std::to_string(i / columns) + "]",
                            "finite numbers", std::to_string(values[i]),
                            "fit again: the geometry is damaged");
        }
    }
}

double root_mean_square(const Geometry &g, std::size_t r) {
    double sum = 0.0;
    for (std::size_t e = 0; e < g.experts; ++e) {
        const double x = g.coordinate(e, r);
        sum += x * x;
    }
    return std::sqrt(sum / static_cast<double>(g.experts));
}

/// Scales beyond float's comfortable range would overflow the extents; the ranking of axes survives
/// the clamp.
float clamped(double x) {
    return static_cast<float>(std::clamp(x, 1e-15, 1e15));
}

} // namespace

void check_finite(const Geometry &g) {
    check_array("centres", g.centres, g.levels * g.experts, 3);
    check_array("colour", g.colour, g.experts, g.colours);
    check_array("beta", g.beta, g.experts, 1);
    check_array("choice_bias", g.choice_bias, g.experts, 1);
}

SplitKeys make_split_keys(const Geometry &g, const BuildConfig &config, Executor &executor) {
    constexpr std::size_t chunk = 16384;
    const std::size_t rank = g.rank();
    std::vector<float> weight(rank);
    executor.run(rank, [&](std::size_t r) {
        const double scale =
            config.query_scale != nullptr ? config.query_scale[r] : root_mean_square(g, r);
        weight[r] = clamped(r < 3 * g.levels ? 2.0 * scale : scale);
    });
    SplitKeys keys;
    const std::size_t columns = rank + (g.choice_bias != nullptr ? 2 : 1);
    keys.width = (columns + 3) / 4 * 4;
    keys.rows.assign(g.experts * keys.width, 0.0F);
    executor.run((g.experts + chunk - 1) / chunk, [&](std::size_t c) {
        for (std::size_t e = c * chunk; e < std::min((c + 1) * chunk, g.experts); ++e) {
            float *row = keys.rows.data() + e * keys.width;
            for (std::size_t r = 0; r < rank; ++r) {
                row[r] = std::clamp(weight[r] * g.coordinate(e, r), -1e30F, 1e30F);
            }
            row[rank] = std::clamp(g.beta[e], -1e30F, 1e30F);
            if (g.choice_bias != nullptr) {
                row[rank + 1] = std::clamp(4.0F * g.choice_bias[e], -1e30F, 1e30F);
            }
        }
    });
    return keys;
}

} // namespace spectral
