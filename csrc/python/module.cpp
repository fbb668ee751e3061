// perfconv._C: what the native libraries were built from, and host-side planners.
// No tensor crosses this boundary: operators are registered with the dispatcher (csrc/library.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "cpu/break_even.h"
#include "cpu/kernels/isa.h"
#include "cpu/planner.h"
#include "cuda/planner.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

py::dict build_info() {
  py::dict info;
  info["version"] = PERFCONV_VERSION;
  info["torch_build"] = PERFCONV_TORCH_BUILD;
  info["torch_target"] = PERFCONV_TORCH_TARGET;  // the oldest torch the libraries load in
  info["cuda"] = PERFCONV_CUDA_VERSION;          // empty when built without CUDA
  info["cuda_archs"] = PERFCONV_CUDA_ARCHS;
  info["processor"] = PERFCONV_PROCESSOR;
  info["compiler"] = kCompiler;
  return info;
}

perfconv::StorageType storage_type(const std::string& dtype) {
  using perfconv::StorageType;
  if (dtype == "float32") return StorageType::kFloat;
  if (dtype == "float64") return StorageType::kDouble;
  if (dtype == "bfloat16") return StorageType::kBFloat16;
  if (dtype == "float16") return StorageType::kHalf;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16");
}

perfconv::ConvGeometry geometry(const std::vector<int64_t>& input,
                                const std::vector<int64_t>& weight,
                                const std::vector<int64_t>& output, int64_t groups) {
  if (input.size() != 4 || weight.size() != 4 || output.size() != 4 || groups < 1) {
    throw std::invalid_argument("input, weight and output must be 4-D shapes, groups 1 or more");
  }
  perfconv::ConvGeometry g;
  g.batch = input[0];
  g.in_channels = input[1];
  g.in_height = input[2];
  g.in_width = input[3];
  g.out_channels = weight[0];
  g.out_height = output[2];
  g.out_width = output[3];
  g.kernel_height = weight[2];
  g.kernel_width = weight[3];
  g.groups = groups;
  return g;
}

perfconv::ConvAlgorithm algorithm_called(const std::string& name) {
  using perfconv::ConvAlgorithm;
  for (const ConvAlgorithm candidate : {ConvAlgorithm::kDirect, ConvAlgorithm::kGatherGemm,
                                        ConvAlgorithm::kImplicitGemm, ConvAlgorithm::kDense}) {
    if (name == perfconv::cpu::algorithm_name(candidate)) return candidate;
  }
  return ConvAlgorithm::kAuto;
}

template <class Verdicts>
py::list as_list(const Verdicts& verdicts) {
  py::list result;
  for (const auto& verdict : verdicts) {
    result.append(py::make_tuple(perfconv::cpu::algorithm_name(verdict.algorithm),
                                 verdict.is_chosen, verdict.reason));
  }
  return result;
}

// (algorithm, is_chosen, reason) for each algorithm, the chosen one first.
py::list explain_cpu(const std::vector<int64_t>& input, const std::vector<int64_t>& weight,
                     const std::vector<int64_t>& output, int64_t groups, const std::string& dtype,
                     int64_t active, const std::string& algorithm) {
  const perfconv::ConvGeometry g = geometry(input, weight, output, groups);
  return as_list(
      perfconv::cpu::explain_choice(g, storage_type(dtype), active, algorithm_called(algorithm)));
}

py::list explain_cuda(const std::vector<int64_t>& input, const std::vector<int64_t>& weight,
                      const std::vector<int64_t>& output, int64_t groups, const std::string& dtype,
                      bool allow_tf32, bool is_aligned, int compute_capability,
                      std::optional<double> expected_density, const std::string& algorithm) {
  const perfconv::ConvGeometry g = geometry(input, weight, output, groups);
  const perfconv::cuda::DeviceTraits device{.storage = storage_type(dtype),
                                            .allow_tf32 = allow_tf32,
                                            .is_aligned = is_aligned,
                                            .compute_capability = compute_capability};
  return as_list(
      perfconv::cuda::explain_choice(g, device, algorithm_called(algorithm), expected_density));
}

}  // namespace

PYBIND11_MODULE(_C, module, py::mod_gil_not_used()) {
  module.doc() = "Build information and host-side planners of perfconv.";
  module.def("cpu_isa", &perfconv::cpu::isa_name,
             "Name of the instruction set whose CPU kernels this process uses.");
  module.def("measured_classes", &perfconv::cpu::measured_classes,
             "Names of the shape classes of a measured break-even table, in its order.");
  module.def("set_break_even", &perfconv::cpu::set_break_even,
             "Gives explain_cpu the table that torch.ops.perfconv.set_break_even gives operators.");
  module.def("explain_cpu", &explain_cpu,
             "(algorithm, is_chosen, reason) for each CPU algorithm, the chosen one first.");
  module.def("explain_cuda", &explain_cuda,
             "(algorithm, is_chosen, reason) for each CUDA algorithm, the chosen one first.");
  module.def("build_info", &build_info,
             "Compile-time configuration of the native libraries, as a dictionary of strings.");
}
