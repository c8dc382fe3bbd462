// Tokens that no shell of spheres could answer: every expert scored, by a warp a token.
#include "kernels/list.cuh"
#include "programs/search.cuh"
#include "scan.h"

namespace {

using namespace spectral;
using spectral::optix::SearchParams;

constexpr int batch = 4; ///< experts a lane whose loads are in flight together

__device__ void store(const SearchParams &a, const cuda::List &list, long long token) {
    const int lane = cuda::lane_id();
    const bool mine = lane < a.count;
    const float value = cuda::unordered(cuda::order_of(list.mine));
    const float peak = cuda::warp_max(mine ? value : -INFINITY);
    const float share = mine ? expf(value - peak) : 0.0F;
    const float total = cuda::warp_sum(share);
    if (!mine) {
        return;
    }
    const long long at = token * a.count + lane;
    if (a.wide_ids != 0) {
        static_cast<long long *>(a.ids)[at] = cuda::id_of(list.mine);
    } else {
        static_cast<int *>(a.ids)[at] = cuda::id_of(list.mine);
    }
    if (a.scores != nullptr) {
        a.scores[at] = value;
    }
    if (a.weights != nullptr) {
        a.weights[at] = share / total;
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(optix::scan_warps * 32)
    spectral_scan_rest(const SearchParams a) {
    const long long token =
        static_cast<long long>(blockIdx.x) * optix::scan_warps + (threadIdx.x >> 5);
    if (token >= a.tokens || a.work[2 * token + 1] >= 0) {
        return;
    }
    const float *point = a.points + token * a.rank;
    cuda::List list(a.count);
    for (int first = 0; first < a.experts; first += 32 * batch) {
        float score[batch];
        int id[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const int expert = first + 32 * i + cuda::lane_id();
            score[i] = optix::choice_of(a, point, min(expert, a.experts - 1));
            id[i] = expert < a.experts ? expert : -1;
        }
        list.offer(score, id);
    }
    store(a, list, token);
    if (cuda::lane_id() == 0) {
        a.work[2 * token] += a.experts;
    }
}
