// The ray programs' search on a CPU: boxes are tested one by one where OptiX would traverse them.
#include <math.h>

#include <bit>
#include <cstdint>

#define __device__
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

#include "programs/search.cuh"
#include "sphere_shells.h"

using namespace spectral;
using namespace spectral::optix;

namespace {

struct Built {
    HostSpheres spheres;
    SearchParams params{};
};

bool holds(const Box &box, const float *origin) {
    bool inside = true;
    for (int i = 0; i < 3; ++i) {
        inside = inside && origin[i] >= box.low[i] && origin[i] <= box.high[i];
    }
    return inside;
}

/// Offers what a traversal would: in another order, and every primitive `times` times.
void visit(const Built &built, Search &s, int shell, int times) {
    const HostShell &from = built.spheres.shells[static_cast<std::size_t>(shell)];
    float origin[3];
    for (int i = 0; i < 3; ++i) {
        origin[i] = s.point[i] * built.params.scale;
    }
    for (std::size_t i = from.ids.size(); i-- > 0;) {
        if (holds(from.boxes[i], origin)) {
            for (int t = 0; t < times; ++t) {
                offer(built.params, s, from.ids[i]);
            }
        }
    }
}

} // namespace

extern "C" {

Built *build(const float *const *arrays, const std::int64_t *sizes) {
    Geometry g;
    g.experts = static_cast<std::size_t>(sizes[0]);
    g.levels = static_cast<std::size_t>(sizes[1]);
    g.colours = static_cast<std::size_t>(sizes[2]);
    g.centres = arrays[0];
    g.colour = arrays[1];
    g.beta = arrays[2];
    g.choice_bias = arrays[3];
    auto *built = new Built{make_spheres(g)};
    SearchParams &p = built->params;
    p.rows = built->spheres.rows.data();
    p.reach = built->spheres.reach.data();
    p.scale = built->spheres.scale;
    p.bias_max = built->spheres.bias_max;
    p.quads = built->spheres.quads;
    p.experts = static_cast<std::int32_t>(g.experts);
    p.rank = static_cast<std::int32_t>(g.rank());
    p.biased = g.choice_bias != nullptr ? 1 : 0;
    for (const HostShell &shell : built->spheres.shells) {
        p.shells[p.shell_count++] = {0, shell.ids.data(), shell.constant,
                                     static_cast<std::int32_t>(shell.ids.size())};
    }
    return built;
}

void release(Built *built) { delete built; }

int shell_count(const Built *built) { return built->params.shell_count; }

/// Candidates of points [T, R]: ids and scores [T, C], and [T, 2] experts scored and shells traversed.
void route(Built *built, const float *points, std::int64_t tokens, const std::int32_t *how, std::int32_t *ids,
           float *scores, std::int32_t *work) {
    SearchParams &p = built->params;
    p.count = how[0];
    p.score = how[1];
    for (std::int64_t token = 0; token < tokens; ++token) {
        Search s;
        for (int r = 0; r < p.rank; ++r) {
            s.point[r] = points[token * p.rank + r];
        }
        const int traversed = search(p, s, [&](int shell) { visit(*built, s, shell, how[2]); });
        for (int expert = 0; traversed < 0 && expert < p.experts; ++expert) {
            offer(p, s, expert); // kernels/scan.cu
        }
        for (int i = 0; i < p.count; ++i) {
            ids[token * p.count + i] = cuda::id_of(s.keys[i]);
            scores[token * p.count + i] = cuda::unordered(cuda::order_of(s.keys[i]));
        }
        work[2 * token] = s.scored;
        work[2 * token + 1] = traversed;
    }
}

} // extern "C"
