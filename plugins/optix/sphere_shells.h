// The spheres of level 1 in a few sizes, as boxes for a ray tracer; the rows that score an expert.
#pragma once

#include <cstdint>
#include <vector>

#include "programs/params.h"
#include "spectral/geometry.h"

namespace spectral::optix {

/// Corners of one axis-aligned box: OptixAabb.
struct Box {
    float low[3], high[3];
};

/// The experts whose sphere of radius^2 = weight + constant is real, and their boxes times `scale`.
struct HostShell {
    float constant = 0.0F;
    std::vector<std::int32_t> ids;
    std::vector<Box> boxes;
};

/// Everything that `programs/search.cuh` reads about a geometry.
struct HostSpheres {
    float scale = 1.0F;            ///< power of two: boxes lie near [-1, 1]
    float bias_max = 0.0F;         ///< largest choice bias
    std::vector<HostShell> shells; ///< ascending; none where float32 could overflow
    std::vector<Quad> rows;        ///< [E, quads]
    std::vector<float> reach;      ///< [R + 1]
    std::int32_t quads = 0;
};

/// How many shells are made of what the trial points need: the share of trial points each serves.
inline constexpr double shell_shares[] = {0.25, 0.6, 0.9, 1.0};
/// One more shell serves points further out, with radii^2 this many times the typical.
inline constexpr double outer_growth = 4.0;
/// Candidates that a trial point asks for; fewer experts ask for all.
inline constexpr std::size_t trial_candidates = 16;

/// Chooses the constants of the shells from trial points: the converter balances projections so
/// that tokens spread like centres (fit/projection.py), so a part of the trials are experts' own
/// centres and a part Gaussians of the centres' spread. A bad choice costs time, never a candidate.
HostSpheres make_spheres(const Geometry &geometry);

} // namespace spectral::optix
