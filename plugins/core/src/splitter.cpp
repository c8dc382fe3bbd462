// Top-down splitting after I. Wald, "On fast Construction of SAH-based Bounding Volume Hierarchies"
// (2007).
//
// The surface area is replaced by what a query pays here: a box is opened when its bound reaches
// the threshold, and the bound exceeds the score of the box's centre by sum_r |q_r| extent_r / 2.
// The chance of opening a box therefore grows with the sum of its weighted extents (its mean
// width), not with its area.
#include "splitter.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace spectral {
namespace {

constexpr std::size_t bin_count = 16;
constexpr std::size_t axis_limit = 3;
/// Below this many leaves a range is sorted and every leaf boundary is tried.
constexpr std::size_t sweep_leaves = 32;
/// From this depth on ranges are halved, so that no input makes a tree deeper than 24 + log2(E).
constexpr std::size_t depth_of_halving = 24;
constexpr float infinity = std::numeric_limits<float>::infinity();

void clear(float *box, std::size_t width) {
    std::fill_n(box, width, infinity);
    std::fill_n(box + width, width, -infinity);
}

/// Grows lower [width], upper [width] by the box (below, above); four columns at a time.
void include(float *box, const float *below, const float *above, std::size_t width) {
    for (std::size_t i = 0; i < width; i += 4) {
        for (std::size_t j = i; j < i + 4; ++j) {
            box[j] = std::min(box[j], below[j]);
        }
        for (std::size_t j = i; j < i + 4; ++j) {
            box[width + j] = std::max(box[width + j], above[j]);
        }
    }
}

float mean_width(const float *box, std::size_t width) {
    float sum = 0.0F;
    for (std::size_t i = 0; i < width; ++i) {
        sum += box[width + i] - box[i];
    }
    return sum;
}

/// Unsigned integers in the order of the floats; -0 counts as +0.
std::uint32_t ordered(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x + 0.0F);
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

} // namespace

Splitter::Splitter(std::size_t width, std::size_t leaf_size)
    : width_(width), leaf_size_(leaf_size), box_(2 * width) {}

std::size_t Splitter::split(KeyedExperts range, std::size_t depth) {
    bound(range);
    choose_axes();
    if (axes_.empty() || depth >= depth_of_halving) {
        return split_middle(range);
    }
    if (range.experts.size() <= sweep_leaves * leaf_size_) {
        return split_swept(range);
    }
    return split_binned(range);
}

void Splitter::bound(KeyedExperts range) {
    clear(box_.data(), width_);
    for (std::size_t i = 0; i < range.experts.size(); ++i) {
        const float *row = range.rows + i * width_;
        include(box_.data(), row, row, width_);
    }
}

void Splitter::choose_axes() {
    axes_.clear();
    for (std::size_t column = 0; column < width_; ++column) {
        const float extent = box_[width_ + column] - box_[column];
        if (extent > 0.0F) {
            axes_.push_back({column, box_[column], extent});
        }
    }
    const auto wider = [](const Axis &a, const Axis &b) {
        return a.scale != b.scale ? a.scale > b.scale : a.column < b.column;
    };
    std::sort(axes_.begin(), axes_.end(), wider);
    axes_.resize(std::min(axes_.size(), axis_limit));
    for (Axis &axis : axes_) {
        axis.scale = static_cast<float>(bin_count) / axis.scale;
    }
}

std::size_t Splitter::bin_of(const Axis &axis, const float *row) {
    const float position = (row[axis.column] - axis.lower) * axis.scale;
    // A denormal extent makes the scale infinite and the first position NaN: bin 0.
    const float last = static_cast<float>(bin_count - 1);
    return position > 0.0F ? static_cast<std::size_t>(std::min(position, last)) : 0;
}

void Splitter::fill_bins(KeyedExperts range) {
    const std::size_t size = 2 * width_;
    bins_.resize(axes_.size() * bin_count * size);
    counts_.assign(axes_.size() * bin_count, 0);
    for (std::size_t b = 0; b < counts_.size(); ++b) {
        clear(bins_.data() + b * size, width_);
    }
    for (std::size_t i = 0; i < range.experts.size(); ++i) {
        const float *row = range.rows + i * width_;
        for (std::size_t a = 0; a < axes_.size(); ++a) {
            const std::size_t bin = a * bin_count + bin_of(axes_[a], row);
            include(bins_.data() + bin * size, row, row, width_);
            ++counts_[bin];
        }
    }
}

/// The cheapest boundary between bins; `position` is the last bin of the left part.
Splitter::Choice Splitter::best_bin() const {
    const std::size_t size = 2 * width_;
    std::vector<float> box(size);
    std::vector<float> right(bin_count);
    Choice best{infinity, 0, 0};
    for (std::size_t a = 0; a < axes_.size(); ++a) {
        const float *bins = bins_.data() + a * bin_count * size;
        const std::size_t *counts = counts_.data() + a * bin_count;
        const auto cost = [&](std::size_t count) {
            return count == 0 ? 0.0F : mean_width(box.data(), width_) * static_cast<float>(count);
        };
        std::size_t count = 0;
        clear(box.data(), width_);
        for (std::size_t b = bin_count; b-- > 1;) {
            include(box.data(), bins + b * size, bins + b * size + width_, width_);
            count += counts[b];
            right[b] = cost(count);
        }
        count = 0;
        clear(box.data(), width_);
        for (std::size_t b = 0; b + 1 < bin_count; ++b) {
            include(box.data(), bins + b * size, bins + b * size + width_, width_);
            count += counts[b];
            const float total = cost(count) + right[b + 1];
            if (count > 0 && total < best.cost) {
                best = {total, a, b};
            }
        }
    }
    return best;
}

/// A stable partition of experts and rows: the left part moves down in place, the right through
/// scratch.
std::size_t Splitter::split_binned(KeyedExperts range) {
    fill_bins(range);
    const Choice best = best_bin();
    const Axis &axis = axes_[best.axis];
    row_scratch_.clear();
    expert_scratch_.clear();
    std::size_t left = 0;
    for (std::size_t i = 0; i < range.experts.size(); ++i) {
        const float *row = range.rows + i * width_;
        if (bin_of(axis, row) <= best.position) {
            std::copy_n(row, width_, range.rows + left * width_);
            range.experts[left++] = range.experts[i];
        } else {
            row_scratch_.insert(row_scratch_.end(), row, row + width_);
            expert_scratch_.push_back(range.experts[i]);
        }
    }
    std::ranges::copy(expert_scratch_, range.experts.begin() + static_cast<std::ptrdiff_t>(left));
    std::ranges::copy(row_scratch_, range.rows + left * width_);
    return left == 0 || left == range.experts.size() ? split_middle(range) : left;
}

/// Positions in the order of a column, into order_; equal keys keep their order.
void Splitter::sort_by(KeyedExperts range, std::size_t column) {
    order_.resize(range.experts.size());
    for (std::size_t i = 0; i < order_.size(); ++i) {
        order_[i] = static_cast<std::uint64_t>(ordered(range.rows[i * width_ + column])) << 32 | i;
    }
    std::sort(order_.begin(), order_.end());
}

/// Brings experts and rows into the order of order_.
void Splitter::reorder(KeyedExperts range) {
    row_scratch_.resize(order_.size() * width_);
    expert_scratch_.resize(order_.size());
    for (std::size_t i = 0; i < order_.size(); ++i) {
        const std::size_t from = static_cast<std::uint32_t>(order_[i]);
        std::copy_n(range.rows + from * width_, width_, row_scratch_.data() + i * width_);
        expert_scratch_[i] = range.experts[from];
    }
    std::ranges::copy(expert_scratch_, range.experts.begin());
    std::ranges::copy(row_scratch_, range.rows);
}

/// Tries every boundary that fills the leaves on its left.
void Splitter::sweep(KeyedExperts range, Choice &best, std::size_t axis) {
    const std::size_t size = range.experts.size();
    const std::size_t boundaries = (size - 1) / leaf_size_;
    const auto take = [&](std::size_t i) {
        const float *row = range.rows + static_cast<std::uint32_t>(order_[i]) * width_;
        include(box_.data(), row, row, width_);
    };
    costs_.assign(boundaries + 1, 0.0F);
    clear(box_.data(), width_);
    for (std::size_t i = size; i-- > leaf_size_;) {
        take(i);
        if (i % leaf_size_ == 0) {
            costs_[i / leaf_size_] = mean_width(box_.data(), width_) * static_cast<float>(size - i);
        }
    }
    clear(box_.data(), width_);
    for (std::size_t i = 0; i < boundaries * leaf_size_; ++i) {
        take(i);
        if ((i + 1) % leaf_size_ == 0) {
            const float left = mean_width(box_.data(), width_) * static_cast<float>(i + 1);
            const float cost = left + costs_[(i + 1) / leaf_size_];
            if (cost < best.cost) {
                best = {cost, axis, i + 1};
            }
        }
    }
}

std::size_t Splitter::split_swept(KeyedExperts range) {
    Choice best{infinity, 0, 0};
    for (std::size_t a = 0; a < axes_.size(); ++a) {
        sort_by(range, axes_[a].column);
        sweep(range, best, a);
    }
    if (best.position == 0) {
        return split_middle(range);
    }
    if (best.axis + 1 != axes_.size()) {
        sort_by(range, axes_[best.axis].column);
    }
    reorder(range);
    return best.position;
}

/// Halves at a multiple of the leaf size, by the widest column; equal keys keep their order.
std::size_t Splitter::split_middle(KeyedExperts range) {
    const std::size_t leaves = (range.experts.size() + leaf_size_ - 1) / leaf_size_;
    if (!axes_.empty()) {
        sort_by(range, axes_.front().column);
        reorder(range);
    }
    return (leaves + 1) / 2 * leaf_size_;
}

} // namespace spectral
