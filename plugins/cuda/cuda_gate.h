// The exact gate of one layer on the GPU, hidden state to ids and weights in one launch.
#pragma once

#include <cstdint>

#include "driver_api.h"
#include "kernels/params.h"
#include "launch_plan.h"

namespace spectral::cuda {

/// Device arrays of a gate, kept alive by the caller.
struct GateArrays {
    Address weight = 0;      ///< [planes * E, D] of `dtype`
    Address bias = 0;        ///< float32 [E] or 0
    Address choice_bias = 0; ///< float32 [E] or 0
    std::int32_t dtype = dtype_bf16;
    std::int32_t planes = 1; ///< bf16 summands of a float32 weight
    std::int32_t hidden = 0;
};

/// One batch; addresses of device memory, `stream` is the caller's.
struct GateCall {
    Address x = 0;
    std::int64_t stride = 0; ///< elements between tokens
    std::int32_t tokens = 0;
    std::int32_t x_dtype = dtype_bf16;
    Output output{};
    Stream stream = nullptr;
    Plan plan{}; ///< zeros: chosen
};

class CudaGate {
  public:
    /// Throws UserError when the rule or the sizes are beyond the kernels, with the limit.
    CudaGate(Device device, const Rule &rule, const GateArrays &arrays);

    /// Enqueues the launch. No allocation, no synchronisation, capturable.
    void run(const GateCall &call) const;

    /// The same from logits [tokens, E] of `x_dtype` in place of the hidden states.
    void pick(const GateCall &call) const;

    /// Whether `run` is faster than a library's product and `pick`, by measurement.
    [[nodiscard]] bool fuses(int tokens) const;

    [[nodiscard]] const Rule &rule() const { return rule_; }

  private:
    [[nodiscard]] Workload work(int tokens) const;
    [[nodiscard]] GateArguments arguments(const GateCall &call) const;
    Function kernel(const char *shape, Context context) const; ///< loads it on first use

    Device device_;
    Rule rule_;
    GateArrays arrays_;
    Needs needs_; ///< of shared memory
    DeviceFacts facts_;
};

/// Throws UserError unless the fused kernels can execute this rule.
void check_rule(const Rule &rule);

} // namespace spectral::cuda
