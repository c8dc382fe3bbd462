// Top-down splitting after I. Wald, "On fast Construction of SAH-based Bounding Volume Hierarchies"
// (2007).
//
// The surface area is replaced by what a query pays here: a box is opened when its bound reaches
// the threshold, and the bound exceeds the score of the box's centre by sum_r |q_r| extent_r / 2.
// The chance of opening a box therefore grows with the sum of its weighted extents (its mean
// width), not with its area.
#include "splitter.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace spectral {
namespace {

constexpr std::size_t bin_count = 16;
constexpr std::size_t axis_limit = 3;
/// Below this many leaves a range is sorted and every leaf boundary is tried.
constexpr std::size_t sweep_leaves = 64;
/// From this depth on ranges are halved, so that no input makes a tree deeper than 24 + log2(E).
constexpr std::size_t depth_of_halving = 24;
constexpr float infinity = std::numeric_limits<float>::infinity();

void clear(float *box, std::size_t width) {
    std::fill_n(box, width, infinity);
    std::fill_n(box + width, width, -infinity);
}

void include(float *box, const float *row, std::size_t width) {
    for (std::size_t i = 0; i < width; ++i) {
        box[i] = std::min(box[i], row[i]);
        box[width + i] = std::max(box[width + i], row[i]);
    }
}

void merge(float *box, const float *other, std::size_t width) {
    for (std::size_t i = 0; i < width; ++i) {
        box[i] = std::min(box[i], other[i]);
        box[width + i] = std::max(box[width + i], other[width + i]);
    }
}

int mode() {
    static const int m = std::getenv("MEASURE") ? std::atoi(std::getenv("MEASURE")) : 0;
    return m;
}

float measure(const float *box, std::size_t width) {
    float sum = 0.0F, sq = 0.0F;
    for (std::size_t i = 0; i < width; ++i) {
        const float x = box[width + i] - box[i];
        sum += x;
        sq += x * x;
    }
    if (mode() == 1)
        return sum * sum - sq;
    if (mode() == 2)
        return std::sqrt(sq);
    if (mode() == 3)
        return sum * sum;
    if (mode() == 4)
        return sq;
    return sum;
}

} // namespace

Splitter::Splitter(const SplitKeys &keys, std::size_t leaf_size)
    : keys_(keys), leaf_size_(leaf_size), box_(2 * keys.width) {}

std::size_t Splitter::split(std::span<std::int32_t> experts, std::size_t depth) {
    bound(experts);
    choose_axes();
    if (axes_.empty() || depth >= depth_of_halving) {
        return split_middle(experts);
    }
    if (experts.size() <= sweep_leaves * leaf_size_) {
        return split_swept(experts);
    }
    return split_binned(experts);
}

void Splitter::bound(std::span<const std::int32_t> experts) {
    clear(box_.data(), keys_.width);
    for (const std::int32_t e : experts) {
        include(box_.data(), keys_.row(e), keys_.width);
    }
}

void Splitter::choose_axes() {
    axes_.clear();
    for (std::size_t column = 0; column < keys_.width; ++column) {
        const float extent = box_[keys_.width + column] - box_[column];
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

std::size_t Splitter::bin_of(const Axis &axis, std::int32_t expert) const {
    const float position = (keys_.row(expert)[axis.column] - axis.lower) * axis.scale;
    // A denormal extent makes the scale infinite and the first position NaN: bin 0.
    return position > 0.0F
               ? static_cast<std::size_t>(std::min(position, static_cast<float>(bin_count - 1)))
               : 0;
}

void Splitter::fill_bins(std::span<const std::int32_t> experts) {
    const std::size_t size = 2 * keys_.width;
    bins_.resize(axes_.size() * bin_count * size);
    counts_.assign(axes_.size() * bin_count, 0);
    for (std::size_t b = 0; b < counts_.size(); ++b) {
        clear(bins_.data() + b * size, keys_.width);
    }
    for (const std::int32_t e : experts) {
        for (std::size_t a = 0; a < axes_.size(); ++a) {
            const std::size_t bin = a * bin_count + bin_of(axes_[a], e);
            include(bins_.data() + bin * size, keys_.row(e), keys_.width);
            ++counts_[bin];
        }
    }
}

/// The cheapest boundary between bins; `column` is an index into axes_, `position` the last bin of
/// the left.
Splitter::Choice Splitter::best_bin() const {
    const std::size_t size = 2 * keys_.width;
    std::vector<float> box(size);
    std::vector<float> right(bin_count);
    Choice best{infinity, 0, 0};
    for (std::size_t a = 0; a < axes_.size(); ++a) {
        const float *bins = bins_.data() + a * bin_count * size;
        const std::size_t *counts = counts_.data() + a * bin_count;
        std::size_t count = 0;
        clear(box.data(), keys_.width);
        for (std::size_t b = bin_count; b-- > 1;) {
            merge(box.data(), bins + b * size, keys_.width);
            count += counts[b];
            right[b] =
                count == 0 ? 0.0F : measure(box.data(), keys_.width) * static_cast<float>(count);
        }
        count = 0;
        clear(box.data(), keys_.width);
        for (std::size_t b = 0; b + 1 < bin_count; ++b) {
            merge(box.data(), bins + b * size, keys_.width);
            count += counts[b];
            if (count == 0) {
                continue;
            }
            const float cost =
                measure(box.data(), keys_.width) * static_cast<float>(count) + right[b + 1];
            if (cost < best.cost) {
                best = {cost, a, b};
            }
        }
    }
    return best;
}

std::size_t Splitter::split_binned(std::span<std::int32_t> experts) {
    fill_bins(experts);
    const Choice best = best_bin();
    const Axis &axis = axes_[best.column];
    const auto middle = std::stable_partition(experts.begin(), experts.end(), [&](std::int32_t e) {
        return bin_of(axis, e) <= best.position;
    });
    const auto left = static_cast<std::size_t>(middle - experts.begin());
    return left == 0 || left == experts.size() ? split_middle(experts) : left;
}

void Splitter::sort_by(std::span<std::int32_t> experts, std::size_t column) {
    sorted_.resize(experts.size());
    for (std::size_t i = 0; i < experts.size(); ++i) {
        sorted_[i] = {keys_.row(experts[i])[column], experts[i]};
    }
    std::sort(sorted_.begin(), sorted_.end(), [](const Keyed &a, const Keyed &b) {
        return a.key != b.key ? a.key < b.key : a.expert < b.expert;
    });
    for (std::size_t i = 0; i < experts.size(); ++i) {
        experts[i] = sorted_[i].expert;
    }
}

/// Tries every boundary that fills the leaves on its left.
void Splitter::sweep(std::span<const std::int32_t> experts, std::size_t column, Choice &best) {
    const std::size_t boundaries = (experts.size() - 1) / leaf_size_;
    std::vector<float> box(2 * keys_.width);
    costs_.assign(boundaries + 1, 0.0F);
    clear(box.data(), keys_.width);
    for (std::size_t i = experts.size(); i-- > leaf_size_;) {
        include(box.data(), keys_.row(experts[i]), keys_.width);
        if (i % leaf_size_ == 0) {
            costs_[i / leaf_size_] =
                measure(box.data(), keys_.width) * static_cast<float>(experts.size() - i);
        }
    }
    clear(box.data(), keys_.width);
    for (std::size_t i = 0; i < boundaries * leaf_size_; ++i) {
        include(box.data(), keys_.row(experts[i]), keys_.width);
        if ((i + 1) % leaf_size_ == 0) {
            const float left = measure(box.data(), keys_.width) * static_cast<float>(i + 1);
            const float cost = left + costs_[(i + 1) / leaf_size_];
            if (cost < best.cost) {
                best = {cost, column, i + 1};
            }
        }
    }
}

std::size_t Splitter::split_swept(std::span<std::int32_t> experts) {
    Choice best{infinity, axes_.front().column, 0};
    std::size_t sorted_column = 0;
    for (const Axis &axis : axes_) {
        sort_by(experts, axis.column);
        sorted_column = axis.column;
        sweep(experts, axis.column, best);
    }
    if (best.position == 0) {
        return split_middle(experts);
    }
    if (sorted_column != best.column) {
        sort_by(experts, best.column);
    }
    return best.position;
}

/// Halves at a multiple of the leaf size: by the widest column, or by id where all rows are equal.
std::size_t Splitter::split_middle(std::span<std::int32_t> experts) {
    const std::size_t leaves = (experts.size() + leaf_size_ - 1) / leaf_size_;
    const std::size_t position = (leaves + 1) / 2 * leaf_size_;
    const std::size_t column = axes_.empty() ? 0 : axes_.front().column;
    const auto before = [&](std::int32_t a, std::int32_t b) {
        const float x = keys_.row(a)[column];
        const float y = keys_.row(b)[column];
        return x != y ? x < y : a < b;
    };
    std::nth_element(experts.begin(), experts.begin() + static_cast<std::ptrdiff_t>(position),
                     experts.end(), before);
    return position;
}

} // namespace spectral
