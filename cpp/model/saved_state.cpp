#include "model/saved_state.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "common/error.h"
#include "common/parallel.h"
#include "kernels/kernels.h"

namespace tq {
namespace {

using kernels::RotationPlan;

[[noreturn]] void bad_state(const std::string& what) { throw Error(Cause::bad_file, "state: " + what); }

struct StateHeader {
  char magic[7] = {'T', 'Q', 'S', 'T', 'A', 'T', 'E'};
  char version = '4';
  int32_t tile = tqn::cache::kTile, codes_version = tqn::cache::kCodesVersion;
  int64_t n_layers = 0, positions = 0;
};

struct ShapeRecord {
  int64_t kind = 0, n_kv_heads = 0, k_type = 0, k_bytes = 0, v_type = 0, v_bytes = 0, recurrent_bytes = 0;
  uint64_t key_statistics = 0;  // fingerprint of what codes of keys went through; 0: nothing, or no codes
  bool operator==(const ShapeRecord&) const = default;
};

ShapeRecord record_of(const StateShape& shape) {
  ShapeRecord record{.kind = int64_t(shape.index())};
  if (const auto* a = std::get_if<AttentionState>(&shape)) {
    record.n_kv_heads = a->n_kv_heads;
    record.k_type = int64_t(a->k.type), record.k_bytes = a->k.bytes;
    record.v_type = int64_t(a->v.type), record.v_bytes = a->v.bytes;
    if (bits_of(a->k.type) > 0 && a->key_statistics) record.key_statistics = a->key_statistics->fingerprint();
  } else if (const auto* r = std::get_if<RecurrentState>(&shape)) {
    record.recurrent_bytes = r->bytes;
  }
  return record;
}

const char* name_of(CacheElement type) {
  constexpr const char* names[] = {"f16", "f32", "8-bit codes", "4-bit codes"};
  return names[size_t(type)];
}

std::string types_of(const AttentionState& a) { return std::string(name_of(a.k.type)) + " and " + name_of(a.v.type); }

std::string fingerprint_text(uint64_t key_statistics) {
  if (key_statistics == 0) return "without means or balances";
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016" PRIx64, key_statistics);
  return std::string("with means or balances of the fingerprint ") + digits;
}

CachedRow row_of(int64_t type, const CachedRow& like) {
  if (type < 0 || type > int64_t(CacheElement::q4)) bad_state("type " + std::to_string(type) + " of cached numbers is unknown");
  return CacheElement(type) == like.type ? like : cached_row(CacheElement(type), like.head_dim);
}

// The shape of a record that stands for a layer like `own`, the one of that number.
StateShape shape_of(const ShapeRecord& record, const StateShape& own, size_t layer) {
  StateShape shape = own;
  if (auto* a = std::get_if<AttentionState>(&shape); a && record.kind == int64_t(own.index()))
    a->k = row_of(record.k_type, a->k), a->v = row_of(record.v_type, a->v);
  ShapeRecord expected = record_of(shape);
  const uint64_t statistics = std::exchange(expected.key_statistics, record.key_statistics);
  const auto refuse = [layer](const std::string& what) {
    bad_state("it belongs to another model: layer " + std::to_string(layer) + " " + what);
  };
  if (record.kind != expected.kind) refuse("remembers something of another kind");
  if (record.n_kv_heads != expected.n_kv_heads)
    refuse("has " + std::to_string(record.n_kv_heads) + " heads of keys, here " + std::to_string(expected.n_kv_heads));
  if (record != expected) {
    const auto bytes = [](const ShapeRecord& r) {
      return r.recurrent_bytes > 0 ? "a state of " + std::to_string(r.recurrent_bytes) + " bytes"
                                   : "keys of " + std::to_string(r.k_bytes) + " and values of " + std::to_string(r.v_bytes) + " bytes";
    };
    refuse("has " + bytes(record) + ", here " + bytes(expected));
  }
  if (record.key_statistics != statistics) {
    const auto *theirs = std::get_if<AttentionState>(&shape), *ours = std::get_if<AttentionState>(&own);
    const bool other_types = theirs && (theirs->k.type != ours->k.type || theirs->v.type != ours->v.type);
    refuse("made codes of its keys " + fingerprint_text(record.key_statistics) + ", here " + fingerprint_text(statistics) +
           (other_types ? "; it keeps keys and values as " + types_of(*theirs) + ", here as " + types_of(*ours) : ""));
  }
  return shape;
}

struct ShapedPiece {
  int64_t bytes;
  CacheSide side;
  CachedRow row;  // of a recurrent state: none
  KeyStatistics statistics{};
};

std::vector<ShapedPiece> pieces_of(const StateShape& shape, int64_t n) {
  if (n == 0 || std::holds_alternative<SharedState>(shape)) return {};
  const auto* a = std::get_if<AttentionState>(&shape);
  if (!a) return {{std::get<RecurrentState>(shape).bytes, CacheSide::key, {}}};
  std::vector<ShapedPiece> all(size_t(a->n_kv_heads), {a->k.bytes_of(n), CacheSide::key, a->k});
  if (const auto& s = a->key_statistics; s && bits_of(a->k.type) > 0)
    for (size_t head = 0; head < all.size(); head++) {
      const auto of_head = [&](const std::vector<float>& x) { return x.empty() ? nullptr : &x[head * size_t(a->k.head_dim)]; };
      all[head].statistics = {of_head(s->mean), of_head(s->balance)};
    }
  all.resize(2 * all.size(), {a->v.bytes_of(n), CacheSide::value, a->v});
  return all;
}

// One position of a piece as floats, of codes still rotated; and back.
void read_row(const ShapedPiece& piece, const uint8_t* data, int64_t position, float* x) {
  const CachedRow& row = piece.row;
  if (const int bits = bits_of(row.type))
    decode_cached(piece.side, bits, data + position / tqn::cache::kTile * row.bytes, int(position % tqn::cache::kTile), int(row.head_dim),
                  x);
  else if (row.type == CacheElement::f32)
    std::memcpy(x, data + position * row.bytes, size_t(row.bytes));
  else
    kernels::kernels().to_f32(reinterpret_cast<const uint16_t*>(data + position * row.bytes), row.head_dim, x);
}

void write_row(const ShapedPiece& piece, uint8_t* data, int64_t position, const float* x) {
  const CachedRow& row = piece.row;
  if (const int bits = bits_of(row.type))
    encode_cached(piece.side, bits, x, int(row.head_dim), int(position % tqn::cache::kTile),
                  data + position / tqn::cache::kTile * row.bytes);
  else if (row.type == CacheElement::f32)
    std::memcpy(data + position * row.bytes, x, size_t(row.bytes));
  else
    kernels::kernels().to_f16(x, row.head_dim, reinterpret_cast<uint16_t*>(data + position * row.bytes));
}

void convert_piece(const ShapedPiece& from, const uint8_t* in, const ShapedPiece& to, uint8_t* out, int64_t n, const RotationPlan& plan) {
  if (from.row == to.row) {
    std::memcpy(out, in, size_t(to.bytes));
    clear_stale(to.side, to.row, n, out);
    return;
  }
  const bool coded = bits_of(from.row.type) > 0, codes = bits_of(to.row.type) > 0;
  std::vector<float> x(size_t(to.row.head_dim));
  for (int64_t position = 0; position < n; position++) {
    read_row(from, in, position, x.data());
    if (coded && !codes) {
      kernels::kernels().rotate_inverse(plan, x.data(), x.data());
      unbalance_key(from.statistics, int(x.size()), x.data());
    } else if (!coded && codes) {
      balance_key(to.statistics, int(x.size()), x.data());
      kernels::kernels().rotate(plan, x.data(), x.data());
    }
    write_row(to, out, position, x.data());
  }
}

}  // namespace

void clear_stale(CacheSide side, const CachedRow& row, int64_t n, uint8_t* piece) {
  const int bits = bits_of(row.type), lane = int(n % tqn::cache::kTile);
  if (bits > 0 && lane > 0) clear_cached(side, bits, int(row.head_dim), lane, piece + n / tqn::cache::kTile * row.bytes);
}

int64_t saved_bytes(std::span<const StateShape> shapes, int64_t n) {
  int64_t bytes = int64_t(sizeof(StateHeader) + shapes.size() * sizeof(ShapeRecord));
  for (const StateShape& shape : shapes)
    for (const ShapedPiece& piece : pieces_of(shape, n)) bytes += piece.bytes;
  return bytes;
}

uint8_t* write_saved_header(std::span<const StateShape> shapes, int64_t n, uint8_t* state) {
  const auto put = [&state](const auto& value) { std::memcpy(state, &value, sizeof value), state += sizeof value; };
  StateHeader header;
  header.n_layers = int64_t(shapes.size()), header.positions = n;
  put(header);
  for (const StateShape& shape : shapes) put(record_of(shape));
  return state;
}

SavedState read_saved(std::span<const uint8_t> state, std::span<const StateShape> layers) {
  const StateHeader expected;
  StateHeader header;
  if (state.size() < sizeof header) bad_state(std::to_string(state.size()) + " bytes are no state");
  std::memcpy(&header, state.data(), sizeof header);
  if (std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0) bad_state("not a saved state");
  if (header.version != expected.version)
    bad_state(std::string("version ") + char(std::clamp(header.version, ' ', '~')) + ", this release reads version " + expected.version);
  if (header.tile != expected.tile)
    bad_state("tiles of " + std::to_string(header.tile) + " positions, this release has tiles of " + std::to_string(expected.tile));
  if (header.codes_version != expected.codes_version)
    bad_state("codes of version " + std::to_string(header.codes_version) + ", this release has version " +
              std::to_string(expected.codes_version));
  if (header.n_layers != int64_t(layers.size()) || state.size() < sizeof header + layers.size() * sizeof(ShapeRecord))
    bad_state("it belongs to another model: it has " + std::to_string(header.n_layers) + " layers, this one " +
              std::to_string(layers.size()));
  if (header.positions < 0 || header.positions > INT32_MAX) bad_state(std::to_string(header.positions) + " positions");
  SavedState read;
  read.positions = header.positions;
  const uint8_t* at = state.data() + sizeof header;
  for (size_t i = 0; i < layers.size(); i++) {
    ShapeRecord record;
    std::memcpy(&record, at, sizeof record), at += sizeof record;
    read.shapes.push_back(shape_of(record, layers[i], i));
  }
  if (int64_t(state.size()) != saved_bytes(read.shapes, read.positions))
    bad_state(std::to_string(state.size()) + " bytes, expected " + std::to_string(saved_bytes(read.shapes, read.positions)));
  read.pieces = at;
  return read;
}

void check_same_types(const SavedState& state, std::span<const StateShape> layers) {
  for (size_t i = 0; i < layers.size(); i++) {
    const auto *theirs = std::get_if<AttentionState>(&state.shapes[i]), *ours = std::get_if<AttentionState>(&layers[i]);
    if (!theirs || (theirs->k.type == ours->k.type && theirs->v.type == ours->v.type)) continue;
    bad_state("its cache has another type: layer " + std::to_string(i) + " keeps keys and values as " + types_of(*theirs) + ", here as " +
              types_of(*ours));
  }
}

std::vector<uint8_t> convert_saved(const SavedState& state, int64_t n, std::span<const StateShape> to) {
  if (n < 0 || n > state.positions)
    throw Error(Cause::invalid_argument,
                "a state of " + std::to_string(state.positions) + " positions has no first " + std::to_string(n) + " of them");
  std::vector<uint8_t> converted(size_t(saved_bytes(to, n)));
  uint8_t* out = write_saved_header(to, n, converted.data());
  const uint8_t* in = state.pieces;
  struct Job {
    ShapedPiece from, to;
    const uint8_t* in;
    uint8_t* out;
    const RotationPlan* plan;
  };
  std::vector<Job> jobs;
  std::map<int64_t, RotationPlan> plans;  // by head_dim
  for (size_t i = 0; i < to.size(); i++) {
    if (std::holds_alternative<RecurrentState>(to[i]) && n != 0 && n != state.positions)
      throw Error(Cause::unsupported, "the model has recurrent layers: a state after " + std::to_string(state.positions) +
                                          " positions cannot be cut to " + std::to_string(n));
    const std::vector<ShapedPiece> sources = pieces_of(state.shapes[i], state.positions), targets = pieces_of(to[i], n);
    for (size_t p = 0; p < sources.size(); p++) {
      if (n > 0) {
        const int64_t dim = targets[p].row.head_dim;
        auto& plan = plans[dim];
        if (dim > 0 && plan.n != dim) plan = RotationPlan::make(dim, tqn::cache::kRotationSeed);
        jobs.push_back({sources[p], targets[p], in, out, &plan});
        out += targets[p].bytes;
      }
      in += sources[p].bytes;
    }
  }
  Progress progress;
  parallel_for(int64_t(jobs.size()), 0, progress, [&](int64_t i, int) {
    const Job& job = jobs[size_t(i)];
    convert_piece(job.from, job.in, job.to, job.out, n, *job.plan);
  });
  return converted;
}

}  // namespace tq
