// Splits a range of experts in two: binned surface heuristic for large ranges, a full sweep for
// small ones.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace spectral {

/// Experts and their split keys, row by row.
struct KeyedExperts {
    std::span<std::int32_t> experts;
    float *rows; ///< [experts, width]
};

/// One per thread of work; holds scratch memory only.
class Splitter {
  public:
    Splitter(std::size_t width, std::size_t leaf_size);

    /// Reorders experts and rows alike, and returns the size of the first part, between 1 and size
    /// - 1.
    std::size_t split(KeyedExperts range, std::size_t depth);

  private:
    struct Axis {
        std::size_t column;
        float lower, scale;
    };
    struct Choice {
        float cost;
        std::size_t axis, position;
    };

    void bound(KeyedExperts range);
    void choose_axes();
    void fill_bins(KeyedExperts range);
    [[nodiscard]] Choice best_bin() const;
    std::size_t split_binned(KeyedExperts range);
    std::size_t split_swept(KeyedExperts range);
    std::size_t split_middle(KeyedExperts range);
    void sort_by(KeyedExperts range, std::size_t column);
    void sweep(KeyedExperts range, Choice &best, std::size_t axis);
    void reorder(KeyedExperts range);
    [[nodiscard]] static std::size_t bin_of(const Axis &axis, const float *row);

    std::size_t width_, leaf_size_;
    std::vector<float> box_;           ///< lower [width], upper [width]
    std::vector<Axis> axes_;           ///< the widest columns
    std::vector<float> bins_;          ///< [axes, bins, 2 width]
    std::vector<std::size_t> counts_;  ///< [axes, bins]
    std::vector<std::uint64_t> order_; ///< ordered key in the high half, position in the low half
    std::vector<float> costs_;
    std::vector<float> row_scratch_;
    std::vector<std::int32_t> expert_scratch_;
};

} // namespace spectral
