// From a file's metadata to Config. Conventions are those of the GGUF files that the field exchanges: tensor names, the order of q and k
// rows
// (`rope_pairs`), gemma's norm weights stored with their 1 added.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "gguf/gguf.h"
#include "model/model.h"

namespace tq {

// Names that `general.architecture` may have.
std::span<const std::string_view> supported_architectures();

// Throws unsupported for another architecture or feature, bad_file naming the key and value for one that makes no sense. n_vocab is left to
// the loader.
Config read_config(const gguf::File& file);

}  // namespace tq
