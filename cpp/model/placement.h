// Which layers run on which device.
#pragma once
#include <string>
#include <vector>

#include "model/model.h"

namespace tq {

// Opens the backends that options.device names and divides n_layers among them; parts that would get none are left out. `path` is for
// errors.
std::vector<Part> make_parts(const std::string& path, const ModelOptions& options, int64_t n_layers);

}  // namespace tq
