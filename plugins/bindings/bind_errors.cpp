// Turns native errors into the classes of spectral_runtime.errors, with the same parts.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "spectral/error.h"

namespace py = pybind11;

namespace spectral::bindings {
namespace {

void raise_python(const char *name, const py::object &instance) {
    PyErr_SetObject(py::module_::import("spectral_runtime.errors").attr(name).ptr(),
                    instance.ptr());
}

void translate(std::exception_ptr error) {
    try {
        std::rethrow_exception(error);
    } catch (const UserError &e) {
        const py::object cls = py::module_::import("spectral_runtime.errors").attr("ConfigError");
        raise_python("ConfigError", cls(e.where, py::arg("expected") = e.expected,
                                        py::arg("found") = e.found, py::arg("remedy") = e.remedy));
    } catch (const InternalError &e) {
        const py::object cls = py::module_::import("spectral_runtime.errors").attr("InternalError");
        raise_python("InternalError", cls(e.what()));
    }
}

} // namespace

void bind_errors(py::module_ &) {
    py::register_exception_translator(&translate);
}

} // namespace spectral::bindings
