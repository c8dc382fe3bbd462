// Binds the CUDA gate and router: device addresses as integers, host arrays for the construction.
#include <string>
#include <utility>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "cuda_gate.h"
#include "device_router.h"
#include "kernel_module.h"

namespace spectral::bindings {
namespace {

using cuda::Address;
using cuda::CudaGate;
using cuda::CudaRouter;

std::unique_ptr<CudaGate> make_gate(int device, const py::dict &rule, Address weight, int dtype,
                                    int planes, int hidden, Address bias, Address choice_bias) {
    return std::make_unique<CudaGate>(
        device, rule_of(rule), cuda::GateArrays{weight, bias, choice_bias, dtype, planes, hidden});
}

cuda::Output output_of(Address ids, bool wide, Address weights, int weights_dtype, Address logits,
                       int logits_dtype) {
    return {reinterpret_cast<void *>(ids),
            reinterpret_cast<void *>(weights),
            reinterpret_cast<void *>(logits),
            nullptr,
            wide ? 1 : 0,
            weights_dtype,
            logits_dtype,
            0};
}

using Splits = std::pair<int, int>; ///< tile tokens, blocks of a cluster; 0: chosen

cuda::Plan plan_of(const Splits &splits) {
    return {nullptr, splits.first, splits.second};
}

void run_gate(const CudaGate &gate, Address x, std::int64_t stride, int tokens, int x_dtype,
              Address ids, bool wide, Address weights, int weights_dtype, Address logits,
              int logits_dtype, Address stream, const Splits &splits) {
    cuda::GateCall call{x, stride, tokens, x_dtype};
    call.output = output_of(ids, wide, weights, weights_dtype, logits, logits_dtype);
    call.stream = reinterpret_cast<cuda::Stream>(stream);
    call.plan = plan_of(splits);
    gate.run(call);
}

void pick_gate(const CudaGate &gate, Address logits, std::int64_t stride, int tokens, int dtype,
               Address ids, bool wide, Address weights, int weights_dtype, Address stream) {
    cuda::GateCall call{logits, stride, tokens, dtype};
    call.output = output_of(ids, wide, weights, weights_dtype, 0, 0);
    call.stream = reinterpret_cast<cuda::Stream>(stream);
    gate.pick(call);
}

cuda::RouteCall route_call(Address x, std::int64_t stride, int tokens, int x_dtype, Address stream,
                           const Splits &splits) {
    cuda::RouteCall call{x, stride, tokens, x_dtype};
    call.stream = reinterpret_cast<cuda::Stream>(stream);
    call.plan = plan_of(splits);
    return call;
}

cuda::Rerank rerank_of(Address gate, int gate_dtype, Address bias, Address spread, int candidates) {
    return {reinterpret_cast<const void *>(gate), reinterpret_cast<const float *>(bias),
            reinterpret_cast<const float *>(spread), gate_dtype, candidates};
}

void run_candidates(const CudaRouter &router, Address x, std::int64_t stride, int tokens,
                    int x_dtype, int count, Address ids, bool wide, Address scores, Address weights,
                    const std::string &method, Address gate, int gate_dtype, Address bias,
                    Address stream, const Splits &splits) {
    cuda::RouteCall call = route_call(x, stride, tokens, x_dtype, stream, splits);
    call.output = output_of(ids, wide, weights, cuda::dtype_f32, 0, 0);
    call.output.scores = reinterpret_cast<float *>(scores);
    call.output.count = count;
    call.method = method_named(method);
    call.rerank = rerank_of(gate, gate_dtype, bias, 0, count);
    router.candidates(call);
}

void run_select(const CudaRouter &router, Address x, std::int64_t stride, int tokens, int x_dtype,
                Address ids, bool wide, Address weights, int weights_dtype, Address logits,
                int logits_dtype, Address gate, int gate_dtype, Address bias, Address spread,
                int candidates, Address stream, const Splits &splits) {
    cuda::RouteCall call = route_call(x, stride, tokens, x_dtype, stream, splits);
    call.output = output_of(ids, wide, weights, weights_dtype, logits, logits_dtype);
    call.rerank = rerank_of(gate, gate_dtype, bias, spread, candidates);
    router.select(call);
}

using HostAnswer = std::pair<py::array_t<std::int32_t>, py::array_t<float>>;

HostAnswer route_host(CudaRouter &router, const py::array &hidden, std::size_t count,
                      const std::string &method) {
    const float *data =
        data_of<float>("hidden", hidden, {any, static_cast<py::ssize_t>(router.hidden())});
    if (count < 1 || count > router.experts()) {
        throw UserError("count", "1 to " + std::to_string(router.experts()), std::to_string(count));
    }
    py::array_t<std::int32_t> ids({hidden.shape(0), static_cast<py::ssize_t>(count)});
    py::array_t<float> scores({hidden.shape(0), static_cast<py::ssize_t>(count)});
    const Candidates out{count, ids.mutable_data(), scores.mutable_data()};
    const Method how = method_named(method);
    {
        const py::gil_scoped_release release;
        router.candidates_on_host(data, static_cast<std::size_t>(hidden.shape(0)), how, out);
    }
    return {std::move(ids), std::move(scores)};
}

void bind_gate(py::module_ &m) {
    py::class_<CudaGate>(m, "CudaGate", "The fused exact gate of one layer.")
        .def(py::init(&make_gate), py::arg("device"), py::arg("rule"), py::arg("weight"),
             py::arg("dtype"), py::arg("planes"), py::arg("hidden"), py::arg("bias"),
             py::arg("choice_bias"))
        .def("run", &run_gate, py::arg("x"), py::arg("stride"), py::arg("tokens"),
             py::arg("x_dtype"), py::arg("ids"), py::arg("wide"), py::arg("weights"),
             py::arg("weights_dtype"), py::arg("logits"), py::arg("logits_dtype"),
             py::arg("stream"), py::arg("splits") = Splits{0, 0})
        .def("pick", &pick_gate, py::arg("logits"), py::arg("stride"), py::arg("tokens"),
             py::arg("dtype"), py::arg("ids"), py::arg("wide"), py::arg("weights"),
             py::arg("weights_dtype"), py::arg("stream"))
        .def("fuses", &CudaGate::fuses, py::arg("tokens"));
}

} // namespace

void bind_cuda(py::module_ &m) {
    m.def("cuda_absent", &cuda::cuda_absent,
          "Why CUDA cannot be used here, or an empty string; opens the driver.");
    bind_gate(m);
    device_router_class<CudaRouter>(m, "CudaRouter", "The fused geometric router of one layer.")
        .def("candidates", &run_candidates, py::arg("x"), py::arg("stride"), py::arg("tokens"),
             py::arg("x_dtype"), py::arg("count"), py::arg("ids"), py::arg("wide"),
             py::arg("scores"), py::arg("weights"), py::arg("method"), py::arg("gate"),
             py::arg("gate_dtype"), py::arg("bias"), py::arg("stream"),
             py::arg("splits") = Splits{0, 0})
        .def("select", &run_select, py::arg("x"), py::arg("stride"), py::arg("tokens"),
             py::arg("x_dtype"), py::arg("ids"), py::arg("wide"), py::arg("weights"),
             py::arg("weights_dtype"), py::arg("logits"), py::arg("logits_dtype"), py::arg("gate"),
             py::arg("gate_dtype"), py::arg("bias"), py::arg("spread"), py::arg("candidates"),
             py::arg("stream"), py::arg("splits") = Splits{0, 0})
        .def("route", &route_host, py::arg("hidden"), py::arg("count"), py::kw_only(),
             py::arg("method") = "auto")
        .def("scores", &scores_of_host, py::arg("hidden"))
        .def_property_readonly("has_tree", &CudaRouter::has_tree)
        .def_property_readonly("device", &CudaRouter::device);
}

} // namespace spectral::bindings
