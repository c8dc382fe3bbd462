// A binary BVH collapsed into nodes of sixteen children, as the search kernel reads it.
#pragma once

#include <cstdint>

#include "aligned.h"
#include "expert_blocks.h"
#include "kernels.h"
#include "spectral/bvh.h"
#include "spectral/geometry.h"

namespace spectral::cpu {

/// Takes the shape of the tree from the BVH and computes every bound from the geometry.
/// Throws UserError if the topology is not a tree over all experts.
class WideTree {
  public:
    WideTree(const Geometry &geometry, const Topology &topology);

    [[nodiscard]] TreeView view() const;
    [[nodiscard]] std::size_t nodes() const { return valid_.size(); }

  private:
    std::size_t levels_, colours_, budget_;
    ExpertBlocks leaves_;
    Aligned<float> values_;
    Aligned<std::int32_t> children_;
    Aligned<std::uint16_t> valid_;
    std::vector<float> reach_;
    float beta_reach_ = 0.0F;
};

} // namespace spectral::cpu
