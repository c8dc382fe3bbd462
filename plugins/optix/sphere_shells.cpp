// Chooses radii and makes boxes that surely contain the spheres.
#include "sphere_shells.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

namespace spectral::optix {
namespace {

/// Multiplications that all trial points may cost together.
constexpr std::size_t trial_budget = std::size_t{1} << 28;
constexpr std::size_t most_trials = 64;
constexpr std::uint64_t trial_seed = 20'241'122;
/// Beyond this a square, or the sum of many, leaves float32.
constexpr double safe_coordinate = 1e17;

/// Coordinate r as a centre: a colour scores u.f = 2 (u / 2).f.
double centre_of(const Geometry &g, std::size_t e, std::size_t r) {
    return 0.5 * static_cast<double>(g.direction(e, r));
}

/// |c|^2 + beta of every expert.
std::vector<double> weights_of(const Geometry &g) {
    std::vector<double> weights(g.experts);
    for (std::size_t e = 0; e < g.experts; ++e) {
        weights[e] = static_cast<double>(g.beta[e]);
        for (std::size_t r = 0; r < g.rank(); ++r) {
            weights[e] += centre_of(g, e, r) * centre_of(g, e, r);
        }
    }
    return weights;
}

std::vector<float> reach_of(const Geometry &g) {
    std::vector<float> reach(g.rank() + 1, 0.0F);
    for (std::size_t e = 0; e < g.experts; ++e) {
        for (std::size_t r = 0; r < g.rank(); ++r) {
            reach[r] = std::max(reach[r], std::fabs(0.5F * g.direction(e, r)));
        }
        reach.back() = std::max(reach.back(), std::fabs(g.beta[e]));
    }
    return reach;
}

/// Whether squares and their sums stay within float32; false for what is not finite.
bool is_safe(const Geometry &g) {
    for (std::size_t e = 0; e < g.experts; ++e) {
        bool safe = std::fabs(static_cast<double>(g.beta[e])) < safe_coordinate * safe_coordinate;
        for (std::size_t r = 0; r < g.rank(); ++r) {
            safe = safe && std::fabs(centre_of(g, e, r)) < safe_coordinate;
        }
        if (!safe) {
            return false;
        }
    }
    return true;
}

/// Means and deviations of the centres, coordinate by coordinate.
struct Spread {
    std::vector<double> mean, deviation;

    explicit Spread(const Geometry &g) : mean(g.rank()), deviation(g.rank()) {
        const auto count = static_cast<double>(g.experts);
        for (std::size_t r = 0; r < g.rank(); ++r) {
            double sum = 0.0;
            double squares = 0.0;
            for (std::size_t e = 0; e < g.experts; ++e) {
                sum += centre_of(g, e, r);
                squares += centre_of(g, e, r) * centre_of(g, e, r);
            }
            mean[r] = sum / count;
            deviation[r] = std::sqrt(std::max(0.0, squares / count - mean[r] * mean[r]));
        }
    }
};

/// |p|^2 less the C-th best score: the constant whose shell holds every candidate of the point.
double constant_needed(const Geometry &g, const std::vector<double> &point,
                       std::vector<float> &scores) {
    double square = 0.0;
    for (const double x : point) {
        square += x * x;
    }
    for (std::size_t e = 0; e < g.experts; ++e) {
        double score = static_cast<double>(g.beta[e]);
        for (std::size_t r = 0; r < g.rank(); ++r) {
            score += static_cast<double>(g.direction(e, r)) * point[r];
        }
        scores[e] = static_cast<float>(score);
    }
    const auto last = static_cast<std::ptrdiff_t>(std::min(trial_candidates, g.experts) - 1);
    std::nth_element(scores.begin(), scores.begin() + last, scores.end(), std::greater<>());
    return square - static_cast<double>(scores[static_cast<std::size_t>(last)]);
}

/// Ascending constants that the trial points need.
std::vector<double> trial_constants(const Geometry &g) {
    const Spread spread(g);
    const std::size_t trials =
        std::clamp<std::size_t>(trial_budget / (g.experts * g.rank()), 16, most_trials);
    std::mt19937_64 random(trial_seed);
    std::normal_distribution<double> normal;
    std::vector<float> scores(g.experts);
    std::vector<double> needed;
    for (std::size_t i = 0; i < trials; ++i) {
        const std::size_t expert = random() % g.experts;
        std::vector<double> point(g.rank());
        for (std::size_t r = 0; r < g.rank(); ++r) {
            point[r] = i % 2 == 0
                           ? centre_of(g, expert, r) + 0.25 * spread.deviation[r] * normal(random)
                           : spread.mean[r] + spread.deviation[r] * normal(random);
        }
        needed.push_back(constant_needed(g, point, scores));
    }
    std::sort(needed.begin(), needed.end());
    return needed;
}

std::vector<float> shell_constants(const Geometry &g, const std::vector<double> &weights) {
    const std::vector<double> needed = trial_constants(g);
    std::vector<float> constants;
    for (const double share : shell_shares) {
        const auto at =
            static_cast<std::size_t>(std::ceil(share * static_cast<double>(needed.size())));
        constants.push_back(static_cast<float>(needed[std::max<std::size_t>(at, 1) - 1]));
    }
    const double largest = *std::max_element(weights.begin(), weights.end());
    const double typical = std::max(largest + needed.back(), 0.0);
    constants.push_back(static_cast<float>(needed.back() + (outer_growth - 1.0) * typical));
    const auto last = std::unique(constants.begin(), constants.end());
    constants.erase(last, constants.end());
    return constants;
}

/// The corner below or above `centre -+ radius`, moved outwards by far more than any rounding on
/// the way.
float corner(double centre, double radius, double scale, double side) {
    const double slack = 0x1p-18 * (std::fabs(centre) + radius) * scale + 0x1p-30;
    return static_cast<float>((centre + side * radius) * scale + side * slack);
}

HostShell shell_of(const Geometry &g, const std::vector<double> &weights, float constant,
                   double scale) {
    HostShell shell;
    shell.constant = constant;
    for (std::size_t e = 0; e < g.experts; ++e) {
        const double square = weights[e] + static_cast<double>(constant);
        if (square < 0.0) {
            continue; // scores less than |p|^2 - constant everywhere
        }
        Box box{};
        for (std::size_t i = 0; i < 3; ++i) {
            box.low[i] = corner(centre_of(g, e, i), std::sqrt(square), scale, -1.0);
            box.high[i] = corner(centre_of(g, e, i), std::sqrt(square), scale, 1.0);
        }
        shell.ids.push_back(static_cast<std::int32_t>(e));
        shell.boxes.push_back(box);
    }
    return shell;
}

void fill_rows(const Geometry &g, HostSpheres &out) {
    out.quads = static_cast<std::int32_t>((g.rank() + 2 + 3) / 4);
    const auto quads = static_cast<std::size_t>(out.quads);
    out.rows.resize(g.experts * quads);
    for (std::size_t e = 0; e < g.experts; ++e) {
        Quad *row = out.rows.data() + e * quads;
        row[0].v[0] = g.beta[e];
        row[0].v[1] = g.choice_bias != nullptr ? g.choice_bias[e] : 0.0F;
        for (std::size_t r = 0; r < g.rank(); ++r) {
            row[(r + 2) / 4].v[(r + 2) % 4] = g.direction(e, r);
        }
    }
}

} // namespace

HostSpheres make_spheres(const Geometry &geometry) {
    HostSpheres out;
    fill_rows(geometry, out);
    out.reach = reach_of(geometry);
    if (geometry.choice_bias != nullptr) {
        out.bias_max =
            *std::max_element(geometry.choice_bias, geometry.choice_bias + geometry.experts);
    }
    if (!is_safe(geometry)) {
        return out;
    }
    const std::vector<double> weights = weights_of(geometry);
    const std::vector<float> constants = shell_constants(geometry, weights);
    const double radius =
        std::sqrt(std::max(0.0, *std::max_element(weights.begin(), weights.end()) +
                                    static_cast<double>(constants.back())));
    const double extent =
        radius + static_cast<double>(*std::max_element(out.reach.begin(), out.reach.begin() + 3));
    out.scale =
        extent > 0x1p-60 ? static_cast<float>(std::exp2(-std::ceil(std::log2(extent)))) : 1.0F;
    for (const float constant : constants) {
        HostShell shell = shell_of(geometry, weights, constant, static_cast<double>(out.scale));
        if (!shell.ids.empty()) {
            out.shells.push_back(std::move(shell));
        }
    }
    return out;
}

} // namespace spectral::optix
