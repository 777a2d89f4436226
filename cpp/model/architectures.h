// From a file's metadata to Config. Conventions are those of the GGUF files that the field exchanges: tensor names, the order of the rows
// of q and k (RopeConfig::pairs), gemma's norm weights stored with their 1 added.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "gguf/gguf.h"
#include "model/model.h"

namespace tq {

// Names that `general.architecture` may have.
std::span<const std::string_view> supported_architectures();

// Throws unsupported for another architecture or feature, and bad_file, naming key and value, for numbers that make no sense or that the
// file does not have the tensors for. n_vocab is left to the loader, which sees the embedding.
Config read_config(const gguf::File& file);

}  // namespace tq
