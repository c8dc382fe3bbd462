// OptiX's device functions without its SDK: calls that the driver's compiler resolves in the PTX.
#pragma once

#include <cstdint>

namespace spectral::optix {

__device__ __forceinline__ std::uint32_t launch_index() {
    std::uint32_t index;
    asm("call (%0), _optix_get_launch_index_x, ();" : "=r"(index) :);
    return index;
}

__device__ __forceinline__ std::uint32_t primitive_index() {
    std::uint32_t index;
    asm("call (%0), _optix_read_primitive_idx, ();" : "=r"(index) :);
    return index;
}

/// Payload words 0 and 1 carry the address of the token's state.
__device__ __forceinline__ void *payload_pointer() {
    std::uint32_t low, high;
    asm volatile("call (%0), _optix_get_payload, (%1);" : "=r"(low) : "r"(0) :);
    asm volatile("call (%0), _optix_get_payload, (%1);" : "=r"(high) : "r"(1) :);
    return reinterpret_cast<void *>(static_cast<std::uint64_t>(high) << 32 | low);
}

/// A ray of no length: its only purpose is to visit the boxes around the origin. Nothing is ever
/// reported as a hit, so neither any-hit nor closest-hit programs exist. The call takes and returns
/// 32 payload words; two carry `state`. 1e-16 is RTNN's tmax (Zhu, PPoPP 2022): a ray must not be
/// empty.
__device__ __forceinline__ void trace_point(std::uint64_t handle, float x, float y, float z,
                                            void *state) {
    const std::uint64_t address = reinterpret_cast<std::uint64_t>(state);
    const std::uint32_t low = static_cast<std::uint32_t>(address);
    const std::uint32_t high = static_cast<std::uint32_t>(address >> 32);
    [[maybe_unused]] std::uint32_t o[32]; // the words come back unused
    // clang-format off
    asm volatile(
        "call (%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31),_optix_trace_typed_32,"
        "(%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,"
        "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80);"
        : "=r"(o[0]), "=r"(o[1]), "=r"(o[2]), "=r"(o[3]), "=r"(o[4]), "=r"(o[5]), "=r"(o[6]), "=r"(o[7]),
          "=r"(o[8]), "=r"(o[9]), "=r"(o[10]), "=r"(o[11]), "=r"(o[12]), "=r"(o[13]), "=r"(o[14]), "=r"(o[15]),
          "=r"(o[16]), "=r"(o[17]), "=r"(o[18]), "=r"(o[19]), "=r"(o[20]), "=r"(o[21]), "=r"(o[22]), "=r"(o[23]),
          "=r"(o[24]), "=r"(o[25]), "=r"(o[26]), "=r"(o[27]), "=r"(o[28]), "=r"(o[29]), "=r"(o[30]), "=r"(o[31])
        // type, structure, origin, direction, tmin, tmax, time, mask, flags, SBT offset, stride, miss, words
        : "r"(0), "l"(handle), "f"(x), "f"(y), "f"(z), "f"(1.0F), "f"(0.0F), "f"(0.0F), "f"(0.0F), "f"(1e-16F),
          "f"(0.0F), "r"(255U), "r"(0U), "r"(0), "r"(1), "r"(0), "r"(2),
          "r"(low), "r"(high), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0),
          "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0),
          "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0), "r"(0)
        : "memory");
    // clang-format on
}

} // namespace spectral::optix
