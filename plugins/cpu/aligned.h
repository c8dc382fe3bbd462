// Vectors that start on a cache line, so that no 64-byte load crosses one.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace spectral::cpu {

template <class T> struct CacheLineAllocator {
    using value_type = T;
    static constexpr std::align_val_t alignment{64};

    CacheLineAllocator() = default;
    template <class U> CacheLineAllocator(const CacheLineAllocator<U> &) {}

    T *allocate(std::size_t n) {
        return static_cast<T *>(::operator new(n * sizeof(T), alignment));
    }
    void deallocate(T *p, std::size_t) { ::operator delete(p, alignment); }
    bool operator==(const CacheLineAllocator &) const = default;
};

template <class T> using Aligned = std::vector<T, CacheLineAllocator<T>>;

} // namespace spectral::cpu
