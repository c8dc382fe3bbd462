// Packs experts into blocks of sixteen.
#include "expert_blocks.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace spectral::cpu {

std::size_t ExpertBlocks::append(const Geometry &geometry, std::span<const std::int32_t> experts) {
    const std::size_t block = valid_.size();
    constexpr float lowest = -std::numeric_limits<float>::infinity();
    values_.resize((block + 1) * (rank_ + 2) * lanes, 0.0F);
    ids_.resize((block + 1) * lanes, std::numeric_limits<std::int32_t>::max());
    valid_.push_back(static_cast<std::uint16_t>((1U << experts.size()) - 1U));
    float *values = values_.data() + block * (rank_ + 2) * lanes;
    float *bias = values + (rank_ + 1) * lanes;
    std::fill_n(values, lanes, lowest);
    std::fill_n(bias, lanes, lowest);
    for (std::size_t lane = 0; lane < experts.size(); ++lane) {
        const auto e = static_cast<std::size_t>(experts[lane]);
        ids_[block * lanes + lane] = experts[lane];
        values[lane] = geometry.beta[e];
        bias[lane] = geometry.choice_bias != nullptr ? geometry.choice_bias[e] : 0.0F;
        for (std::size_t r = 0; r < rank_; ++r) {
            values[(r + 1) * lanes + lane] = geometry.direction(e, r);
        }
    }
    return block;
}

ExpertBlocks pack_in_order(const Geometry &geometry) {
    ExpertBlocks blocks(geometry.rank());
    std::vector<std::int32_t> ids(geometry.experts);
    std::iota(ids.begin(), ids.end(), 0);
    for (std::size_t e = 0; e < ids.size(); e += lanes) {
        const std::size_t count = std::min(lanes, ids.size() - e);
        blocks.append(geometry, std::span(ids).subspan(e, count));
    }
    return blocks;
}

} // namespace spectral::cpu
