// Runs features by name.
#include "feature.h"

#include <cstring>
#include <vector>

namespace {

std::vector<Feature>& features() {
  static std::vector<Feature> list;
  return list;
}

}  // namespace

Features::Features(const Feature* list, int count) {
  features().insert(features().end(), list, list + count);
}

extern "C" __attribute__((visibility("default"))) int run_feature(const char* name,
                                                                  const Arguments* arguments) {
  for (const Feature& feature : features()) {
    if (std::strcmp(feature.name, name) == 0) return feature.run(*arguments);
  }
  return cudaErrorInvalidDeviceFunction;
}
