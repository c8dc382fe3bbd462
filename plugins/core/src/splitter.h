// Splits a range of experts in two: binned surface heuristic for large ranges, a full sweep for
// small ones.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "split_keys.h"

namespace spectral {

/// One per thread of work; holds scratch memory only.
class Splitter {
  public:
    Splitter(const SplitKeys &keys, std::size_t leaf_size);

    /// Reorders `experts` and returns the size of the first part, between 1 and size - 1.
    std::size_t split(std::span<std::int32_t> experts, std::size_t depth);

  private:
    struct Axis {
        std::size_t column;
        float lower, scale;
    };
    struct Choice {
        float cost;
        std::size_t column, position;
    };
    struct Keyed {
        float key;
        std::int32_t expert;
    };

    void bound(std::span<const std::int32_t> experts);
    void choose_axes();
    void fill_bins(std::span<const std::int32_t> experts);
    Choice best_bin() const;
    std::size_t split_binned(std::span<std::int32_t> experts);
    std::size_t split_swept(std::span<std::int32_t> experts);
    std::size_t split_middle(std::span<std::int32_t> experts);
    void sort_by(std::span<std::int32_t> experts, std::size_t column);
    void sweep(std::span<const std::int32_t> experts, std::size_t column, Choice &best);
    std::size_t bin_of(const Axis &axis, std::int32_t expert) const;

    const SplitKeys &keys_;
    std::size_t leaf_size_;
    std::vector<float> box_;          ///< lower [width], upper [width]
    std::vector<Axis> axes_;          ///< the widest columns
    std::vector<float> bins_;         ///< [axes, bins, 2 width]
    std::vector<std::size_t> counts_; ///< [axes, bins]
    std::vector<Keyed> sorted_;
    std::vector<float> costs_;
};

} // namespace spectral
