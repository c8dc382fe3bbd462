// The best K of a row in registers: the K-th best of the lanes' own best is a threshold that few
// entries reach, and these are ranked by counting.
#pragma once

#include "exchange.cuh"
#include "list.cuh"

namespace spectral::cuda {

inline constexpr int most_met = 32; ///< experts that may reach the threshold, one a lane

/// Every expert in turn, for rows with too many equals: lane i < count gets the i-th.
template <int V> __device__ int choose_slowly(unsigned (&order)[V], int count) {
    int chosen = 0;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        unsigned best = 0U;
        int id = 0x7FFFFFFF;
#pragma unroll
        for (int j = 0; j < V; ++j) { // a lane's ids ascend
            id = order[j] > best ? place_of<V>(j) : id;
            best = max(best, order[j]);
        }
        const unsigned top = __reduce_max_sync(all_lanes, best);
        const int winner = __reduce_min_sync(all_lanes, best == top ? id : 0x7FFFFFFF);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            order[j] = place_of<V>(j) == winner ? 0U : order[j];
        }
        chosen = lane_id() == i ? winner : chosen;
    }
    return chosen;
}

/// The ids of the `count` largest orders (zero: absent) in lanes 0..count-1, equals by smaller id;
/// id j of a lane is place_of<V>(j). `slots` are 32 words of the warp's own.
template <int V> __device__ int choose(unsigned (&order)[V], int count, Key *slots) {
    const int lane = lane_id();
    unsigned own = 0U;
#pragma unroll
    for (int j = 0; j < V; ++j) {
        own = max(own, order[j]);
    }
    unsigned least = 1U;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        least = __reduce_max_sync(all_lanes, own);
        own = own == least ? 0U : own; // equals go together: the threshold is only lower for it
    }
    least = max(least, 1U);
    int found = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) {
        found += order[j] >= least ? 1 : 0;
    }
    // The sum over the lanes before, bit by bit: three votes instead of one for every j.
    const unsigned before = (1U << lane) - 1U;
    int slot = 0, met = 0;
#pragma unroll
    for (int bit = 1; bit <= (V < 4 ? V : 4); bit <<= 1) {
        const unsigned in = __ballot_sync(all_lanes, (found & bit) != 0);
        slot += bit * __popc(in & before);
        met += bit * __popc(in);
    }
    if (met > most_met || (V >= 8 && __any_sync(all_lanes, found >= 8))) {
        return choose_slowly(order, count);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
        if (order[j] >= least) {
            slots[slot] = key_of(order[j], place_of<V>(j));
            ++slot;
        }
    }
    __syncwarp();
    const Key mine = lane < met ? slots[lane] : 0;
    int rank = 0;
#pragma unroll 4
    for (int i = 0; i < met; ++i) {
        rank += slots[i] > mine ? 1 : 0;
    }
    __syncwarp();
    if (lane < met && rank < count) {
        slots[rank] = mine;
    }
    __syncwarp();
    const int id = id_of(slots[lane]);
    return lane < count ? id : 0;
}

} // namespace spectral::cuda
