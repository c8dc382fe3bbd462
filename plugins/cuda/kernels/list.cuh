// Ordered keys of scores and a sorted list of the best 32, one entry a lane.
#pragma once

#include <cstdint>

#include "keys.cuh"

namespace spectral::cuda {

inline constexpr unsigned all_lanes = 0xFFFFFFFFU;

__device__ inline int lane_id() {
    return static_cast<int>(threadIdx.x) & 31;
}

/// A softmax is ranked by its logits; out of line, for the kernels' sake.
__device__ __noinline__ float transform(int score, float x) {
    return family_score(score, x);
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

    /// The best of up to 32 keys, unsorted in shared memory of the warp's own.
    __device__ void rank(Key *key, int met) {
        const int lane = lane_id();
        const Key own = lane < met ? key[lane] : 0;
        int place = 0;
#pragma unroll 4
        for (int i = 0; i < met; ++i) {
            place += key[i] > own ? 1 : 0;
        }
        __syncwarp();
        if (lane < met) {
            key[place] = own;
        }
        __syncwarp();
        mine = lane < min(count, met) ? key[lane] : 0;
    }

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
