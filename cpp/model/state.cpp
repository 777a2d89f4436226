#include "model/state.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "common/error.h"
#include "format/cache.h"
#include "model/saved_state.h"

namespace tq {
namespace {

[[noreturn]] void invalid(const std::string& what) { throw Error(Cause::invalid_argument, what); }

StateShape shape_of(const AttentionConfig& a, CacheElements cache) {
  if (a.kv_layer >= 0) return SharedState{};
  if (!may_keep_codes(a) && bits_of(cache.k) > 0) cache = {CacheElement::f16, CacheElement::f16};
  return AttentionState{a.n_kv_heads, cached_row(cache.k, a.head_dim), cached_row(cache.v, a.head_dim), a.key_statistics};
}

StateShape shape_of(const DeltaNetConfig& d, CacheElements) { return RecurrentState{d.state_floats() * int64_t(sizeof(float))}; }

void copy_pieces(Backend& backend, const std::vector<Piece>& from, const std::vector<Piece>& to) {
  for (size_t i = 0; i < from.size(); i++) backend.copy(*from[i].buffer, from[i].offset, *to[i].buffer, to[i].offset, from[i].bytes);
}

std::atomic<uint64_t> next_id{1};

}  // namespace

// FNV-1a over both vectors and their lengths.
uint64_t LayerKeyStatistics::fingerprint() const {
  uint64_t hash = 0xcbf29ce484222325;
  const auto mix = [&hash](const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3;
  };
  for (const std::vector<float>* vector : {&mean, &balance}) {
    const uint64_t n = vector->size();
    mix(&n, sizeof n), mix(vector->data(), n * sizeof(float));
  }
  return hash;
}

int bits_of(CacheElement type) { return type == CacheElement::q8 ? 8 : type == CacheElement::q4 ? 4 : 0; }

CachedRow cached_row(CacheElement type, int64_t head_dim) {
  if (const int bits = bits_of(type)) return {type, tqn::cache::tile_bytes(bits, head_dim), head_dim};
  return {type, head_dim * int64_t(type == CacheElement::f32 ? sizeof(float) : sizeof(uint16_t)), head_dim};
}

int64_t CachedRow::bytes_of(int64_t positions) const { return (bits_of(type) ? tqn::cache::tiles(positions) : positions) * bytes; }

bool may_keep_codes(const AttentionConfig& a) { return a.kv_layer < 0 && a.window == 0 && !a.kv_shared; }

StateShape state_shape(const LayerConfig& layer, CacheElements cache) {
  return std::visit([&](const auto& mixer) { return shape_of(mixer, cache); }, layer.mixer);
}

int64_t slot_bytes(const StateShape& shape, int64_t capacity) {
  if (const auto* r = std::get_if<RecurrentState>(&shape)) return r->bytes;
  const auto* a = std::get_if<AttentionState>(&shape);
  return a ? a->n_kv_heads * (a->k.bytes_of(capacity) + a->v.bytes_of(capacity)) : 0;
}

double max_state_bytes(const StateShape& shape, int64_t capacity) {
  const auto* a = std::get_if<AttentionState>(&shape);
  if (const auto* r = std::get_if<RecurrentState>(&shape)) return double(r->bytes);
  if (!a) return 0;
  return double(capacity) * double(a->n_kv_heads) * double(std::max(a->k.bytes, a->v.bytes));
}

LayerState::LayerState(Backend& backend, const StateShape& shape, int64_t n_slots, int64_t capacity)
    : backend_(&backend), shape_(shape), capacity_(capacity) {
  if (const auto* a = std::get_if<AttentionState>(&shape_)) {
    for (const CachedRow& row : {a->k, a->v}) buffers_.push_back(backend.allocate(n_slots * a->n_kv_heads * row.bytes_of(capacity)));
  } else if (const auto* r = std::get_if<RecurrentState>(&shape_)) {
    buffers_.push_back(backend.allocate(n_slots * r->bytes));
  }
}

int64_t LayerState::bytes() const {
  int64_t total = 0;
  for (const BufferPtr& buffer : buffers_) total += buffer->bytes;
  return total;
}

std::vector<Piece> LayerState::pieces(int64_t slot, int64_t n) const {
  if (n == 0 || std::holds_alternative<SharedState>(shape_)) return {};
  const auto* a = std::get_if<AttentionState>(&shape_);
  if (!a) {
    const int64_t bytes = std::get<RecurrentState>(shape_).bytes;
    return {{buffers_[0].get(), slot * bytes, bytes}};
  }
  std::vector<Piece> all;
  for (size_t i = 0; i < 2; i++) {
    const CachedRow& row = i == 0 ? a->k : a->v;
    for (int64_t head = 0; head < a->n_kv_heads; head++)
      all.push_back({buffers_[i].get(), (slot * a->n_kv_heads + head) * row.bytes_of(capacity_), row.bytes_of(n)});
  }
  return all;
}

int64_t Snapshot::bytes() const {
  int64_t total = 0;
  for (const BufferPtr& copy : copies) total += copy ? copy->bytes : 0;
  return total;
}

Sequences::Sequences(std::vector<const LayerState*> layers, int64_t n_slots, int64_t capacity)
    : layers_(std::move(layers)), slots_(size_t(n_slots)), capacity_(capacity), id_(next_id++) {}

void Sequences::check_slot(int64_t slot) const {
  const int64_t n = int64_t(slots_.size());
  if (slot < 0 || slot >= n) invalid("slot " + std::to_string(slot) + " is not in 0 .. " + std::to_string(n - 1));
}

void Sequences::check_rewind(int64_t slot, int64_t n) const {
  check_slot(slot);
  const int64_t held = positions(slot);
  if (n < 0 || n > held)
    invalid("slot " + std::to_string(slot) + " holds " + std::to_string(held) + " positions, not " + std::to_string(n));
  if (n == 0 || n == held) return;
  for (const LayerState* layer : layers_)
    if (!layer->keeps_positions())
      throw Error(Cause::unsupported, "slot " + std::to_string(slot) + ": the model has recurrent layers, which know the state after " +
                                          std::to_string(held) + " positions and not after " + std::to_string(n) +
                                          "; restore a snapshot, or start again at position 0");
}

void Sequences::forget(int64_t slot, int64_t n) {
  Slot& s = slots_[size_t(slot)];
  s.positions = n;
  for (const auto& weak : s.snapshots)
    if (const auto snapshot = weak.lock(); snapshot && snapshot->positions > n) snapshot->intact = false;
  std::erase_if(s.snapshots, [](const auto& weak) {
    const auto snapshot = weak.lock();
    return !snapshot || !snapshot->intact;
  });
}

void Sequences::clear_recurrent(int64_t slot) {
  for (const LayerState* layer : layers_) {
    if (layer->keeps_positions()) continue;
    for (const Piece& piece : layer->pieces(slot, 1)) {
      const std::vector<uint8_t> zeros(size_t(piece.bytes), 0);
      layer->backend().upload(*piece.buffer, piece.offset, zeros.data(), piece.bytes);
    }
  }
}

void Sequences::rewind(int64_t slot, int64_t n) {
  check_rewind(slot, n);
  if (n == positions(slot)) return;
  if (n == 0) clear_recurrent(slot);
  forget(slot, n);
}

std::shared_ptr<Snapshot> Sequences::snapshot(int64_t slot) {
  check_slot(slot);
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->owner = id_, snapshot->slot = slot, snapshot->positions = positions(slot);
  for (const LayerState* layer : layers_) {
    BufferPtr& copy = snapshot->copies.emplace_back();
    if (layer->keeps_positions()) continue;
    const auto pieces = layer->pieces(slot, 1);
    copy = layer->backend().allocate(pieces[0].bytes);
    copy_pieces(layer->backend(), pieces, {{copy.get(), 0, pieces[0].bytes}});
  }
  slots_[size_t(slot)].snapshots.push_back(snapshot);
  return snapshot;
}

void Sequences::restore(int64_t slot, const Snapshot& snapshot) {
  check_slot(slot);
  if (snapshot.owner != id_) invalid("the snapshot is of another context");
  if (!snapshot.intact)
    invalid("the snapshot of slot " + std::to_string(snapshot.slot) + " after " + std::to_string(snapshot.positions) +
            " positions is lost: the slot went back before it");
  forget(slot, slot == snapshot.slot ? snapshot.positions : 0);
  for (size_t i = 0; i < layers_.size(); i++) {
    const LayerState& layer = *layers_[i];
    if (const BufferPtr& copy = snapshot.copies[i])
      copy_pieces(layer.backend(), {{copy.get(), 0, copy->bytes}}, layer.pieces(slot, 1));
    else if (slot != snapshot.slot)
      copy_pieces(layer.backend(), layer.pieces(snapshot.slot, snapshot.positions), layer.pieces(slot, snapshot.positions));
  }
  hold(slot, snapshot.positions);
}

void Sequences::copy(int64_t from, int64_t to, int64_t n) {
  check_rewind(from, n);
  check_slot(to);
  if (from == to) return rewind(from, n);
  if (n == 0) return rewind(to, 0);
  forget(to, 0);
  for (const LayerState* layer : layers_) copy_pieces(layer->backend(), layer->pieces(from, n), layer->pieces(to, n));
  hold(to, n);
}

std::vector<StateShape> Sequences::shapes() const {
  std::vector<StateShape> all;
  for (const LayerState* layer : layers_) all.push_back(layer->shape());
  return all;
}

int64_t Sequences::state_bytes(int64_t n) const {
  if (n < 0 || n > capacity_) invalid(std::to_string(n) + " positions, n_ctx is " + std::to_string(capacity_));
  return saved_bytes(shapes(), n);
}

std::vector<uint8_t> Sequences::save(int64_t slot, int64_t n) const {
  check_rewind(slot, n);
  std::vector<uint8_t> state(size_t(state_bytes(n)));
  uint8_t* at = write_saved_header(shapes(), n, state.data());
  for (const LayerState* layer : layers_) {
    const auto* a = std::get_if<AttentionState>(&layer->shape());
    int64_t i = 0;
    for (const Piece& piece : layer->pieces(slot, n)) {
      layer->backend().download(*piece.buffer, piece.offset, at, piece.bytes);
      const bool key = a && i++ < a->n_kv_heads;
      if (a) clear_stale(key ? CacheSide::key : CacheSide::value, key ? a->k : a->v, n, at);
      at += piece.bytes;
    }
  }
  return state;
}

void Sequences::load(int64_t slot, std::span<const uint8_t> state) {
  check_slot(slot);
  const SavedState saved = read_saved(state, shapes());
  check_same_types(saved, shapes());
  if (saved.positions > capacity_)
    throw Error(Cause::bad_file, "state: " + std::to_string(saved.positions) + " positions do not fit n_ctx " + std::to_string(capacity_));
  if (saved.positions == 0) return rewind(slot, 0);
  forget(slot, 0);
  const uint8_t* at = saved.pieces;
  for (const LayerState* layer : layers_)
    for (const Piece& piece : layer->pieces(slot, saved.positions))
      layer->backend().upload(*piece.buffer, piece.offset, at, piece.bytes), at += piece.bytes;
  hold(slot, saved.positions);
}

void Sequences::release(int64_t slot) {
  rewind(slot, 0);
  for (const LayerState* layer : layers_)
    if (layer->keeps_positions())
      for (const Piece& piece : layer->pieces(slot, capacity_)) layer->backend().discard(*piece.buffer, piece.offset, piece.bytes);
}

}  // namespace tq
