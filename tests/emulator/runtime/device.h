// The emulated device of this library: its modules, memory, options, and what happened on it.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/decode.h"
#include "runtime/fatbinary.h"
#include "runtime/machine.h"
#include "runtime/mutation.h"

namespace emulator {

constexpr size_t kSharedOptIn = 232448;   // bytes a block may opt in to
constexpr size_t kSharedDefault = 49152;  // and without
constexpr size_t kSharedOfMultiprocessor = 233472;
constexpr unsigned kMostClusterBlocks = 8;  // that every device allows

// One fat binary: usually one source file.
class Image {
 public:
  explicit Image(const char* fat_binary) : fat_binary_(read_fat_binary(fat_binary)) {}

  // The highest PTX that the capability can run, parsed. Throws Fault if there is none.
  const ptx::Module& module(int capability);
  // Throws Fault if there is no such kernel.
  const Function& kernel(const std::string& name, const Mutation& mutation, int place);
  // A kernel that was launched since its functions were forgotten; null for others.
  const Function* decoded(const std::string& name) const;
  // Forgets decoded functions: the mutation has changed, or whether they are profiled.
  void forget_functions() { functions_.clear(); }
  // The memory of a .global or .const variable; null if there is none.
  Range* variable(const std::string& name);

  // Opcodes that cannot run, and why.
  std::map<std::string, std::string> unsupported();
  int capability() const { return capability_; }
  std::string describe(const ptx::Statement& statement) const {
    return module_->describe(statement);
  }

 private:
  const Function* function(const std::string& name);
  void allocate_variables();

  FatBinary fat_binary_;
  int capability_ = 0;
  std::unique_ptr<ptx::Module> module_;
  Surroundings surroundings_;
  std::map<std::string, std::unique_ptr<char[]>> variables_;
  std::map<std::string, std::unique_ptr<Function>> functions_;
};

// A kernel as host code names it: by the address of its stub.
struct Kernel {
  Image* image;
  std::string name;
  size_t dynamic_limit = 0;  // by cudaFuncSetAttribute
  bool has_limit = false;
};

struct Variable {
  Image* image;
  std::string name;
};

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t dynamic_bytes = 0;
  cudaStream_t stream = nullptr;
  unsigned cluster = 1;  // blocks, along x
};

struct Device {
  std::recursive_mutex mutex;
  Options options;
  Counters counters;
  GlobalMemory memory;
  std::vector<std::unique_ptr<Image>> images;
  std::map<const void*, Kernel> kernels;
  std::map<const void*, Variable> variables;
  std::map<void*, size_t> allocations;
  LaunchConfig pushed;  // by <<<>>>, until the stub takes it
  Mutation mutation;
  uint32_t clock = 0;  // of the race checker, over all launches
  uint64_t launches_of_seed = 0;
  std::string message;  // of the last failure
  std::string log;
  std::string text;  // returned last by a function that returns text
  std::map<std::string, uint64_t> launched;

  // The one device of the library; made when the first fat binary is registered.
  static Device& get();

  cudaError_t fail(cudaError_t error, const std::string& why);
  cudaError_t fail(const Fault& fault);
  cudaError_t take_error(bool forgets);

  const Function& decoded(Kernel* kernel);
  // The kernel's place of the mutation, or -1: places are numbered over all kernels.
  int mutated_place(const Image& image, const std::string& kernel);
  // Calls f(image, kernel) for the kernels whose name contains a text, in the order of the PTX.
  template <class F>
  void each_kernel(const std::string& part_of_name, F f) {
    for (const auto& image : images) {
      for (const ptx::Function& function : image->module(options.compute_capability).functions) {
        if (function.is_kernel && function.name.find(part_of_name) != std::string::npos) {
          f(*image, function);
        }
      }
    }
  }
};

cudaError_t launch(const void* stub, const LaunchConfig& config, void** args);

}  // namespace emulator
