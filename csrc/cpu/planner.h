// Which CPU algorithm runs a problem, and why each other one does not. Torch-free: the operator and
// perfconv.explain (through perfconv._C) ask the same function.
#pragma once

#include <string>
#include <vector>

#include "core/geometry.h"

namespace perfconv::cpu {

struct AlgorithmVerdict {
  ConvAlgorithm algorithm;
  bool is_chosen;
  std::string reason;
};

// active is the number of True pixels of the mask (over the batch).
ConvAlgorithm choose_algorithm(const ConvGeometry& g, StorageType storage, int64_t active,
                               ConvAlgorithm wanted, Pass pass = Pass::kForward);

// One verdict for each algorithm, the chosen one first.
std::vector<AlgorithmVerdict> explain_choice(const ConvGeometry& g, StorageType storage,
                                             int64_t active, ConvAlgorithm wanted);

const char* algorithm_name(ConvAlgorithm algorithm);

}  // namespace perfconv::cpu
