// Experts packed sixteen to a block, as the kernels read them.
#pragma once

#include <cstdint>
#include <span>

#include "aligned.h"
#include "kernels.h"
#include "spectral/geometry.h"

namespace spectral::cpu {

class ExpertBlocks {
  public:
    explicit ExpertBlocks(std::size_t rank) : rank_(rank) {}

    /// Appends one block of 1 to 16 experts and returns its index. Empty lanes score -inf.
    std::size_t append(const Geometry &geometry, std::span<const std::int32_t> experts);

    [[nodiscard]] BlocksView view() const {
        return {valid_.size(), rank_, values_.data(), ids_.data(), valid_.data()};
    }

  private:
    std::size_t rank_;
    Aligned<float> values_;
    Aligned<std::int32_t> ids_;
    Aligned<std::uint16_t> valid_;
};

/// All experts in the order of their ids.
ExpertBlocks pack_in_order(const Geometry &geometry);

} // namespace spectral::cpu
