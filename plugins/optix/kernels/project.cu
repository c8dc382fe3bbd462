// Points of hidden states: one warp a token, four rows of the projection at a time.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/params.h"
#include "project.h"

namespace {

using spectral::optix::ProjectArguments;

constexpr int batch = 4;

__device__ float read(const ProjectArguments &a, long long at) {
    if (a.x_dtype == spectral::cuda::dtype_f32) {
        return static_cast<const float *>(a.x)[at];
    }
    return a.x_dtype == spectral::cuda::dtype_f16
               ? __half2float(static_cast<const __half *>(a.x)[at])
               : __bfloat162float(static_cast<const __nv_bfloat16 *>(a.x)[at]);
}

} // namespace

extern "C" __global__ void __launch_bounds__(spectral::optix::project_warps * 32)
    spectral_project(const ProjectArguments a) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const long long token =
        static_cast<long long>(blockIdx.x) * spectral::optix::project_warps + (threadIdx.x >> 5);
    if (token >= a.tokens) {
        return;
    }
    for (int first = 0; first < a.rank; first += batch) {
        float sum[batch] = {};
        for (int d = lane; d < a.hidden; d += 32) {
            const float x = read(a, token * a.stride + d);
#pragma unroll
            for (int i = 0; i < batch; ++i) {
                if (first + i < a.rank) {
                    const long long row = first + i;
                    sum[i] = fmaf(x, a.projection[row * a.hidden + d], sum[i]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            for (int step = 16; step > 0; step /= 2) {
                sum[i] += __shfl_xor_sync(0xFFFFFFFFU, sum[i], step);
            }
            if (lane == 0 && first + i < a.rank) {
                a.points[token * a.rank + first + i] = sum[i] - a.offset[first + i];
            }
        }
    }
}
