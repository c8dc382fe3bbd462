// A whole routing step, one block a token at a time: every rule and mode, any number of experts.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "step_arguments.h"

namespace {

using namespace spectral;
using spectral::cuda::max_rows;
using spectral::cuda::Scalar;
using spectral::cuda::step_threads;
using spectral::cuda::StepArguments;

constexpr int warps = step_threads / 32;
constexpr float infinity = __builtin_huge_valf();

struct Shared {
    float points[max_rows];
    float floats[warps];
    unsigned long long keys[warps];
    int ints[warps];
    float value;
    unsigned long long key;
    int count;
    unsigned long long groups; ///< bit per group that is kept
};

__device__ float read(const void *data, Scalar scalar, long long index) {
    if (scalar == Scalar::f32) {
        return static_cast<const float *>(data)[index];
    }
    if (scalar == Scalar::f16) {
        return __half2float(static_cast<const __half *>(data)[index]);
    }
    return __bfloat162float(static_cast<const __nv_bfloat16 *>(data)[index]);
}

__device__ void write(void *data, Scalar scalar, long long index, float value) {
    if (scalar == Scalar::f32) {
        static_cast<float *>(data)[index] = value;
    } else if (scalar == Scalar::f16) {
        static_cast<__half *>(data)[index] = __float2half_rn(value);
    } else {
        static_cast<__nv_bfloat16 *>(data)[index] = __float2bfloat16_rn(value);
    }
}

/// Bits that order like the floats; NaN below everything.
__device__ unsigned ordered(float value) {
    const unsigned bits = __float_as_uint(value + 0.0F);
    const unsigned sign = static_cast<unsigned>(static_cast<int>(bits) >> 31);
    return value != value ? 0U : bits ^ (sign | 0x80000000U);
}

__device__ float block_sum(float value, Shared &shared) {
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(~0U, value, step);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared.floats[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float total = 0.0F;
    for (int w = 0; w < warps; ++w) {
        total += shared.floats[w];
    }
    return total;
}

__device__ int block_count(int value, Shared &shared) {
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(~0U, value, step);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared.ints[threadIdx.x / 32] = value;
    }
    __syncthreads();
    int total = 0;
    for (int w = 0; w < warps; ++w) {
        total += shared.ints[w];
    }
    return total;
}

__device__ unsigned long long block_max(unsigned long long value, Shared &shared) {
    for (int step = 16; step > 0; step /= 2) {
        const unsigned long long other = __shfl_xor_sync(~0U, value, step);
        value = other > value ? other : value;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared.keys[threadIdx.x / 32] = value;
    }
    __syncthreads();
    unsigned long long best = 0;
    for (int w = 0; w < warps; ++w) {
        best = shared.keys[w] > best ? shared.keys[w] : best;
    }
    return best;
}

__device__ float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(~0U, value, step);
    }
    return value;
}

struct Step {
    const StepArguments &a;
    Shared &shared;
    float *logits, *scores, *choice; ///< [E] each
    long long token;

    __device__ int experts() const { return a.spec.rule.experts; }

    template <class Body> __device__ void each(Body body) const {
        __syncthreads();
        for (int e = static_cast<int>(threadIdx.x); e < experts(); e += step_threads) {
            body(e);
        }
        __syncthreads();
    }

    /// points = projection (x - mean), one warp a row.
    __device__ void project() const {
        const int hidden = a.spec.hidden;
        const int lane = static_cast<int>(threadIdx.x % 32);
        for (int r = static_cast<int>(threadIdx.x / 32); r < a.spec.rows(); r += warps) {
            float sum = 0.0F;
            for (int d = lane; d < hidden; d += 32) {
                const float x = read(a.hidden, a.scalar, token * hidden + d) - a.arrays.mean[d];
                sum += x * a.arrays.projection[static_cast<long long>(r) * hidden + d];
            }
            sum = warp_sum(sum);
            if (lane == 0) {
                shared.points[r] = sum;
            }
        }
    }

    __device__ void geometric_scores() const {
        project();
        const int rows = a.spec.rows();
        each([&](int e) {
            float sum = 0.0F;
            for (int r = 0; r < rows; ++r) {
                sum += shared.points[r] * a.arrays.directions[static_cast<long long>(e) * rows + r];
            }
            logits[e] = sum + a.arrays.beta[e];
        });
    }

    /// Exact logits of experts whose `choice` is marked (all of them without geometry), one warp a
    /// row.
    __device__ void exact_logits(bool all) const {
        const int hidden = a.spec.hidden;
        const int lane = static_cast<int>(threadIdx.x % 32);
        __syncthreads();
        for (int e = static_cast<int>(threadIdx.x / 32); e < experts(); e += warps) {
            if (!all && choice[e] == 0.0F) {
                continue;
            }
            float sum = 0.0F;
            for (int d = lane; d < hidden; d += 32) {
                sum += read(a.hidden, a.scalar, token * hidden + d) *
                       read(a.arrays.gate_weight, a.scalar, static_cast<long long>(e) * hidden + d);
            }
            sum = warp_sum(sum);
            if (lane == 0) {
                logits[e] =
                    sum + (a.spec.gate_bias != 0 ? read(a.arrays.gate_bias, a.scalar, e) : 0.0F);
            }
        }
        __syncthreads();
    }

    __device__ float bent(float logit) const {
        const GateRule &rule = a.spec.rule;
        const float scaled = logit * rule.logit_scale;
        return rule.softcap == 0.0F ? scaled : tanhf(scaled / rule.softcap) * rule.softcap;
    }

    __device__ float largest(const float *values) const {
        unsigned long long best = 0;
        for (int e = static_cast<int>(threadIdx.x); e < experts(); e += step_threads) {
            const unsigned long long key = static_cast<unsigned long long>(ordered(values[e]))
                                               << 32U |
                                           static_cast<unsigned>(e);
            best = key > best ? key : best;
        }
        return values[static_cast<unsigned>(block_max(best, shared))];
    }

    __device__ void softmax(float *values) const {
        const float best = largest(values);
        float sum = 0.0F;
        each([&](int e) {
            values[e] = expf(values[e] - best);
            sum += values[e];
        });
        const float total = block_sum(sum, shared);
        each([&](int e) { values[e] /= total; });
    }

    /// `out` = the family's scores of logits + spread (where given), plus the choice bias (where
    /// wanted).
    __device__ void score(float *out, const float *spread, bool biased) const {
        const GateScore kind = a.spec.rule.score;
        each([&](int e) {
            const float x = bent(logits[e] + (spread != nullptr ? spread[e] : 0.0F));
            if (kind == GateScore::sigmoid) {
                out[e] = 1.0F / (1.0F + expf(-x));
            } else if (kind == GateScore::sqrtsoftplus) {
                out[e] = sqrtf(fmaxf(x, 0.0F) + log1pf(expf(-fabsf(x))));
            } else {
                out[e] = x;
            }
        });
        if (kind == GateScore::softmax) {
            softmax(out);
        }
        if (biased && a.spec.choice_bias != 0) {
            each([&](int e) { out[e] += a.arrays.choice_bias[e]; });
        }
    }

    /// choice[e] = 1 for the C best of scores, ties by smaller id, else 0.
    __device__ void mark_candidates() const {
        score(scores, a.arrays.spread, true);
        unsigned low = 0;
        for (unsigned bit = 0x80000000U; bit != 0; bit >>= 1U) {
            int reached = 0;
            for (int e = static_cast<int>(threadIdx.x); e < experts(); e += step_threads) {
                reached += ordered(scores[e]) >= (low | bit) ? 1 : 0;
            }
            low = block_count(reached, shared) >= a.spec.candidates ? low | bit : low;
        }
        int above = 0;
        each([&](int e) {
            choice[e] = ordered(scores[e]) > low ? 1.0F : 0.0F;
            above += choice[e] != 0.0F ? 1 : 0;
        });
        int left = a.spec.candidates - block_count(above, shared);
        if (threadIdx.x == 0) {
            for (int e = 0; e < experts() && left > 0; ++e) {
                if (ordered(scores[e]) == low) {
                    choice[e] = 1.0F;
                    --left;
                }
            }
        }
        __syncthreads();
    }

    /// choice[e] = 1 for the candidates that someone else has found, else 0.
    __device__ void mark_given() const {
        each([&](int e) { choice[e] = 0.0F; });
        const int count = a.spec.candidates;
        for (int i = static_cast<int>(threadIdx.x); i < count; i += step_threads) {
            choice[a.candidates[token * count + i]] = 1.0F;
        }
        __syncthreads();
    }

    /// Whether the logits of experts that are no candidates are read after the choice.
    __device__ bool reads_all_logits() const {
        return a.spec.rule.score == GateScore::softmax ||
               a.spec.rule.weight == GateWeight::sparsemixer;
    }

    __device__ void prefilter() const {
        if (a.candidates == nullptr || reads_all_logits()) {
            geometric_scores();
        } else {
            each([&](int e) { logits[e] = 0.0F; });
        }
        if (a.candidates == nullptr) {
            mark_candidates();
        } else {
            mark_given();
        }
        each([&](int e) { logits[e] += a.arrays.spread[e] * a.arrays.spread[e] / 2.0F; });
        exact_logits(false);
    }

    /// Only thread 0 works: there are few groups.
    __device__ void keep_groups() const {
        const GateRule &rule = a.spec.rule;
        const int size = experts() / rule.groups;
        if (threadIdx.x == 0) {
            shared.groups = 0;
            for (int kept = 0; kept < rule.groups_kept; ++kept) {
                int best_group = 0;
                unsigned long long best = 0;
                for (int g = 0; g < rule.groups; ++g) {
                    if ((shared.groups >> g & 1ULL) != 0) {
                        continue;
                    }
                    float first = -infinity;
                    float second = -infinity;
                    for (int i = 0; i < size; ++i) {
                        const float value = choice[g * size + i];
                        second = value > first ? first : fmaxf(second, value);
                        first = fmaxf(first, value);
                    }
                    const float total = rule.group_top2 != 0 ? first + second : first;
                    const unsigned long long key =
                        static_cast<unsigned long long>(ordered(total)) + 1ULL;
                    best_group = key > best ? g : best_group;
                    best = key > best ? key : best;
                }
                shared.groups |= 1ULL << best_group;
            }
        }
        const float fill = rule.fill_zero != 0 ? 0.0F : -infinity;
        each([&](int e) {
            choice[e] = (shared.groups >> (e / size) & 1ULL) != 0 ? choice[e] : fill;
        });
    }

    /// The K best of `choice`, by K passes.
    __device__ void pick() const {
        const int top_k = a.spec.rule.top_k;
        for (int k = 0; k < top_k; ++k) {
            unsigned long long best = 0;
            for (int e = static_cast<int>(threadIdx.x); e < experts(); e += step_threads) {
                const unsigned long long key = static_cast<unsigned long long>(ordered(choice[e]))
                                                   << 32U |
                                               (0xFFFFFFFEU - static_cast<unsigned>(e));
                bool taken = false;
                for (int j = 0; j < k; ++j) {
                    taken = taken || a.ids[token * top_k + j] == e;
                }
                best = !taken && key > best ? key : best;
            }
            const unsigned long long winner = block_max(best, shared);
            if (threadIdx.x == 0) {
                a.ids[token * top_k + k] =
                    static_cast<int>(0xFFFFFFFEU - static_cast<unsigned>(winner));
            }
            __syncthreads();
        }
    }

    /// Each pick's share of a softmax over the logits near it, earlier picks left out.
    __device__ void sparsemixer() const {
        const GateRule &rule = a.spec.rule;
        each([&](int e) { scores[e] = logits[e]; });
        for (int k = 0; k < rule.top_k; ++k) {
            const int mine = a.ids[token * rule.top_k + k];
            const float best = largest(scores);
            const float offset = fmaxf(best, logits[mine]);
            float sum = 0.0F;
            for (int e = static_cast<int>(threadIdx.x); e < experts(); e += step_threads) {
                const float reach = fmaxf(fabsf(logits[e]), best);
                const bool far = e != mine && (best - logits[e]) / reach > rule.threshold;
                sum += far ? 0.0F : expf(scores[e] - offset);
            }
            const float total = block_sum(sum, shared);
            if (threadIdx.x == 0) {
                const float share = expf(scores[mine] - offset) / total;
                write(a.weights, a.weight_scalar, token * rule.top_k + k, share * rule.scale);
                scores[mine] = -infinity;
            }
            __syncthreads();
        }
    }

    __device__ float chosen_weight(int k) const {
        const GateRule &rule = a.spec.rule;
        const int e = a.ids[token * rule.top_k + k];
        const float value = rule.weight == GateWeight::score ? scores[e] : bent(logits[e]);
        return rule.weight == GateWeight::sigmoid ? 1.0F / (1.0F + expf(-value)) : value;
    }

    /// One thread: K is small.
    __device__ void weigh() const {
        const GateRule &rule = a.spec.rule;
        if (threadIdx.x != 0) {
            return;
        }
        const bool shares = rule.weight == GateWeight::softmax;
        float best = -infinity;
        float total = 0.0F;
        for (int k = 0; k < rule.top_k; ++k) {
            best = fmaxf(best, chosen_weight(k));
        }
        for (int k = 0; k < rule.top_k; ++k) {
            total += shares ? expf(chosen_weight(k) - best) : chosen_weight(k);
        }
        const float sum = shares ? 1.0F : total;
        const float divisor =
            rule.normalise != 0 ? fmaxf(sum, rule.normalise_min) + rule.normalise_eps : 1.0F;
        for (int k = 0; k < rule.top_k; ++k) {
            const float plain = chosen_weight(k);
            const float value = shares ? expf(plain - best) / total : plain;
            write(a.weights, a.weight_scalar, token * rule.top_k + k, value / divisor * rule.scale);
        }
    }

    __device__ void run() const {
        const bool masked = a.spec.mode == RouteMode::prefilter;
        if (masked) {
            prefilter();
        } else if (a.spec.mode == RouteMode::geometric) {
            geometric_scores();
        } else {
            exact_logits(true);
        }
        score(scores, nullptr, false);
        each([&](int e) {
            const float bias = a.spec.choice_bias != 0 ? a.arrays.choice_bias[e] : 0.0F;
            choice[e] = masked && choice[e] == 0.0F ? -infinity : scores[e] + bias;
        });
        if (a.spec.rule.groups > 1) {
            keep_groups();
        }
        pick();
        if (a.spec.rule.weight == GateWeight::sparsemixer) {
            sparsemixer();
        } else {
            weigh();
        }
        __syncthreads();
    }
};

} // namespace

extern "C" __global__ void __launch_bounds__(256)
    spectral_route_step(const StepArguments arguments) {
    __shared__ Shared shared;
    const long long experts = arguments.spec.rule.experts;
    float *mine = arguments.workspace + 3 * experts * blockIdx.x;
    for (int token = static_cast<int>(blockIdx.x); token < arguments.tokens;
         token += static_cast<int>(gridDim.x)) {
        const Step step{arguments, shared, mine, mine + experts, mine + 2 * experts, token};
        step.run();
    }
}
