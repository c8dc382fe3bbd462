// The custom operators spectral::BvhRoute, one per provider and pair of types, and the entry point
// that registers them.
#include <exception>
#include <memory>
#include <vector>

#include "cuda_kernel.h"
#include "ort_abi.h"
#include "route_kernel.h"

namespace spectral::ort {
namespace {

/// An operator and the types it is for; ONNX Runtime hands the first member back to us.
struct RouteOp {
    CustomOp op{};
    Element states = Element::f32;
    Element weights = Element::f32;
    bool cuda = false;
};

const RouteOp &of(const CustomOp *op) {
    return *reinterpret_cast<const RouteOp *>(op);
}

Element input_type(const CustomOp *op, std::size_t index) {
    if (index == hidden || index == gate_weight || index == gate_bias) {
        return of(op).states;
    }
    return index >= bvh_first ? Element::i32 : Element::f32;
}

Element output_type(const CustomOp *op, std::size_t index) {
    return index == 0 ? Element::i32 : of(op).weights;
}

Status *create(const CustomOp *op, const void *table, const KernelInfo *info, void **kernel) {
    const Api api(table);
    try {
        RouteNode node(api, info);
        std::unique_ptr<Kernel> made;
        if (of(op).cuda) {
            made = std::make_unique<CudaKernel>(std::move(node));
        } else {
            made = std::make_unique<RouteKernel>(std::move(node));
        }
        *kernel = made.release();
        return nullptr;
    } catch (const std::exception &error) {
        return api.failed(error.what());
    }
}

Status *compute(void *kernel, KernelContext *context) {
    auto &mine = *static_cast<Kernel *>(kernel);
    try {
        mine.compute(context);
        return nullptr;
    } catch (const std::exception &error) {
        return mine.api().failed(error.what());
    }
}

RouteOp make_op(Element states, Element weights, bool on_gpu) {
    RouteOp made;
    made.states = states;
    made.weights = weights;
    made.cuda = on_gpu;
    CustomOp &op = made.op;
    op.version = api_version;
    op.GetName = [](const CustomOp *) { return "BvhRoute"; };
    op.GetExecutionProviderType = [](const CustomOp *mine) {
        return of(mine).cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
    };
    op.GetInputType = input_type;
    op.GetInputTypeCount = [](const CustomOp *) -> std::size_t { return inputs; };
    op.GetOutputType = output_type;
    op.GetOutputTypeCount = [](const CustomOp *) -> std::size_t { return 2; };
    op.KernelDestroy = [](void *kernel) { delete static_cast<Kernel *>(kernel); };
    op.GetInputCharacteristic = [](const CustomOp *, std::size_t) { return 0; };
    op.GetOutputCharacteristic = [](const CustomOp *, std::size_t) { return 0; };
    op.GetInputMemoryType = [](const CustomOp *, std::size_t) { return 0; };
    op.GetVariadicInputMinArity = [](const CustomOp *) { return 1; };
    op.GetVariadicInputHomogeneity = [](const CustomOp *) { return 0; };
    op.GetVariadicOutputMinArity = [](const CustomOp *) { return 1; };
    op.GetVariadicOutputHomogeneity = [](const CustomOp *) { return 0; };
    op.CreateKernelV2 = create;
    op.KernelComputeV2 = compute;
    op.GetStartVersion = [](const CustomOp *) { return 1; };
    op.GetEndVersion = [](const CustomOp *) { return 2147483647; };
    return made;
}

/// On the CUDA provider only where there is a driver: elsewhere the session would refuse the node.
std::vector<RouteOp> make_ops() {
    const std::pair<Element, Element> types[] = {{Element::f32, Element::f32},
                                                 {Element::f16, Element::f16},
                                                 {Element::bf16, Element::bf16},
                                                 {Element::f16, Element::f32},
                                                 {Element::bf16, Element::f32}};
    std::vector<RouteOp> ops;
    for (const bool on_gpu : {false, true}) {
        for (const auto &[states, weights] : types) {
            if (!on_gpu || cuda::step_present()) {
                ops.push_back(make_op(states, weights, on_gpu));
            }
        }
    }
    return ops;
}

Status *register_all(SessionOptions *options, const Api &api) {
    static const std::vector<RouteOp> ops = make_ops(); // sessions keep pointers to them
    CustomOpDomain *domain = nullptr; // never released: sessions keep pointers into it
    Status *status = api.call(Slot::CreateCustomOpDomain, "spectral", &domain);
    for (const RouteOp &op : ops) {
        if (status == nullptr) {
            const CustomOp *entry = &op.op;
            status = api.call(Slot::CustomOpDomain_Add, domain, entry);
        }
    }
    return status != nullptr ? status : api.call(Slot::AddCustomOpDomain, options, domain);
}

} // namespace
} // namespace spectral::ort

extern "C" __attribute__((visibility("default"))) spectral::ort::Status *
RegisterCustomOps(spectral::ort::SessionOptions *options, const spectral::ort::ApiBase *base) {
    using namespace spectral::ort;
    const void *table = base->GetApi(api_version);
    if (table == nullptr) {
        // The oldest table has CreateStatus too: the caller gets a message, not a crash.
        return Api(base->GetApi(1)).failed("spectral needs ONNX Runtime 1.17 or newer");
    }
    return register_all(options, Api(table));
}
