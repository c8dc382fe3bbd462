// numpy arrays to pointers, with shape checks whose messages name the argument.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "spectral/error.h"

namespace spectral::bindings {

namespace py = pybind11;

/// Any length: the caller reads it from the array.
inline constexpr py::ssize_t any = -1;

template <class T> const char *dtype_name();
template <> inline const char *dtype_name<float>() {
    return "float32";
}
template <> inline const char *dtype_name<std::int32_t>() {
    return "int32";
}

inline std::string shape_text(const py::array &array) {
    std::string out = std::string(py::str(array.dtype())) + " [";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        out += (i > 0 ? ", " : "") + std::to_string(array.shape(i));
    }
    return out + "]";
}

inline std::string shape_text(const char *dtype, std::initializer_list<py::ssize_t> shape) {
    std::string out = std::string(dtype) + " [";
    const char *comma = "";
    for (const py::ssize_t n : shape) {
        out += comma + (n == any ? std::string("any") : std::to_string(n));
        comma = ", ";
    }
    return out + "]";
}

inline bool same_shape(const py::array &array, std::initializer_list<py::ssize_t> shape) {
    if (array.ndim() != static_cast<py::ssize_t>(shape.size())) {
        return false;
    }
    py::ssize_t i = 0;
    for (const py::ssize_t n : shape) {
        if (n != any && array.shape(i) != n) {
            return false;
        }
        ++i;
    }
    return true;
}

/// The data of a C-contiguous array of exactly this dtype and shape. Throws UserError naming
/// `name`.
template <class T>
const T *data_of(const char *name, const py::array &array,
                 std::initializer_list<py::ssize_t> shape) {
    const bool contiguous = (array.flags() & py::array::c_style) != 0;
    if (!py::isinstance<py::array_t<T>>(array) || !same_shape(array, shape) || !contiguous) {
        throw UserError(name, "contiguous " + shape_text(dtype_name<T>(), shape),
                        (contiguous ? "" : "strided ") + shape_text(array));
    }
    return static_cast<const T *>(array.data());
}

template <class T>
const T *optional_data(const char *name, const std::optional<py::array> &array,
                       std::initializer_list<py::ssize_t> shape) {
    return array ? data_of<T>(name, *array, shape) : nullptr;
}

/// Gives a vector to Python without a copy.
template <class T>
py::array_t<T> to_numpy(std::vector<T> &&values, std::vector<py::ssize_t> shape) {
    auto *owned = new std::vector<T>(std::move(values));
    const py::capsule owner(owned, [](void *p) { delete static_cast<std::vector<T> *>(p); });
    return py::array_t<T>(std::move(shape), owned->data(), owner);
}

} // namespace spectral::bindings
