// The ray programs: a zero-length ray per token, and all work in the intersection program.
#include "intrinsics.cuh"
#include "search.cuh"

using namespace spectral;
using spectral::optix::Search;
using spectral::optix::SearchParams;

extern "C" {
__constant__ SearchParams params;
}

namespace {

__device__ void store(const Search &s, long long token) {
    const long long row = token * params.count;
    const float peak = cuda::unordered(cuda::order_of(s.keys[0]));
    float total = 0.0F;
    for (int i = 0; i < params.count; ++i) {
        const float value = cuda::unordered(cuda::order_of(s.keys[i]));
        total += expf(value - peak);
        const int id = cuda::id_of(s.keys[i]);
        if (params.wide_ids != 0) {
            static_cast<long long *>(params.ids)[row + i] = id;
        } else {
            static_cast<int *>(params.ids)[row + i] = id;
        }
        if (params.scores != nullptr) {
            params.scores[row + i] = value;
        }
    }
    if (params.weights != nullptr) {
        for (int i = 0; i < params.count; ++i) {
            const float value = cuda::unordered(cuda::order_of(s.keys[i]));
            params.weights[row + i] = expf(value - peak) / total;
        }
    }
}

} // namespace

extern "C" __global__ void __raygen__route() {
    const unsigned index = optix::launch_index();
    const long long token = index / static_cast<unsigned>(params.spread);
    if (token >= params.tokens || index % static_cast<unsigned>(params.spread) != 0) {
        return;
    }
    Search s;
    for (int r = 0; r < params.rank; ++r) {
        s.point[r] = params.points[token * params.rank + r];
    }
    const int traversed = optix::search(params, s, [&](int shell) {
        optix::trace_point(params.shells[shell].handle, s.point[0] * params.scale,
                           s.point[1] * params.scale, s.point[2] * params.scale, &s);
    });
    params.work[2 * token] = s.scored;
    params.work[2 * token + 1] = traversed;
    if (traversed >= 0) {
        store(s, token);
    }
}

extern "C" __global__ void __intersection__sphere() {
    auto *s = static_cast<Search *>(optix::payload_pointer());
    optix::offer(params, *s, params.shells[s->shell].ids[optix::primitive_index()]);
}

extern "C" __global__ void __miss__nothing() {}
