// What a slot holds, as bytes: a header, what each layer remembers, then each layer's pieces (LayerState::pieces). Whatever reads such
// bytes compares the header with the layers that it reads them for; all errors are bad_file and say what differs.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "format/cache.h"
#include "model/state.h"

namespace tq {

int64_t saved_bytes(std::span<const StateShape> shapes, int64_t n);
// Writes header and shapes of a state of n positions; returns where its pieces begin.
uint8_t* write_saved_header(std::span<const StateShape> shapes, int64_t n, uint8_t* state);

// A state whose header, shapes and size agree.
struct SavedState {
  int64_t positions = 0;
  std::vector<StateShape> shapes;
  const uint8_t* pieces = nullptr;
};
// Reads a state of layers that are like `layers`, types of cached numbers aside.
SavedState read_saved(std::span<const uint8_t> state, std::span<const StateShape> layers);
// bad_file, naming the layer and both types, where the state's caches are of other types than the layers'.
void check_same_types(const SavedState& state, std::span<const StateShape> layers);

// The state of the first n positions as layers of the shapes `to` would have saved it, which are like its own, types of cached numbers
// aside. Numbers become codes and codes numbers; codes of other widths are made of what the codes stand for. unsupported where a recurrent
// state would have to be what it was before.
std::vector<uint8_t> convert_saved(const SavedState& state, int64_t n, std::span<const StateShape> to);

// Zeros in place of what the last tile of a piece (CachedRow of `side`) holds of positions from n on: it was there by chance.
void clear_stale(CacheSide side, const CachedRow& row, int64_t n, uint8_t* piece);

}  // namespace tq
