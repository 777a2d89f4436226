#include "model/state.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "common/error.h"
#include "format/cache.h"

namespace tq {
namespace {

[[noreturn]] void invalid(const std::string& what) { throw Error(Cause::invalid_argument, what); }
[[noreturn]] void bad_state(const std::string& what) { throw Error(Cause::bad_file, "state: " + what); }

StateShape shape_of(const AttentionConfig& a, CacheElements cache) {
  if (a.kv_layer >= 0) return SharedState{};
  if ((a.window > 0 || a.kv_shared) && bits_of(cache.k) > 0) cache = {CacheElement::f16, CacheElement::f16};
  return AttentionState{a.n_kv_heads, cached_row(cache.k, a.head_dim), cached_row(cache.v, a.head_dim)};
}

StateShape shape_of(const DeltaNetConfig& d, CacheElements) { return RecurrentState{d.state_floats() * int64_t(sizeof(float))}; }

// What save() writes: this, a ShapeRecord for each layer, and each layer's pieces.
struct StateHeader {
  char magic[7] = {'T', 'Q', 'S', 'T', 'A', 'T', 'E'};
  char version = '2';
  int64_t n_layers = 0, positions = 0;
};

struct ShapeRecord {
  int64_t kind = 0, n_kv_heads = 0, k_type = 0, k_bytes = 0, v_type = 0, v_bytes = 0, recurrent_bytes = 0;
  bool operator==(const ShapeRecord&) const = default;
};

ShapeRecord record_of(const StateShape& shape) {
  ShapeRecord record{.kind = int64_t(shape.index())};
  if (const auto* a = std::get_if<AttentionState>(&shape)) {
    record.n_kv_heads = a->n_kv_heads;
    record.k_type = int64_t(a->k.type), record.k_bytes = a->k.bytes;
    record.v_type = int64_t(a->v.type), record.v_bytes = a->v.bytes;
  } else if (const auto* r = std::get_if<RecurrentState>(&shape)) {
    record.recurrent_bytes = r->bytes;
  }
  return record;
}

void copy_pieces(Backend& backend, const std::vector<Piece>& from, const std::vector<Piece>& to) {
  for (size_t i = 0; i < from.size(); i++) backend.copy(*from[i].buffer, from[i].offset, *to[i].buffer, to[i].offset, from[i].bytes);
}

// What the last tile of piece i, at `piece`, holds of positions from n on was there by chance.
void clear_stale(const StateShape& shape, int64_t i, int64_t n, uint8_t* piece) {
  const auto* a = std::get_if<AttentionState>(&shape);
  if (!a || n % tqn::cache::kTile == 0) return;
  const bool key = i < a->n_kv_heads;
  const CachedRow& row = key ? a->k : a->v;
  if (bits_of(row.type) == 0) return;
  clear_cached(key ? CacheSide::key : CacheSide::value, bits_of(row.type), int(row.head_dim), int(n % tqn::cache::kTile),
               piece + n / tqn::cache::kTile * row.bytes);
}

std::atomic<uint64_t> next_id{1};

}  // namespace

int bits_of(CacheElement type) { return type == CacheElement::q8 ? 8 : type == CacheElement::q4 ? 4 : 0; }

CachedRow cached_row(CacheElement type, int64_t head_dim) {
  if (const int bits = bits_of(type)) return {type, tqn::cache::tile_bytes(bits, head_dim), head_dim};
  return {type, head_dim * int64_t(type == CacheElement::f32 ? sizeof(float) : sizeof(uint16_t))};
}

int64_t CachedRow::bytes_of(int64_t positions) const { return (bits_of(type) ? tqn::cache::tiles(positions) : positions) * bytes; }

StateShape state_shape(const LayerConfig& layer, CacheElements cache) {
  return std::visit([&](const auto& mixer) { return shape_of(mixer, cache); }, layer.mixer);
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

int64_t Sequences::saved_bytes(int64_t n) const {
  int64_t bytes = int64_t(sizeof(StateHeader) + layers_.size() * sizeof(ShapeRecord));
  for (const LayerState* layer : layers_)
    for (const Piece& piece : layer->pieces(0, n)) bytes += piece.bytes;
  return bytes;
}

std::vector<uint8_t> Sequences::save(int64_t slot, int64_t n) const {
  check_rewind(slot, n);
  std::vector<uint8_t> state(size_t(saved_bytes(n)));
  uint8_t* at = state.data();
  const auto put = [&at](const auto& value) { std::memcpy(at, &value, sizeof value), at += sizeof value; };
  StateHeader header;
  header.n_layers = int64_t(layers_.size()), header.positions = n;
  put(header);
  for (const LayerState* layer : layers_) put(record_of(layer->shape()));
  for (const LayerState* layer : layers_) {
    int64_t i = 0;
    for (const Piece& piece : layer->pieces(slot, n)) {
      layer->backend().download(*piece.buffer, piece.offset, at, piece.bytes);
      clear_stale(layer->shape(), i++, n, at);
      at += piece.bytes;
    }
  }
  return state;
}

void Sequences::load(int64_t slot, std::span<const uint8_t> state) {
  check_slot(slot);
  const StateHeader expected;
  StateHeader header;
  if (state.size() < sizeof header) bad_state(std::to_string(state.size()) + " bytes are no state");
  std::memcpy(&header, state.data(), sizeof header);
  if (std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0) bad_state("not a saved state");
  if (header.version != expected.version)
    bad_state(std::string("version ") + char(std::clamp(header.version, ' ', '~')) + ", this release reads version " + expected.version);
  if (header.n_layers != int64_t(layers_.size()) || state.size() < sizeof header + layers_.size() * sizeof(ShapeRecord))
    bad_state("it belongs to another model: it has " + std::to_string(header.n_layers) + " layers, this one " +
              std::to_string(layers_.size()));
  if (header.positions < 0 || header.positions > capacity_)
    bad_state(std::to_string(header.positions) + " positions do not fit n_ctx " + std::to_string(capacity_));
  const uint8_t* at = state.data() + sizeof header;
  for (const LayerState* layer : layers_) {
    ShapeRecord record, own = record_of(layer->shape());
    std::memcpy(&record, at, sizeof record), at += sizeof record;
    if (record.k_type != own.k_type || record.v_type != own.v_type) bad_state("its cache has another type");
    if (record != own) bad_state("it belongs to another model: its layers remember something else");
  }
  if (int64_t(state.size()) != saved_bytes(header.positions))
    bad_state(std::to_string(state.size()) + " bytes, expected " + std::to_string(saved_bytes(header.positions)));
  if (header.positions == 0) return rewind(slot, 0);
  forget(slot, 0);
  for (const LayerState* layer : layers_)
    for (const Piece& piece : layer->pieces(slot, header.positions))
      layer->backend().upload(*piece.buffer, piece.offset, at, piece.bytes), at += piece.bytes;
  hold(slot, header.positions);
}

}  // namespace tq
