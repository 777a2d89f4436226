// What layers remember of each sequence between passes. StateShape describes it for one layer, LayerState owns it, Sequences knows how much
// of it each slot holds and moves it: back, aside, to another slot, to a file.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace tq {

enum class CacheElement : uint8_t { f16, f32, q8, q4 };  // numbers, or codes of 8 or 4 bits (format/cache.h)
struct CacheElements {
  CacheElement k = CacheElement::f16, v = CacheElement::f16;
};
int bits_of(CacheElement type);  // of codes; 0: numbers

// What one key/value head takes in a cache.
struct CachedRow {
  CacheElement type = CacheElement::f16;
  int64_t bytes = 0;  // of a position, of codes: of a tile of positions
  int64_t head_dim = 0;
  int64_t bytes_of(int64_t positions) const;
  bool operator==(const CachedRow&) const = default;
};
CachedRow cached_row(CacheElement type, int64_t head_dim);

// Keys and values of every position. Further positions leave those of earlier ones as they are.
struct AttentionState {
  int64_t n_kv_heads = 0;
  CachedRow k, v;
  std::shared_ptr<const LayerKeyStatistics> key_statistics{};  // what keys go through before they become codes; null: nothing
  bool operator==(const AttentionState&) const = default;
};

// A state of fixed size that every position changes; all zeros before the first. What it was some positions ago is lost unless a copy was
// made then.
struct RecurrentState {
  int64_t bytes = 0;
  bool operator==(const RecurrentState&) const = default;
};

// Another layer's keys and values are seen: nothing of its own.
struct SharedState {
  bool operator==(const SharedState&) const = default;
};

using StateShape = std::variant<AttentionState, RecurrentState, SharedState>;

bool may_keep_codes(const AttentionConfig& a);
// Where others keep codes, layers with a window, whose caches stay small, and those that other layers share keep numbers, float16.
StateShape state_shape(const LayerConfig& layer, CacheElements cache);
int64_t slot_bytes(const StateShape& shape, int64_t capacity);      // of a slot of so many positions
double max_state_bytes(const StateShape& shape, int64_t capacity);  // of its largest buffer, a slot; int64_t may not hold it

// A contiguous part of a buffer.
struct Piece {
  Buffer* buffer;
  int64_t offset, bytes;
};

// The state of one layer for all slots, in its backend's memory.
class LayerState {
 public:
  LayerState(Backend& backend, const StateShape& shape, int64_t n_slots, int64_t capacity);  // capacity: positions of a slot, at most
  Backend& backend() const { return *backend_; }
  const StateShape& shape() const { return shape_; }
  bool keeps_positions() const { return !std::holds_alternative<RecurrentState>(shape_); }  // a slot can go back to any of them
  int64_t bytes() const;
  // Of attention: (slots, n_kv_heads, capacity) rows each, or so many tiles.
  const BufferPtr& k_cache() const { return buffers_[0]; }
  const BufferPtr& v_cache() const { return buffers_[1]; }
  const BufferPtr& recurrent() const { return buffers_[0]; }  // (slots, bytes)
  // What a slot that holds n positions knows. Order and sizes depend on the shape and n alone.
  std::vector<Piece> pieces(int64_t slot, int64_t n) const;

 private:
  Backend* backend_;
  StateShape shape_;
  int64_t capacity_;
  std::vector<BufferPtr> buffers_;  // keys and values, or (slots, bytes)
};

// A moment of a slot that it, or another slot of its context, can return to. Costs memory only where layers do not keep their positions:
// there it holds a copy.
struct Snapshot {
  uint64_t owner = 0;  // the Sequences it was taken of
  int64_t slot = 0, positions = 0;
  bool intact = true;             // since then, the slot has never held fewer positions
  std::vector<BufferPtr> copies;  // one a layer; null where the layer keeps its positions
  int64_t bytes() const;
};

// Not for several threads at once. Errors: invalid_argument for a slot or number of positions that does not exist; unsupported where a
// recurrent state would have to be what it was at some earlier position.
class Sequences {
 public:
  Sequences(std::vector<const LayerState*> layers, int64_t n_slots, int64_t capacity);
  int64_t positions(int64_t slot) const { return check_slot(slot), slots_[size_t(slot)].positions; }
  void hold(int64_t slot, int64_t n) { slots_[size_t(slot)].positions = n; }  // a pass has computed positions up to n

  void check_rewind(int64_t slot, int64_t n) const;  // throws what rewind would
  void rewind(int64_t slot, int64_t n);              // the slot forgets all but its first n positions
  std::shared_ptr<Snapshot> snapshot(int64_t slot);
  void restore(int64_t slot, const Snapshot& snapshot);  // invalid_argument for one that is not intact, or of another context
  void copy(int64_t from, int64_t to, int64_t n);        // slot `to` becomes the first n positions of slot `from`
  // saved_state.h: bytes of the first n positions; bad_file, the slot unchanged, for what save() of such layers did not write.
  std::vector<uint8_t> save(int64_t slot, int64_t n) const;
  void load(int64_t slot, std::span<const uint8_t> state);
  int64_t state_bytes(int64_t n) const;  // of what save() gives
  void release(int64_t slot);            // the slot forgets everything; where the backend can, its memory goes back to the system
  std::vector<StateShape> shapes() const;

 private:
  struct Slot {
    int64_t positions = 0;
    std::vector<std::weak_ptr<Snapshot>> snapshots;
  };
  void check_slot(int64_t slot) const;
  void forget(int64_t slot, int64_t n);  // positions from n on, and the snapshots that need them
  void clear_recurrent(int64_t slot);

  std::vector<const LayerState*> layers_;
  std::vector<Slot> slots_;
  int64_t capacity_;
  const uint64_t id_;
};

}  // namespace tq
