// The gate rule of the GPU back-ends, read from the dictionary that Python writes.
#pragma once

#include <pybind11/pybind11.h>

#include "kernels/params.h"

namespace spectral::bindings {

namespace py = pybind11;

template <class T> T number(const py::dict &rule, const char *name) {
    return rule[name].cast<T>();
}

/// The rule as spectral_runtime.cuda.rule_numbers writes it.
inline cuda::Rule rule_of(const py::dict &d) {
    cuda::Rule rule{};
    rule.experts = number<int>(d, "experts");
    rule.top_k = number<int>(d, "top_k");
    rule.score = number<int>(d, "score");
    rule.weight = number<int>(d, "weight");
    rule.groups = number<int>(d, "groups");
    rule.groups_kept = number<int>(d, "groups_kept");
    rule.group_max = number<int>(d, "group_max");
    rule.group_zero = number<int>(d, "group_zero");
    rule.normalise = number<int>(d, "normalise");
    rule.round_dtype = number<int>(d, "round_dtype");
    rule.normalise_eps = number<float>(d, "normalise_eps");
    rule.normalise_min = number<float>(d, "normalise_min");
    rule.scale = number<float>(d, "scale");
    return rule;
}

} // namespace spectral::bindings
