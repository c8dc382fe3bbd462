// Ordered keys of scores and a sorted list of the best 32, one entry a lane.
#pragma once

#include <cstdint>

#include "params.h"

namespace spectral::cuda {

using Key = unsigned long long; ///< ordered score in the high word, complement of the id in the low

inline constexpr unsigned nan_order = 1U; ///< NaN ranks after everything, -inf included
inline constexpr unsigned all_lanes = 0xFFFFFFFFU;

/// Unsigned numbers in the order of the floats; zero is left for "nothing".
__device__ inline unsigned ordered(float value) {
    if (value != value) {
        return nan_order;
    }
    const unsigned bits = __float_as_uint(value + 0.0F); // -0 becomes +0: they tie
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ inline float unordered(unsigned order) {
    if (order <= nan_order) {
        return __uint_as_float(0x7FC00000U);
    }
    return __uint_as_float((order >> 31) != 0 ? order & 0x7FFFFFFFU : ~order);
}

__device__ inline Key key_of(unsigned order, int id) {
    return static_cast<Key>(order) << 32 | (0xFFFFFFFFU - static_cast<unsigned>(id));
}

__device__ inline int id_of(Key key) {
    return static_cast<int>(0xFFFFFFFFU - static_cast<unsigned>(key));
}

__device__ inline unsigned order_of(Key key) {
    return static_cast<unsigned>(key >> 32);
}

__device__ inline int lane_id() {
    return static_cast<int>(threadIdx.x) & 31;
}

/// The largest order of the warp, its smallest id first; zero when nothing is left.
struct Popped {
    unsigned order;
    int id;
};

/// `V` entries a lane with ids of their own.
template <int V> struct Heap {
    unsigned order[V];
    int id[V];

    __device__ Popped pop() {
        unsigned best = 0U;
        int mine = 0x7FFFFFFF;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const bool more = order[j] > best || (order[j] == best && id[j] < mine);
            best = more ? order[j] : best;
            mine = more ? id[j] : mine;
        }
        const unsigned top = __reduce_max_sync(all_lanes, best);
        const int winner = __reduce_min_sync(all_lanes, best == top ? mine : 0x7FFFFFFF);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            order[j] = order[j] == top && id[j] == winner ? 0U : order[j];
        }
        return {top, winner};
    }
};

/// The best `count` keys met so far, descending over the lanes.
struct List {
    Key mine = 0;
    Key last = 0; ///< key of lane count - 1, in every lane: what a newcomer must beat
    int count;

    __device__ explicit List(int count_) : count(count_) {}

    __device__ void refresh() { last = __shfl_sync(all_lanes, mine, count - 1); }

    /// A score below this cannot enter; NaN passes the test `!(score < floor)` and is told apart
    /// later.
    [[nodiscard]] __device__ float floor() const {
        return order_of(last) <= nan_order ? -INFINITY : unordered(order_of(last));
    }

    /// Offers V scores a lane; negative ids are absent.
    template <int V> __device__ void offer(const float (&score)[V], const int (&id)[V]) {
        const float least = floor();
        bool any = false;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            any = any || (id[j] >= 0 && !(score[j] < least));
        }
        if (!__any_sync(all_lanes, any)) {
            return;
        }
        int entering = 0;
        Heap<V + 1> heap;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const bool enters = id[j] >= 0 && !(score[j] < least);
            heap.order[j] = enters ? ordered(score[j]) : 0U;
            heap.id[j] = enters ? id[j] : 0x7FFFFFFF;
            entering += __popc(__ballot_sync(all_lanes, enters));
        }
        if (entering <= 3) {
#pragma unroll
            for (int j = 0; j < V; ++j) {
                insert_all(heap.order[j] == 0U ? 0 : key_of(heap.order[j], heap.id[j]));
            }
            refresh();
            return;
        }
        heap.order[V] = order_of(mine);
        heap.id[V] = mine == 0 ? 0x7FFFFFFF : id_of(mine);
        rebuild(heap);
    }

    /// The list anew from itself and the newcomers.
    template <int V> __device__ void rebuild(Heap<V> &heap) {
        mine = 0;
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            const Popped best = heap.pop();
            if (best.order == 0U) {
                break;
            }
            mine = lane_id() == i ? key_of(best.order, best.id) : mine;
        }
        refresh();
    }

    __device__ void insert_all(Key key) {
#pragma unroll 1
        for (unsigned better = __ballot_sync(all_lanes, key > last); better != 0;
             better &= better - 1) {
            insert(__shfl_sync(all_lanes, key, __ffs(static_cast<int>(better)) - 1));
        }
    }

    __device__ void insert(Key key) {
        const int place = __popc(__ballot_sync(all_lanes, mine > key));
        const Key above = __shfl_up_sync(all_lanes, mine, 1);
        const int lane = lane_id();
        mine = lane < place ? mine : (lane == place ? key : above);
    }
};

/// The family's score of one logit; a softmax is ranked by its logits.
__device__ __noinline__ float transform(int score, float x) {
    if (score == score_sigmoid) {
        const float e = expf(-fabsf(x));
        return x != x ? x : (x > 0.0F ? 1.0F : e) / (1.0F + e);
    }
    if (score == score_sqrtsoftplus) {
        return x != x ? x : sqrtf(fmaxf(x, 0.0F) + log1pf(expf(-fabsf(x))));
    }
    return x;
}

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(all_lanes, value, step);
    }
    return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(all_lanes, value, step));
    }
    return value;
}

} // namespace spectral::cuda
