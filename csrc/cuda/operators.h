// Operators that another one is made of; see library.cpp for their arguments.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/checks.h"

namespace perfconv::cuda {

// (active_idx, count, image_counts)
std::tuple<Tensor, Tensor, Tensor> compact_mask(const Tensor& mask);

Tensor expand_mask(const Tensor& mask, const std::vector<int64_t>& kernel_size,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, const std::vector<int64_t>& input_size);

// (soft, mask, active_idx, count, image_counts)
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate_mask(const Tensor& input,
                                                             const Tensor& weight,
                                                             const OptionalTensor& bias,
                                                             bool wants_soft);

Tensor perforated_conv2d(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         const OptionalTensor& bias, const OptionalTensor& base,
                         const OptionalTensor& residual, const OptionalTensor& active_idx,
                         const OptionalTensor& count, const OptionalTensor& packed_weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups,
                         const std::string& fill_name, const std::string& activation_name,
                         bool activate_base, std::optional<double> expected_density,
                         const std::string& algorithm_name, bool allow_tf32);

void perforated_conv2d_into(const Tensor& base, const Tensor& input, const Tensor& weight,
                            const Tensor& mask, const OptionalTensor& bias,
                            const OptionalTensor& active_idx, const OptionalTensor& count,
                            const OptionalTensor& packed_weight, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation, int64_t groups,
                            const std::string& activation_name, bool adds_base, bool activate_base,
                            std::optional<double> expected_density,
                            const std::string& algorithm_name, bool allow_tf32);

}  // namespace perfconv::cuda
