// Candidates of one token: traverse a shell of spheres, prove that nothing outside it matters, else
// the next.
//
// With c the centres of all levels (a colour u counts as the centre u / 2, its code f as a point),
//
//     score = 2 c.p + beta = |p|^2 + (|c|^2 + beta) - |p_1 - c_1|^2 - |p_2 - c_2|^2 - ...
//          <= |p|^2 + weight - |p_1 - c_1|^2,        weight = |c|^2 + beta,
//
// so an expert whose sphere of level 1, radius^2 = weight + K, does not contain p_1 scores less
// than |p|^2 - K. A traversal calls the intersection program for every sphere around the point;
// that scores the expert on all levels and the colour and keeps the best C. Once the C-th of them
// beats |p|^2 - K (as a choice score, with a slack for float32) the list is the scan's, ties
// included; otherwise the next shell whose bound it beats is traversed; what the last does not
// prove is left to a scan by whole warps (kernels/scan.cu).
//
// Cost a token: one scored expert for every box of level 1 around the point, in one or a few
// shells. That is little when centres are close to points of their own (one level; nested clusters)
// and most of E when the other levels are independent of the first, whose distances the bound
// drops.
#pragma once

#include "kernels/keys.cuh"
#include "params.h"

namespace spectral::optix {

/// The state of one token, in the ray generation program's own memory.
struct Search {
    cuda::Key keys[max_list]; ///< descending; zero is nothing
    float point[max_rank];
    std::int32_t shell;
    std::int32_t scored;
};

/// Choice score of an expert for a point [R]: the operations and their order are those of the CUDA
/// kernels.
__device__ inline float choice_of(const SearchParams &a, const float *point, int expert) {
    const Quad *row = a.rows + static_cast<long long>(expert) * a.quads;
    const Quad head = row[0];
    float logit = head.v[0];
    logit = fmaf(head.v[2], point[0], logit);
    logit = fmaf(head.v[3], point[1], logit);
    for (int q = 1; q < a.quads; ++q) {
        const Quad part = row[q];
        const int first = 4 * q - 2;
        for (int i = 0; i < 4; ++i) {
            if (first + i < a.rank) {
                logit = fmaf(part.v[i], point[first + i], logit);
            }
        }
    }
    const float chosen = cuda::family_score(a.score, logit);
    return a.biased != 0 ? chosen + head.v[1] : chosen;
}

/// Scores an expert and keeps it if it is among the best. Offering one again changes nothing: a
/// traversal may call for a primitive more than once, and shells overlap.
__device__ inline void offer(const SearchParams &a, Search &s, int expert) {
    const cuda::Key key = cuda::key_of(cuda::ordered(choice_of(a, s.point, expert)), expert);
    ++s.scored;
    if (key <= s.keys[a.count - 1]) {
        return;
    }
    int place = a.count - 1;
    while (place > 0 && s.keys[place - 1] < key) {
        --place;
    }
    if (place > 0 && s.keys[place - 1] == key) {
        return; // held: an id has one key
    }
    for (int i = a.count - 1; i > place; --i) {
        s.keys[i] = s.keys[i - 1];
    }
    s.keys[place] = key;
}

/// What bounds are made of, for one token.
struct Bounds {
    float square; ///< |p|^2 plus the slack of its rounding and the scores'
    bool sound;   ///< float32 cannot overflow, and the point is where boxes are

    static __device__ Bounds of(const SearchParams &a, const Search &s) {
        float reach = a.reach[a.rank], square = 0.0F;
        bool near = true;
        for (int r = 0; r < a.rank; ++r) {
            const float x = s.point[r], m = a.reach[r];
            reach += 2.0F * fabsf(x) * m + 8.0F * (x * x + m * m);
            square = fmaf(x, x, square);
            near = near && (r >= 3 || fabsf(x) * a.scale < 4.0F);
        }
        const float slack =
            4.0F * (static_cast<float>(a.rank) + 8.0F) * 0x1p-24F * reach + 0x1p-120F;
        return {square + slack, near && reach < 1e37F}; // false for NaN, too
    }

    /// No choice score outside the shell reaches this.
    [[nodiscard]] __device__ float outside(const SearchParams &a, int shell) const {
        const float constant = a.shells[shell].constant;
        const float logit = square - constant + 8.0F * 0x1p-24F * (square + fabsf(constant));
        if (a.score == cuda::score_softmax || a.score == cuda::score_logits) {
            return a.biased != 0 ? logit + a.bias_max : logit;
        }
        const float chosen = cuda::family_score(a.score, logit) * (1.0F + 2.0e-6F);
        return a.biased != 0 ? chosen + a.bias_max : chosen;
    }

    /// The first shell from `shell` on whose outside the list beats; `shell_count` if none, `shell`
    /// itself while the list is not full.
    [[nodiscard]] __device__ int covering(const SearchParams &a, const Search &s, int shell) const {
        const unsigned last = cuda::order_of(s.keys[a.count - 1]);
        if (last <= cuda::nan_order) {
            return shell;
        }
        const float least = cuda::unordered(last);
        while (shell < a.shell_count && !(outside(a, shell) < least)) {
            ++shell;
        }
        return shell;
    }
};

/// Fills the list; `trace(shell)` must offer every expert of that shell whose box holds the point.
/// Returns the structures traversed, or -1 when only a scan can tell.
template <class Trace> __device__ int search(const SearchParams &a, Search &s, Trace trace) {
    for (int i = 0; i < a.count; ++i) {
        s.keys[i] = 0;
    }
    s.scored = 0;
    const Bounds bounds = Bounds::of(a, s);
    int traversed = 0;
    for (int shell = bounds.sound ? 0 : a.shell_count; shell < a.shell_count;) {
        s.shell = shell;
        trace(shell);
        ++traversed;
        const bool full = cuda::order_of(s.keys[a.count - 1]) > cuda::nan_order;
        const int wanted = bounds.covering(a, s, shell);
        if (full && wanted == shell) {
            return traversed;
        }
        shell = full ? wanted : shell + 1;
    }
    return -1;
}

} // namespace spectral::optix
