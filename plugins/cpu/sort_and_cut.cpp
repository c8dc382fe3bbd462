// The slow path of a selection: many held entries, or a large C.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.h"

namespace spectral::cpu {
namespace {

struct Entry {
    std::uint64_t key;
    float score;
};

/// Ascending keys are descending scores, then ascending ids; -0 counts as +0 and NaN comes last.
std::uint64_t key_of(float score, std::int32_t id) {
    const auto bits = std::bit_cast<std::uint32_t>(score + 0.0F);
    const std::uint32_t descending = (bits >> 31) != 0 ? bits : ~bits & 0x7FFFFFFFU;
    const std::uint32_t high =
        std::isnan(score) ? std::numeric_limits<std::uint32_t>::max() : descending;
    return static_cast<std::uint64_t>(high) << 32 | static_cast<std::uint32_t>(id);
}

} // namespace

void sort_and_cut(Selection &s) {
    thread_local std::vector<Entry> entries;
    entries.resize(s.held);
    for (std::size_t i = 0; i < s.held; ++i) {
        entries[i] = {key_of(s.scores[i], s.ids[i]), s.scores[i]};
    }
    const auto by_key = [](const Entry &a, const Entry &b) { return a.key < b.key; };
    const std::size_t kept = std::min(s.held, s.count);
    const auto cut = entries.begin() + static_cast<std::ptrdiff_t>(kept);
    if (cut != entries.end()) {
        std::nth_element(entries.begin(), cut, entries.end(), by_key);
    }
    std::sort(entries.begin(), cut, by_key);
    for (std::size_t i = 0; i < kept; ++i) {
        s.scores[i] = entries[i].score;
        s.ids[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(entries[i].key));
    }
    s.held = kept;
}

} // namespace spectral::cpu
